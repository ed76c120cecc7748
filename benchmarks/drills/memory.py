"""Drill 18: a GPU or a host without memory left, refused by the real allocator or as CUDA says it."""

import json
import weakref
from collections.abc import Callable
from itertools import count, product
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from optuna.trial import TrialState

from benchmarks.drills import Drill, Tally, runs
from benchmarks.drills.hostile import Sandbox, start
from benchmarks.drills.studies import joined, run_trials
from dinomaly_hd.models.dinomaly.detector import Dinomaly
from dinomaly_hd.training.loop import named_when_exhausted, way_out
from dinomaly_hd.tuning.worker import Attempt

TOO_MUCH = 2**60
TRY_AGAIN = 75
BATCH = 6
FLAGS = {**runs.FLAGS, "batch_size": str(BATCH), "max_steps": "6", "feature_gb": "0"}
PLACES = ("encode", "training_loss", "score")
CASES = [(place, call, refusal) for call, place, refusal in product((0, 1, 2), PLACES, ("host", "gpu"))]
"""Where memory runs out, at which call there, and who refuses."""


class Held:
    """Something that the failed work holds."""


def refuse(refusal: str) -> None:
    if refusal == "host":
        torch.empty(TOO_MUCH)
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity")


def _in_a_run(box: Sandbox, place: str, call: int, refusal: str) -> str | None:
    held: list[weakref.ref[Held]] = []
    original: Callable[..., Any] = getattr(Dinomaly, place)
    calls, results = count(), f"results/{place}, call {call}, {refusal}"

    def failing(self: Dinomaly, *given: Any, **options: Any) -> Any:
        if next(calls) == call:
            something = Held()
            held.append(weakref.ref(something))
            refuse(refusal)
        return original(self, *given, **options)

    with mock.patch.object(Dinomaly, place, failing):
        code, said, _ = start(box, "horizontal", **FLAGS, result_dir=results)
    if not held:
        return "the place was never reached"
    (state,) = (json.loads(path.read_text()) for path in (box.work / results).glob("horizontal/*/run.json"))
    if code != TRY_AGAIN or state["status"] != "FAILED":
        return f"exit code {code}, status {state['status']}"
    if f"try batch_size={BATCH // 2}" not in said:
        return f"no next batch size in {said!r}"
    return None if held[0]() is None else "what the failed work held is not free"


def _in_a_study(folder: Path, refusal: str) -> str | None:
    seen: list[int] = []

    def evaluate(attempt: Attempt) -> list[float]:
        seen.append(attempt.number)
        if len(seen) == 1:
            with named_when_exhausted(torch.device("cpu"), hint=way_out(BATCH)):
                refuse(refusal)
        return [float(attempt.point["row_p"])]

    run_trials(folder, evaluate, trials=3)
    trials = joined(folder, trials=3).study.get_trials()
    pruned = [trial for trial in trials if trial.state == TrialState.PRUNED]
    unfinished = [trial for trial in trials if not trial.state.is_finished()]
    fine = len(pruned) == 1 and not unfinished and seen.count(seen[0]) == 1
    return None if fine else f"{len(pruned)} pruned, {len(unfinished)} unfinished, tried {seen}"


def exhausted(folder: Path, full: bool) -> Tally:
    """Run out of memory while encoding, training and scoring, and in a study."""
    tally, box = Tally(), Sandbox(folder / "runs")
    for place, call, refusal in CASES if full else [CASES[0], CASES[3], CASES[4]]:
        tally.add(f"{place}, call {call}, {refusal}", _in_a_run(box, place, call, refusal))
    for refusal in ("host", "gpu") if full else ("gpu",):
        own = folder / f"a study, {refusal}"
        own.mkdir()
        tally.add(own.name, _in_a_study(own, refusal))
    return tally


DRILLS = (Drill(18, "out of memory: the next size to try", exhausted),)
