"""Train and test one domain with any model family; several models, domains or seeds are compared."""

from entry_points.common import Start, entry_point, launch
from entry_points.families import INSTEAD, FamilyOptions, family_fields, trials_of


def single_domain(start: Start[FamilyOptions]) -> None:
    trials, context = trials_of(start), start.context()
    from dinomaly_hd.experiments import protocols

    protocols.run_single_domain(trials, context)


COMMAND, main = entry_point(
    "single_domain", __doc__, FamilyOptions, single_domain, runs=family_fields, instead=INSTEAD
)

if __name__ == "__main__":
    raise SystemExit(launch(main))
