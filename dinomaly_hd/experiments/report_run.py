"""The report on any set of finished runs: collected, compared, written, and logged."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dinomaly_hd import provenance
from dinomaly_hd.errors import OutputError, TrackingError
from dinomaly_hd.experiments.collect import Asked, Collected, collect
from dinomaly_hd.experiments.reporting import Question, Report, flat_means, write_report
from dinomaly_hd.experiments.shelf import Shelf
from dinomaly_hd.files import make_dated_folder
from dinomaly_hd.runs.folder import FINISHED, RunFolder
from dinomaly_hd.runs.reports import LoggedReport, ReportRun, add_report, log_report
from dinomaly_hd.runs.search import RunStore
from dinomaly_hd.runs.store import default_uri

KIND = "report"
QUESTION = (
    "How do these runs differ on the same test images? They were put together after they had been seen, so "
    "what stands out is a guess until runs made to test it confirm it."
)


@dataclass(frozen=True, kw_only=True)
class ReportRequest:
    """What to report on, how to call it, and where it goes.

    Attributes:
        asked: The runs.
        reference: Label that the others are compared with; None: the comparison's own, else the first.
        title: None for the comparison's own, or one that names the labels.
        question: None for the comparison's own, or one that says that the choice came after the runs.
        output: New or empty folder; None: the comparison's own if it is asked for by itself and lies here,
            else ``{result_dir}/report/{UTC time}``.
        result_dir: Parent of the run folders.
        root: The project, for MLflow's database.
        command: Repeats the report.
        say: Prints a line.
        tick: Called for each run, domain and condition.
    """

    asked: Asked
    reference: str | None
    title: str | None
    question: str | None
    output: Path | None
    result_dir: Path
    root: Path
    command: str
    say: Callable[[str], None]
    tick: Callable[[], None]


def report(request: ReportRequest) -> tuple[Path, Report]:
    """Write and log the report; return its folder and what it says.

    Raises:
        ConfigError: As ``collect``; an unknown reference; or two runs of one label and seed.
        DataError: The runs were tested on different data.
        OutputError: The folder holds something, or cannot be written.
        TrackingError: A run is not here, and MLflow does not answer.
    """
    _check_output(request.output)
    uri = default_uri(request.root)
    shelf = Shelf(request.result_dir, RunStore(uri))
    collected = collect(request.asked, shelf, say=request.say, tick=request.tick)
    own_reference = collected.summary.get("reference", request.reference)
    if request.output is not None or request.reference not in (None, own_reference):
        collected = collected._replace(own=None)  # another view of it, which must not replace its report
    with _folder(request, collected) as folder:
        request.say(f"comparing {len(collected.members)} members")
        written = write_report(
            collected.members,
            folder,
            question=_question(request, collected),
            command=request.command,
            failed=collected.failed,
            tick=request.tick,
        )
    _log(request, collected, folder, written, uri=uri)
    for line in ["", *written.markdown.splitlines(), "", f"report: {folder / 'report.html'}"]:
        request.say(line)
    return folder, written


def _question(request: ReportRequest, collected: Collected) -> Question:
    labels = {member.label for member in collected.members}
    own = collected.own
    if own is not None:  # without counts, since the next report on it reads this title from its summary
        title = f"{own.tags.get('kind', 'Comparison').capitalize()} {Path(own.folder or own.name).name}"
    else:
        title = f"{len(collected.members)} runs, called {', '.join(sorted(labels))}"
    reference = collected.summary.get("reference")
    return Question(
        request.title or str(collected.summary.get("title", title)),
        request.question or str(collected.summary.get("question", QUESTION)),
        compared=collected.compared,
        reference=request.reference or (reference if reference in labels else None),
    )


@contextmanager
def _folder(request: ReportRequest, collected: Collected) -> Iterator[Path]:
    """Yield where the report goes; a new folder does not stay behind empty."""
    if request.output is not None:
        yield request.output
    elif collected.own is not None and collected.own.folder is not None:
        yield collected.own.folder
    else:
        folder = make_dated_folder(request.result_dir / KIND)
        try:
            yield folder
        finally:
            if not any(folder.iterdir()):
                folder.rmdir()


def _log(request: ReportRequest, collected: Collected, folder: Path, written: Report, *, uri: str) -> None:
    """Log to the comparison's own run if there is one, else to a run of the report's own.

    A run that `mlflow run` has begun for this process holds the report in either case.
    """
    logged = LoggedReport(folder, written.files, flat_means(written.comparison), written.markdown)
    run, adopted = _report_run(request), os.environ.pop("MLFLOW_RUN_ID", None)
    own = collected.own
    try:
        if own is not None and own.run_id is not None:
            add_report(logged, None, run_id=own.run_id, uri=uri)
        if own is not None and own.folder == folder:
            if own.run_id is None:
                request.say("warning: the comparison is not in MLflow, so the report is in its folder only")
            if adopted is not None:
                add_report(logged, run, run_id=adopted, uri=uri)
        elif own is None or own.run_id is None or adopted is not None:
            run_id = log_report(
                logged,
                run,
                experiment=request.asked.experiment,
                uri=uri,
                root=request.root,
                adopted=adopted,
            )
            RunFolder(folder, resumed=False).set_state(status=FINISHED, mlflow_run_id=run_id)
    except TrackingError as error:
        request.say(f"warning: {error}; the report's files are complete, but MLflow does not have them all")


def _report_run(request: ReportRequest) -> ReportRun:
    asked = request.asked
    params = {"runs": ",".join(asked.runs), "query": asked.query, "label_by": asked.label_by}
    return ReportRun(
        f"{KIND}-by-{asked.label_by}",
        {"kind": KIND, "command": request.command, **provenance.git_facts(request.root)},
        {name: value for name, value in params.items() if value},
    )


def _check_output(output: Path | None) -> None:
    """Refuse a folder with anything in it: tables of another report would mix with these."""
    if output is not None and os.path.exists(output) and (not output.is_dir() or any(output.iterdir())):
        raise OutputError(f"output={output}: already there; give a new or an empty folder")
