"""What every entry point shares: signals, errors as one line with an exit code, and the run's surroundings."""

import os
import shlex
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dinomaly_hd.errors import DinomalyHDError, Interrupted

if TYPE_CHECKING:
    from dinomaly_hd.experiments.context import Context
    from dinomaly_hd.training.guards import SignalGuard

ROOT = Path(__file__).resolve().parent.parent
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "RAY_USAGE_STATS_ENABLED": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


def launch(main: Callable[[Sequence[str], "SignalGuard"], None]) -> None:
    """Run an entry point and leave the process with its exit code (spec/reliability.md)."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    sys.exit(exit_code(main, sys.argv[1:]))


def exit_code(main: Callable[[Sequence[str], "SignalGuard"], None], argv: Sequence[str]) -> int:
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
    except Exception:
        traceback.print_exc()
        print("this is a bug in Dinomaly-HD; please report it with the lines above", file=sys.stderr)
        return 70
    return 0


def context_of(entry_point: str, argv: Sequence[str], values: Mapping[str, str], guard: "SignalGuard") -> "Context":
    """Return where results go and what is said about the run."""
    from dinomaly_hd.experiments.context import Context
    from dinomaly_hd.flags import AUTO, OPTIONS

    option = {name: values.get(name, default) for name, (default, _) in OPTIONS.items()}
    return Context(
        root=ROOT,
        result_dir=Path(option["result_dir"]),
        experiment=option["experiment"],
        run_name=None if option["run_name"] == AUTO else option["run_name"],
        resume=option["resume"],
        guard=guard,
        say=say,
        command=f"python -m entry_points.{entry_point} {shlex.join(argv)}".strip(),
        entry_point=entry_point,
    )


def train_variant(variant: str, *, doc: str, switches: Mapping[str, str]) -> None:
    """Be the entry point of one Dinomaly variant.

    Args:
        variant: Name in ``VARIANTS``.
        doc: Its description.
        switches: Further flags, name -> help.
    """

    def main(argv: Sequence[str], guard: "SignalGuard") -> None:
        from dinomaly_hd.flags import accepted_by, parse, resolve
        from dinomaly_hd.variants import WITH_TOPK

        variants = [variant, *([WITH_TOPK[variant]] if "use_topk" in switches else [])]
        values = parse(variant, argv, accepted=accepted_by(variants, extra=switches), doc=doc)
        run = resolve(variant, values)
        from dinomaly_hd.experiments.training_run import execute

        execute(run, context_of(variant, argv, values, guard))

    launch(main)
