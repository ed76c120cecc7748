"""One measurement in a process of its own, so that memory and kernels of subjects do not mix.

    python -m benchmarks.speed.measure '{"subject": "ours", "task": "train", ...}'

Prints one line of JSON.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed.peers import anomalib, original
from benchmarks.speed.subjects import Case, Subject, ours

SIDE = 2048
TRAIN, SCORE = "train", "score"


def subject_of(told: dict[str, Any], case: Case) -> Subject:
    """Return the subject that ``told`` names."""
    return {
        "ours": lambda: ours(case, cached=False),
        "ours from cache": lambda: ours(case, cached=True),
        "anomalib": lambda: anomalib(case),
        "original": lambda: original(case, Path(told["original"])),
    }[told["subject"]]()


def seconds_of(work: Callable[[int], Tensor], *, repeats: int, device: str) -> list[float]:
    """Return the wall time of each of ``repeats`` calls after one that is not counted."""
    times = []
    for number in range(repeats + 1):
        began = time.perf_counter()
        work(number)
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return times[1:]


def matrix_rate(case: Case, *, repeats: int) -> float:
    """Return the operations a second of a large matrix product, in the precision of ``case``."""
    dtype = torch.bfloat16 if case.precision == "bf16" else torch.float32
    left, right = (torch.rand(SIDE, SIDE, device=case.device, dtype=dtype) for _ in range(2))
    best = min(seconds_of(lambda _: left @ right, repeats=repeats, device=case.device))
    return 2 * SIDE**3 / best


def measure(told: dict[str, Any]) -> dict[str, Any]:
    """Return what one measurement found."""
    case = Case(**{**told["case"], "weights": Path(told["case"]["weights"])})
    if told["task"] == "matrix":
        return {"operations_per_s": matrix_rate(case, repeats=told["repeats"])}
    subject = subject_of(told, case)
    given = subject.prepare(case.maps(told["batch"]))

    def work(number: int) -> Tensor:
        return subject.train(given, number) if told["task"] == TRAIN else subject.score(given)

    if told.get("count"):
        from torch.utils.flop_counter import FlopCounterMode  # 70 MB that no subject's memory should hold

        with FlopCounterMode(display=False) as counter:
            work(0)
        return {"operations": counter.get_total_flops() / told["batch"]}
    times = seconds_of(work, repeats=told["repeats"], device=case.device)
    found = {"seconds_per_image": median(times) / told["batch"], "peak_gib": peak_gib(case.device)}
    if told["task"] == SCORE:
        found["scores"] = work(0).float().cpu().tolist()
    return found


def peak_gib(device: str) -> float:
    """Return the peak memory: of the GPU where there is one, else of this process."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """Measure what the argument says."""
    told = json.loads(sys.argv[1])
    torch.set_num_threads(told["threads"])
    print(json.dumps(measure(told)))


if __name__ == "__main__":
    main()
