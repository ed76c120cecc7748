"""Report on any set of finished runs: tables, statistics, pictures, and what may be concluded."""

from pathlib import Path

from dinomaly_hd.config.base import doc, names_in
from dinomaly_hd.config.resolve import OrAuto
from entry_points.common import ROOT, Start, StoreOptions, entry_point, launch, say

NONE = "none"


class Options(StoreOptions):
    runs: str = doc(
        NONE,
        "comma-separated: run folders, their names, MLflow run ids; a comparison's stands for its members",
    )
    query: str = doc(
        NONE, "MLflow filter over experiment, such as tags.variant = 'horizontal' and params.seed = '42'"
    )
    label_by: str = doc(
        "config",
        "what a run is called: config (as in its comparison, else its variant), variant, or the "
        "name of a value of its config such as encoder or q_percent",
    )
    reference: OrAuto[str] = doc(None, "label that others are compared with; auto: the comparison's or first")
    title: OrAuto[str] = doc(None, "heading of the report")
    question: OrAuto[str] = doc(None, "what the report is to answer, printed above its tables")
    output: OrAuto[Path] = doc(
        None, "new folder; auto: the comparison's own if runs is just one, else {result_dir}/report/{time}"
    )


def write(start: Start[Options]) -> None:
    options = start.options
    from dinomaly_hd.experiments.find import Asked
    from dinomaly_hd.experiments.reporting import report
    from dinomaly_hd.runs.folder import Context

    context = Context(
        root=ROOT,
        result_dir=options.result_dir,
        experiment=options.experiment,
        guard=start.guard,
        say=say,
        command=start.asked.command(),
        entry_point="report",
    )
    asked = options.model_dump(exclude={"runs", "query", "result_dir", "experiment"})
    runs = () if options.runs == NONE else names_in(options.runs)
    report(Asked(runs, "" if options.query == NONE else options.query, **asked), context)


COMMAND, main = entry_point("report", __doc__, Options, write)

if __name__ == "__main__":
    raise SystemExit(launch(main))
