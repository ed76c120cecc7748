"""The journal's promises: it outlives a kill, resumes without a trace, and never reads half a line."""

import json
import math
import os
import signal
import struct
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from dinomaly_hd.errors import CheckpointError, OutputError
from dinomaly_hd.runs.journal import Journal

AWKWARD = [0.1, 1 / 3, 1e-310, -0.0, 2.0**60 + 1, 5e-324, math.pi * 1e200]


def train(path: Path, *, steps: range) -> None:
    with closing(Journal(path)) as journal:
        for step in steps:
            journal.log({"train/loss": math.sin(step) / 3, "train/lr": 1e-3 * 0.97**step}, step=step)


def test_values_come_back_bit_by_bit(tmp_path: Path) -> None:
    with closing(Journal(tmp_path / "journal.jsonl")) as journal:
        journal.log({f"m{i}": value for i, value in enumerate(AWKWARD)}, step=7)
        (entry,) = journal.tail()[0]
    assert entry.step == 7
    assert [struct.pack("d", v) for v in entry.metrics.values()] == [struct.pack("d", v) for v in AWKWARD]


def test_nan_and_infinities_are_kept_in_valid_json(tmp_path: Path) -> None:
    with closing(Journal(tmp_path / "journal.jsonl")) as journal:
        journal.log({"a": math.nan, "b": math.inf, "c": -math.inf}, step=1)
        (entry,) = journal.tail()[0]
    assert math.isnan(entry.metrics["a"])
    assert (entry.metrics["b"], entry.metrics["c"]) == (math.inf, -math.inf)

    def refuse(token: str) -> None:
        raise AssertionError(f"{token} is not JSON")

    json.loads((tmp_path / "journal.jsonl").read_text(), parse_constant=refuse)


@pytest.mark.parametrize("killed_at", [1, 10, 17, 39])
def test_history_of_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, killed_at: int) -> None:
    train(tmp_path / "whole.jsonl", steps=range(40))
    train(tmp_path / "resumed.jsonl", steps=range(killed_at))
    with (tmp_path / "resumed.jsonl").open("ab") as stream:
        stream.write(b'{"step": 99, "time": 17')  # torn by the kill
    checkpoint = (killed_at - 1) // 10 * 10
    Journal(tmp_path / "resumed.jsonl").truncate_after(checkpoint)
    train(tmp_path / "resumed.jsonl", steps=range(checkpoint + 1, 40))
    resumed = Journal(tmp_path / "resumed.jsonl").history()
    assert repr(resumed) == repr(Journal(tmp_path / "whole.jsonl").history())


def test_final_figures_are_forgotten_with_what_follows_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    train(path, steps=range(10))
    whole = Journal(path).history()
    with closing(Journal(path)) as journal:
        journal.log({"mean/auroc": 0.5}, step=0)
        journal.truncate_after(9)
    assert Journal(path).history() == whole


def test_a_validation_that_is_made_again_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    train(path, steps=range(10))
    whole = Journal(path).history()
    with closing(Journal(path)) as journal:
        journal.log({"val/loss": 0.5}, step=9)
        for _ in range(2):
            journal.keep_first_of(9)
    assert Journal(path).history() == whole


def test_a_line_torn_anywhere_is_cut_off_before_the_next_one(tmp_path: Path) -> None:
    train(tmp_path / "whole.jsonl", steps=range(3))
    data = (tmp_path / "whole.jsonl").read_bytes()
    second_ends = data.index(b"\n", data.index(b"\n") + 1) + 1
    for length in range(second_ends, len(data)):
        torn = tmp_path / f"{length}.jsonl"
        torn.write_bytes(data[:length])
        assert [entry.step for entry in Journal(torn).tail()[0]] == [0, 1]
        train(torn, steps=range(2, 4))
        assert [entry.step for entry in Journal(torn).tail()[0]] == [0, 1, 2, 3]


def test_damage_before_the_end_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    train(path, steps=range(2))
    path.write_bytes(b"\x00\x00\n" + path.read_bytes())
    with pytest.raises(CheckpointError, match=r"journal\.jsonl: damaged line"):
        Journal(path).tail()


def test_a_killed_process_has_left_every_line_it_logged(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from dinomaly_hd.runs.journal import Journal\n"
        "journal = Journal(pathlib.Path(sys.argv[1]))\n"
        "for step in range(10**9):\n"
        "    journal.log({'loss': step / 7}, step=step); print(step, flush=True)\n"
    )
    path = tmp_path / "journal.jsonl"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for _ in range(200):
            reported = int(process.stdout.readline())
        os.kill(process.pid, signal.SIGKILL)
    history = Journal(path).history()["loss"]
    assert len(history) > reported >= 199
    assert history == [(step, step / 7) for step in range(len(history))]


def test_tail_goes_on_where_it_stopped_and_waits_for_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    assert journal.tail(0) == ([], 0)
    train(path, steps=range(2))
    entries, offset = journal.tail(0)
    assert [entry.step for entry in entries] == [0, 1]
    with path.open("ab") as stream:
        stream.write(b'{"step":2,')
    assert journal.tail(offset) == ([], offset)


def test_a_journal_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").mkdir()
    with pytest.raises(OutputError, match="cannot write"):
        Journal(tmp_path / "journal.jsonl").log({"loss": 1.0}, step=1)


def test_a_disk_that_fills_up_within_a_line_leaves_only_whole_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.log({"loss": 1.0}, step=1)
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:9]))
    with pytest.raises(OutputError, match="disk full"):
        journal.log({"loss": 2.0}, step=2)
    monkeypatch.undo()
    journal.log({"loss": 3.0}, step=3)
    journal.close()
    assert journal.history() == {"loss": [(1, 1.0), (3, 3.0)]}


def test_sync_reaches_the_disk_without_an_open_file_too(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.sync()
    journal.log({"loss": 1.0}, step=1)
    journal.sync()
    journal.close()
    assert journal.history() == {"loss": [(1, 1.0)]}
