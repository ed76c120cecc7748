"""One subject in a process of its own, so that memory and kernels of subjects do not mix."""

import multiprocessing
import resource
import sys
from collections.abc import Callable
from math import prod
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import timed
from benchmarks.speed.peers import anomalib, original
from benchmarks.speed.subjects import Case, ours
from dinomaly_hd.models.fast import linear

SIDE = 2048
TRAIN, SCORE, MATRIX = "train", "score", "matrix"


class Worker:
    """A subject that does one call at a time; the first is not counted."""

    def __init__(self, told: dict[str, Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.seconds: list[float] = []
        self.name = f"{told['task']} {told['subject']}"
        context.Process(target=_measure, args=(theirs, told), daemon=True).start()
        theirs.close()
        self._answer()

    def call(self) -> None:
        self.pipe.send(True)
        self.seconds.append(self._answer())

    def end(self) -> dict[str, Any]:
        """Return the seconds, the peak memory, the scores and the counted operations."""
        self.pipe.send(False)
        return {**self._answer(), "seconds": self.seconds}

    def _answer(self) -> Any:
        try:
            return self.pipe.recv()
        except EOFError:
            sys.exit(f"{self.name} failed")


def _measure(pipe: Connection, told: dict[str, Any]) -> None:
    torch.set_num_threads(told["threads"])
    case: Case = told["case"]
    on_gpu, work, number = case.device.startswith("cuda"), _work_of(told, case), 0

    def call() -> None:
        work(number)
        if on_gpu:
            torch.cuda.synchronize()

    pipe.send(timed(call)[0])
    while pipe.recv():
        number += 1
        pipe.send(timed(call)[0])
    of_process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    end: dict[str, Any] = {"peak_gib": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else of_process}
    if told["task"] == SCORE:
        end["scores"] = work(0).float().cpu().tolist()
    pipe.send({**end, "operations": _operations_of(work)})


def _work_of(told: dict[str, Any], case: Case) -> Callable[[int], Tensor]:
    """Return what ``told`` asks to be timed; it takes the number of the call."""
    if told["task"] == MATRIX:
        dtype = torch.bfloat16 if case.precision == "bf16" else torch.float32
        left, right = (torch.rand(SIDE, SIDE, device=case.device, dtype=dtype) for _ in range(2))
        return lambda _: linear(left, right)  # by the kernel that ours takes
    subject = {
        "ours": lambda: ours(case, cached=False),
        "ours from cache": lambda: ours(case, cached=True),
        "anomalib": lambda: anomalib(case),
        "original": lambda: original(case, Path(told["original"])),
    }[told["subject"]]()
    given = subject.prepare(case.maps(told["batch"]))
    if told["task"] == TRAIN:
        return lambda number: subject.train(given, number)
    return lambda _: subject.score(given)


def _operations_of(work: Callable[[int], Tensor]) -> int:
    """Return how many operations of matrix products and attention PyTorch counts in one call."""
    from torch.utils.flop_counter import FlopCounterMode  # 70 MB that no subject's memory should hold

    def of_linear(x: list[int], weight: list[int], *_: Any, **__: Any) -> int:
        return 2 * prod(x) * weight[0]

    onednn = torch.ops.mkldnn._linear_pointwise
    with FlopCounterMode(display=False, custom_mapping={onednn: of_linear}) as counter:
        work(0)
    return counter.get_total_flops()
