"""Run the conditions of a file with all their seeds on this machine's slots or on a Ray cluster."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dinomaly_hd.errors import ConfigError
from dinomaly_hd.flag_texts import Option
from dinomaly_hd.flags import resolve_model
from entry_points import families
from entry_points.common import launch
from entry_points.comparisons import prepare
from entry_points.slots import ENGINE, SLOTS, number_of_slots, slots_of

if TYPE_CHECKING:
    from dinomaly_hd.training.guards import SignalGuard

SWITCHES = {
    "conditions_file": Option("", "JSON or YAML with conditions: models, domains, values"),
    "condition": families.SWITCHES["condition"],
    "seeds": families.SWITCHES["seeds"],
    "slots": SLOTS,
    **ENGINE,
}
IN_FILE = ("model_type", "variant", "source_domain", "target_domains", "domains", "train_domains")
INSTEAD = {"seed": "seeds", **dict.fromkeys(IN_FILE, "a condition of the conditions_file")}


def main(argv: Sequence[str], guard: "SignalGuard") -> None:
    """Run the suite."""
    flags = prepare(
        "suite",
        argv,
        guard,
        doc=__doc__,
        switches=SWITCHES,
        resolve=resolve_model,
        defaults=families.defaults_of(SWITCHES),
        instead=INSTEAD,
    )
    if not flags.switches["conditions_file"]:
        raise ConfigError(f"--conditions_file is needed: {SWITCHES['conditions_file'].help}")
    slots = slots_of(flags.switches, number=number_of_slots(flags.switches["slots"]))
    conditions = families.chosen_conditions(flags.switches)
    trials = families.trials_of(conditions, flags, domains=families.domains_of)
    from dinomaly_hd.experiments.comparison import member
    from dinomaly_hd.experiments.protocols import run_suite

    run_suite([member(trial.model, trial.run) for trial in trials], flags.context, slots=slots)


if __name__ == "__main__":
    launch(main)
