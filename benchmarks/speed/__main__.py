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
import platform
import tempfile
from importlib.metadata import version
from typing import Any

import torch

from benchmarks.common import given, record, table
from benchmarks.speed.measure import MATRIX, SCORE, TRAIN, Worker
from benchmarks.speed.subjects import Case, write_weights

OURS, CACHED = "ours", "ours from cache"


def by_turns(subjects: list[str], told: dict[str, Any], *, rounds: int) -> dict[str, dict[str, Any]]:
    """Let all subjects live at once and do one call each by turns; the matrix product is one of them."""
    workers = {name: Worker({**told, "subject": name}) for name in subjects}
    workers[MATRIX] = Worker({**told, "subject": MATRIX, "task": MATRIX})
    for _ in range(rounds):
        for worker in workers.values():
            worker.call()
    return {name: worker.end() for name, worker in workers.items()}


def summary(found: dict[str, dict[str, Any]], subjects: list[str], *, batch: int) -> dict[str, Any]:
    """Return medians over the rounds, ratios to peers and shares of the limit, by subject."""
    import pandas as pd  # here, since every subject's process imports this module, too

    seconds = pd.DataFrame({name: one["seconds"] for name, one in found.items()})
    rate = found[MATRIX]["operations"] / seconds[MATRIX].min()
    peers, rows = [name for name in subjects if not name.startswith(OURS)], {}
    for name in subjects:
        own, middle = found[name], seconds[name].median()
        rows[name] = {
            "images_per_s": batch / middle,
            "images_per_s_by_round": (batch / seconds[name]).tolist(),
            "peak_gib": own["peak_gib"],
            "gflop_per_image": own["operations"] / batch / 1e9,
            "share_of_limit": own["operations"] / rate / middle,
            "times_faster_than": seconds[peers].div(seconds[name], axis=0).median().to_dict(),
            "memory_share_of": {peer: own["peak_gib"] / found[peer]["peak_gib"] for peer in peers},
        }
    return {"matrix_gflops": rate / 1e9, "rows": rows}


def series(
    subjects: list[str], base: dict[str, Any], *, batches: dict[str, int], rounds: int
) -> dict[str, Any]:
    """Measure all subjects by turns in each task."""
    import pandas as pd

    runs = {
        task: by_turns(subjects, {**base, "task": task, "batch": batch}, rounds=rounds)
        for task, batch in batches.items()
    }
    summaries = {task: summary(found, subjects, batch=batches[task]) for task, found in runs.items()}
    scores = pd.DataFrame({name: runs[SCORE][name]["scores"] for name in subjects})
    off = scores.sub(scores[OURS], axis=0).abs().max().drop(OURS)
    return {
        "matrix_gflops": {task: one["matrix_gflops"] for task, one in summaries.items()},
        "tasks": {task: one["rows"] for task, one in summaries.items()},
        "largest_score_difference_to_ours": off.to_dict(),
    }


def shown(found: dict[str, Any]) -> str:
    rows = []
    for task, subjects in found["tasks"].items():
        for name, row in subjects.items():
            faster = [f"{peer} x {times:.2f}" for peer, times in row["times_faster_than"].items()]
            rows.append(
                {
                    "task": task,
                    "subject": name,
                    "images/s": f"{row['images_per_s']:.2f}",
                    "GFLOP an image": f"{row['gflop_per_image']:.0f}",
                    "share of the limit": f"{row['share_of_limit']:.0%}",
                    "peak GiB": f"{row['peak_gib']:.2f}",
                    "faster than": ", ".join(faster),
                }
            )
    return table(rows)


def main() -> None:
    from dinomaly_hd.provenance import usable_cores

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
    print(shown(found))
    print(f"largest difference of scores to ours: {found['largest_score_difference_to_ours']}")


if __name__ == "__main__":
    main()
