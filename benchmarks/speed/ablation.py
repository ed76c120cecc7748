"""The ablation of ten configs in one go, against ten runs one by one that encode every image anew.

    python -m benchmarks.speed.ablation                   # the quick preset, about an hour on two cores
    python -m benchmarks.speed.ablation --max_steps=50    # further flags go to both
    python -m benchmarks.speed.ablation --slots=2         # the ablation runs two members at a time

Each plain run is a process of its own with `cache=off` and no files, as a user would start it. Half of them
run before the ablation and half after it, so that a machine that grows slower or faster favours neither.
The largest difference of scores is written too: 0 with one number of threads. Writes
benchmarks/results/speed_ablation.json.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.speed.__main__ import RESULTS, ROOT
from dinomaly_hd.config.variants import ABLATION


def started(module: str, *flags: str, folder: Path) -> float:
    """Run an entry point and return its wall time."""
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}"}
    command = [sys.executable, "-m", f"entry_points.{module}", f"--result_dir={folder / 'results'}", *flags]
    began = time.perf_counter()
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def scores_of(run: Path) -> dict[str, float]:
    """Return a run's image scores by path."""
    found = {}
    for path in sorted(run.glob("scores/*.csv")):
        with path.open() as stream:
            found |= {row["path"]: float(row["score"]) for row in csv.DictReader(stream)}
    return found


def runs_of(folder: Path) -> dict[str, dict[str, float]]:
    """Return the scores of the only run of each config, by the hash of its settings."""
    runs = [path.parent for path in sorted((folder / "results").glob("**/results.json"))]
    return {json.loads((run / "results.json").read_text())["config_hash"]: scores_of(run) for run in runs}


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--configs", default=",".join(ABLATION))
    parser.add_argument("--slots", default="1", help="of the ablation in one go")
    given, flags = parser.parse_known_args()
    common = ["--preset=quick", "--gpu=cpu", *flags]
    with tempfile.TemporaryDirectory() as name:
        together, alone = Path(name) / "together", Path(name) / "alone"
        together.mkdir()
        alone.mkdir()
        alone_flags = ("--seeds=42", "--cache=off", "--feature_gb=0", *common)
        plain: dict[str, float] = {}

        def run_alone(configs: list[str]) -> None:
            for config in configs:
                plain[config] = started("ablation", f"--configs={config}", *alone_flags, folder=alone)

        configs = given.configs.split(",")
        run_alone(configs[: len(configs) // 2])
        seconds = started(
            "ablation",
            f"--configs={given.configs}",
            "--seeds=42",
            f"--slots={given.slots}",
            f"--feature_dir={together / 'features'}",
            *common,
            folder=together,
        )
        run_alone(configs[len(configs) // 2 :])
        ours, theirs = runs_of(together), runs_of(alone)
    assert ours.keys() == theirs.keys(), "both did the same runs"
    result = {
        "flags": common,
        "slots": given.slots,
        "seconds_together": seconds,
        "seconds_one_by_one": plain,
        "times_faster": sum(plain.values()) / seconds,
        "runs": len(ours),
        "largest_score_difference": max(
            abs(ours[run][path] - theirs[run][path]) for run in ours for path in ours[run]
        ),
    }
    (RESULTS / "speed_ablation.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
