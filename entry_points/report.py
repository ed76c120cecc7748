"""Report on any set of finished runs: tables, statistics, pictures, and what may be concluded."""

from collections.abc import Sequence
from pathlib import Path

from dinomaly_hd.config.base import Frozen, doc
from dinomaly_hd.config.command import Command, OrAuto
from dinomaly_hd.config.texts import names_in
from dinomaly_hd.errors import SignalGuard
from entry_points.common import EXPERIMENT, ROOT, Experiment, ResultDir, launch, say

NONE = "none"


class Options(Frozen):
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
    reference: OrAuto[str] = doc(
        None, "label that the others are compared with; auto: the comparison's, or the first"
    )
    title: OrAuto[str] = doc(None, "heading of the report")
    question: OrAuto[str] = doc(None, "what the report is to answer, printed above its tables")
    output: OrAuto[Path] = doc(
        None, "new folder; auto: the comparison's own if runs is just one, else {result_dir}/report/{time}"
    )
    result_dir: ResultDir = Path("results")
    experiment: Experiment = EXPERIMENT


COMMAND = Command("report", __doc__, Options)


def main(argv: Sequence[str], guard: SignalGuard) -> None:
    asked = COMMAND.parse(argv)
    options = asked.options
    from dinomaly_hd.experiments.find import Asked
    from dinomaly_hd.experiments.reporting import ReportRequest, report

    report(
        ReportRequest(
            asked=Asked(
                runs=() if options.runs == NONE else names_in(options.runs),
                query="" if options.query == NONE else options.query,
                experiment=options.experiment,
                label_by=options.label_by,
            ),
            root=ROOT,
            command=asked.command(),
            say=say,
            tick=guard.check,
            **options.model_dump(include={"reference", "title", "question", "output", "result_dir"}),
        )
    )


if __name__ == "__main__":
    raise SystemExit(launch(main))
