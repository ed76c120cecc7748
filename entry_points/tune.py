"""Search settings of the directional parts with Optuna: one study, as many workers and machines as there are.

The objective is measured on held-out normals and copies of them with synthetic bands, so that no test image
chooses a setting. The same command again goes on, with more trials adds trials, and on another machine with
the same storage (PostgreSQL) joins in.
"""

import os
from typing import TYPE_CHECKING

from dinomaly_hd.config.base import Count, PositiveCount, doc, names_in
from dinomaly_hd.config.resolve import resolve_config
from dinomaly_hd.config.run import RunConfig
from dinomaly_hd.errors import ConfigError
from entry_points.common import (
    ROOT,
    EngineOptions,
    SeedsOptions,
    Start,
    entry_point,
    launch,
    of_members,
)

if TYPE_CHECKING:
    from dinomaly_hd.runs.folder import Context
    from dinomaly_hd.tuning.study import Plan

OF_RUNS = {"maps_per_group": "0", "synthetic_copies": "8"}
"""What a study has differently from a run by itself, beside val_check_interval, which the pruner sets."""
INSTEAD = {"configs": "config", "resume": "study"}
AS_GIVEN = {"study", "trials", "config", "objective", "seeds", "sampler", "pruner", "heartbeat_s"}
LOOKS = 10
"""Times that a trial is looked at during its training, to be given up or not."""


class Options(SeedsOptions, EngineOptions):
    study: str = doc("study", "its name: the same name goes on with it")
    storage: str = doc(
        "auto",
        "auto: DINOMALY_HD_STORAGE, else optuna.db beside mlflow.db; sqlite:///FILE; "
        "postgresql://USER@HOST/NAME",
    )
    trials: PositiveCount = doc(20, "finished or given up, after which the study is over")
    workers: Count = doc(1, "processes that run trials here, one a GPU where there are GPUs")
    config: str = doc(
        "F", "what is searched around: a config of the ablation, a variant or a family, with changes"
    )
    space: str = doc(
        "row_p,seg_len,seg_drop_p,elem_p,q_percent,disable_segment,use_topk,tail_context,row_context",
        "what is searched: some of these",
    )
    objective: str = doc("synthetic", "synthetic: bands on held-out normals; test: test images, marked")
    metrics: str = doc(
        "domain_C/tpr_at_fpr_1", "maximised, one or two: DOMAIN or mean / auroc, tpr_at_fpr_1, tpr_at_fpr_5"
    )
    sampler: str = doc("tpe", "tpe, gp (Gaussian process), random")
    pruner: str = doc("auto", "auto: give up trials by steps, with 3 seeds or more by seeds; none")
    heartbeat_s: PositiveCount = doc(60, "seconds between signs of life; after three a trial is tried again")


def prepare(start: Start[Options]) -> tuple["Plan", "Context"]:
    """Return the study that flags ask for, and its surroundings."""
    options = start.options
    from dinomaly_hd.experiments.checks import with_found_domains
    from dinomaly_hd.models.build import check_model
    from dinomaly_hd.tuning.space import make_space
    from dinomaly_hd.tuning.storage import address_of
    from dinomaly_hd.tuning.study import SYNTHETIC, Plan

    address = address_of(options.storage, root=ROOT)
    if address.has_password and options.storage != "auto" and "MLFLOW_RUN_ID" in os.environ:
        raise ConfigError(
            f"storage={address.shown}: `mlflow run` records its parameters, this password too: delete that "
            "run, and give the address in DINOMALY_HD_STORAGE or the password in PGPASSWORD or ~/.pgpass"
        )
    values = {**OF_RUNS, **start.asked.values}
    watched = options.objective == SYNTHETIC and options.pruner == "auto" and len(options.seeds) == 1
    if watched and "val_check_interval" not in values:
        steps = resolve_config(options.config, values).training.max_steps
        if steps:  # else nothing is learned step by step
            values["val_check_interval"] = str(max(1, steps // LOOKS))

    def build(config: str, seed: int) -> RunConfig:
        return with_found_domains(resolve_config(config, {**values, "seed": str(seed)}))

    space = make_space(
        names_in(options.space),
        base=options.config,
        build=lambda config: build(config, options.seeds[0]),
        check=check_model,
    )
    plan = Plan(
        address=address,
        space=space,
        metrics=names_in(options.metrics),
        build=build,
        **options.model_dump(include=AS_GIVEN),
    )
    storage = None if options.storage == "auto" else address.shown
    return plan, start.context(storage=storage)


def tune(start: Start[Options]) -> None:
    options, (plan, context) = start.options, prepare(start)
    # For workers that start elsewhere.
    given = {
        name: text for name, text in start.asked.given.items() if name not in ("storage", "workers", "engine")
    }
    given["result_dir"] = str(context.result_dir.absolute())
    if context.feature_place is not None:
        given["feature_dir"] = str(context.feature_place.folder)
    from dinomaly_hd.experiments.study import run_study
    from dinomaly_hd.jobs.job import Slots

    slots = Slots(options.engine, options.workers, options.ray_address or "")
    run_study(plan, context, slots=slots, flags=given)


COMMAND, main = entry_point("tune", __doc__, Options, tune, runs=of_members(), instead=INSTEAD)

if __name__ == "__main__":
    raise SystemExit(launch(main))
