"""Drills 1 and 4: runs that are killed, or asked to end, at any moment."""

import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

from benchmarks.drills import Drill, Tally, runs
from dinomaly_hd.errors import CheckpointError
from dinomaly_hd.runs.folder import CHECKPOINTS, read_state
from dinomaly_hd.runs.store import client_for
from dinomaly_hd.training import checkpoint as checkpoints

RUNS, MOST_KILLS, SIGNALLED = 50, 3, 20
LAST_STEP = runs.STEPS - 10
"""The last step that a moment waits for: the saves that it looks for come after it."""
KILLED = "KILLED"
LONGEST_END_S = 600.0
DELAYS_S = {"start": 1.5, "step": 0.2, "validate": 0.01, "save": 0.0, "score": 0.2, "draw": 0.3, "end": 0.02}
"""The places where a process is hit, and the longest delay there."""
SAID = {"score": b"test images", "draw": b"drawing plots"}
AFTER_TRAINING = (*SAID, "end")
FAST_KILLS, FAST_SIGNALS = ("start", "save", "step", "save", "end"), ("step", "validate", "draw")
ENDED = tuple(place for place in DELAYS_S if place != "end")
"""Where a run can be asked to end: in its last moments it ends by itself."""
RARELY_SAVED = {"checkpoint_interval": str(runs.STEPS)}
"""For runs that are asked to end: what they leave is saved because they were asked."""


class Moment(NamedTuple):
    """When a process is hit: once it has done ``step`` steps and comes to ``place``, after ``delay_s``.

    ``place``: start (of the process), step, validate, save (a half-written checkpoint lies there), score,
    draw, end (the figures are logged).
    """

    place: str
    step: int
    delay_s: float

    def __str__(self) -> str:
        return f"{self.place} at step {self.step} + {self.delay_s:.2f} s"


def _moments(places: Sequence[str], draws: random.Random) -> list[Moment]:
    """Return moments at these places, in the order in which a run comes to them."""
    steps = sorted(draws.sample(range(1, LAST_STEP), len(places)))
    ordered = sorted(places, key=lambda place: AFTER_TRAINING.index(place) if place in AFTER_TRAINING else -1)
    fixed = {"start": 0, **dict.fromkeys(AFTER_TRAINING, runs.STEPS)}
    between = int(runs.FLAGS["val_check_interval"])
    return [
        Moment(
            place,
            -(-step // between) * between if place == "validate" else fixed.get(place, step),
            draws.uniform(0, DELAYS_S[place]),
        )
        for place, step in zip(ordered, steps, strict=True)
    ]


def _hit(folder: Path, moment: Moment, number: signal.Signals, **changes: str) -> BaseProcess:
    """Start or go on with a folder's run, signal it at a moment, and return its process when it has ended."""
    log, place = runs.log(folder), moment.place
    said = log.stat().st_size if log.exists() else 0
    step, between = moment.step, int(runs.FLAGS["val_check_interval"])
    if place == "validate":  # the next one, where the run was ended after more steps than it was to do
        step = min(max(step, runs.logged(folder) // between * between + between), runs.STEPS)
    waits: dict[str, Callable[[], bool]] = {
        "start": log.exists,
        "save": lambda: runs.saving(folder) or runs.logged(folder) == runs.STEPS,
        "end": lambda: runs.logged(folder, b'"time/') > 0,
        **{name: lambda text=text: text in log.read_bytes()[said:] for name, text in SAID.items()},
    }
    # However late we are: it is not over before.
    process = runs.start(folder, before="exit" if place == "end" else "record", **changes)
    if place != "start":  # what it said shows that it hears signals: its steps may be done already
        runs.wait_until(lambda: log.exists() and log.stat().st_size > said, process=process)
        runs.wait_until(lambda: runs.logged(folder) >= step, process=process)
    if place in waits:
        runs.wait_until(waits[place], process=process)
    time.sleep(moment.delay_s)
    if process.pid is not None and process.is_alive():
        os.kill(process.pid, number)
    runs.hit(folder).touch()
    process.join(timeout=LONGEST_END_S)
    if process.is_alive():
        process.kill()
    return process


def _kill(folder: Path, moment: Moment) -> str | None:
    process = _hit(folder, moment, signal.SIGKILL)
    if process.exitcode != -signal.SIGKILL:
        return f"came too late: exit code {process.exitcode}"
    run = runs.run_folder(folder)
    try:
        for path in (run / CHECKPOINTS).glob("step_*.pt") if run else ():
            checkpoints.load(path)
    except CheckpointError as error:
        return f"torn: {error}"
    return None


def killed_runs(folder: Path, full: bool) -> Tally:
    """Kill runs one to three times each; each is to end like one that nothing disturbed, bit by bit."""
    draws, tally, in_saves = random.Random(1), Tally(), 0
    plans = [FAST_KILLS]
    if full:
        plans = [draws.choices(list(DELAYS_S), k=draws.randint(1, MOST_KILLS)) for _ in range(RUNS)]
    for number, places in enumerate(plans):
        moments, faults, own = _moments(places, draws), [], folder / f"run{number}"
        for moment in moments:
            faults.append(_kill(own, moment))
            in_saves += runs.saving(own)
        try:
            end = runs.difference(runs.finish(own), runs.reference(folder.parent))
        except RuntimeError as error:
            end = str(error)
        for moment, fault in zip(moments, faults, strict=True):
            tally.add(f"run {number}, killed at {moment}", fault or end)
    tally.note = f"kills of {len(plans)} runs, {in_saves} inside a save"
    return tally


def _end(folder: Path, moment: Moment, number: signal.Signals) -> str | None:
    process = _hit(folder, moment, number, **RARELY_SAVED)
    if process.exitcode not in (128 + number, -number):  # the same to a shell: -number before Python is up
        return f"exit code {process.exitcode}: {runs.log(folder).read_text()[-1500:]}"
    run = runs.run_folder(folder)
    if run is None:
        return None if moment.place == "start" else "no run folder"
    state = read_state(run)
    if state.get("status") != KILLED:
        return f"run.json says {state.get('status')}"
    kept = checkpoints.newest(run / CHECKPOINTS)
    done, step = runs.logged(folder), kept.checkpoint.step if kept.checkpoint else 0
    if kept.unreadable or not done - 1 <= step <= done:
        return f"{done} steps done, the checkpoint has {step} {'; '.join(kept.unreadable)}"
    told = client_for(runs.store(folder.parent)).get_run(state["mlflow_run_id"]).info.status
    return None if told == KILLED else f"MLflow says {told}"


def ended_runs(folder: Path, full: bool) -> Tally:
    """Send SIGTERM and SIGINT: a checkpoint of the last step, KILLED everywhere, and the run can go on."""
    draws, tally = random.Random(4), Tally()
    if full:
        moments = [_moments([place], draws)[0] for place in draws.choices(ENDED, k=SIGNALLED)]
    else:  # of one run, which goes on after each
        moments = _moments(FAST_SIGNALS, draws)
    for number, moment in enumerate(moments):
        sent, own = (signal.SIGTERM, signal.SIGINT)[number % 2], folder / f"run{number if full else 0}"
        tally.add(f"{sent.name}, {moment}", _end(own, moment, sent))
    for own in sorted(folder.glob("run*")):
        fault = runs.difference(runs.finish(own, **RARELY_SAVED), runs.reference(folder.parent))
        tally.failures += [f"{own.name}, gone on with: {fault}"] if fault else []
    return tally


DRILLS = (
    Drill(1, "killed at any moment, it ends the same bit by bit", killed_runs),
    Drill(4, "a signal leaves a checkpoint and the name KILLED", ended_runs),
)
