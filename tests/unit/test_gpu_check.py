"""A session on a card keeps what it has, whichever part fails or takes too long."""

import json
import subprocess
from pathlib import Path

import pytest

from benchmarks import gpu_check
from benchmarks.gpu_check import Part, session
from tests.work import PATIENCE_S, wait_for

SHORT_S = 0.1
SCRIPT = """
import json, os, sys, time
from pathlib import Path

word, kernels, folder = sys.argv[-1], os.environ["DINOMALY_HD_KERNELS"], Path(os.environ["BENCHMARK_RESULTS"])
(folder / "found.json").write_text(json.dumps({"word": word, "kernels": kernels, "rates": {"step": 2.5}}))
if word == "--wait":
    Path("waits").touch()
    time.sleep(600)
sys.exit(word == "--fail")
"""


class Patient(subprocess.Popen[bytes]):
    """A process whose short limit begins once it waits itself."""

    def wait(self, timeout: float | None = None) -> int:
        if timeout == SHORT_S:
            wait_for(Path("waits").exists)
        return super().wait(timeout)


def test_each_part_is_written_whatever_comes_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "told_what.py").write_text(SCRIPT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "Popen", Patient)
    parts = {
        "one": Part("told_what --size=9", "--size=1", PATIENCE_S, "plain"),
        "failing": Part("told_what --fail", "", PATIENCE_S),
        "waiting": Part("told_what --wait", "", SHORT_S),
    }
    out = tmp_path / "out"
    session(parts, out, limit_s=PATIENCE_S, rehearse=False)
    found = json.loads((out / "gpu_session.json").read_text())
    assert [one["ended"] for one in found.values()] == [f"with exit code {code}" for code in (0, 1, -15)]
    assert found["one"]["found"] == {"word": "--size=9", "kernels": "plain", "rates": {"step": 2.5}}
    assert "| waiting | found.rates.step | 2.5 |" in (out / "gpu_session.md").read_text()
    session({"one": parts["one"]}, out, limit_s=PATIENCE_S, rehearse=True)
    assert json.loads((out / "gpu_session.json").read_text())["one"]["found"]["word"] == "--size=1"


def test_all_parts_fit_a_session_of_ten_minutes_but_for_the_last_ones() -> None:
    limits = [part.limit_s for part in gpu_check.PARTS.values()]
    assert sum(limits[:6]) < gpu_check.SESSION_S < 600
