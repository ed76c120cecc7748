"""One subject in a process of its own, so that memory and kernels of subjects do not mix.

    python -m benchmarks.speed.measure '{"subject": "ours", "task": "train", ...}'

Does one call that is not counted and prints a line; then one call for each line that it reads, and prints its
seconds; at the end of the input, the peak memory, the scores and the counted operations. All as JSON.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed.peers import anomalib, original
from benchmarks.speed.subjects import Case, Subject, ours
from dinomaly_hd.models.fast.products import linear

SIDE = 2048
TRAIN, SCORE, MATRIX = "train", "score", "matrix"


def subject_of(told: dict[str, Any], case: Case) -> Subject:
    """Return the subject that ``told`` names."""
    return {
        "ours": lambda: ours(case, cached=False),
        "ours from cache": lambda: ours(case, cached=True),
        "anomalib": lambda: anomalib(case),
        "original": lambda: original(case, Path(told["original"])),
    }[told["subject"]]()


def work_of(told: dict[str, Any], case: Case) -> Callable[[int], Tensor]:
    """Return what ``told`` asks to be timed; it takes the number of the call."""
    if told["task"] == MATRIX:
        dtype = torch.bfloat16 if case.precision == "bf16" else torch.float32
        left, right = (torch.rand(SIDE, SIDE, device=case.device, dtype=dtype) for _ in range(2))
        return lambda _: linear(left, right)  # by the kernel that ours takes
    subject = subject_of(told, case)
    given = subject.prepare(case.maps(told["batch"]))
    if told["task"] == TRAIN:
        return lambda number: subject.train(given, number)
    return lambda _: subject.score(given)


def operations_of(work: Callable[[int], Tensor]) -> int:
    """Return how many operations of matrix products and attention PyTorch counts in one call."""
    from torch.utils.flop_counter import FlopCounterMode  # 70 MB that no subject's memory should hold

    def of_linear(x: list[int], weight: list[int], *_: Any, **__: Any) -> int:
        return 2 * prod(x) * weight[0]

    onednn = torch.ops.mkldnn._linear_pointwise
    with FlopCounterMode(display=False, custom_mapping={onednn: of_linear}) as counter:
        work(0)
    return counter.get_total_flops()


def seconds_of(work: Callable[[int], Tensor], number: int, *, device: str) -> float:
    """Return the wall time of a call."""
    began = time.perf_counter()
    work(number)
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - began


def peak_gib(device: str) -> float:
    """Return the peak memory: of the GPU where there is one, else of this process."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """Do what the argument and the input say."""
    told = json.loads(sys.argv[1])
    torch.set_num_threads(told["threads"])
    case = Case(**{**told["case"], "weights": Path(told["case"]["weights"])})
    work = work_of(told, case)
    for number, _ in enumerate(chain(["first"], sys.stdin)):
        print(json.dumps({"seconds": seconds_of(work, number, device=case.device)}), flush=True)
    end: dict[str, Any] = {"peak_gib": peak_gib(case.device)}
    if told["task"] == SCORE:
        end["scores"] = work(0).float().cpu().tolist()
    end["operations"] = operations_of(work)
    print(json.dumps(end), flush=True)


if __name__ == "__main__":
    main()
