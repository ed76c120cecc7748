"""Opening what every run has, be it a training, a comparison, a study or a trial: its copy in MLflow."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from dinomaly_hd import provenance
from dinomaly_hd.errors import DinomalyHDError, Interrupted, OutputError, Pruned
from dinomaly_hd.runs.context import Context
from dinomaly_hd.runs.folder import IN_MLFLOW, RunFolder
from dinomaly_hd.runs.store import default_uri
from dinomaly_hd.runs.tracker import Status, Tracker

START_TIMEOUT_S, CLOSE_TIMEOUT_S = 60.0, 120.0


@contextmanager
def tracked(
    folder: RunFolder,
    context: Context,
    *,
    name: str,
    tags: Mapping[str, str],
    resumed: str | None = None,
    system_metrics: bool = False,
) -> Iterator[Tracker]:
    """Copy what is noted in a folder to its MLflow run, the one of an earlier start if there was one.

    Args:
        folder: Locked by this process; holds the status, too.
        context: Its surroundings; ``parent_run_id`` is the run above.
        name: What the run is called.
        tags: Beside those that every run has.
        resumed: MLflow run of an earlier start, where the folder may not know it.
        system_metrics: Whether MLflow watches the machine.

    Raises:
        DinomalyHDError: What was raised inside, once the run is closed as KILLED or FAILED.
    """
    tracker = Tracker(
        folder.path,
        uri=default_uri(context.root),
        experiment=context.experiment,
        run_name=context.run_name or name,
        tags={**tags, "run_folder": str(folder.path.resolve()), **_commit(context)},
        root=context.root,
        parent_run_id=context.parent_run_id,
        resume_run_id=resumed,
        system_metrics=system_metrics,
    )
    status: Status = "FAILED"
    try:
        folder.set_state(**{IN_MLFLOW: False})
        run_id = tracker.start(timeout_s=START_TIMEOUT_S)
        if run_id is not None:
            folder.set_state(mlflow_run_id=run_id)
        yield tracker
        status = "FINISHED"
    except (Interrupted, Pruned) as stop:
        status = "KILLED"
        if isinstance(stop, Pruned):
            tracker.tags({"pruned": "true"})
        raise
    except BaseException as error:
        tracker.tags({"error": str(error) if isinstance(error, DinomalyHDError) else repr(error)})
        raise
    finally:
        _close(folder, tracker, status, context)


def _commit(context: Context) -> dict[str, str]:
    facts = provenance.git_facts(context.root)
    changed = " with uncommitted changes" if facts.get("git_dirty") == "true" else ""
    return {"git_commit": facts["git_commit"] + changed} if "git_commit" in facts else {}


def _close(folder: RunFolder, tracker: Tracker, status: Status, context: Context) -> None:
    """End the run in its folder and in MLflow, and say where to look.

    A folder that cannot be written any more, on a full disk, keeps MLflow from nothing.
    """

    def note(**values: Any) -> None:
        try:
            folder.set_state(**values)
        except OutputError as error:
            context.say(f"warning: {error}")

    note(status=status)
    delivered = tracker.close(status, timeout_s=CLOSE_TIMEOUT_S)
    if tracker.run_id is not None:
        note(mlflow_run_id=tracker.run_id)  # of a server that was too slow at the start
    note(**{IN_MLFLOW: delivered})
    if delivered and status == "FINISHED":
        context.say(f"MLflow run:   {tracker.url()}")
        if context.parent_run_id is None:
            context.say(f"all its runs: {tracker.experiment_url()}")
            context.say("              (`make ui` starts these pages)")
    context.say(f"run folder:   {folder.path}")
