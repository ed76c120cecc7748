"""Dinomaly-HD beside anomalib and the original Dinomaly, on one machine in one series.

    python -m benchmarks.speed                       # beside anomalib, where it is installed
    python -m benchmarks.speed --original DIRECTORY  # beside the original too: a checkout of its repository
    python -m benchmarks.speed --device cuda --encoder dinov2reg_vit_base_14 --train_batch 16

Every subject gets the same random weights and the same maps, and is a process of its own. All live at once
and do one step each by turns, so that what disturbs the machine disturbs all; ratios are medians over the
rounds. The limit is the number of operations that PyTorch counts over the best rate of a large matrix product
that takes its turns among them. anomalib: pip install 'anomalib>=2.7'; the original:
github.com/guojiajeremy/Dinomaly and what it imports. Writes benchmarks/results/speed_{device}.json.
"""

import argparse
import importlib.util
import json
import platform
import subprocess
import sys
import tempfile
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.speed.measure import MATRIX, SCORE, TRAIN
from benchmarks.speed.subjects import Case, write_weights
from dinomaly_hd.jobs.local import usable_cores

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "benchmarks" / "results"
OURS, CACHED = "ours", "ours from cache"


class Worker:
    """A subject in a process of its own, which does one call at a time."""

    def __init__(self, told: dict[str, Any]) -> None:
        command = [sys.executable, "-m", "benchmarks.speed.measure", json.dumps(told)]
        self.name = f"{told['task']} {told['subject']}"
        self.seconds: list[float] = []
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._answer()

    def call(self) -> None:
        """Let it do one call, and note its seconds."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        self.seconds.append(self._answer()["seconds"])

    def end(self) -> dict[str, Any]:
        """Return what it says at its end."""
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
    scores = {name: runs[SCORE][name]["scores"] for name in subjects}
    return {
        "matrix_gflops": {task: _rate(found[MATRIX]) / 1e9 for task, found in runs.items()},
        "tasks": {
            task: {name: _summary(name, found, batch=batches[task]) for name in subjects}
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


def _summary(name: str, found: dict[str, dict[str, Any]], *, batch: int) -> dict[str, Any]:
    own = found[name]
    peers = {other: found[other] for other in found if not other.startswith(OURS) and other != MATRIX}
    seconds = median(own["seconds"])
    return {
        "images_per_s": batch / seconds,
        "images_per_s_by_round": [batch / each for each in own["seconds"]],
        "peak_gib": own["peak_gib"],
        "gflop_per_image": own["operations"] / batch / 1e9,
        "share_of_limit": own["operations"] / _rate(found[MATRIX]) / seconds,
        "times_faster_than": {
            peer: median(theirs / mine for mine, theirs in zip(own["seconds"], other["seconds"], strict=True))
            for peer, other in peers.items()
        },
        "memory_share_of": {peer: own["peak_gib"] / other["peak_gib"] for peer, other in peers.items()},
    }


def table(found: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    lines = [
        "| task | subject | images/s | GFLOP an image | share of the limit | peak GiB | faster than |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    for task, subjects in found["tasks"].items():
        for name, row in subjects.items():
            faster = ", ".join(
                f"{peer} x {value:.2f}" for peer, value in row["times_faster_than"].items() if peer != name
            )
            lines.append(
                f"| {task} | {name} | {row['images_per_s']:.2f} | {row['gflop_per_image']:.0f} | "
                f"{row['share_of_limit']:.0%} | {row['peak_gib']:.2f} | {faster} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="32", choices=("32", "bf16"))
    parser.add_argument("--encoder", default="dinov2reg_vit_small_14")
    parser.add_argument("--image", type=int, default=448)
    parser.add_argument("--crop", type=int, default=392)
    parser.add_argument("--train_batch", type=int, default=4)
    parser.add_argument("--score_batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--original", type=Path, help="checkout of the original Dinomaly")
    parser.add_argument("--threads", type=int, default=usable_cores())
    given = parser.parse_args()
    subjects = [OURS, CACHED]
    if importlib.util.find_spec("anomalib"):
        subjects.append("anomalib")
    if given.original:
        subjects.append("original")
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "encoder.pth"
        write_weights(given.encoder, weights)
        case = Case(given.encoder, weights, given.image, given.crop, given.device, given.precision)
        base = {
            "case": {**asdict(case), "weights": str(weights)},
            "threads": given.threads,
            "original": str(given.original),
        }
        found = series(
            subjects, base, batches={TRAIN: given.train_batch, SCORE: given.score_batch}, rounds=given.rounds
        )
    result = {
        "machine": f"{platform.processor() or platform.machine()}, {given.threads} threads"
        if given.device == "cpu"
        else torch.cuda.get_device_name(given.device),
        "torch": torch.__version__,
        "anomalib": version("anomalib") if "anomalib" in subjects else None,
        **vars(given),
        "original": given.original is not None,
        **found,
    }
    path = RESULTS / f"speed_{given.device.partition(':')[0]}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(table(found))
    print(f"largest difference of scores to ours: {found['largest_score_difference_to_ours']}")
    print(f"written: {path}")


if __name__ == "__main__":
    main()
