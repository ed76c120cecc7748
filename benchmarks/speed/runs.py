"""Whole runs as a user starts them, and an ablation in one go against its configs one by one.

    python -m benchmarks.speed.runs whole        # full preset, 4,000 + 8,000 simulated images, GPU 0
    python -m benchmarks.speed.runs whole --preset=quick --simulate_size=tiny --max_steps=3 --gpu=cpu
    python -m benchmarks.speed.runs ablation     # the quick preset, ten configs, about an hour on two cores
    python -m benchmarks.speed.runs ablation --slots 2 --max_steps=50    # two members at a time

Further flags (--name=value) go to the runs. ``whole``: the last of two runs (``--repeats``) counts: data are
simulated then; each encodes its images itself. ``ablation``: each plain run is a process of its own with
`cache=off` and no files; half of them run before the ablation and half after it, so that a machine that grows
slower or faster favours neither. The largest difference of scores is written too: 0 with one number of
threads. Writes benchmarks/results/speed_{whole,ablation}.json.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.common import flags, newest, record, run, timed
from dinomaly_hd.config.variants import ABLATION

WHOLE = {
    "preset": "full",
    "encoder_weights": "random",
    "simulate_size": "full",
    "max_steps": "1000",
    "gpu": "0",
    "seed": "42",
    "feature_gb": "0",
    "resume": "never",
}


def whole(values: dict[str, str], folder: Path, *, repeats: int) -> dict[str, Any]:
    """Do runs and return the wall time of each and what it measured itself."""
    found: list[dict[str, float]] = []
    for _ in range(repeats):
        own = {**WHOLE, **values, "result_dir": folder / "results"}
        seconds, _ = timed(lambda own=own: run("horizontal", own, folder=folder))
        timing = json.loads(newest(folder, "results/**/results.json").read_text())["timing"]
        parts = {f"time/{name}": value for name, value in timing.items()}
        found.append({"seconds": seconds, **parts})
    return {"flags": {**WHOLE, **values}, "runs": found}


def scores_of(folder: Path) -> pd.Series:
    """Return the scores of the only run of each config, by the hash of its settings and the image."""
    runs = {}
    for path in (folder / "results").glob("**/results.json"):
        tables = [pd.read_csv(table) for table in sorted(path.parent.glob("scores/*.csv"))]
        runs[json.loads(path.read_text())["config_hash"]] = pd.concat(tables).set_index("path")["score"]
    return pd.concat(runs)


def ablation(values: dict[str, str], folder: Path, *, configs: list[str], slots: str) -> dict[str, Any]:
    """Do the ablation of all configs, and one of each config alone, and compare times and scores."""
    together, alone = folder / "together", folder / "alone"
    together.mkdir()
    alone.mkdir()
    common = {"seeds": "42", "preset": "quick", "gpu": "cpu", **values}

    def done(place: Path, **own: str) -> float:
        own = {**common, **own, "result_dir": str(place / "results")}
        return timed(lambda: run("ablation", own, folder=place))[0]

    def run_alone(some: list[str]) -> dict[str, float]:
        return {one: done(alone, cache="off", feature_gb="0", configs=one) for one in some}

    first = run_alone(configs[: len(configs) // 2])
    features = str(together / "features")
    seconds = done(together, configs=",".join(configs), slots=slots, feature_dir=features)
    plain = {**first, **run_alone(configs[len(configs) // 2 :])}
    ours, theirs = scores_of(together), scores_of(alone)
    assert set(ours.index) == set(theirs.index), "both did the same runs"
    return {
        "flags": [f"--{name}={value}" for name, value in common.items() if name != "seeds"],
        "slots": slots,
        "seconds_together": seconds,
        "seconds_one_by_one": plain,
        "times_faster": sum(plain.values()) / seconds,
        "runs": len(ours.index.unique(0)),
        "largest_score_difference": float((ours - theirs).abs().max()),
    }


def main() -> None:
    told, values = flags(
        __doc__,
        first="what",
        among=("whole", "ablation"),
        configs=",".join(ABLATION),
        slots="1",
        repeats=2,
    )
    with tempfile.TemporaryDirectory() as name:
        if told.what == "whole":
            result = whole(values, Path(name), repeats=told.repeats)
        else:
            result = ablation(values, Path(name), configs=told.configs.split(","), slots=told.slots)
    record(f"speed_{told.what}", result)


if __name__ == "__main__":
    main()
