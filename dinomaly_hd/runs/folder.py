"""The run folder, the truth of a run, of which MLflow is a copy; and what surrounds a run."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import filelock

from dinomaly_hd.errors import ConfigError, OutputError, SignalGuard
from dinomaly_hd.files import acquire, make_dated_folder, publish_json, read_json

if TYPE_CHECKING:
    from dinomaly_hd.data.feature_files import FeaturePlace
    from dinomaly_hd.data.features import FeatureCache
    from dinomaly_hd.data.hdmap import Manifest

STATE = "run.json"
LOCK = ".lock"
CHECKPOINTS, MODEL, RESULTS, SCORES = "checkpoints", "model", "results.json", "scores"
SUMMARY = "final_summary.json"
FINISHED = "FINISHED"
IN_MLFLOW = "in_mlflow"
"""In run.json: whether MLflow has all of the run."""
SHOWN_RUNS = 4


@dataclass(frozen=True, kw_only=True)
class Context:
    """What surrounds a run and changes none of its numbers: where results go and who is told."""

    root: Path  # the project: MLflow's database and the simulated data lie here
    result_dir: Path  # parent of the run folders
    experiment: str  # MLflow's
    guard: SignalGuard  # checked between batches
    say: Callable[[str], None]  # prints a line
    command: str  # repeats the run
    entry_point: str
    run_name: str | None = None  # None for the default name
    resume: str = "auto"  # or "never", or a run
    parent_run_id: str | None = None  # MLflow parent of a comparison's member
    folder: Path | None = None  # where a comparison puts its member; None for a dated folder
    tags: Mapping[str, str] = field(default_factory=dict)  # further ones for MLflow
    features: "FeatureCache | None" = None  # encoder outputs that the members of a comparison share
    feature_place: "FeaturePlace | None" = None  # of files that hold encoder outputs for other runs
    manifests: "dict[str, Manifest] | None" = None  # data sets read before, for runs that begin together
    donors: tuple[Path, ...] = ()  # folders of runs whose checkpoint may stand for this one's training
    lock_wait_s: float = 0.0  # for another process that still works in its folder
    on_progress: Callable[[int, int, float], None] | None = None  # after a step: done, in all, seconds left
    observe: Callable[[Mapping[str, float], int], None] | None = None
    """Called with every logged dict of metrics and its step, counted from 0; may raise ``Pruned``."""


class RunFolder(NamedTuple):
    """One ``{result_dir}/{variant}/{YYYYMMDD_HHMMSS}_seed{N}``.

    ``finished``: another process has done this run while this one waited for its folder.
    """

    path: Path
    finished: bool = False

    def state(self) -> dict[str, Any]:
        return read_state(self.path)

    def set_state(self, **values: Any) -> None:
        publish_json(self.path / STATE, {**self.state(), **values})


def read_state(path: Path) -> dict[str, Any]:
    """Return what ``run.json`` says: config_hash, status, mlflow_run_id; empty if it says nothing."""
    return read_json(path / STATE)


def read_results(path: Path) -> dict[str, Any] | None:
    """Return a run folder's ``results.json``, None where there is none or it is no JSON."""
    return read_json(path / RESULTS) or None


def all_runs(result_dir: Path) -> list[Path]:
    """Return every run folder below a result folder, oldest first."""
    found = []
    for place, folders, files in os.walk(result_dir):
        if STATE in files:
            found.append(Path(place))
        if RESULTS in files:  # no run lies below a finished training: only its hundreds of pictures
            folders.clear()
    return sorted(found, key=lambda folder: (folder.name, folder))


def states(result_dir: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield every run folder below a result folder and what its ``run.json`` says, oldest first."""
    return ((folder, read_state(folder)) for folder in all_runs(result_dir))


def finished_runs(result_dir: Path, *, code: str) -> dict[str, Path]:
    """Return the folders of all finished runs of this code by their ``config_hash``, the oldest of each."""
    found: dict[str, Path] = {}
    for path, state in states(result_dir):
        if (state.get("status"), state.get("code")) == (FINISHED, code) and (path / RESULTS).is_file():
            found.setdefault(str(state.get("config_hash")), path)
    return found


def folders_named(
    run: str, among: Iterable[tuple[Path, Mapping[str, Any]]], *, holding: Sequence[str] = (STATE,)
) -> list[Path]:
    """Return the run folders that a user may mean by a path, a name, or an MLflow run id.

    A path counts if one of the files ``holding`` lies there. Several may have one name: a comparison's
    members share theirs with the members of the next one.
    """
    if any(os.path.isfile(Path(run) / file) for file in holding):  # False too for what is too long for a path
        return [Path(run)]
    return [folder for folder, state in among if run in (folder.name, state.get("mlflow_run_id"))]


def find_run(result_dir: Path, run: str) -> Path:
    """Return the one run folder named by its path, its name, or its MLflow run id, or raise ConfigError."""
    among = list(states(result_dir))
    found = folders_named(run, among)
    if len(found) > 1:
        shown = ", ".join(str(folder) for folder in found[-SHOWN_RUNS:])
        raise ConfigError(f"run {run!r}: {len(found)} run folders have this name; give a path: {shown}")
    if not found:
        raise ConfigError(
            f"run {run!r}: no run folder and no MLflow run id of the {len(among)} runs under {result_dir}; "
            "give the folder's path or another result_dir"
        )
    return found[0]


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

    A folder without a checkpoint is left behind for a new one, unless it is a comparison's own
    (``of_members``). ``resume`` is "auto", "never", or the run to continue. ``folder`` is where a comparison
    puts its member, None makes a dated one below ``variant``; for another process in it is waited ``wait_s``,
    with ``tick`` called several times a second. Raises ConfigError where the run to continue is not there, is
    another's, or another process works on it, OutputError where the folder cannot be written.
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
            yield _claimed(path, config_hash, waited=waited)
        finally:
            lock.release()
        return
    raise ConfigError(f"resume={resume}: another process is working on this run")


def _claimed(path: Path, config_hash: str, *, waited: bool) -> RunFolder:
    """Return a folder that is locked; another run's stays as it is: its checkpoint will be refused."""
    state = read_state(path)
    theirs = state.get("config_hash", config_hash)
    done = waited and theirs == config_hash and state.get("status") == FINISHED
    folder = RunFolder(path, finished=done)
    if theirs == config_hash and not done:
        folder.set_state(config_hash=config_hash, status="RUNNING", pid=os.getpid())
    elif not done and not any((path / CHECKPOINTS).glob("*.pt")):
        raise ConfigError(
            f"{path}: belongs to a run of another configuration or data ({theirs}, this one is "
            f"{config_hash}); resume=never starts a new one"
        )
    return folder


def _unfinished(where: Path, config_hash: str, *, of_members: bool) -> list[Path]:
    """Return the folders to go on in, the newest first."""
    return [
        path
        for path, state in reversed(list(states(where)))
        if state.get("config_hash") == config_hash and state.get("status") != FINISHED
        if of_members or any(path.glob(f"**/{CHECKPOINTS}/*.pt"))
    ]
