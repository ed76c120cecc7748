"""Running out of memory: real refusals of the allocator are one named error (drill 18 holds the rest)."""

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dinomaly_hd.config.presets import preset_run
from dinomaly_hd.config.variants import baseline
from dinomaly_hd.errors import OutOfMemory
from dinomaly_hd.experiments import score
from dinomaly_hd.models.fast import SWITCH
from dinomaly_hd.training.loop import named_when_exhausted, way_out

TOO_MUCH = 2**60


def guarded(work: Callable[[], None], *, batch_size: int | None = 4) -> None:
    with named_when_exhausted(torch.device("cpu"), hint=way_out(batch_size)):
        work()


@pytest.mark.parametrize(
    ("batch_size", "hint"),
    [(16, "try batch_size=8$"), (1, "smaller image_size"), (None, "smaller image_size")],
)
def test_a_refusal_of_the_host_names_the_way_out(batch_size: int | None, hint: str) -> None:
    with pytest.raises(OutOfMemory, match=rf"out of memory on cpu: .*; .*{hint}") as caught:
        guarded(lambda: torch.empty(TOO_MUCH), batch_size=batch_size)
    assert caught.value.exit_code == 75


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried ..."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_refusals_of_python_and_of_the_gpu_are_named_too(error: Exception) -> None:
    def work() -> None:
        raise error

    with pytest.raises(OutOfMemory, match="out of memory on cpu"):
        guarded(work)


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="size"):
        guarded(lambda: torch.zeros(2) @ torch.zeros(3))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_what_a_step_frees_is_kept_for_the_next() -> None:
    # Pages mapped in the last of three rounds of blocks of 8 MiB.
    measure = """
import os, resource, torch
from dinomaly_hd.models.allocator import keep_freed_memory
keep_freed_memory()
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(2**21) for _ in range(10)]; del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    # By itself glibc frees such blocks at once or not, by what else lies in its heap: here it does.
    told = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    faults = [
        int(subprocess.check_output([sys.executable, "-c", measure], env={**told, SWITCH: switch}))
        for switch in ("", "plain")
    ]
    assert faults[0] < faults[1] / 4


def test_whatever_encodes_and_scores_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(score, "keep_freed_memory", lambda: asked.append(True))
    run, cpu = preset_run("quick", baseline()), torch.device("cpu")
    store: Any = SimpleNamespace(manifest=SimpleNamespace(shape=(31, 95)))
    detector: Any = None
    score.Scorer(detector, store, run=run, device=cpu, features=None, tick=lambda: None)
    assert asked
