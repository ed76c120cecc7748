"""Run the conditions of a file with all their seeds on this machine's slots or on a Ray cluster."""

from pathlib import Path

from pydantic import Field

from dinomaly_hd.config.base import PositiveCount, doc
from dinomaly_hd.config.resolve import OrAuto
from entry_points.common import EngineOptions, Start, entry_point, launch
from entry_points.families import ConditionOptions, family_fields

IN_FILE = ("model_type", "variant", "source_domain", "target_domains", "domains", "train_domains")
INSTEAD = dict.fromkeys(IN_FILE, "a condition of the conditions_file")


class Options(ConditionOptions, EngineOptions):
    conditions_file: str = Field(description="JSON or YAML with conditions: models, domains, values")
    slots: OrAuto[PositiveCount] = doc(
        None, "runs at once; auto: one a GPU, or one for two cores where there is none"
    )


def suite(start: Start[Options]) -> None:
    options, context = start.options, start.context()
    from dinomaly_hd.experiments.comparison import member
    from dinomaly_hd.experiments.protocols import run_suite
    from dinomaly_hd.experiments.trials import conditions_of_file, trials_of
    from dinomaly_hd.jobs.job import Slots

    conditions = conditions_of_file(Path(options.conditions_file), options.condition)
    trials = trials_of(conditions, options.seeds, start.asked.values)
    slots = Slots(options.engine, options.slots, options.ray_address or "")
    run_suite([member(trial.model, trial.run) for trial in trials], context, slots=slots)


COMMAND, main = entry_point("suite", __doc__, Options, suite, runs=family_fields, instead=INSTEAD)

if __name__ == "__main__":
    raise SystemExit(launch(main))
