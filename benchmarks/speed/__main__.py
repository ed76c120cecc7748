"""Dinomaly-HD beside anomalib and the original Dinomaly, on one machine in one series.

    python -m benchmarks.speed                       # beside anomalib, where it is installed
    python -m benchmarks.speed --original DIRECTORY  # beside the original too: a checkout of its repository
    python -m benchmarks.speed --device cuda --encoder dinov2reg_vit_base_14 --train_batch 16 --precision bf16

Every subject gets the same random weights and the same maps, and is a process of its own. All live at once
and do one step each by turns, so that what disturbs the machine disturbs all; ratios are medians over the
rounds. The limit is the number of operations that PyTorch counts over the best rate of a large matrix product
that takes its turns among them. anomalib: pip install 'anomalib>=2.7'; the original:
github.com/guojiajeremy/Dinomaly and what it imports. Writes benchmarks/results/speed_{device}.json.
"""

import importlib.util
import json
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from statistics import median
from typing import Any

import torch

from benchmarks.common import ROOT, given, record
from benchmarks.speed.measure import MATRIX, SCORE, TRAIN
from benchmarks.speed.subjects import Case, write_weights
from dinomaly_hd.jobs.engines import usable_cores

OURS, CACHED = "ours", "ours from cache"
HEAD = "| task | subject | images/s | GFLOP an image | share of the limit | peak GiB | faster than |\n"
HEAD += "|---|---|---:|---:|---:|---:|---|"


class Worker:
    """A subject in a process of its own, which does one call at a time."""

    def __init__(self, told: dict[str, Any]) -> None:
        command = [sys.executable, "-m", "benchmarks.speed.measure", json.dumps(told)]
        self.name = f"{told['task']} {told['subject']}"
        self.seconds: list[float] = []
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(command, cwd=ROOT, text=True, **pipes)
        self._answer()

    def call(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        self.seconds.append(self._answer()["seconds"])

    def end(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.close()
        found = self._answer()
        self.process.wait()
        return {**found, "seconds": self.seconds}

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} failed")
        answer: dict[str, Any] = json.loads(line)
        return answer


def by_turns(subjects: list[str], told: dict[str, Any], *, rounds: int) -> dict[str, dict[str, Any]]:
    """Let all subjects live at once and do one call each by turns; the matrix product is one of them."""
    workers = {
        **{name: Worker({**told, "subject": name}) for name in subjects},
        MATRIX: Worker({**told, "subject": MATRIX, "task": MATRIX}),
    }
    for _ in range(rounds):
        for worker in workers.values():
            worker.call()
    return {name: worker.end() for name, worker in workers.items()}


def series(
    subjects: list[str], base: dict[str, Any], *, batches: dict[str, int], rounds: int
) -> dict[str, Any]:
    """Measure all subjects by turns and return their medians, ratios and shares of the limit."""
    runs = {
        task: by_turns(subjects, {**base, "task": task, "batch": batch}, rounds=rounds)
        for task, batch in batches.items()
    }
    rates = {task: _rate(found[MATRIX]) for task, found in runs.items()}
    scores = {name: runs[SCORE][name]["scores"] for name in subjects}
    return {
        "matrix_gflops": {task: rate / 1e9 for task, rate in rates.items()},
        "tasks": {
            task: {name: _summary(name, found, batch=batches[task], rate=rates[task]) for name in subjects}
            for task, found in runs.items()
        },
        "largest_score_difference_to_ours": {
            name: max(abs(one - other) for one, other in zip(scores[OURS], scores[name], strict=True))
            for name in subjects
            if name != OURS
        },
    }


def _rate(matrix: dict[str, Any]) -> float:
    return float(matrix["operations"] / min(matrix["seconds"]))


def _summary(name: str, found: dict[str, dict[str, Any]], *, batch: int, rate: float) -> dict[str, Any]:
    own = found[name]
    peers = {other: found[other] for other in found if not other.startswith(OURS) and other != MATRIX}
    seconds = median(own["seconds"])
    return {
        "images_per_s": batch / seconds,
        "images_per_s_by_round": [batch / each for each in own["seconds"]],
        "peak_gib": own["peak_gib"],
        "gflop_per_image": own["operations"] / batch / 1e9,
        "share_of_limit": own["operations"] / rate / seconds,
        "times_faster_than": {
            peer: median(theirs / mine for mine, theirs in zip(own["seconds"], other["seconds"], strict=True))
            for peer, other in peers.items()
        },
        "memory_share_of": {peer: own["peak_gib"] / other["peak_gib"] for peer, other in peers.items()},
    }


def table(found: dict[str, Any]) -> str:
    lines = [HEAD]
    for task, subjects in found["tasks"].items():
        for name, row in subjects.items():
            times = {peer: value for peer, value in row["times_faster_than"].items() if peer != name}
            faster = ", ".join(f"{peer} x {value:.2f}" for peer, value in times.items())
            lines.append(
                f"| {task} | {name} | {row['images_per_s']:.2f} | {row['gflop_per_image']:.0f} | "
                f"{row['share_of_limit']:.0%} | {row['peak_gib']:.2f} | {faster} |"
            )
    return "\n".join(lines)


def main() -> None:
    told = given(
        __doc__,
        device="cpu",
        precision="32",
        encoder="dinov2reg_vit_small_14",
        image=448,
        crop=392,
        train_batch=4,
        score_batch=8,
        rounds=12,
        original="",
        threads=usable_cores(),
    )
    subjects = [OURS, CACHED]
    subjects += ["anomalib"] if importlib.util.find_spec("anomalib") else []
    subjects += ["original"] if told.original else []
    with tempfile.TemporaryDirectory() as folder:
        weights = write_weights(told.encoder, folder)
        case = Case(told.encoder, weights, told.image, told.crop, told.device, told.precision)
        base = {"case": case, "threads": told.threads, "original": told.original}
        batches = {TRAIN: told.train_batch, SCORE: told.score_batch}
        found = series(subjects, base, batches=batches, rounds=told.rounds)
    on_cpu = f"{platform.processor() or platform.machine()}, {told.threads} threads"
    result = {
        "machine": on_cpu if told.device == "cpu" else torch.cuda.get_device_name(told.device),
        "torch": torch.__version__,
        "anomalib": version("anomalib") if "anomalib" in subjects else None,
        **vars(told),
        "original": bool(told.original),
        **found,
    }
    record(f"speed_{told.device.partition(':')[0]}", result, show=False)
    print(table(found))
    print(f"largest difference of scores to ours: {found['largest_score_difference_to_ours']}")


if __name__ == "__main__":
    main()
