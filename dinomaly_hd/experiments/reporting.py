"""The report on a set of finished runs: files in a folder, and the figures for MLflow."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dinomaly_hd.evaluation.comparison import Comparison, Focus, compare
from dinomaly_hd.evaluation.comparison_members import MemberRun
from dinomaly_hd.evaluation.comparison_plots import comparison_pictures
from dinomaly_hd.evaluation.comparison_reading import Story
from dinomaly_hd.evaluation.comparison_report import comparison_csv, comparison_html, comparison_markdown
from dinomaly_hd.evaluation.comparison_transfer import pairs_pictures, transfer_table
from dinomaly_hd.experiments.members import on_scored_domains
from dinomaly_hd.files import publish, publish_json, publish_text

HARD_DOMAIN, HARD_CONDITION = "domain_C", "cold"
SUMMARY = "final_summary.json"


class Question(NamedTuple):
    """What a comparison asks: title, text, and the settings beside the model's that it compares."""

    title: str
    text: str
    compared: tuple[str, ...] = ()
    reference: str | None = None


class Report(NamedTuple):
    """What was written: the comparison, the files, and the Markdown text."""

    comparison: Comparison
    files: list[Path]
    markdown: str


def write_report(
    members: Sequence[MemberRun],
    folder: Path,
    *,
    question: Question,
    command: str,
    failed: Mapping[str, str],
    tick: Callable[[], None],
) -> Report:
    """Write report.html, report.md, tables/, plots/ and final_summary.json.

    Raises:
        ConfigError: No run, two runs of one label and seed, or an unknown reference.
        DataError: The runs were tested on different data.
    """
    members, unscored = on_scored_domains(members)
    failed = {**failed, **unscored}
    comparison = compare(members, reference=question.reference, compared=question.compared, tick=tick)
    focuses = focuses_of(comparison)
    story = Story(question.title, question.text, command, failed)
    pictures = {**pairs_pictures(members), **comparison_pictures(comparison, focuses=focuses)}
    table = transfer_table(members)
    more = [] if table is None else [table]
    markdown = comparison_markdown(comparison, story=story, focuses=focuses, more=more)
    files = [folder / "report.html", folder / "report.md"]
    page = comparison_html(comparison, story=story, focuses=focuses, pictures=pictures, more=more)
    publish_text(files[0], page)
    publish_text(files[1], markdown)
    for name, text in comparison_csv(comparison).items():
        files.append(folder / "tables" / name)
        publish_text(files[-1], text)
    for name, picture in pictures.items():
        files.append(folder / "plots" / f"{name}.png")
        publish(files[-1], lambda stream, png=picture.png: stream.write(png))  # type: ignore[misc]
    files.append(folder / SUMMARY)
    publish_json(files[-1], summary(comparison, question=question, failed=failed))
    return Report(comparison, files, markdown)


def focuses_of(comparison: Comparison) -> list[Focus]:
    """Return where a closer look is taken: the hard domain, cold and as a whole, and the mean."""
    wanted = [
        Focus(HARD_DOMAIN, HARD_CONDITION),
        Focus(HARD_DOMAIN, "all"),
        Focus("mean", "all"),
    ]
    places = {*comparison.domains, "mean"}
    return [focus for focus in wanted if focus.domain in places and focus.condition in comparison.conditions]


def summary(comparison: Comparison, *, question: Question, failed: Mapping[str, str]) -> dict[str, object]:
    """Return the comparison as JSON: what was asked, runs, means and differences."""
    return {
        "title": question.title,
        "question": question.text,
        "compared": list(question.compared),
        "labels": list(comparison.labels),
        "reference": comparison.reference,
        "data_digest": comparison.data_digest,
        "runs": [run._asdict() for run in comparison.runs],
        "missing": [list(pair) for pair in comparison.missing],
        "failed": dict(failed),
        "means": comparison.means.replace({np.nan: None}).to_dict("records"),
        "differences": comparison.differences.replace({np.nan: None}).to_dict("records"),
    }


def flat_means(comparison: Comparison) -> dict[str, float]:
    """Return mean and deviation over seeds as MLflow metrics: ``domain_C/cold/auroc_mean.F``.

    The label comes last, since what stands before the last ``/`` is a section of MLflow's charts.
    """
    flat: dict[str, float] = {}
    for row in comparison.means.to_dict("records"):
        place = [row["domain"], *([] if row["condition"] == "all" else [row["condition"]])]
        label = str(row["label"]).replace("/", "_")
        for statistic in ("mean", "std"):
            if not np.isnan(row[statistic]):
                flat["/".join([*place, f"{row['metric']}_{statistic}.{label}"])] = float(row[statistic])
    return flat
