"""List runs: label, seed, data, AUROC (mean, of C, of cold C), how each ended, and its folder."""

from dinomaly_hd.config.base import PositiveCount, doc
from dinomaly_hd.runs.listing import Order, list_runs
from entry_points.common import ResultOptions, Start, entry_point, say


class Options(ResultOptions):
    sort: Order = doc("newest", "newest: last one last; else the best AUROC first")
    limit: PositiveCount = doc(50, "lines at most")


def show(start: Start[Options]) -> None:
    own = start.options
    say("\n".join(list_runs(own.result_dir, sort=own.sort, limit=own.limit, tick=start.guard.check)))


COMMAND, main = entry_point("runs", __doc__, Options, show)
