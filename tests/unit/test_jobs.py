"""Jobs end with their parent, are started again where they fail, and never stop one another."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dinomaly_hd.errors import ConfigError
from dinomaly_hd.experiments.as_jobs import IMPORTS
from dinomaly_hd.files import read_json
from dinomaly_hd.jobs import engines
from dinomaly_hd.jobs.engines import check_engine
from dinomaly_hd.jobs.job import LOG, PROGRESS, Ended, Job, Slots, read_job, write_progress
from dinomaly_hd.jobs.running import State, board, run_jobs
from tests.work import wait_for

WORKER = """
import json, os, signal, sys, time
from pathlib import Path
from dinomaly_hd.jobs.job import die_with_parent
die_with_parent()
path = Path(sys.argv[2])
told = json.loads(path.read_text())
def leave(*_):
    (path.parent / "saved").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, leave)
starts = path.parent / "starts"
with starts.open("a") as stream:
    stream.write(f"{os.getpid()} {os.environ['OMP_NUM_THREADS']}\\n")
number = len(starts.read_text().splitlines())
exec(told["does"])
"""
"""A job that does what its job.json says and leaves a file behind when it is stopped."""
PRELUDE = """
import json
from pathlib import Path
from dinomaly_hd.errors import Interrupted
from dinomaly_hd.jobs import engines
from dinomaly_hd.jobs.job import Job, Slots
from dinomaly_hd.jobs.running import run_jobs

engines._devices = list

def job(name, does, attempts=2):
    folder = Path("jobs") / name
    folder.mkdir(parents=True)
    return Job(name, "worker", folder, {"does": does}, attempts)
"""


@pytest.fixture(autouse=True)
def two_cores_and_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "worker.py").write_text(WORKER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(engines, "_devices", list)
    monkeypatch.setattr(engines, "usable_cores", lambda: 4)


def job(name: str, does: str) -> Job:
    folder = Path("jobs") / name
    folder.mkdir(parents=True)
    return Job(name, "worker", folder, {"does": does})


def pids(folder: Path) -> list[int]:
    return [int(line.split()[0]) for line in (folder / "starts").read_text().splitlines()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except OSError:
        return False


def test_all_jobs_finish_on_two_slots_with_their_share_of_cores() -> None:
    lines: list[str] = []
    jobs = [job(f"j{number}", "print('hello')") for number in range(5)]
    told: dict[str, Any] = {"tick": lambda: None, "say": lines.append, "on_ended": lambda *_: None}
    ended = run_jobs(jobs, Slots("local", 2, ""), **told)
    assert ended == {one.name: Ended("FINISHED", "", 1) for one in jobs}
    assert all("hello" in (one.folder / LOG).read_text() for one in jobs)
    assert (jobs[0].folder / "starts").read_text().split()[1] == "2", "4 cores on 2 slots"
    running = [int(line.split("running ")[-1][0]) for line in lines if "running " in line]
    assert max(running) == 2
    assert lines[-1].endswith("(finished 5)")


def test_what_jobs_need_is_imported_once_by_what_forks_them_and_again_where_that_was_killed() -> None:
    Path("needed.py").write_text("import os; open('imported', 'a').write('x'); os.write(1, b'3')")
    kill_it = "os.kill(os.getppid(), 9) if number == 1 else None"
    reads_on = "import subprocess; subprocess.Popen(['cat'])"  # from the standard input, after the job's end
    does = ["", reads_on, kill_it, ""]
    jobs = [
        job(f"j{number}", f"assert 'needed' in sys.modules; {one}")._replace(imports=("needed",))
        for number, one in enumerate(does)
    ]
    told: dict[str, Any] = {"tick": lambda: None, "say": lambda _: None, "on_ended": lambda *_: None}
    ended = run_jobs(jobs, Slots("local", 1, ""), **told)
    assert ended == {
        one.name: Ended("FINISHED", "", starts) for one, starts in zip(jobs, (1, 1, 2, 1), strict=True)
    }
    assert Path("imported").read_text() == "xx"
    assert len({*pids(jobs[0].folder), *pids(jobs[1].folder)}) == 2, "each a process of its own"


def test_what_cannot_be_imported_beforehand_is_named() -> None:
    one = job("torn", "")._replace(imports=("not_there",), attempts=1)
    told: dict[str, Any] = {"tick": lambda: None, "say": lambda _: None, "on_ended": lambda *_: None}
    ended = run_jobs([one], Slots("local", 1, ""), **told)
    assert ended["torn"] == Ended("FAILED", "ModuleNotFoundError: No module named 'not_there'", 1)


def test_what_members_import_beforehand_leaves_a_process_that_can_be_forked() -> None:
    code = f"""
import importlib
from pathlib import Path
for name in {IMPORTS}:
    importlib.import_module(name)
import torch
threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
assert len([name for name in threads if name != "jemalloc_bg_thd"]) == 1, threads
assert not torch.cuda.is_initialized()
"""
    # NumPy's own threads, which end before a fork, are not there; PyArrow's jemalloc sees to its own.
    threads = {**os.environ, "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], env=threads, check=True)


def run_elsewhere(code: str, folder: Path) -> "subprocess.Popen[bytes]":
    """Start a process that has made what all jobs need."""
    return subprocess.Popen([sys.executable, "-c", PRELUDE + code], cwd=folder, stdout=subprocess.DEVNULL)


def test_a_killed_parent_leaves_no_orphan(tmp_path: Path) -> None:
    folder = Path("jobs/orphan")
    code = """
