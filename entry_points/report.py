"""Report on any set of finished runs: tables, statistics, pictures, and what may be concluded."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dinomaly_hd.flag_texts import AUTO, OPTIONS, Option
from entry_points.common import ROOT, launch, say

if TYPE_CHECKING:
    from dinomaly_hd.training.guards import SignalGuard

NONE = "none"
FLAGS = {
    "runs": Option(
        NONE,
        "comma-separated: run folders, their names, MLflow run ids; a comparison's stands for its members",
    ),
    "query": Option(
        NONE, "MLflow filter over experiment, such as tags.variant = 'horizontal' and params.seed = '42'"
    ),
    "label_by": Option(
        "config",
        "what a run is called: config (as in its comparison, else its variant), variant, or the name of a "
        "value of its config such as encoder or q_percent",
    ),
    "reference": Option(
        AUTO, "label that the others are compared with; auto: the comparison's, or the first"
    ),
    "title": Option(AUTO, "heading of the report"),
    "question": Option(AUTO, "what the report is to answer, printed above its tables"),
    "output": Option(
        AUTO, "new folder; auto: the comparison's own if runs is just one, else {result_dir}/report/{time}"
    ),
    "result_dir": OPTIONS["result_dir"],
    "experiment": OPTIONS["experiment"],
}


def main(argv: Sequence[str], guard: "SignalGuard") -> None:
    """Collect, compare, write, log, and print the report."""
    from dinomaly_hd.config import names_in
    from dinomaly_hd.flags import parse_options

    values = parse_options("report", argv, options=FLAGS, doc=__doc__)
    given = {name: None if value == AUTO else value for name, value in values.items()}
    from dinomaly_hd.experiments.find import Asked
    from dinomaly_hd.experiments.reporting import ReportRequest, report

    report(
        ReportRequest(
            asked=Asked(
                runs=() if values["runs"] == NONE else names_in(values["runs"]),
                query="" if values["query"] == NONE else values["query"],
                experiment=values["experiment"],
                label_by=values["label_by"],
            ),
            reference=given["reference"],
            title=given["title"],
            question=given["question"],
            output=None if given["output"] is None else Path(given["output"]),
            result_dir=Path(values["result_dir"]),
            root=ROOT,
            command=_command(values),
            say=say,
            tick=guard.check,
        )
    )


def _command(values: Mapping[str, str]) -> str:
    """Return the shortest command that repeats the report."""
    told = [f"--{name}={value}" for name, value in values.items() if value != FLAGS[name].default]
    return shlex.join(["python", "-m", "entry_points.report", *told])


if __name__ == "__main__":
    launch(main)
