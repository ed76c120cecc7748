"""A whole multi-class run as a user starts it: wall time, and where it goes.

    python -m benchmarks.speed.whole            # full preset, 4,000 + 8,000 simulated images, GPU 0
    python -m benchmarks.speed.whole --preset=quick --simulate_size=tiny --max_steps=3 --gpu=cpu

The second of two runs counts: data are simulated and kernels compiled then; each encodes its images itself.
Flags go to the run. Writes benchmarks/results/speed_whole.json.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.speed.__main__ import RESULTS, ROOT
from dinomaly_hd.runs.journal import Journal

DEFAULTS = {
    "preset": "full",
    "encoder_weights": "random",
    "simulate_size": "full",
    "max_steps": "1000",
    "gpu": "0",
    "seed": "42",
}
MEASURED = "time/"


def run(folder: Path, flags: dict[str, str]) -> dict[str, Any]:
    """Do a run and return its wall time and what it measured itself."""
    told = {**flags, "result_dir": str(folder / "results"), "feature_gb": "0", "resume": "never"}
    command = [sys.executable, "-m", "entry_points.horizontal", *(f"--{k}={v}" for k, v in told.items())]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}"}
    began = time.perf_counter()
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - began
    journal = max(folder.glob("results/**/journal.jsonl"), key=lambda path: path.stat().st_mtime)
    history = Journal(journal).history()
    parts = {name: points[-1][1] for name, points in history.items() if name.startswith(MEASURED)}
    return {"seconds": seconds, **parts}


def main() -> None:
    """Measure and write the result."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        return
    given = dict(argument.removeprefix("--").split("=", 1) for argument in sys.argv[1:])
    flags = {**DEFAULTS, **given}
    with tempfile.TemporaryDirectory() as name:
        first, second = (run(Path(name), flags) for _ in range(2))
    result = {"flags": flags, "first": first, "second": second}
    (RESULTS / "speed_whole.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
