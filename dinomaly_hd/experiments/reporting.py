"""The report on finished runs, of one comparison or put together afterwards: written, and logged."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dinomaly_hd.config.variants import config_label
from dinomaly_hd.errors import DataError, TrackingError
from dinomaly_hd.evaluation.compare import Comparison, Focus, compare
from dinomaly_hd.evaluation.comparison_answer import answer, asked_focus, one_image, ranking
from dinomaly_hd.evaluation.comparison_members import MemberRun
from dinomaly_hd.evaluation.comparison_pages import Question, comparison_pages
from dinomaly_hd.evaluation.comparison_plots import comparison_pictures
from dinomaly_hd.evaluation.report import write_files
from dinomaly_hd.evaluation.transfer import pairs_pictures, transfer_table
from dinomaly_hd.experiments.find import Asked, Collected, collect
from dinomaly_hd.experiments.members import on_scored_domains
from dinomaly_hd.files import check_output, make_dated_folder, publish_json
from dinomaly_hd.names import LONGEST_FOLDER, as_folder
from dinomaly_hd.runs.find import Found, Shelf
from dinomaly_hd.runs.folder import IN_MLFLOW, SUMMARY, Context, RunFolder
from dinomaly_hd.runs.pages import add_report, artifact_folder
from dinomaly_hd.runs.store import MOST_METRICS, default_uri
from dinomaly_hd.runs.tracker import Tracker, tracked

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
    focus = asked_focus(comparison, question)
    pictures = {**pairs_pictures(members), **comparison_pictures(comparison, focuses=focuses)}
    texts = comparison_pages(
        comparison,
        question,
        answer=answer(comparison, focus),
        ranking=ranking(comparison, focus, focuses),
        one_image=one_image(members, hard=focus.domain),
        command=command,
        failed=failed,
        focuses=focuses,
        pictures=pictures,
        more=transfer_table(members),
    )
    for kind in ("values", "means", "differences", "delong"):
        texts[f"tables/{kind}.csv"] = getattr(comparison, kind).to_csv(index=False, lineterminator="\n")
    files = write_files(folder, texts, pictures)
    publish_json(folder / SUMMARY, summary(comparison, question=question, failed=failed))
    return Report(comparison, [*files, folder / SUMMARY], texts["report.md"])


def description(reports: Sequence[Report], *, links: str = "") -> str:
    """Return reports for MLflow's page: what they answer, links, then the rest; one needs no title there."""
    parts = [one.markdown.split("\n\n", 2) for one in reports]
    if len(parts) == 1:
        ((_, answer, rest),) = parts
        return f"{answer}\n\n{links}{rest}"
    answers = "".join(f"{title.removeprefix('# ')}: {answer}\n\n" for title, answer, _ in parts)
    return answers + links + "\n\n".join(f"{title}\n\n{rest}" for title, _, rest in parts)


def summary(comparison: Comparison, *, question: Question, failed: Mapping[str, str]) -> dict[str, object]:
    return {
        "title": question.title,
        "question": question.text,
        "compared": question.compared,
        **{
            name: getattr(comparison, name)
            for name in ("labels", "reference", "data_digest", "runs", "missing")
        },
        "failed": dict(failed),
        **{name: getattr(comparison, name).to_dict("records") for name in ("means", "differences")},
    }


def flat_means(comparison: Comparison) -> dict[str, float]:
    """Return AUROC's mean and deviation over seeds as MLflow metrics: ``domain_C/cold/auroc_mean.cfg-F``.

    The label comes last, since what stands before the last ``/`` is a section of MLflow's charts. There are
    at most ``MOST_METRICS``, the mean over domains first; tables and summary hold all.
    """
    flat: dict[str, float] = {}
    means = comparison.means[comparison.means["metric"] == "auroc"]
    each = [Focus(domain, "all") for domain in comparison.domains]
    for domain, condition in dict.fromkeys([*reversed(CLOSER_LOOK), *each]):
        place = domain if condition == "all" else f"{domain}/{condition}"
        rows = means[(means["domain"] == domain) & (means["condition"] == condition)]
        for row in rows.to_dict("records"):
            label = str(row["label"]).replace("/", "_")
            for statistic in ("mean", "std"):
                if not np.isnan(row[statistic]):
                    flat[f"{place}/auroc_{statistic}.{label}"] = round(row[statistic], 4)
    return dict(islice(flat.items(), MOST_METRICS))


