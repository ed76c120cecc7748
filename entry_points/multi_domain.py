"""Train on one source domain and test it on the others, with any model family."""

from entry_points.common import Start, entry_point, launch
from entry_points.families import INSTEAD, TransferOptions, family_fields, trials_of


def multi_domain(start: Start[TransferOptions]) -> None:
    trials, context = trials_of(start), start.context()
    from dinomaly_hd.experiments import protocols

    protocols.run_multi_domain(trials, context)


COMMAND, main = entry_point(
    "multi_domain", __doc__, TransferOptions, multi_domain, runs=family_fields, instead=INSTEAD
)

if __name__ == "__main__":
    raise SystemExit(launch(main))
