"""The journal's promises: it outlives a kill, resumes without a trace, and never reads half a line."""

import json
import math
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from dinomaly_hd.errors import CheckpointError, OutputError
from dinomaly_hd.runs.journal import Journal

AWKWARD = [0.1, 1 / 3, 1e-310, -0.0, 2.0**60 + 1, 5e-324, math.pi * 1e200, math.nan, math.inf, -math.inf]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


def train(path: Path, *, steps: range) -> None:
    with closing(Journal(path)) as journal:
        for step in steps:
            journal.log({"train/loss": math.sin(step) / 3, "train/lr": 1e-3 * 0.97**step}, step=step)


def test_values_come_back_bit_by_bit_from_valid_json(path: Path) -> None:
    with closing(Journal(path)) as journal:
        journal.log({f"m{i}": value for i, value in enumerate(AWKWARD)}, step=7)
        (entry,) = journal.tail()[0]
    assert entry.step == 7
    assert [struct.pack("d", v) for v in entry.metrics.values()] == [struct.pack("d", v) for v in AWKWARD]
    json.loads(path.read_text(), parse_constant=lambda token: pytest.fail(f"{token} is not JSON"))


@pytest.mark.parametrize("killed_at", [1, 10, 17, 39])
def test_history_of_a_resumed_run_equals_an_uninterrupted_one(path: Path, killed_at: int) -> None:
    whole = path.with_name("whole.jsonl")
    train(whole, steps=range(40))
    train(path, steps=range(killed_at))
    with path.open("ab") as stream:
        stream.write(b'{"step": 99, "time": 17')  # torn by the kill
    checkpoint = (killed_at - 1) // 10 * 10
    Journal(path).truncate_after(checkpoint)
    train(path, steps=range(checkpoint + 1, 40))
    assert repr(Journal(path).history()) == repr(Journal(whole).history())


@pytest.mark.parametrize(
    ("step", "forget"),
    [(0, lambda journal: journal.truncate_after(9)), (9, lambda journal: journal.keep_first_of(9))],
    ids=["final figures, which follow the checkpoint", "a validation that is made again"],
)
def test_what_a_resumed_run_logs_again_is_forgotten(
    path: Path, step: int, forget: Callable[[Journal], None]
) -> None:
    train(path, steps=range(10))
    whole = Journal(path).history()
    with closing(Journal(path)) as journal:
        journal.log({"mean/auroc": 0.5}, step=step)
        for _ in range(2):
            forget(journal)
    assert Journal(path).history() == whole


def test_a_line_torn_anywhere_is_cut_off_before_the_next_one(tmp_path: Path, path: Path) -> None:
    train(path, steps=range(3))
    data = path.read_bytes()
    second_ends = data.index(b"\n", data.index(b"\n") + 1) + 1
    for length in range(second_ends, len(data)):
        torn = tmp_path / f"{length}.jsonl"
        torn.write_bytes(data[:length])
        assert [entry.step for entry in Journal(torn).tail()[0]] == [0, 1]
        train(torn, steps=range(2, 4))
        assert [entry.step for entry in Journal(torn).tail()[0]] == [0, 1, 2, 3]


def test_tail_goes_on_where_it_stopped_and_waits_for_whole_lines(path: Path) -> None:
    journal = Journal(path)
    assert journal.tail(0) == ([], 0)
    train(path, steps=range(2))
    entries, offset = journal.tail(0)
    assert [entry.step for entry in entries] == [0, 1]
    with path.open("ab") as stream:
        stream.write(b'{"step":2,')
    assert journal.tail(offset) == ([], offset)


def test_a_killed_process_has_left_every_line_it_logged(path: Path) -> None:
    program = (
        "import sys, pathlib; from dinomaly_hd.runs.journal import Journal\n"
        "journal = Journal(pathlib.Path(sys.argv[1]))\n"
        "for step in range(10**9):\n"
        "    journal.log({'loss': step / 7}, step=step); print(step, flush=True)\n"
    )
    command = [sys.executable, "-c", program, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(200):
            reported = int(process.stdout.readline())
        os.kill(process.pid, signal.SIGKILL)
    history = Journal(path).history()["loss"]
    assert len(history) > reported >= 199
    assert history == [(step, step / 7) for step in range(len(history))]


def test_damage_and_a_disk_that_takes_nothing_are_errors_that_name_the_file(path: Path) -> None:
    train(path, steps=range(2))
    path.write_bytes(b"\x00\x00\n" + path.read_bytes())
    with pytest.raises(CheckpointError, match=r"journal\.jsonl: damaged line"):
        Journal(path).tail()
    with pytest.raises(OutputError, match="cannot write"):
        Journal(path / "below_a_file").log({"loss": 1.0}, step=1)


def test_a_disk_that_fills_up_within_a_line_leaves_only_whole_lines(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, write = Journal(path), os.write
    journal.sync()  # before there is a file
    journal.log({"loss": 1.0}, step=1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:9]))
        with pytest.raises(OutputError, match="disk full"):
            journal.log({"loss": 2.0}, step=2)
    journal.log({"loss": 3.0}, step=3)
    journal.sync()
    journal.close()
    assert journal.history() == {"loss": [(1, 1.0), (3, 3.0)]}