def which_labels(labels: Sequence[str]) -> str:
    """Return what is compared as a folder is called: "cfg-A0_vs_cfg-F", of many the first."""
    names = [as_folder(label) for label in dict.fromkeys(labels)]
    whole, first = "_vs_".join(names), "".join(names[:1])[:LONGEST_FOLDER]
    return whole if len(whole) <= LONGEST_FOLDER else f"{first}_vs_{len(names) - 1}_others"


@contextmanager
def report_folder(result_dir: Path, members: Sequence[MemberRun]) -> Iterator[Path]:
    """Yield a new folder, which does not stay behind empty where the report is refused."""
    asked = which_labels([member.label for member in members])
    folder = make_dated_folder(result_dir / KIND, suffix=f"_{asked}")
    try:
        yield folder
    finally:
        if not any(folder.iterdir()):
            folder.rmdir()


def report(asked: Asked, context: Context) -> tuple[Path, Report]:
    """Find the runs, write and log the report; return its folder and what it says."""
    output = asked.output
    check_output(output)
    asked = asked._replace(reference=asked.reference and config_label(asked.reference))
    shelf = Shelf(context.result_dir, default_uri(context.root))
    collected = collect(asked, context, shelf)
    own_reference = collected.summary.get("reference", asked.reference)
    if output is not None or asked.reference not in (None, own_reference):
        collected = collected._replace(own=None)  # another view of it, which must not replace its report
    chosen = output or (collected.own.folder if collected.own else None)
    members = collected.members
    context.say(f"comparing {len(members)} members")
    with nullcontext(chosen) if chosen else report_folder(context.result_dir, members) as folder:
        written = write_report(
            members,
            folder,
            question=_question(asked, collected),
            command=context.command,
            failed=collected.failed,
            tick=context.guard.check,
        )
    try:
        _log(asked, context, collected.own, written, folder)
    except TrackingError as error:
        context.say(f"warning: {error}; the report's files are complete, but MLflow does not have them all")
    for line in ["", *written.markdown.splitlines(), "", f"report: {folder / 'report.html'}"]:
        context.say(line)
    return folder, written


def _question(asked: Asked, collected: Collected) -> Question:
    labels, own = {member.label for member in collected.members}, collected.own
    title = f"{len(collected.members)} runs, called {', '.join(sorted(labels))}"
    if own is not None:  # without counts, since the next report on it reads this title from its summary
        title = f"{own.tags.get('kind', 'Comparison').capitalize()} {Path(own.folder or own.name).name}"
    reference = collected.summary.get("reference")
    return Question(
        asked.title or str(collected.summary.get("title", title)),
        asked.question or str(collected.summary.get("question", AFTERWARDS)),
        compared=collected.compared,
        reference=asked.reference or (reference if reference in labels else None),
    )


def log(tracker: Tracker, report: Report, folder: Path) -> None:
    """Give MLflow a report's files and figures; ``folder`` is that of the tracker's run."""
    for path in report.files:
        tracker.artifact(path, folder=artifact_folder(path, below=folder))
    tracker.metrics(flat_means(report.comparison), step=0)


def _log(asked: Asked, context: Context, own: Found | None, written: Report, folder: Path) -> None:
    """Log to the comparison's ``own`` run if there is one, else to a run of the report's own.

    A run that `mlflow run` has begun for this process holds the report in either case.
    """
    uri, adopted = default_uri(context.root), os.environ.get("MLFLOW_RUN_ID")
    given = {"runs": ",".join(asked.runs), "query": asked.query, "label_by": asked.label_by}
    params = {name: value for name, value in given.items() if value}
    tags = {"kind": KIND}
    add = partial(
        add_report,
        folder=folder,
        files=written.files,
        uri=uri,
        note=description([written]),
        metrics=flat_means(written.comparison),
    )
    if own is not None and own.run_id is not None:
        add(own.run_id, tags={}, params={})
    if own is not None and own.folder == folder:
        if own.run_id is None:
            context.say("warning: the comparison is not in MLflow, so the report is in its folder only")
        if adopted is not None:
            add(os.environ.pop("MLFLOW_RUN_ID"), tags=tags, params=params)
    elif own is None or own.run_id is None or adopted is not None:
        place = RunFolder(folder)
        with tracked(place, context, name=f"{KIND}-by-{asked.label_by}", tags=tags) as tracker:
            tracker.params(params)
            tracker.note(description([written]))
            log(tracker, written, folder)
        if not place.state()[IN_MLFLOW]:
            raise TrackingError(f"MLflow at {uri} does not answer, or refuses a part")
