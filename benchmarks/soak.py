"""Hundreds of runs on one tracking server, with kills and restarts: what is lost, what is left, what grows?

    python -m benchmarks.soak               # 200 runs, two at a time; about half an hour on two cores
    python -m benchmarks.soak --runs 20

Tiny trainings, each a process with a seed of its own, log to one MLflow server on one SQLite file. A quarter
is killed by SIGKILL at a random moment and started again; the server is killed and started anew after every
20 runs, in their midst. In the end `sync` runs once. Then every point of every journal must be in MLflow
exactly once, no process and no temporary file may be left, and the server's memory and open files must not
have grown. Writes benchmarks/results/soak.json.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil

from benchmarks.common import ROOT, entry_point, given, record
from benchmarks.drills.runs import launcher, start
from benchmarks.drills.tracking import server
from dinomaly_hd.files import TEMPORARY_PREFIX
from dinomaly_hd.runs.journal import Journal
from dinomaly_hd.runs.store import client_for
from tests.work import held_port

PARALLEL, RESTART_EVERY, KILLED_SHARE, KILLED_AFTER_S = 2, 20, 0.25, (0.5, 12.0)
LONGEST_S = 600
MARK = "DINOMALY_HD_SOAK"
"""In the environment of all that a soak starts, so that what is left of it is found."""
FLAGS = {"max_steps": "20", "checkpoint_interval": "4", "maps_per_group": "1"}
"""Beside those of the drills' tiny runs."""


class Soak:
    """One soak: its folder, its server's port, and the moments at which runs are killed."""

    def __init__(self, folder: Path, *, port: int, seed: int) -> None:
        self.folder, self.port, self.seed = folder, port, seed
        self.results, self.uri = folder / "results", f"http://127.0.0.1:{self.port}"
        os.environ[MARK] = str(os.getpid())
        launcher()
        self.helpers = {process.pid for process in marked()}

    def run(self, number: int) -> dict[str, Any]:
        """Do one run, killed once where the dice say so, and return how it ended."""
        dice = random.Random(f"{self.seed} {number}")
        kill_after_s = dice.uniform(*KILLED_AFTER_S) if dice.random() < KILLED_SHARE else None
        began, killed, process = time.monotonic(), False, self._start(number)
        if kill_after_s is not None:
            process.join(timeout=kill_after_s)
            if process.is_alive():
                process.kill()
                process.join()
                killed, process = True, self._start(number)
        process.join(timeout=LONGEST_S)
        return {"code": process.exitcode, "killed": killed, "seconds": time.monotonic() - began}

    def _start(self, number: int) -> BaseProcess:
        return start(self.results, uri=self.uri, seed=str(number), **FLAGS)

    def synchronise(self) -> int:
        command = entry_point("sync", {"result_dir": self.results})
        environment = {**os.environ, "MLFLOW_TRACKING_URI": self.uri}
        return subprocess.run(command, cwd=ROOT, env=environment, timeout=LONGEST_S).returncode


@contextmanager
def restarted(soak: Soak, samples: list[dict[str, float]]) -> Iterator[None]:
    """Run a server for one stretch of runs, killed at its end, and note what it takes at start and end."""
    with server(soak.folder, soak.port) as process:
        first = usage(process.pid)
        yield
        samples.append({**{f"{k}_first": v for k, v in first.items()}, **usage(process.pid)})


def usage(pid: int) -> dict[str, float]:
    """Return memory (MiB) and open files of a process and all below it."""
    root = psutil.Process(pid)
    family = [root, *root.children(recursive=True)]
    return {
        "mib": sum(each.memory_info().rss for each in family) / 2**20,
        "files": sum(each.num_fds() for each in family),
    }


def marked() -> list[psutil.Process]:
    """Return the living processes that this soak started."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == str(os.getpid()):
                found.append(process)
    return found


def checked(soak: Soak) -> dict[str, Any]:
    """Compare every journal with MLflow, point by point."""
    client, status = client_for(soak.uri), Counter[str]()
    found = dict.fromkeys(("folders", "points", "points_missing", "points_doubled"), 0)
    for path in soak.results.glob("horizontal/*/run.json"):
        state = json.loads(path.read_text())
        history = Journal(path.parent / "journal.jsonl").history()
        found["folders"] += 1
        if "mlflow_run_id" not in state:  # killed before it had said anything
            status[f"{state['status']} not in MLflow"] += 1
            found["points_missing"] += sum(len(values) for values in history.values())
            continue
        run = client.get_run(state["mlflow_run_id"])
        status[f"{state['status']} {run.info.status}"] += 1
        for name, values in history.items():
            there = Counter(point.step for point in client.get_metric_history(run.info.run_id, name))
            found["points"] += len(values)
            found["points_missing"] += sum(step not in there for step, _ in values)
            found["points_doubled"] += sum(count > 1 for count in there.values())
    return {"status": dict(status), **found}


def soaked(runs: int, *, seed: int, folder: Path) -> dict[str, Any]:
    began, outcomes, samples = time.monotonic(), [], []
    with held_port() as port, ThreadPoolExecutor(PARALLEL) as pool:
        soak = Soak(folder, port=port, seed=seed)
        # Runs overlap the restarts: the next stretch's server comes up while they are at work.
        waiting = [pool.submit(soak.run, number) for number in range(runs)]
        for first in range(0, runs, RESTART_EVERY):
            with restarted(soak, samples):
                outcomes += [future.result() for future in waiting[first : first + RESTART_EVERY]]
            print(f"{len(outcomes)} of {runs} runs, {time.monotonic() - began:.0f} s", flush=True)
        with server(folder, port):
            synced = soak.synchronise()
            found = checked(soak)
    tenth = max(1, runs // 10)
    return {
        "runs": runs,
        "seconds": round(time.monotonic() - began),
        "exit_codes": dict(Counter(str(one["code"]) for one in outcomes)),
        "killed_and_started_again": sum(one["killed"] for one in outcomes),
        "server_restarts": len(samples),
        "sync_exit_code": synced,
        **found,
        "processes_left": [each.pid for each in marked() if each.pid not in soak.helpers],
        "temporary_files_left": [path.name for path in folder.rglob(f"{TEMPORARY_PREFIX}*")],
        "server": samples,
        "seconds_of_first_and_last_tenth": [
            round(sum(one["seconds"] for one in part) / len(part), 1)
            for part in (outcomes[:tenth], outcomes[-tenth:])
        ],
    }


def main() -> None:
    told = given(__doc__, runs=200, seed=0)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        result = soaked(told.runs, seed=told.seed, folder=Path(folder))
    record("soak", result, show=False)
    print(json.dumps({**result, "server": result["server"][-1:]}, indent=2))
    lost = result["points_missing"] or result["points_doubled"] or result["processes_left"]
    sys.exit(1 if lost or result["temporary_files_left"] or set(result["exit_codes"]) != {"0"} else 0)


if __name__ == "__main__":
    main()
