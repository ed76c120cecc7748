"""Search settings of the directional parts with Optuna: one study, as many workers and machines as there are.

The objective is measured on held-out normals and copies of them with synthetic bands, so that no test image
chooses a setting. The same command again goes on, with more trials adds trials, and on another machine with
the same storage (PostgreSQL) joins in.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from dinomaly_hd.config import names_in
from dinomaly_hd.errors import ConfigError
from dinomaly_hd.flag_texts import AUTO, Option
from dinomaly_hd.flags import preset_name, resolve_config
from entry_points import comparisons
from entry_points.common import ROOT, launch, repeating_command
from entry_points.comparisons import prepare
from entry_points.slots import ENGINE, slots_of

if TYPE_CHECKING:
    from dinomaly_hd.config import RunConfig
    from dinomaly_hd.runs.context import Context
    from dinomaly_hd.training.guards import SignalGuard
    from dinomaly_hd.tuning.study import Plan

OWN = {"maps_per_group": "0", "synthetic_copies": "8"}
"""Defaults that differ from a single run's, beside val_check_interval, which the pruner sets."""
LOOKS = 10
"""Times that a trial is looked at during its training, to be given up or not."""
SWITCHES = {
    "study": Option("study", "its name: the same name goes on with it"),
    "storage": Option(
        AUTO,
        "auto: DINOMALY_HD_STORAGE, else optuna.db beside mlflow.db; sqlite:///FILE; postgresql://USER@HOST/NAME",
    ),
    "trials": Option("20", "finished or given up, after which the study is over"),
    "workers": Option("1", "processes that run trials here, one a GPU where there are GPUs"),
    **ENGINE,
    "config": Option("F", "what is searched around: a config of the ablation or a variant, with changes"),
    "space": Option(
        "row_p,seg_len,seg_drop_p,elem_p,q_percent,disable_segment,use_topk,tail_context,row_context",
        "what is searched: some of these",
    ),
    "objective": Option("synthetic", "synthetic: bands on held-out normals; test: test images, marked"),
    "metrics": Option(
        "domain_C/tpr_at_fpr_1", "maximised, one or two: DOMAIN or mean / auroc, tpr_at_fpr_1, tpr_at_fpr_5"
    ),
    "seeds": Option("42", "comma-separated; a trial is the mean of them"),
    "sampler": Option("tpe", "tpe, gp (Gaussian process), random"),
    "pruner": Option("auto", "auto: give up trials by steps, with 3 seeds or more by seeds; none"),
    "heartbeat_s": Option("60", "seconds between signs of life; after three a trial is tried again"),
}


class Prepared(NamedTuple):
    """A study, its surroundings, and every flag that was given."""

    plan: "Plan"
    context: "Context"
    switches: Mapping[str, str]
    flags: dict[str, str]


def defaults_of(switches: Mapping[str, Option]) -> dict[str, str]:
    """Return name -> default of every flag."""
    every = {**comparisons.defaults_of(switches), **OWN, "val_check_interval": AUTO}
    del every["resume"]  # a study of the same name always goes on
    return every


def prepare_study(argv: Sequence[str], guard: "SignalGuard") -> Prepared:
    """Turn flags into a study.

    Raises:
        ConfigError: A flag or value is wrong.
    """
    flags = prepare(
        "tune",
        argv,
        guard,
        doc=__doc__,
        switches=SWITCHES,
        resolve=resolve_config,
        defaults=defaults_of(SWITCHES),
        instead={"seed": "seeds", "configs": "config", "resume": "study"},
    )
    chosen = flags.switches
    from dinomaly_hd.models.build import check_model
    from dinomaly_hd.tuning.space import make_space
    from dinomaly_hd.tuning.storage import address_of
    from dinomaly_hd.tuning.study import SYNTHETIC, Plan

    address = address_of(chosen["storage"], root=ROOT)
    if address.has_password and chosen["storage"] != AUTO and "MLFLOW_RUN_ID" in os.environ:
        raise ConfigError(
            f"storage={address.shown}: `mlflow run` records its parameters, this password too: delete that "
            "run, and give the address in DINOMALY_HD_STORAGE or the password in PGPASSWORD or ~/.pgpass"
        )
    own = _defaults_of_runs(flags, watched=chosen["objective"] == SYNTHETIC and chosen["pruner"] == AUTO)

    def build(config: str, seed: int) -> "RunConfig":
        return flags.build(config, seed, own)

    plan = Plan(
        study=chosen["study"],
        address=address,
        trials=_whole("trials", chosen["trials"]),
        config=chosen["config"],
        space=make_space(
            names_in(chosen["space"]),
            base=chosen["config"],
            build=lambda config: build(config, flags.seeds[0]),
            check=check_model,
        ),
        objective=chosen["objective"],
        metrics=names_in(chosen["metrics"]),
        seeds=flags.seeds,
        sampler=chosen["sampler"],
        pruner=chosen["pruner"],
        heartbeat_s=_whole("heartbeat_s", chosen["heartbeat_s"]),
        build=build,
    )
    given = {**flags.common, **chosen}
    shown = {**given, **({} if chosen["storage"] == AUTO else {"storage": address.shown})}
    preset = preset_name(given.get("preset", AUTO))
    command = repeating_command("tune", shown, preset=preset, defaults=defaults_of(SWITCHES))
    return Prepared(plan, replace(flags.context, command=command), chosen, given)


def main(argv: Sequence[str], guard: "SignalGuard") -> None:
    """Run the study's trials and report on them."""
    plan, context, switches, given = prepare_study(argv, guard)
    from dinomaly_hd.experiments.study import run_study

    flags = {name: text for name, text in given.items() if name not in ("storage", "workers", "engine")}
    run_study(
        plan,
        context,
        slots=slots_of(switches, number=_whole("workers", switches["workers"])),
        flags={**flags, **_absolute(context)},
    )


def _defaults_of_runs(flags: comparisons.Prepared, *, watched: bool) -> dict[str, str]:
    """Return what a study sets in its runs where the user has not: no maps, synthetic faults, looks."""
    own = {name: text for name, text in OWN.items() if name not in flags.common}
    if watched and len(flags.seeds) == 1 and "val_check_interval" not in flags.common:
        steps = flags.build("F", flags.seeds[0], {}).training.max_steps
        own["val_check_interval"] = str(max(1, steps // LOOKS))
    return own


def _absolute(context: "Context") -> dict[str, str]:
    """Return the flags of folders, for workers that start elsewhere."""
    place = context.feature_place
    features = {} if place is None else {"feature_dir": str(place.folder)}
    return {"result_dir": str(context.result_dir.absolute()), **features}


def _whole(name: str, text: str) -> int:
    if not text.isdecimal():
        raise ConfigError(f"{name}={text!r}: expected a whole number")
    return int(text)


if __name__ == "__main__":
    launch(main)
