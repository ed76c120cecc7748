"""The run folder: the truth of a run, of which MLflow is a copy."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import filelock

from dinomaly_hd.errors import ConfigError, OutputError
from dinomaly_hd.files import acquire, make_dated_folder, publish_json, read_json

STATE = "run.json"
LOCK = ".lock"
CHECKPOINTS, MODEL, RESULTS, SCORES = "checkpoints", "model", "results.json", "scores"
FINISHED = "FINISHED"
IN_MLFLOW = "in_mlflow"
"""In run.json: whether MLflow has all of the run."""
SHOWN_RUNS = 4


class RunFolder(NamedTuple):
    """One ``{result_dir}/{variant}/{YYYYMMDD_HHMMSS}_seed{N}`` and whether it continues an earlier start.

    ``finished``: another process has done this run while this one waited for its folder.
    """

    path: Path
    resumed: bool
    finished: bool = False

    def state(self) -> dict[str, Any]:
        """Return what ``run.json`` says: config_hash, status, mlflow_run_id."""
        return read_state(self.path)

    def set_state(self, **values: Any) -> None:
        publish_json(self.path / STATE, {**self.state(), **values})


def read_state(path: Path) -> dict[str, Any]:
    """Return a run folder's ``run.json``, empty where there is none or it is no JSON."""
    return read_json(path / STATE)


def read_results(path: Path) -> dict[str, Any] | None:
    """Return a run folder's ``results.json``, None where there is none or it is no JSON."""
    return read_json(path / RESULTS) or None


def finished_runs(result_dir: Path, *, code: str) -> dict[str, Path]:
    """Return the folders of all finished runs of this code by their ``config_hash``, the oldest of each."""
    found: dict[str, Path] = {}
    for path in all_runs(result_dir):
        state = read_state(path)
        if (state.get("status"), state.get("code")) == (FINISHED, code) and (path / RESULTS).is_file():
            found.setdefault(str(state.get("config_hash")), path)
    return found


def find_run(result_dir: Path, run: str) -> Path:
    """Return the run folder named by its path, its name, or its MLflow run id.

    Raises:
        ConfigError: There is none, or several have this name (a comparison's members share theirs with the
            members of the next one).
    """
    if os.path.isfile(Path(run) / STATE):  # False too for what is too long for a path
        return Path(run)
    folders = list(all_runs(result_dir))
    found = [f for f in folders if f.name == run or read_state(f).get("mlflow_run_id") == run]
    if len(found) > 1:
        shown = ", ".join(str(folder) for folder in found[-SHOWN_RUNS:])
        raise ConfigError(f"run {run!r}: {len(found)} run folders have this name; give a path: {shown}")
    if not found:
        raise ConfigError(
            f"run {run!r}: no run folder and no MLflow run id of the {len(folders)} runs under {result_dir}; "
            "give the folder's path or another result_dir"
        )
    return found[0]


def all_runs(result_dir: Path) -> Iterator[Path]:
    """Yield every run folder below a result folder, oldest first."""
    states = [path for path in result_dir.glob(f"**/{STATE}") if path.is_file()]
    yield from (path.parent for path in sorted(states, key=lambda path: (path.parent.name, path)))


@contextmanager
def open_folder(
    result_dir: Path,
    *,
    variant: str,
    seed: int,
    config_hash: str,
    resume: str,
    folder: Path | None = None,
    of_members: bool = False,
    wait_s: float = 0.0,
    tick: Callable[[], None] = lambda: None,
) -> Iterator[RunFolder]:
    """Lock and yield the folder to work in: the newest unfinished one of this ``config_hash``, or a new one.

    A folder without a checkpoint is left behind for a new one, unless members' folders lie in it.

    Args:
        result_dir: Parent of all variants' folders.
        variant: Subfolder.
        seed: Part of the name.
        config_hash: Of resolved config, seed and data.
        resume: "auto"; "never"; or the run to continue (path, folder name, MLflow run id).
        folder: Where a comparison puts its member; None makes a dated folder.
        of_members: Whether it is a comparison's own folder.
        wait_s: How long to wait for another process that still works in ``folder``.
        tick: Called several times a second while waiting.

    Raises:
        ConfigError: The run to continue is not there, is another's, or another process works on it.
        OutputError: The folder cannot be written.
    """
    candidates: list[Path | None]
    if resume in ("auto", "never"):
        where = folder or result_dir / variant
        old = [] if resume == "never" else _unfinished(where, config_hash, of_members=of_members)
        candidates = [*old] if folder and old else [*old, None]
    else:
        candidates = [find_run(result_dir, resume)]
    for candidate in candidates:
        path = candidate or folder or make_dated_folder(result_dir / variant, suffix=f"_seed{seed}")
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(path / LOCK, timeout=0)
            waited = acquire(lock, wait_s=wait_s if path == folder else 0.0, tick=tick)
        except filelock.Timeout:
            if of_members:
                raise ConfigError(
                    f"{path}: another process is at work on the same runs; wait for it, or stop it "
                    "and start again"
                ) from None
            continue
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error}; choose another result_dir") from error
        try:
            yield _claimed(path, config_hash, resumed=candidate is not None, waited=waited)
        finally:
            lock.release()
        return
    raise ConfigError(f"resume={resume}: another process is working on this run")


def _claimed(path: Path, config_hash: str, *, resumed: bool, waited: bool) -> RunFolder:
    """Return a folder that is locked; another run's stays as it is: its checkpoint will be refused."""
    state = read_state(path)
    theirs = state.get("config_hash", config_hash)
    done = waited and theirs == config_hash and state.get("status") == FINISHED
    folder = RunFolder(path, resumed=resumed, finished=done)
    if theirs == config_hash and not done:
        folder.set_state(config_hash=config_hash, status="RUNNING", pid=os.getpid())
    elif not done and not any((path / CHECKPOINTS).glob("*.pt")):
        raise ConfigError(
            f"{path}: belongs to a run of another configuration or data ({theirs}, this one is "
            f"{config_hash}); resume=never starts a new one"
        )
    return folder


def _unfinished(where: Path, config_hash: str, *, of_members: bool) -> list[Path]:
    found = []
    for path in all_runs(where):
        state = read_state(path)
        if state.get("config_hash") == config_hash and state.get("status") != FINISHED:
            found.append(path)
    return [path for path in reversed(found) if of_members or any(path.glob(f"**/{CHECKPOINTS}/*.pt"))]
