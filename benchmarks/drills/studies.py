"""Drill 13: workers of a study that are killed in the midst of their trials."""

import os
import random
import signal
import time
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

from optuna.trial import TrialState

from benchmarks.drills import Drill, Tally, runs
from dinomaly_hd.config.resolve import resolve_config
from dinomaly_hd.config.run import RunConfig
from dinomaly_hd.tuning.space import make_space
from dinomaly_hd.tuning.storage import address_of
from dinomaly_hd.tuning.study import SYNTHETIC, Joined, Plan, chain_of, join
from dinomaly_hd.tuning.worker import Attempt, work

HEARTBEAT_S, TRIAL_S, BUDGET_S = 3, 0.5, 900
KILLED = "killed"
"""The file that is there once enough workers are."""
STORAGE = "DRILL_STORAGE"
"""In the environment: the address of another storage, such as a PostgreSQL, than a SQLite file."""


def _build(text: str) -> RunConfig:
    return resolve_config(text, {"preset": "quick", "seed": "42"})


def joined(folder: Path, *, trials: int) -> Joined:
    """Make or join a study of one value that is ``folder``'s own, without Optuna's remarks."""
    plan = Plan(
        study=".".join(folder.parts[1:]),
        address=address_of(os.environ.get(STORAGE, f"sqlite:///{folder / 'optuna.db'}"), root=folder),
        trials=trials,
        config="F",
        space=make_space(("row_p",), base="F", build=_build, check=lambda _: None),
        objective=SYNTHETIC,
        metrics=("mean/auroc",),
        seeds=(13,),
        sampler="random",
        pruner="none",
        heartbeat_s=HEARTBEAT_S,
        build=lambda text, _: _build(text),
    )
    with warnings.catch_warnings(action="ignore"):
        return join(plan, code="drill", settings={"space": "row_p"}, parent=lambda known: known or "run-1")


def run_trials(folder: Path, evaluate: Callable[[Attempt], Sequence[float]], *, trials: int) -> None:
    """Work at the study until it is over."""
    study = joined(folder, trials=trials)
    with warnings.catch_warnings(action="ignore"):
        work(study, evaluate=evaluate, tick=lambda: None, on_count=lambda _: None)


def _at_work(folder: Path, pid: int | None) -> Path:
    """Return the file that is there while a worker is in the midst of a trial."""
    return folder / f"at_work_{pid}"


def _worker(folder: Path, trials: int) -> None:
    def row_p(attempt: Attempt) -> list[float]:
        _at_work(folder, os.getpid()).touch()
        time.sleep(TRIAL_S)
        if attempt.trial.number >= trials // 2:  # else the study might be over before the last one is killed
            runs.wait_until((folder / KILLED).exists)
        _at_work(folder, os.getpid()).unlink()
        return [float(attempt.point["row_p"])]

    run_trials(folder, row_p, trials=trials)


def killed_workers(folder: Path, full: bool) -> Tally:
    """Kill half of the workers at work: the rest finish the study, each trial once, none stays RUNNING."""
    count, trials = (20, 40) if full else (4, 8)
    tally, context, moments = Tally(), runs.launcher(), random.Random(13)
    study = joined(folder, trials=trials).study
    workers = [context.Process(target=_worker, args=(folder, trials)) for _ in range(count)]
    for worker in workers:
        worker.start()
    end, alive, doomed = time.monotonic() + BUDGET_S, list(workers), list[BaseProcess]()
    while len(doomed) < count // 2 and alive and time.monotonic() < end:
        time.sleep(moments.uniform(0, TRIAL_S / count))
        if at_work := [worker for worker in alive if _at_work(folder, worker.pid).exists()]:
            doomed.append(moments.choice(at_work))
            doomed[-1].kill()
        alive = [worker for worker in alive if worker not in doomed and worker.is_alive()]
    (folder / KILLED).touch()
    for number, worker in enumerate(workers):
        worker.join(timeout=max(0.0, end - time.monotonic()))
        if worker not in doomed:
            tally.add(f"worker {number}", f"exit code {worker.exitcode}" if worker.exitcode != 0 else None)
            worker.kill()
    killed = sum(worker.exitcode == -signal.SIGKILL for worker in doomed)
    tally.add("killed in the midst of a trial", None if killed == count // 2 else f"{killed} workers")
    complete = [chain_of(trial) for trial in study.get_trials(states=(TrialState.COMPLETE,))]
    running = len(study.get_trials(states=(TrialState.RUNNING,)))
    once = len(set(complete)) == len(complete) == trials
    tally.add("finished trials", None if once else f"{len(complete)} of {trials}")
    tally.add("trials left RUNNING", str(running) if running else None)
    tally.note = f"{killed} of {count} workers killed, {len(complete)} of {trials} trials finished"
    return tally


DRILLS = (Drill(13, "a dead Optuna worker's trial is tried again", killed_workers),)
