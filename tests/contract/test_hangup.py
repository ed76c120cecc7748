"""A dropped connection takes the terminal away: the run saves and ends; under nohup it goes on."""

import os
import re
import signal
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dinomaly_hd.errors import Interrupted, SignalGuard
from dinomaly_hd.runs.folder import CHECKPOINTS, all_runs, read_results, read_state
from dinomaly_hd.runs.store import client_for
from tests.contract.conftest import SETTINGS
from tests.work import PATIENCE_S

STEPS = 200
MAIN = """
import os, time
from pathlib import Path
from dinomaly_hd.progress import Progress
from entry_points import common, horizontal
common.ROOT = Path({root!r})
count = Progress.__call__
def wait_for_the_end_of_the_terminal(self, *given, **figures):
    count(self, *given, **figures)
    if self.unit == "step" and self.done in (20, 30):
        if self.bar is not None:
            self.bar.refresh()
        while os.isatty(0):
            time.sleep(.05)
Progress.__call__ = wait_for_the_end_of_the_terminal
raise SystemExit(common.launch(horizontal.main, {flags!r}))
"""


def _until_closed(root: Path, *, closed_at: str, before: Callable[[], object] | None = None) -> int:
    """Train in a terminal that is closed once it shows this; return the exit code."""
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    values = {**SETTINGS, "max_steps": STEPS, "maps_per_group": 0, "result_dir": root / "results"}
    flags = [f"--{name}={text}" for name, text in values.items()]

    def prepare() -> None:
        os.setsid()
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever these tests were started under
        os.close(os.open(os.ttyname(0), os.O_RDWR))  # a session's first terminal is the one it hangs on
        if before is not None:
            before()

    told: Any = dict.fromkeys(("stdin", "stdout", "stderr"), theirs)
    code = MAIN.format(root=str(root), flags=flags)
    process = subprocess.Popen([sys.executable, "-c", code], **told, preexec_fn=prepare)
    os.close(theirs)
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        said = b""
        while not re.search(closed_at.encode(), said):
            said += terminal.read(1000)
    return process.wait(PATIENCE_S)


def test_the_shells_hangup_after_the_terminals_is_the_same_one() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with SignalGuard() as guard:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGHUP)
            with pytest.raises(Interrupted, match="signal 1"):
                guard.check()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_closed_terminal_is_as_sigterm_and_none_under_nohup(tmp_path: Path, empty_store: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    (tmp_path / "mlflow.db").write_bytes(empty_store.read_bytes())

    assert _until_closed(tmp_path, closed_at=rf"\| 20/{STEPS}") == 128 + signal.SIGHUP
    (folder,) = all_runs(tmp_path / "results")
    state = read_state(folder)
    assert state["status"] == client_for(uri).get_run(state["mlflow_run_id"]).info.status == "KILLED"
    (kept,) = (folder / CHECKPOINTS).glob("*.pt")
    assert 20 <= int(kept.stem.removeprefix("step_")) < STEPS

    def nohup() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    assert _until_closed(tmp_path, closed_at="going on at step", before=nohup) == 0
    assert (read_results(folder) or {})["steps"] == STEPS
    assert client_for(uri).get_run(state["mlflow_run_id"]).info.status == "FINISHED"