jobs = [job("orphan", "time.sleep(600)")]
run_jobs(jobs, Slots("local", 1, ""), tick=lambda: None, say=print, on_ended=print)
"""
    with run_elsewhere(code, tmp_path) as parent:
        wait_for(lambda: (folder / "starts").is_file() and pids(folder))
        parent.kill()
    wait_for(lambda: (folder / "saved").is_file())
    wait_for(lambda: not alive(pids(folder)[0]))


def test_a_job_by_hand_outlives_a_closed_terminal(tmp_path: Path) -> None:
    one = job("alone", "time.sleep(.3)")
    (one.folder / "job.json").write_text(json.dumps(one.content))
    command = [sys.executable, "-m", "worker", "--config", str(one.folder / "job.json")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=tmp_path, stdin=subprocess.DEVNULL, env=environment, check=True)


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_failing_jobs_are_started_again_then_named_and_an_interruption_lets_the_others_save(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine == "ray":
        pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    code = f"""
jobs = [
    job("stopped", "time.sleep(600)"),
    job("second_try", "sys.exit(75 if number == 1 else 0)"),
    job("never", "raise ValueError('no such thing')"),
    job("bad_data", "print('DataError: C/1.tiff: torn'); sys.exit(65)"),
    job("killed", "os.kill(os.getpid(), 9)", 3),
    job("silent", "sys.exit(75)", 1),
    job("good", ""),
]
ended = []

def tick():
    if len(ended) == 6 and Path("jobs/stopped/starts").is_file():
        raise Interrupted(2)

def note(job, how):
    ended.append([job.name, *how])

try:
    run_jobs(jobs, Slots("{engine}", 2, ""), tick=tick, say=print, on_ended=note)
except Interrupted:
    Path("ended.json").write_text(json.dumps(ended))
"""
    with run_elsewhere(code, tmp_path) as process:
        assert process.wait(900) == 0
    assert sorted(json.loads((tmp_path / "ended.json").read_text())) == [
        ["bad_data", "FAILED", "DataError: C/1.tiff: torn", 1],
        ["good", "FINISHED", "", 1],
        ["killed", "FAILED", "ended by SIGKILL", 3],
        ["never", "FAILED", "ValueError: no such thing", 2],
        ["second_try", "FINISHED", "", 2],
        ["silent", "FAILED", "exit code 75", 1],
    ]
    stopped = Path("jobs/stopped")
    wait_for((stopped / "saved").is_file)
    wait_for(lambda: not alive(pids(stopped)[0]))


def test_progress_is_written_at_most_once_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, now = tmp_path / PROGRESS, 0.0
    for step, later_s, seen in ((1, 0.0, 1), (2, 0.9, 1), (3, 1.1, 3), (9, 0.0, 9)):
        now = path.stat().st_mtime + later_s if path.exists() else now
        monkeypatch.setattr("dinomaly_hd.jobs.job.time.time", lambda now=now: now)
        write_progress(tmp_path, step=step, steps=9, seconds_left=9.0 - step)
        assert read_json(path) == {"step": seen, "steps": 9, "seconds_left": 9.0 - seen}


def test_other_code_refuses_a_job(tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    for content, line in (
        ("", r"no job; give the job\.json"),
        ('{"code_digest": "old"}', "made by code old, the"),
    ):
        path.write_text(content)
        with pytest.raises(ConfigError, match=line):
            read_job(path, code_digest="new")
    assert read_job(path, code_digest="old")


@pytest.mark.parametrize(
    ("engine", "address", "message"),
    [
        ("locl", "", "engine='locl': unknown. Did you mean 'local'?"),
        ("local", "head:6379", "ray_address=head:6379: does nothing with engine=local"),
        ("ray", "nonsense", "ray_address='nonsense': expected HOST:PORT"),
        ("ray", "127.0.0.1:9", "ray_address=127.0.0.1:9: no Ray answers there"),
    ],
)
def test_an_engine_that_cannot_be_had_is_refused(engine: str, address: str, message: str) -> None:
    if engine == "ray":
        pytest.importorskip("ray")
    with pytest.raises(ConfigError) as caught:
        check_engine(Slots(engine, 1, address))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_ray_the_way_to_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r'Ray is not installed; pip install "dinomaly-hd\[ray\]"'):
        check_engine(Slots("ray", 1, ""))


def test_slots_are_gpus_where_there_are_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_devices", lambda: ["2", "5"])
    assert engines.LocalEngine(Slots("local", None, "")).places() == 2
    told = [token["CUDA_VISIBLE_DEVICES"] for token in engines._tokens(3, ["2", "5"])]
    assert told == ["2", "5", "2"]
    monkeypatch.setattr(engines, "_devices", list)
    assert engines.LocalEngine(Slots("local", None, "")).places() == 2, "one for two of four cores"
    assert "OMP_WAIT_POLICY" not in engines._tokens(2, [])[0]
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert engines._tokens(2, [])[0] == {"OMP_NUM_THREADS": "4", "OMP_WAIT_POLICY": "PASSIVE"}


def test_the_table_shows_what_is_at_work_or_failed_and_counts_the_rest() -> None:
    states: dict[str, State] = {f"done{number}": "finished" for number in range(40)}
    states |= {"busy": "waiting", "bad[/]": "waiting"}
    console = Console(file=io.StringIO(), force_terminal=True, width=80, height=20, color_system=None)
    with board(states, say=pytest.fail, console=console) as show:
        show("busy", "running", progress={"step": 30, "steps": 100, "seconds_left": 65.0})
        show("bad[/]", "failed", note="DataError: torn")
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "running 1, failed 1, finished 40" in text
    assert re.search(r"busy +running 30/100, 1:05 left", text)
    assert re.search(r"bad\[/\] +failed: DataError: torn", text)
    assert "done" not in text
