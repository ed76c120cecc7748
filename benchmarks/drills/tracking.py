"""Drills 11 and 12: a tracking server that dies, and one SQLite file that many start on at once."""

import random
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from benchmarks.common import timed
from benchmarks.drills import Drill, Tally, runs
from dinomaly_hd.runs.journal import Outbox
from dinomaly_hd.runs.mirror import mirror
from dinomaly_hd.runs.store import client_for, prepare_store
from dinomaly_hd.runs.tracker import Tracker
from tests.work import held_port, kill, mlflow_process

EXPERIMENT = "drills"
POINTS, POINT_S = 60, 0.05
MOST_LOST_S = 5.0
START_S, CLOSE_S = 600.0, 400.0
STARTERS, POINTS_EACH = 8, 30


def server(folder: Path, port: int) -> AbstractContextManager["subprocess.Popen[bytes]"]:
    """Run MLflow's tracking server on a database of ``folder`` until the block ends or it is killed."""
    return mlflow_process(
        *("server", "--workers", "1", "--backend-store-uri", f"sqlite:///{folder / 'server.db'}"),
        *("--artifacts-destination", str(folder / "artifacts")),
        port=port,
        answers="/health",
        log=folder / "server.log",
        MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
    )


def _tracker(folder: Path, uri: str) -> Tracker:
    """Return a run whose folder lies in the root."""
    outbox = Outbox(folder)
    outbox.open_run(experiment=EXPERIMENT, run_name=folder.name, tags={}, parent_run_id=None)
    run = Tracker(outbox, uri=uri, root=folder.parent, system_metrics=False)
    run.start(timeout_s=START_S)
    return run


def _logged(folder: Path, uri: str, *, at: int, event: Callable[[], None]) -> float:
    """Log a run of ``POINTS`` steps, let ``event`` happen at step ``at``, and return the seconds lost."""
    run, spent = _tracker(folder, uri), 0.0
    for step in range(POINTS):
        if step == at:
            event()
        spent += timed(lambda step=step: run.metrics({"train/loss": step / 7}, step=step))[0]
        time.sleep(POINT_S)
    return spent + timed(lambda: run.close("FINISHED", timeout_s=CLOSE_S))[0]


def outages(folder: Path, full: bool) -> Tally:
    """Kill a real server at random steps: the run ends in time, one later sync leaves no hole, no double."""
    tally, moments, longest = Tally(), random.Random(11), 0.0
    # A busy machine adds seconds; a dead server that is waited for costs CLOSE_S.
    most_s = MOST_LOST_S if full else CLOSE_S / 2
    for number in range(10 if full else 1):
        run_folder = folder / f"run{number}"
        run_folder.mkdir()
        at = moments.randrange(POINTS)
        with held_port() as port:
            uri = f"http://127.0.0.1:{port}"
            with server(folder, port) as process:
                lost = _logged(run_folder, uri, at=at, event=lambda process=process: kill(process))
            longest = max(longest, lost)
            with server(folder, port):
                late = f"{lost:.1f} s lost" if lost > most_s else None
                tally.add(f"killed at step {at}", _whole_after_sync(run_folder, uri) or late)
    tally.note = f"at most {longest:.1f} s lost"
    return tally


def _whole_after_sync(folder: Path, uri: str) -> str | None:
    first, second = (mirror(folder, uri=uri, root=folder.parent) for _ in range(2))
    client = client_for(uri)
    history = [(p.step, p.value) for p in client.get_metric_history(first.run_id, "train/loss")]
    if history != [(step, step / 7) for step in range(POINTS)]:
        return f"MLflow has {len(history)} points of {POINTS}, or others"
    if second.points or second.operations:
        return f"a second sync sent {second.points} points again"
    if client.get_run(first.run_id).info.status != "FINISHED":
        return "the run is not marked FINISHED"
    return None


def _starter(folder: Path, number: int) -> None:
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    prepare_store(uri, experiment=EXPERIMENT, root=folder)
    own = folder / f"starter{number}"
    own.mkdir()
    run = _tracker(own, uri)
    for step in range(POINTS_EACH):
        run.metrics({"train/loss": float(step)}, step=step)
    sys.exit(0 if run.close("FINISHED", timeout_s=CLOSE_S) else 1)


def starters(folder: Path, full: bool) -> Tally:
    """Start many processes at once on a fresh SQLite file: all live, and every point arrives."""
    context, count = runs.launcher(), STARTERS if full else STARTERS // 2
    processes = [context.Process(target=_starter, args=(folder, number)) for number in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=900)
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    client = client_for(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    found = client.search_runs([experiment.experiment_id]) if experiment else []
    started = {run.info.run_name: run for run in found}
    tally, points = Tally(), 0
    for number, process in enumerate(processes):
        run = started.get(f"starter{number}")
        here = 0 if run is None else len(client.get_metric_history(run.info.run_id, "train/loss"))
        points += here
        fine = process.exitcode == 0 and here == POINTS_EACH
        tally.add(f"starter {number}", None if fine else f"exit code {process.exitcode}, {here} points")
    tally.note = f"{points} of {count * POINTS_EACH} points"
    return tally


DRILLS = (
    Drill(11, "a tracking outage costs telemetry only", outages),
    Drill(12, "one SQLite file, many starters", starters),
)
