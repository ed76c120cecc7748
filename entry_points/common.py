"""What every entry point shares: signals, errors as one line with an exit code, the run's surroundings."""

import gc
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Generic

from pydantic import Field

from dinomaly_hd.config import resolve
from dinomaly_hd.config.base import Frozen, NonNegative, doc
from dinomaly_hd.config.dinomaly import PLUGIN_VARIABLE
from dinomaly_hd.config.presets import AUTO, Fields, all_of, any_of
from dinomaly_hd.config.resolve import Asked, Command, Options, OrAuto
from dinomaly_hd.config.variants import VARIANTS, WITH_TOPK
from dinomaly_hd.errors import DinomalyHDError, Interrupted, SignalGuard
from dinomaly_hd.progress import say as say
from dinomaly_hd.streams import outlive_readers
from entry_points import ACTIVATE

if TYPE_CHECKING:
    from dinomaly_hd.config.run import RunConfig
    from dinomaly_hd.data.feature_files import FeaturePlace
    from dinomaly_hd.runs.folder import Context

Work = Callable[[], object]
Main = Callable[[Sequence[str], SignalGuard], Work | None]
"""Does an entry point's work, or returns it, so that a run does not stand over the reading of flags."""

EXPERIMENT = "dinomaly-hd"
CLONE = Path(__file__).resolve().parent.parent
# Where MLflow's database and simulated data lie: the clone, or the current folder where a wheel is installed.
ROOT = CLONE if (CLONE / "MLproject").is_file() else Path.cwd()
PER_MEMBER = ("class_token", "stop_step", "start_from", "train_domains", "use_topk")
"""Values of a run that a comparison sets for each member."""
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "RAY_USAGE_STATS_ENABLED": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}


# ---- options that several have ----


class ResultOptions(Frozen):
    result_dir: Path = doc(Path("results"), "folder of all run folders")


class PluginOptions(Frozen):
    plugin: OrAuto[Path] = doc(None, "Python file of yours with variants, which is run (docs/models.md)")


class ModelOptions(ResultOptions, PluginOptions):
    run: str = Field(
        description="run folder, its name, its MLflow run id, runs:/ID, models:/NAME/VERSION, "
        "models:/NAME@ALIAS, or a run's checkpoint (RUN/checkpoints/step_00000400.pt)"
    )


class StoreOptions(ResultOptions):
    experiment: str = doc(EXPERIMENT, "MLflow experiment (mlflow run chooses its own)")


class FeatureOptions(StoreOptions):
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
        folder = self.feature_dir or Path(os.environ.get("DINOMALY_HD_FEATURES") or ROOT / ".features")
        return FeaturePlace(folder.expanduser().absolute(), self.feature_gb)


class SeedsOptions(FeatureOptions):
    run_name: OrAuto[str] = doc(None, "auto: {variant}-{domains}-s{seed}")
    seeds: resolve.Seeds = doc(
        (resolve.FIRST_SEED,),
        "of initial weights, order, dropout and the held-out split; several are reported on together, and "
        "averaged in a study: 42,43,44, or the final comparison's 42,43,44,123,456",
    )


class RunOptions(SeedsOptions):
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


class ConfigOptions(RunOptions, PluginOptions):
    config: str = doc("D", "what is trained: an ablation's config, variant, family: cfg-A, cfg-F:q_percent=1")


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

    def context(self: "Start[SeedsOptions]", **spelt_out: object) -> "Context":
        """Return what surrounds a run; its command spells out preset, seeds and more."""
        from dinomaly_hd.runs.folder import Context

        asked, options = self.asked, self.options
        preset = resolve.preset_name(asked.values.get("preset", AUTO))
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

        values = {**resolve.MEMBERS, **self.asked.values, **own, "seed": str(seed)}
        return with_found_domains(resolve.resolve_config(config, values))


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


def first_word_as(flag: str, main: Main) -> Main:
    """Let the first word be a flag's value: ``init FOLDER``."""

    def with_flag(argv: Sequence[str], guard: SignalGuard) -> Work | None:
        bare = bool(argv) and not argv[0].startswith("-")
        return main([f"--{flag}={argv[0]}", *argv[1:]] if bare else argv, guard)

    return with_flag


def of_members(*without: str) -> Callable[[], Fields]:
    """Return what gives the values of a comparison: those of all variants that it does not set itself."""
    return partial(all_of, VARIANTS, without=(*PER_MEMBER, *without))


def training(variant: str, doc: str | None) -> tuple[Command[TrainingOptions], Main]:
    """Return those of a variant; ``use_topk`` may choose another one."""
    variants = [variant, *([WITH_TOPK[variant]] if variant in WITH_TOPK else [])]
    return entry_point(variant, doc, TrainingOptions, train, runs=lambda: any_of(variants))


def run_of(asked: Asked[TrainingOptions]) -> "RunConfig":
    """Return a variant's run with the first of its seeds."""
    return resolve.resolve_model(asked.entry_point, {**asked.values, "seed": str(asked.options.seeds[0])})


def train(start: Start[TrainingOptions]) -> Work:
    """Return what trains a variant once on all domains, or as ``mode`` and ``seeds`` say."""
    run, context = run_of(start.asked), start.context()
    mode, seeds = start.options.mode, start.options.seeds
    from dinomaly_hd.experiments.protocols import run_mode
    from dinomaly_hd.experiments.run import execute

    if mode == "multiclass" and len(seeds) == 1:
        return partial(execute, run, context)
    return partial(run_mode, run, context, mode=mode, seeds=seeds)


def launch(main: Main, argv: Sequence[str] | None = None) -> int:
    """Run an entry point; return 0, or an error's exit code after one line on standard error.

    A bug shows its traceback and is 70.
    """
    outlive_readers()
    # Python's own 700 send the collector through half a million imported objects over and over, a quarter of
    # the imports' time.
    gc.set_threshold(10_000)
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        with SignalGuard() as guard:
            argv = sys.argv[1:] if argv is None else argv
            flag = resolve.value_of("plugin", argv)
            if flag or os.environ.get(PLUGIN_VARIABLE):  # before flags are read: it may add some
                from dinomaly_hd.plugin import load_named

                load_named(flag)
            work = main(argv, guard)
            if work is not None:
                work()
            print(end="", flush=True)  # else what cannot be written is an error of the interpreter's end
    except Interrupted as stop:
        print(f"stopped by signal {stop.signal_number}; the same command goes on from here", file=sys.stderr)
        return 128 + stop.signal_number
    except DinomalyHDError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("dinomaly_hd", "entry_points"):
            raise
        print(f"{error.name} is not installed for {sys.executable}; {ACTIVATE}", file=sys.stderr)
        return DinomalyHDError.exit_code
    except Exception:
        traceback.print_exc()
        print("this is a bug in Dinomaly-HD; please report it with the lines above", file=sys.stderr)
        return 70
    return 0
