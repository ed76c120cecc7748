"""What every entry point shares: signals, errors as one line with an exit code, the run's surroundings."""

import gc
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Generic

from pydantic import Field

from dinomaly_hd.config.base import Frozen, NonNegative, doc, with_values
from dinomaly_hd.config.presets import AUTO, Fields, all_of, any_of
from dinomaly_hd.config.resolve import (
    Asked,
    Command,
    Numbers,
    Options,
    OrAuto,
    preset_name,
    resolve_config,
    resolve_model,
)
from dinomaly_hd.config.variants import VARIANTS, WITH_TOPK
from dinomaly_hd.errors import DinomalyHDError, Interrupted, SignalGuard
from entry_points import ACTIVATE

if TYPE_CHECKING:
    from dinomaly_hd.config.run import RunConfig
    from dinomaly_hd.data.feature_files import FeaturePlace
    from dinomaly_hd.runs.folder import Context

Work = Callable[[], object]
Main = Callable[[Sequence[str], SignalGuard], Work | None]
"""Does an entry point's work, or returns it, so that a run does not stand over the reading of flags."""

EXPERIMENT = "dinomaly-hd"
FEATURES, FEATURES_VARIABLE = ".features", "DINOMALY_HD_FEATURES"
ROOT = Path(__file__).resolve().parent.parent
OURS = ("dinomaly_hd", "entry_points")
MEMBERS = {"maps_per_group": "2"}
"""What a comparison has differently from a run by itself: it draws fewer anomaly maps of each member."""
PER_MEMBER = ("seed", "class_token", "stop_step", "start_from", "train_domains", "use_topk")
"""Values of a run that a comparison sets for each member."""
OBJECTS_UNTIL_COLLECTION = 10_000
"""Until Python looks for garbage. Its own 700 send it through half a million imported objects over and over,
a quarter of the imports' time."""
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "RAY_USAGE_STATS_ENABLED": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}
say = partial(print, flush=True)


# ---- options that several have ----

Experiment = Annotated[str, Field(description="MLflow experiment (mlflow run chooses its own)")]
ResultDir = Annotated[Path, Field(description="folder of all run folders")]


class FeatureOptions(Frozen):
    result_dir: ResultDir = Path("results")
    experiment: Experiment = EXPERIMENT
    feature_dir: OrAuto[Path] = doc(
        None, "encoded images that all runs read; auto: DINOMALY_HD_FEATURES, else .features"
    )
    feature_gb: OrAuto[NonNegative] = doc(
        None, "GiB of feature_dir; auto: a quarter of the free disk, 50 at most; 0: none"
    )

    @property
    def feature_place(self) -> "FeaturePlace | None":
        """Where encoder outputs are kept in files, None where ``feature_gb=0`` keeps none."""
        from dinomaly_hd.data.feature_files import FeaturePlace

        if self.feature_gb == 0:
            return None
        folder = self.feature_dir or Path(os.environ.get(FEATURES_VARIABLE) or ROOT / FEATURES)
        return FeaturePlace(folder.expanduser().absolute(), self.feature_gb)


class SurroundingsOptions(FeatureOptions):
    """What surrounds a run and changes none of its numbers."""

    run_name: OrAuto[str] = doc(None, "auto: {variant}-{domains}-s{seed}")
    seeds: OrAuto[Numbers] = doc(None, "comma-separated, reported on together; auto: the one seed")


class RunOptions(SurroundingsOptions):
    resume: str = doc(
        AUTO, "auto: go on with an interrupted run of the same configuration; never; or a run id or folder"
    )


class TrainingOptions(RunOptions):
    mode: str = doc(
        "multiclass",
        "multiclass (one model), singleclass (one a domain), compare (both, and their differences)",
    )


class EngineOptions(Frozen):
    engine: str = doc("local", "local: this machine; ray: also others, with a Ray of its own or a cluster")
    ray_address: OrAuto[str] = doc(None, "HOST:PORT of a Ray cluster's head; auto: a Ray of its own")


