"""The report on finished runs, of one comparison or put together afterwards: written, and logged."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dinomaly_hd import provenance
from dinomaly_hd.errors import DataError, OutputError, TrackingError
from dinomaly_hd.evaluation.compare import Comparison, Focus, compare
from dinomaly_hd.evaluation.comparison_members import MemberRun
from dinomaly_hd.evaluation.comparison_pages import Question, comparison_pages, transfer_table
from dinomaly_hd.evaluation.comparison_plots import comparison_pictures, pairs_pictures
from dinomaly_hd.experiments.find import SUMMARY, Collected, ReportRequest, Shelf, collect
from dinomaly_hd.experiments.members import on_scored_domains
from dinomaly_hd.files import make_dated_folder, publish, publish_json, publish_text
from dinomaly_hd.runs.folder import FINISHED, RunFolder
from dinomaly_hd.runs.pages import LoggedReport, ReportRun, add_report, log_report
from dinomaly_hd.runs.store import RunStore, default_uri

KIND = "report"
CLOSER_LOOK = (Focus("domain_C", "cold"), Focus("domain_C", "all"), Focus("mean", "all"))
"""The hard domain, cold and as a whole, and the mean."""
AFTERWARDS = (
    "How do these runs differ on the same test images? They were put together after they had been seen, so "
    "what stands out is a guess until runs made to test it confirm it."
)


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
    """Write report.html, report.md, tables/, plots/ and final_summary.json."""
    if all(member.scores.empty for member in members):
        raise DataError("no report: the runs are finished, but there are no test images to compare them on")
    members, unscored = on_scored_domains(members)
    failed = {**failed, **unscored}
    comparison = compare(members, reference=question.reference, compared=question.compared, tick=tick)
    places = {*comparison.domains, "mean"}
    focuses = [
        focus for focus in CLOSER_LOOK if focus.domain in places and focus.condition in comparison.conditions
    ]
    pictures = {**pairs_pictures(members), **comparison_pictures(comparison, focuses=focuses)}
    texts = comparison_pages(
        comparison,
        question,
        command=command,
        failed=failed,
        focuses=focuses,
        pictures=pictures,
        more=transfer_table(members),
    )
    for kind, table in comparison.tables.items():
        texts[f"tables/{kind}.csv"] = table.to_csv(index=False, lineterminator="\n")
    for name, text in texts.items():
        publish_text(folder / name, text)
    for name, picture in pictures.items():
        publish(folder / "plots" / f"{name}.png", lambda stream, png=picture.png: stream.write(png))  # type: ignore[misc]
    publish_json(folder / SUMMARY, summary(comparison, question=question, failed=failed))
    names = [*texts, *(f"plots/{name}.png" for name in pictures), SUMMARY]
    return Report(comparison, [folder / name for name in names], texts["report.md"])


def summary(comparison: Comparison, *, question: Question, failed: Mapping[str, str]) -> dict[str, object]:
    return {
        "title": question.title,
        "question": question.text,
        "compared": list(question.compared),
        "labels": list(comparison.labels),
        "reference": comparison.reference,
        "data_digest": comparison.data_digest,
        "runs": comparison.runs,
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


def report(request: ReportRequest) -> tuple[Path, Report]:
    """Find the runs, write and log the report; return its folder and what it says."""
    output = request.output
    if output is not None and os.path.exists(output) and (not output.is_dir() or any(output.iterdir())):
        # Tables of another report would mix with these.
        raise OutputError(f"output={output}: already there; give a new or an empty folder")
    uri = default_uri(request.root)
    shelf = Shelf(request.result_dir, RunStore(uri))
    collected = collect(request, shelf)
    own_reference = collected.summary.get("reference", request.reference)
    if output is not None or request.reference not in (None, own_reference):
        collected = collected._replace(own=None)  # another view of it, which must not replace its report
    chosen = output or (collected.own.folder if collected.own else None)
    folder = chosen or make_dated_folder(request.result_dir / KIND)
    request.say(f"comparing {len(collected.members)} members")
    try:
        written = write_report(
            collected.members,
            folder,
            question=_question(request, collected),
            command=request.command,
            failed=collected.failed,
            tick=request.tick,
        )
    finally:
        if chosen is None and not any(folder.iterdir()):
            folder.rmdir()  # refused: a new folder does not stay behind empty
    logged = LoggedReport(folder, written.files, flat_means(written.comparison), written.markdown)
    try:
        _log(request, collected, logged, uri=uri)
    except TrackingError as error:
        request.say(f"warning: {error}; the report's files are complete, but MLflow does not have them all")
    for line in ["", *written.markdown.splitlines(), "", f"report: {folder / 'report.html'}"]:
        request.say(line)
    return folder, written


def _question(request: ReportRequest, collected: Collected) -> Question:
    labels, own = {member.label for member in collected.members}, collected.own
    title = f"{len(collected.members)} runs, called {', '.join(sorted(labels))}"
    if own is not None:  # without counts, since the next report on it reads this title from its summary
        title = f"{own.tags.get('kind', 'Comparison').capitalize()} {Path(own.folder or own.name).name}"
    reference = collected.summary.get("reference")
    return Question(
        request.title or str(collected.summary.get("title", title)),
        request.question or str(collected.summary.get("question", AFTERWARDS)),
        compared=collected.compared,
        reference=request.reference or (reference if reference in labels else None),
    )


def _log(request: ReportRequest, collected: Collected, logged: LoggedReport, *, uri: str) -> None:
    """Log to the comparison's own run if there is one, else to a run of the report's own.

    A run that `mlflow run` has begun for this process holds the report in either case.
    """
    own, adopted = collected.own, os.environ.pop("MLFLOW_RUN_ID", None)
    params = {"runs": ",".join(request.runs), "query": request.query, "label_by": request.label_by}
    run = ReportRun(
        f"{KIND}-by-{request.label_by}",
        {"kind": KIND, "command": request.command, **provenance.git_facts(request.root)},
        {name: value for name, value in params.items() if value},
    )
    if own is not None and own.run_id is not None:
        add_report(logged, None, run_id=own.run_id, uri=uri)
    if own is not None and own.folder == logged.folder:
        if own.run_id is None:
            request.say("warning: the comparison is not in MLflow, so the report is in its folder only")
        if adopted is not None:
            add_report(logged, run, run_id=adopted, uri=uri)
    elif own is None or own.run_id is None or adopted is not None:
        run_id = log_report(
            logged, run, experiment=request.experiment, uri=uri, root=request.root, adopted=adopted
        )
        RunFolder(logged.folder, resumed=False).set_state(status=FINISHED, mlflow_run_id=run_id)
