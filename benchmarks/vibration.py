"""One hour at 50 kHz to maps: `python -m benchmarks.vibration` says seconds and peak memory (60 s, 1 GiB)."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

RATE, SPEED, DRIFT, DRIFT_S = 50_000, 30.0, 0.04, 600.0
TEETH = (31, 95)
BLOCK = 1_000_000
CHILD = """
import re, sys, time
from pathlib import Path
from entry_points import hdmap
from entry_points.common import launch
began = time.monotonic()
code = launch(hdmap.main, sys.argv[1:])
# getrusage would say what the parent had: a process that is started takes that over.
peak_kib = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
print(code, time.monotonic() - began, peak_kib / 2**20)
"""


def write_record(path: Path, *, seconds: int) -> None:
    """Write vibration and tachometer as two columns, a block at a time."""
    table = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(seconds * RATE, 2))
    draws, wave = np.random.default_rng(0), 2 * np.pi / DRIFT_S
    for start in range(0, len(table), BLOCK):
        time_T = np.arange(start, min(start + BLOCK, len(table))) / RATE
        turned_T = SPEED * (time_T - DRIFT / wave * (np.cos(wave * time_T) - 1))
        mesh_T = 3 * np.cos(2 * np.pi * TEETH[0] * turned_T)
        table[start : start + BLOCK, 0] = mesh_T + draws.normal(size=len(time_T))
        table[start : start + BLOCK, 1] = np.clip(200 * (turned_T % 1), 0, 1) * (turned_T % 1 < 0.1)
    table.flush()


def main(seconds: int = 3600) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        write_record(Path(folder) / "hour.npy", seconds=seconds)
        flags = f"--teeth {TEETH[0]},{TEETH[1]} --vibration 0 --tachometer 1 --rate {RATE}"
        words = [*flags.split(), "--input", f"{folder}/hour.npy", "--output", f"{folder}/maps"]
        done = subprocess.run(
            [sys.executable, "-c", CHILD, *words], capture_output=True, text=True, check=True
        )
        code, took, peak = map(float, done.stdout.splitlines()[-1].split())
        assert code == 0, done.stderr
        maps = len(list((Path(folder) / "maps").glob("*/*/*/*.tiff")))
    return {"record_s": seconds, "maps": maps, "seconds": round(took, 1), "peak_gib": round(peak, 2)}


if __name__ == "__main__":
    print(json.dumps(main(*map(int, sys.argv[1:]))))