class SeedsOptions(RunOptions):
    seeds: Numbers = doc((42,), "comma-separated; the final comparison's five: 42,43,44,123,456")


class ConfigOptions(SeedsOptions):
    config: str = doc("D", "what is trained: the ablation's config, a variant or family: A0, F:q_percent=1")


# ---- from a module to its end ----


@dataclass(frozen=True)
class Start(Generic[Options]):
    """One start of an entry point: what its flags ask for, and the signals that may end it."""

    asked: Asked[Options]
    guard: SignalGuard

    @property
    def options(self) -> Options:
        """The entry point's own flags."""
        return self.asked.options

    def context(self: "Start[SurroundingsOptions]", **spelt_out: object) -> "Context":
        """Return what surrounds a run; its command spells out preset, seeds and more."""
        from dinomaly_hd.runs.folder import Context

        asked, options = self.asked, self.options
        preset = preset_name(asked.values.get("preset", AUTO))
        return Context(
            root=ROOT,
            result_dir=options.result_dir,
            feature_place=options.feature_place,
            experiment=options.experiment,
            run_name=options.run_name,
            resume=asked.given.get("resume", AUTO),
            guard=self.guard,
            say=say,
            command=asked.command(preset=preset, seeds=options.seeds, **spelt_out),
            entry_point=asked.entry_point,
        )

    def member(self, config: str, seed: int, **own: str) -> "RunConfig":
        """Return a comparison's run of a config and a seed, with its own values over the user's."""
        from dinomaly_hd.experiments.checks import with_found_domains

        values = {**MEMBERS, **self.asked.values, **own, "seed": str(seed)}
        return with_found_domains(resolve_config(config, values))


def entry_point(
    name: str,
    doc: str | None,
    options: type[Options],
    work: Callable[[Start[Options]], Work | None],
    *,
    runs: Callable[[], Fields] = dict,
    instead: Mapping[str, str] | None = None,
) -> tuple[Command[Options], Main]:
    """Return command and main function of a module; ``runs`` and ``instead`` are as in ``Command``."""
    command = Command(name, doc, options, runs, instead or {})
    return command, lambda argv, guard: work(Start(command.parse(argv), guard))


def comparison(
    name: str,
    doc: str | None,
    options: type[Options],
    work: Callable[[Start[Options]], None],
    *without: str,
    **instead: str,
) -> tuple[Command[Options], Main]:
    """Return those of a comparison: it takes what all variants have and it does not set itself."""
    fields = partial(all_of, VARIANTS, without=(*PER_MEMBER, *without))
    return entry_point(name, doc, options, work, runs=fields, instead={"seed": "seeds", **instead})


def training(variant: str, doc: str | None) -> tuple[Command[TrainingOptions], Main]:
    """Return those of a variant; ``use_topk`` may choose another one."""
    variants = [variant, *([WITH_TOPK[variant]] if variant in WITH_TOPK else [])]
    return entry_point(variant, doc, TrainingOptions, train, runs=lambda: any_of(variants))


def train(start: Start[TrainingOptions]) -> Work:
    """Return what trains a variant once on all domains, or as ``mode`` and ``seeds`` say."""
    run = resolve_model(start.asked.entry_point, start.asked.values)
    context = start.context(seed=run.seed)
    mode, seeds = start.options.mode, start.options.seeds or (run.seed,)
    from dinomaly_hd.experiments.protocols import run_mode
    from dinomaly_hd.experiments.run import execute

    if mode == "multiclass" and len(seeds) == 1:
        return partial(execute, with_values(run, {"seed": seeds[0]}), context)
    return partial(run_mode, run, context, mode=mode, seeds=seeds)


def launch(main: Main, argv: Sequence[str] | None = None) -> int:
    """Run an entry point; return 0, or an error's exit code after one line on standard error.

    A bug shows its traceback and is 70.
    """
    gc.set_threshold(OBJECTS_UNTIL_COLLECTION)
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        with SignalGuard() as guard:
            work = main(sys.argv[1:] if argv is None else argv, guard)
            if work is not None:
                work()
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
