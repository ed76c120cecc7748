"""The MLflow run of a folder that is no training run itself: a comparison, a study, a trial."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from dinomaly_hd import provenance
from dinomaly_hd.errors import DinomalyHDError, Interrupted, Pruned
from dinomaly_hd.runs.context import Context
from dinomaly_hd.runs.folder import IN_MLFLOW, RunFolder
from dinomaly_hd.experiments.session import START_TIMEOUT_S, close_both
from dinomaly_hd.runs.journal import Journal
from dinomaly_hd.runs.store import default_uri
from dinomaly_hd.runs.tracker import Status, Tracker


@contextmanager
def open_page(
    folder: RunFolder,
    context: Context,
    *,
    name: str,
    tags: Mapping[str, str],
    resumed: str | None = None,
) -> Iterator[Tracker]:
    """Copy what is journaled in a folder to its MLflow run, the one of an earlier start if there was one.

    Args:
        folder: Locked by this process; holds the status, too.
        context: Its surroundings; ``parent_run_id`` is the run above.
        name: What the run is called.
        tags: Beside those that every run has.
        resumed: MLflow run of an earlier start, where the folder may not know it.

    Raises:
        DinomalyHDError: What was raised inside, once the run is closed as KILLED or FAILED.
    """
    tracker = Tracker(
        Journal(folder.path / "journal.jsonl"),
        uri=default_uri(context.root),
        experiment=context.experiment,
        run_name=name,
        tags={
            "command": context.command,
            "run_folder": str(folder.path.resolve()),
            **tags,
            **provenance.git_facts(context.root),
        },
        root=context.root,
        parent_run_id=context.parent_run_id,
        resume_run_id=resumed,
        system_metrics=False,
    )
    folder.set_state(**{IN_MLFLOW: False})
    run_id = tracker.start(timeout_s=START_TIMEOUT_S)
    if run_id is not None:
        folder.set_state(mlflow_run_id=run_id)
    status: Status = "FAILED"
    try:
        yield tracker
        status = "FINISHED"
    except Interrupted:
        status = "KILLED"
        raise
    except Pruned:
        status = "KILLED"
        tracker.tags({"pruned": "true"})
        raise
    except BaseException as error:
        tracker.tags({"error": str(error) if isinstance(error, DinomalyHDError) else repr(error)})
        raise
    finally:
        delivered = close_both(folder, tracker, status, say=context.say)
    if delivered and context.parent_run_id is None:
        context.say(f"MLflow run: {tracker.url()}")
        context.say("            (`make ui` starts these pages)")
