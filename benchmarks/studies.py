"""Studies under hard conditions, and what a study finds.

    python -m benchmarks.studies postgresql   # workers killed on a real PostgreSQL server, which it starts
    python -m benchmarks.studies quick        # 20 trials on the simulated set; the found setting against F

Prints what it counts and writes benchmarks/results/studies_{postgresql,quick}.json. `postgresql` needs the
server's programs (on PATH, by pg_config, or under /usr/lib/postgresql) and the extra `postgresql`; it trains
a few steps on tiny maps in a temporary folder. `quick` runs as a user would start it and takes about an hour
on two CPU cores; what it found is judged on test images with seeds that the search has not seen.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import optuna
import pandas as pd
import psutil

from benchmarks.common import (
    ROOT,
    entry_point,
    free_port,
    given,
    newest,
    record,
    run,
    runs_in,
    surroundings,
    timed,
)
from dinomaly_hd.experiments.trial import RUN_ID, WORKER
from dinomaly_hd.tuning.results import COMPLETE, CONFIG, best_of, rows_of
from dinomaly_hd.tuning.storage import address_of, connect
from dinomaly_hd.tuning.study import FAILED, FOLDER, chain_of

SERVER_USER, USER, PASSWORD = "postgres", "studies", "only for this run"
TINY = {
    "preset": "quick",
    "simulate_size": "tiny",
    "image_size": "32x48",
    "domains": "B,C",
    "gpu": "cpu",
    "decoder_depth": 2,
    "max_steps": 6,
    "batch_size": 4,
    "heartbeat_s": 2,
    "experiment": "studies",
}
FRESH_SEEDS = "43,44,45"
"""Not the search's own."""


class Server(NamedTuple):
    port: int

    def url(self, database: str, *, password: str = PASSWORD) -> str:
        return f"postgresql://{USER}:{password.replace(' ', '%20')}@127.0.0.1:{self.port}/{database}"

    def make_database(self, name: str) -> str:
        import psycopg2

        with contextlib.closing(psycopg2.connect(self.url("postgres"))) as connection:
            connection.autocommit = True
            connection.cursor().execute(f"CREATE DATABASE {name}")
        return self.url(name)


def server_programs() -> Path:
    """Return the folder of initdb and pg_ctl; ends the program where there is none."""
    places = [Path(found).parent] if (found := shutil.which("initdb")) else []
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        places.append(Path(subprocess.check_output(["pg_config", "--bindir"], text=True).strip()))
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for place in places:
        if (place / "initdb").is_file():
            return place
    sys.exit("no PostgreSQL server here (initdb is not on PATH); install one, such as postgresql-15")


@contextlib.contextmanager
def running_server(folder: Path) -> Iterator[Server]:
    """Start a server in an empty folder, and stop it in the end; as another user where this is root's."""
    programs, data = server_programs(), folder / "data"
    port, secret = free_port(), folder / "password"
    secret.write_text(PASSWORD)
    prefix: list[str] = []
    if os.geteuid() == 0:  # the server refuses to run as root
        prefix = ["runuser", "-u", SERVER_USER, "--"]
        for path in (folder, secret):
            shutil.chown(path, SERVER_USER)

    def call(program: str, *arguments: str) -> None:
        command = [*prefix, str(programs / program), *arguments]
        subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL)

    call("initdb", "-D", str(data), "-U", USER, "-A", "scram-sha-256", "--pwfile", str(secret), "-N")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
    call("pg_ctl", "-D", str(data), "-o", options, "-l", str(folder / "log"), "-w", "start")
    try:
        yield Server(port)
    finally:
        call("pg_ctl", "-D", str(data), "-m", "immediate", "-w", "stop")


@contextlib.contextmanager
def tuning(folder: Path, storage: str, **flags: str) -> "Iterator[subprocess.Popen[bytes]]":
    """Start `tune` on tiny maps, its output in a log, and stop it where this program ends before it."""
    command = entry_point("tune", {**TINY, "result_dir": folder / "results", **flags})
    around = surroundings(folder, DINOMALY_HD_STORAGE=storage)
    with (folder / f"log_{time.monotonic_ns()}.txt").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=around, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def study_of(storage: str, name: str) -> optuna.Study | None:
    with contextlib.suppress(KeyError):
        return optuna.load_study(study_name=name, storage=connect(address_of(storage, root=ROOT)))
    return None


def kill_workers(process: "subprocess.Popen[bytes]", storage: str, *, kills: int, seed: int) -> list[str]:
    """Send SIGKILL to a worker in the midst of a trial, ``kills`` times, and return what was hit."""
    choose, hit, study = random.Random(seed), list[str](), None
    while process.poll() is None and len(hit) < kills:
        time.sleep(choose.uniform(3, 8))
        study = study or study_of(storage, "killed")
        running = [] if study is None else study.get_trials(states=(optuna.trial.TrialState.RUNNING,))
        at_work = [trial for trial in running if WORKER in trial.user_attrs]
        if not at_work:
            continue
        trial = choose.choice(at_work)
        worker = int(trial.user_attrs[WORKER].split()[1])
        if psutil.pid_exists(worker) and worker != process.pid:
            os.kill(worker, signal.SIGKILL)
            hit.append(f"trial {trial.number}, worker {worker}")
            print(f"killed {hit[-1]}", flush=True)
    return hit


