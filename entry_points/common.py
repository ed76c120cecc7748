"""What every entry point shares: signals, errors as one line with an exit code, the run's surroundings."""

import gc
import math
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dinomaly_hd.errors import DinomalyHDError, Interrupted
from dinomaly_hd.flag_texts import AUTO, Option

if TYPE_CHECKING:
    from dinomaly_hd.config import RunConfig
    from dinomaly_hd.data.feature_files import FeaturePlace
    from dinomaly_hd.runs.context import Context
    from dinomaly_hd.training.guards import SignalGuard

Main = Callable[[Sequence[str], "SignalGuard"], None]

FEATURES, FEATURES_VARIABLE = ".features", "DINOMALY_HD_FEATURES"
ROOT = Path(__file__).resolve().parent.parent
OURS = ("dinomaly_hd", "entry_points")
ACTIVATE = "run `make setup` once, then `source .venv/bin/activate`"
MODES = {
    "mode": Option(
        "multiclass",
        "multiclass (one model), singleclass (one a domain), compare (both, and their differences)",
    ),
    "seeds": Option(AUTO, "comma-separated, reported on together; auto: the one seed"),
}
"""Switches of every variant's entry point."""
OBJECTS_UNTIL_COLLECTION = 10_000
"""Until Python looks for garbage. Its own 700 send it through half a million imported objects over and over,
a quarter of the imports' time."""
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "RAY_USAGE_STATS_ENABLED": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}


class Prepared(NamedTuple):
    """A resolved config, where its results go, and the entry point's own switches as text."""

    run: "RunConfig"
    context: "Context"
    switches: dict[str, str]


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


def launch(main: Main) -> None:
    """Run an entry point and leave the process with its exit code."""
    gc.set_threshold(OBJECTS_UNTIL_COLLECTION)
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    sys.exit(exit_code(main, sys.argv[1:]))


def exit_code(main: Main, argv: Sequence[str]) -> int:
    """Return 0, or an error's code after one line on standard error; a bug shows its traceback and is 70."""
    from dinomaly_hd.training.guards import SignalGuard

    try:
        with SignalGuard() as guard:
            main(argv, guard)
    except Interrupted as stop:
        print(f"stopped by signal {stop.signal_number}; the same command goes on from here", file=sys.stderr)
        return 128 + stop.signal_number
    except DinomalyHDError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in OURS:
            raise
        print(f"{error.name} is not installed for {sys.executable}; {ACTIVATE}", file=sys.stderr)
        return DinomalyHDError.exit_code
    except Exception:
        traceback.print_exc()
        print("this is a bug in Dinomaly-HD; please report it with the lines above", file=sys.stderr)
        return 70
    return 0


def prepare(
    entry_point: str,
    argv: Sequence[str],
    guard: "SignalGuard",
    *,
    doc: str | None,
    switches: Mapping[str, Option],
) -> Prepared:
    """Turn the flags of a training entry point, named like its variant, into a config and its surroundings.

    Args:
        entry_point: Name of the entry point and of its variant.
        argv: Flags.
        guard: Of the process.
        doc: Description for ``--help``.
        switches: Flags beyond config and options.

    Raises:
        ConfigError: A flag or value is wrong.
    """
    from dinomaly_hd.flags import accepted_by, parse, resolve

    accepted = accepted_by(variants_of(entry_point, switches), switches=switches)
    values = parse(entry_point, argv, accepted=accepted, doc=doc or "")
    run = resolve(entry_point, values)
    defaults = training_defaults(entry_point, switches)
    told = {**values, "seed": str(run.seed)}
    context = context_of(
        values,
        guard,
        entry_point=entry_point,
        command=repeating_command(entry_point, told, preset=run.preset, defaults=defaults),
    )
    return Prepared(run, context, {name: values.get(name, own.default) for name, own in switches.items()})


def variants_of(entry_point: str, switches: Mapping[str, Option]) -> list[str]:
    """Return the variants that an entry point can train."""
    from dinomaly_hd.variants import WITH_TOPK

    return [entry_point, *([WITH_TOPK[entry_point]] if "use_topk" in switches else [])]


def training_defaults(entry_point: str, switches: Mapping[str, Option]) -> dict[str, str]:
    """Return name -> default of every flag of a training entry point."""
    from dinomaly_hd.flag_texts import OPTIONS
    from dinomaly_hd.flags import project_defaults

    defaults = {name: option.default for name, option in {**OPTIONS, **switches}.items()}
    return defaults | project_defaults(variants_of(entry_point, switches))


def repeating_command(
    entry_point: str, values: Mapping[str, str], *, preset: str, defaults: Mapping[str, str]
) -> str:
    """Return the shortest command that repeats a run: what is not default, with seed and preset spelt out."""
    spelt_out = {name: values[name] for name in ("seed", "seeds") if name in values}
    told = {name: value for name, value in values.items() if value != defaults.get(name) and name != "resume"}
    told = {**told, "preset": preset, **spelt_out}
    return shlex.join(
        ["python", "-m", f"entry_points.{entry_point}", *(f"--{n}={v}" for n, v in told.items())]
    )


def context_of(
    values: Mapping[str, str], guard: "SignalGuard", *, entry_point: str, command: str
) -> "Context":
    """Return where results go and what is said about the run."""
    from dinomaly_hd.flag_texts import OPTIONS
    from dinomaly_hd.runs.context import Context

    option = {name: values.get(name, own.default) for name, own in OPTIONS.items()}
    return Context(
        root=ROOT,
        result_dir=Path(option["result_dir"]),
        feature_place=feature_place(option["feature_dir"], option["feature_gb"]),
        experiment=option["experiment"],
        run_name=None if option["run_name"] == AUTO else option["run_name"],
        resume=option["resume"],
        guard=guard,
        say=say,
        command=command,
        entry_point=entry_point,
    )


def feature_place(folder: str, budget: str) -> "FeaturePlace | None":
    """Return where encoder outputs are kept in files, None where ``feature_gb=0`` keeps none.

    Raises:
        ConfigError: The budget is no number from 0 on.
    """
    from dinomaly_hd.data.feature_files import FeaturePlace
    from dinomaly_hd.errors import ConfigError

    try:
        budget_gb = None if budget == AUTO else float(budget)
    except ValueError:
        budget_gb = -1.0
    if budget_gb is not None and not 0 <= budget_gb < math.inf:
        raise ConfigError(f"feature_gb={budget!r}: expected GiB from 0 on, or {AUTO}")
    if folder == AUTO:
        folder = os.environ.get(FEATURES_VARIABLE, "") or str(ROOT / FEATURES)
    return None if budget_gb == 0 else FeaturePlace(Path(folder).expanduser().absolute(), budget_gb)


def variant_main(variant: str, *, doc: str | None, switches: Mapping[str, Option]) -> Main:
    """Return the main function of a variant's entry point: one unified training, or what ``mode`` says."""

    def main(argv: Sequence[str], guard: "SignalGuard") -> None:
        from dinomaly_hd.flags import whole_numbers

        run, context, chosen = prepare(variant, argv, guard, doc=doc, switches=switches)
        seeds = (run.seed,) if chosen["seeds"] == AUTO else whole_numbers("seeds", chosen["seeds"])
        from dinomaly_hd.experiments.protocols import run_mode

        run_mode(run, context, mode=chosen["mode"], seeds=seeds)

    return main
