"""Dinomaly-HD beside anomalib and the original Dinomaly, on one machine in one series.

    python -m benchmarks.speed                       # beside anomalib, where it is installed
    python -m benchmarks.speed --original DIRECTORY  # beside the original too: a checkout of its repository
    python -m benchmarks.speed --device cuda --encoder dinov2reg_vit_base_14 --train_batch 16

Every subject gets the same random weights and the same maps. Each measurement is a process of its own;
subjects take turns, so that what disturbs the machine disturbs all; ratios are medians over the rounds. The
limit is the number of operations that PyTorch counts over the rate of a large matrix product measured in the
same series. anomalib: pip install 'anomalib>=2.7'; the original: github.com/guojiajeremy/Dinomaly and what it
imports (opencv-python, scikit-image). Writes benchmarks/results/speed_{device}.json.
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

from benchmarks.speed.measure import SCORE, TRAIN
from benchmarks.speed.subjects import Case, write_weights
from dinomaly_hd.jobs.local import usable_cores

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "benchmarks" / "results"
OURS, CACHED = "ours", "ours from cache"


def measured(told: dict[str, Any]) -> dict[str, Any]:
    """Return what a measurement in a process of its own prints."""
    command = [sys.executable, "-m", "benchmarks.speed.measure", json.dumps(told)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{told['subject']} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def series(
    subjects: list[str], base: dict[str, Any], *, batches: dict[str, int], rounds: int
) -> dict[str, Any]:
    """Measure all subjects by turns and return their medians, ratios and shares of the limit."""
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    rates = []
    for number in range(rounds):
        rates.append(measured({**base, "task": "matrix", "batch": 1})["operations_per_s"])
        for task, batch in batches.items():
            for subject in subjects:
                found = measured({**base, "subject": subject, "task": task, "batch": batch})
                runs.setdefault((task, subject), []).append(found)
                print(f"round {number + 1} {task} {subject}: {1 / found['seconds_per_image']:.2f} images/s")
    rate = median(rates)
    return {
        "matrix_gflops": rate / 1e9,
        "tasks": {
            task: {
                subject: _summary(
                    runs[task, subject],
                    others={name: runs[task, name] for name in subjects if not name.startswith(OURS)},
                    operations=_operations(base, subject, task=task, batch=batch),
                    rate=rate,
                )
                for subject in subjects
            }
            for task, batch in batches.items()
        },
        "largest_score_difference_to_ours": {
            name: max(
                abs(one - other)
                for one, other in zip(
                    runs[SCORE, OURS][0]["scores"], runs[SCORE, name][0]["scores"], strict=True
                )
            )
            for name in subjects
            if name != OURS
        },
    }


def _operations(base: dict[str, Any], subject: str, *, task: str, batch: int) -> float:
    return float(
        measured({**base, "subject": subject, "task": task, "batch": batch, "count": True})["operations"]
    )


def _summary(
    own: list[dict[str, Any]], *, others: dict[str, list[dict[str, Any]]], operations: float, rate: float
) -> dict[str, Any]:
    seconds = median(one["seconds_per_image"] for one in own)
    return {
        "images_per_s": 1 / seconds,
        "images_per_s_by_round": [1 / one["seconds_per_image"] for one in own],
        "peak_gib": max(one["peak_gib"] for one in own),
        "gflop_per_image": operations / 1e9,
        "share_of_limit": operations / rate / seconds,
        "times_faster_than": {
            name: median(
                theirs["seconds_per_image"] / mine["seconds_per_image"]
                for mine, theirs in zip(own, runs, strict=True)
            )
            for name, runs in others.items()
        },
        "memory_share_of": {
            name: max(one["peak_gib"] for one in own) / max(one["peak_gib"] for one in runs)
            for name, runs in others.items()
        },
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
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
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
            "repeats": given.repeats,
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