def trials_of(folder: Path, codes: list[int], storage: str, name: str) -> list[optuna.trial.FrozenTrial]:
    """Return a study's trials; where a process failed, show what it said."""
    if any(codes):
        print("\n".join(path.read_text()[-2000:] for path in folder.rglob("log_*.txt")))
    study = study_of(storage, name)
    assert study is not None, "tune made it"
    return study.get_trials()


def killed_study(folder: Path, storage: str, *, trials: int, workers: int, kills: int) -> dict[str, Any]:
    """Run a study whose workers are killed, and count what is there in the end."""
    flags = {"study": "killed", "trials": str(trials), "workers": str(workers)}
    with tuning(folder, storage, **flags) as process:
        hit = kill_workers(process, storage, kills=kills, seed=0)
        code = process.wait()
    trials_done = trials_of(folder, [code], storage, "killed")
    states = Counter(trial.state.name for trial in trials_done)
    ids = pd.Series({trial.number: trial.user_attrs.get(RUN_ID) for trial in trials_done}).dropna()
    of_chain = ids.groupby({trial.number: chain_of(trial) for trial in trials_done}).nunique()
    runs = runs_in(f"sqlite:///{folder / 'mlflow.db'}", "studies", "tags.kind = 'trial'")
    return {
        "exit_code": code,
        "workers": workers,
        "killed": hit,
        "states": dict(states),
        "failed_for_good": {t.number: t.user_attrs[FAILED] for t in trials_done if FAILED in t.user_attrs},
        "valid": states["COMPLETE"] + states["PRUNED"],
        "retries": sum(chain_of(trial) != trial.number for trial in trials_done),
        "chains": len(of_chain),
        "chains_with_several_mlflow_runs": int((of_chain > 1).sum()),
        "mlflow_trial_runs": len(runs),
        "mlflow_runs_by_status": dict(Counter(run.info.status for run in runs)),
    }


def fresh_start(folder: Path, storage: str) -> dict[str, Any]:
    """Start two processes at once on an empty database, as on two machines with folders of their own."""
    places = [folder / name for name in ("one", "two")]
    for place in places:
        place.mkdir()
    with contextlib.ExitStack() as stack:
        flags = {"study": "fresh", "trials": "4"}
        processes = [stack.enter_context(tuning(place, storage, **flags)) for place in places]
        codes = [process.wait() for process in processes]
    trials = trials_of(folder, codes, storage, "fresh")
    return {
        "exit_codes": codes,
        "states": dict(Counter(trial.state.name for trial in trials)),
        "workers_that_ran_trials": len({trial.user_attrs.get(WORKER) for trial in trials} - {None}),
    }


def run_postgresql(*, trials: int, workers: int, kills: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)  # the server's user comes through
        (folder / "server").mkdir()
        with running_server(folder / "server") as server:
            fresh = fresh_start(folder, server.make_database("fresh"))
            print(json.dumps(fresh), flush=True)
            scene = folder / "killed"
            scene.mkdir()
            storage = server.make_database("killed")
            seconds, killed = timed(
                lambda: killed_study(scene, storage, trials=trials, workers=workers, kills=kills)
            )
    return {"fresh": fresh, "killed": {**killed, "seconds": round(seconds)}}


def run_quick(*, trials: int, workers: int, result_dir: str) -> dict[str, Any]:
    """Search as a user would, then compare what was found with F on test images."""
    study = f"quick_{time.strftime('%Y%m%d_%H%M%S')}"
    common = {"preset": "quick", "result_dir": result_dir}

    searched = {**common, "study": study, "trials": trials, "workers": workers}
    seconds, _ = timed(lambda: run("tune", searched))
    made = study_of("auto", study)
    assert made is not None, "tune made it"
    rows = rows_of(made)
    best = best_of(rows)[0]
    suggested = [row for row in rows if not row.setting and row.state == COMPLETE]
    shown = best if not best.setting else max(suggested, key=lambda row: row.values)
    known = {row.setting: row.values[0] for row in rows if row.setting and row.values}
    config = str(shown.notes[CONFIG])
    run("ablation", {**common, "configs": f"F,{config}", "seeds": FRESH_SEEDS})
    summary = json.loads(newest(Path(result_dir), "ablation/**/final_summary.json").read_text())
    return {
        "study": study,
        "seconds": round(seconds),
        "states": dict(Counter(row.state for row in rows)),
        "best": {"trial": best.number, "setting": best.setting, "value": best.values[0]},
        "known": known,
        "compared": {"trial": shown.number, "config": config, "value": shown.values[0]},
        "report": f"{FOLDER}/{study}/report.html",
        "test_seeds": FRESH_SEEDS,
        "test_means": summary["means"],
        "test_differences": summary["differences"],
    }


def main() -> None:
    told = given(
        __doc__,
        first="what",
        among=("postgresql", "quick"),
        trials=0,
        workers=0,
        kills=5,
        result_dir="results",
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the server is stopped
    if told.what == "postgresql":
        result = run_postgresql(trials=told.trials or 40, workers=told.workers or 4, kills=told.kills)
    else:
        result = run_quick(trials=told.trials or 20, workers=told.workers or 2, result_dir=told.result_dir)
    record(f"studies_{told.what}", result)


if __name__ == "__main__":
    main()
