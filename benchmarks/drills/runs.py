"""Tiny training runs in processes of their own, and whether two finished ones are the same bit by bit."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd
import torch
from safetensors.torch import load_file

from dinomaly_hd.experiments import evaluate
from dinomaly_hd.files import TEMPORARY_PREFIX
from dinomaly_hd.runs.folder import CHECKPOINTS, FINISHED, RESULTS, STATE, all_runs, read_state
from dinomaly_hd.runs.journal import Journal
from entry_points import common, horizontal

STEPS = 40
FLAGS = {
    "seed": "42",
    "preset": "quick",
    "simulate_size": "tiny",
    "image_size": "64",
    "decoder_depth": "2",
    "batch_size": "4",
    "max_steps": str(STEPS),
    "checkpoint_interval": "2",
    "val_check_interval": "10",
    "maps_per_group": "0",
    "domains": "A,C",
    "gpu": "cpu",
}
# What a run imports at once or late.
PRELOADED = [
    "entry_points.horizontal",
    "dinomaly_hd.experiments.protocols",
    "dinomaly_hd.serving.served",
    "mlflow.pyfunc",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.system_metrics.system_metrics_monitor",
    "sklearn.metrics",
    "sklearn.linear_model",
    "git",
    "alembic.command",
    "benchmarks.drills.studies",
    "benchmarks.drills.tracking",
]
POLL_S, LONGEST_WAIT_S = 0.002, 900.0


@cache
def launcher() -> ForkServerContext:
    """Return what starts processes that have our modules imported already, which takes 10 s each time."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a background job's, which its runs would inherit
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with mock.patch.dict(os.environ, {**common.QUIET, "OMP_NUM_THREADS": "1"}):
        forkserver.ensure_running()
    return context


def start(folder: Path, *, uri: str | None = None, before: str | None = None, **changes: str) -> BaseProcess:
    """Start or go on with the run of ``folder``: its results, encoded images and log.

    What else a project holds lies beside the folder, such as MLflow's store, where ``uri`` names no other.
    ``before``, its record or its exit, the run waits until it is ``hit``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    hit(folder).unlink(missing_ok=True)
    process = launcher().Process(
        target=_train,
        args=(folder, {**FLAGS, **changes, "result_dir": str(folder)}, uri or store(folder.parent), before),
    )
    process.start()
    return process


def _train(folder: Path, flags: dict[str, str], uri: str, before: str | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the run hears it: by itself, exit code 1 here
    descriptor = os.open(log(folder), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.environ.pop("MLFLOW_RUN_ID", None)
    os.environ |= {"MLFLOW_TRACKING_URI": uri, "DINOMALY_HD_FEATURES": str(folder / "features")}
    torch.set_num_threads(1)
    multiprocessing.set_start_method(None, force=True)  # of loader workers: the platform's own, not ours
    common.ROOT = folder.parent
    sys.argv = ["horizontal", *(f"--{name}={value}" for name, value in flags.items())]
    draw = evaluate._draw

    def draw_and_wait(*given: Any, **named: Any) -> None:
        draw(*given, **named)
        wait_until(hit(folder).exists)  # the last look for a signal follows

    if before == "record":
        evaluate._draw = draw_and_wait
    code = common.launch(horizontal.main)
    if before == "exit":
        wait_until(hit(folder).exists)
    sys.exit(code)


def finish(folder: Path, **changes: str) -> Path:
    """Let the run of ``folder`` come to its end and return its run folder.

    Raises:
        RuntimeError: It ended otherwise, or hangs.
    """
    if not _finished(folder):
        process = start(folder, **changes)
        process.join(timeout=LONGEST_WAIT_S)
        if process.exitcode != 0:
            process.kill()
            raise RuntimeError(f"exit code {process.exitcode}: {log(folder).read_text()[-1500:]}")
    finished = _finished(folder)
    if len(finished) != 1:
        raise RuntimeError(f"{len(finished)} finished runs in {folder}")
    return finished[0]


def _finished(folder: Path) -> list[Path]:
    runs = all_runs(folder)
    return [run for run in runs if read_state(run).get("status") == FINISHED and (run / RESULTS).is_file()]


@cache
def reference(place: Path) -> Path:
    """Return the run folder of one run that nothing disturbed, the same for all drills in ``place``."""
    return finish(place / "reference")


def store(folder: Path) -> str:
    return f"sqlite:///{folder / 'mlflow.db'}"


def log(folder: Path) -> Path:
    return folder / "log"


def hit(folder: Path) -> Path:
    """Return the file that is there once a signal was sent."""
    return folder / "hit"


def run_folder(folder: Path) -> Path | None:
    """Return the newest run folder, None where the run has not come so far."""
    # Not all_runs: this is asked hundreds of times a second, beside the run that is waited for.
    return max((path.parent for path in folder.glob(f"horizontal/*/{STATE}")), default=None)


def logged(folder: Path, name: bytes = b'"train/loss"') -> int:
    """Return how often a metric stands in the journal: without a name, the steps that are done."""
    run = run_folder(folder)
    journal = run / "journal.jsonl" if run else None
    return journal.read_bytes().count(name) if journal and journal.exists() else 0


def saving(folder: Path) -> bool:
    """Return whether there is a half-written checkpoint."""
    run = run_folder(folder)
    return run is not None and any((run / CHECKPOINTS).glob(f"{TEMPORARY_PREFIX}*"))


def wait_until(condition: Callable[[], bool], *, process: BaseProcess | None = None) -> None:
    """Wait until it holds or the process has ended."""
    end = time.monotonic() + LONGEST_WAIT_S
    while (process is None or process.is_alive()) and time.monotonic() < end and not condition():
        time.sleep(POLL_S)


def difference(run: Path, expected: Path) -> str | None:
    """Return what differs first between two finished runs, a weight, a score, the history: or None."""
    ours, theirs = (load_file(path / "model" / "weights.safetensors") for path in (run, expected))
    other = [name for name in theirs if name not in ours or not torch.equal(ours[name], theirs[name])]
    if other or ours.keys() != theirs.keys():
        return f"weights differ: {', '.join(other[:3])}"
    ours, theirs = (
        {path.name: pd.read_csv(path) for path in (one / "scores").glob("*.csv")} for one in (run, expected)
    )
    if not theirs or ours.keys() != theirs.keys():
        return "other score tables"
    if other := [name for name in theirs if not ours[name].equals(theirs[name])]:
        return f"scores/{other[0]} differs"
    ours, theirs = history(run), history(expected)
    other = [name for name in theirs if ours.get(name) != theirs[name]]
    return f"the history of {', '.join(other)} differs" if other or len(ours) != len(theirs) else None


def history(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Return a run's metric history but for what was measured with a clock."""
    metrics = Journal(run / "journal.jsonl").history()
    return {name: points for name, points in metrics.items() if not name.startswith("time/")}
