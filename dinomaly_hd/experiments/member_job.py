"""One member of a comparison as a job: what it needs goes through job.json to a process of its own."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from dinomaly_hd import provenance
from dinomaly_hd.config import RunConfig, from_json
from dinomaly_hd.data.feature_files import FeaturePlace
from dinomaly_hd.runs.context import Context
from dinomaly_hd.experiments.run import Outcome, execute
from dinomaly_hd.jobs import Job, read_job, write_progress
from dinomaly_hd.training.guards import SignalGuard

MODULE = "entry_points.job"
LOCK_WAIT_S = 120.0
"""A member's last process may still be saving, on this machine or on one that was lost."""
PLAIN = ("experiment", "command", "entry_point", "run_name", "resume", "parent_run_id", "tags")
PATHS = ("root", "result_dir", "folder")


def member_job(name: str, run: RunConfig, context: Context) -> Job:
    """Return the job that executes a member's run; its log lies in the run's folder."""
    assert context.folder is not None, "a member has its place"
    content = {
        "code_digest": provenance.code_digest(),
        "run": json.loads(run.to_json()),
        "context": context_to_plain(context),
    }
    return Job(name, MODULE, context.folder, content)


def run_job(path: Path, *, guard: SignalGuard, say: Callable[[str], None]) -> Outcome:
    """Execute the run of a ``job.json``.

    Raises:
        ConfigError: There is no such file, or other code wrote it.
        DinomalyHDError: As ``execute``.
    """
    content = read_job(path, code_digest=provenance.code_digest())
    context = context_from_plain(content["context"], guard=guard, say=say)
    context = replace(context, lock_wait_s=LOCK_WAIT_S, on_progress=partial(_progress, path.parent))
    return execute(from_json(json.dumps(content["run"])), context)


def context_to_plain(context: Context) -> dict[str, Any]:
    """Return what JSON can hold of a context; another working directory finds the same paths."""
    plain = {name: getattr(context, name) for name in PLAIN}
    paths = {name: getattr(context, name) for name in PATHS}
    place = context.feature_place
    features = place and {"folder": str(place.folder.absolute()), "budget_gb": place.budget_gb}
    return {
        **plain,
        **{name: path and str(path.absolute()) for name, path in paths.items()},
        "feature_place": features,
    }


def context_from_plain(content: dict[str, Any], *, guard: SignalGuard, say: Callable[[str], None]) -> Context:
    """Return the context of which ``context_to_plain`` was made, for this process."""
    values: dict[str, Any] = {name: content[name] for name in PLAIN}
    values |= {name: content[name] and Path(content[name]) for name in PATHS}
    place = content["feature_place"]
    features = place and FeaturePlace(Path(place["folder"]), place["budget_gb"])
    return Context(guard=guard, say=say, feature_place=features, **values)


def _progress(folder: Path, done: int, total: int, seconds_left: float) -> None:
    write_progress(folder, step=done, steps=total, seconds_left=seconds_left)
