"""Run the conditions of a file with all their seeds on this machine's slots or on a Ray cluster."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from dinomaly_hd.errors import ConfigError
from dinomaly_hd.flag_texts import AUTO, Option
from dinomaly_hd.flags import resolve_model
from dinomaly_hd.jobs import Slots
from entry_points import families
from entry_points.common import launch
from entry_points.comparisons import prepare

if TYPE_CHECKING:
    from dinomaly_hd.training.guards import SignalGuard

ENGINE = {
    "engine": Option("local", "local: this machine; ray: also others, with a Ray of its own or a cluster"),
    "ray_address": Option(AUTO, "HOST:PORT of a Ray cluster's head; auto: a Ray of its own"),
}
"""Flags of everything that runs jobs."""
SWITCHES = {
    "conditions_file": Option("", "JSON or YAML with conditions: models, domains, values"),
    "condition": families.SWITCHES["condition"],
    "seeds": families.SWITCHES["seeds"],
    "slots": Option(AUTO, "runs at once; auto: one a GPU, or one for two cores where there is none"),
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
    slots = slots_of(flags.switches, number=_number(flags.switches["slots"]))
    conditions = families.chosen_conditions(flags.switches)
    trials = families.trials_of(conditions, flags, domains=families.domains_of)
    from dinomaly_hd.experiments.comparison import member
    from dinomaly_hd.experiments.suite import run_suite

    run_suite([member(trial.model, trial.run) for trial in trials], flags.context, slots=slots)


def slots_of(switches: Mapping[str, str], *, number: int | None) -> Slots:
    """Return where jobs run, and how many at once."""
    address = switches["ray_address"]
    return Slots(switches["engine"], number, "" if address == AUTO else address)


def _number(text: str) -> int | None:
    if text != AUTO and (not text.isdecimal() or int(text) < 1):
        raise ConfigError(f"slots={text!r}: expected a whole number from 1 on, or {AUTO}")
    return None if text == AUTO else int(text)


if __name__ == "__main__":
    launch(main)
