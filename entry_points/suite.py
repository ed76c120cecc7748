"""Run the conditions of a file with all their seeds on this machine's slots or on a Ray cluster."""

from collections.abc import Sequence

from pydantic import Field

from dinomaly_hd.config.base import PositiveCount, doc
from dinomaly_hd.config.command import Command, OrAuto
from dinomaly_hd.errors import SignalGuard
from entry_points.common import EngineOptions, context_of, launch
from entry_points.families import ConditionOptions, chosen_conditions, family_fields, trials_of_conditions

IN_FILE = ("model_type", "variant", "source_domain", "target_domains", "domains", "train_domains")


class Options(ConditionOptions, EngineOptions):
    conditions_file: str = Field(description="JSON or YAML with conditions: models, domains, values")
    slots: OrAuto[PositiveCount] = doc(
        None, "runs at once; auto: one a GPU, or one for two cores where there is none"
    )


COMMAND = Command(
    "suite",
    __doc__,
    Options,
    family_fields,
    {"seed": "seeds", **dict.fromkeys(IN_FILE, "a condition of the conditions_file")},
)


def main(argv: Sequence[str], guard: SignalGuard) -> None:
    asked = COMMAND.parse(argv)
    options, context = asked.options, context_of(asked, guard)
    trials = trials_of_conditions(chosen_conditions(options), asked)
    from dinomaly_hd.experiments.comparison import member
    from dinomaly_hd.experiments.protocols import run_suite
    from dinomaly_hd.jobs.job import Slots

    run_suite(
        [member(trial.model, trial.run) for trial in trials],
        context,
        slots=Slots(options.engine, options.slots, options.ray_address or ""),
    )


if __name__ == "__main__":
    raise SystemExit(launch(main))
