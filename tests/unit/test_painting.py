"""Pictures by other processes: the same ones, errors that arrive, and nothing that is left behind."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from dinomaly_hd.errors import Interrupted, OutputError
from dinomaly_hd.evaluation.painting import Painters
from dinomaly_hd.evaluation.pictures import draw_maps


def note(path: Path) -> None:
    path.write_text(str(os.getpid()))


def noted(folder: Path) -> list[int]:
    return [int(path.read_text()) for path in folder.glob("*")]


def tick() -> None:
    """Let a wait go on."""


@pytest.mark.parametrize("count", [0, 2])
def test_all_is_drawn_elsewhere_or_here_where_there_is_no_other(tmp_path: Path, count: int):
    with Painters(count) as painters:
        for number in range(6):
            painters.draw(note, tmp_path / str(number))
        painters.finish(tick=tick)
        by = noted(tmp_path)
    assert len(by) == 6
    assert (os.getpid() in by) == (count == 0)


def test_another_process_draws_the_same_bytes(tmp_path: Path):
    draw = np.random.default_rng(0)
    look = {"input_shape": (31, 95), "limit": 1.0, "input_limit": 1.0}
    content = {"image_HW": draw.random((31, 95)), "map_HW": draw.random((40, 40)), "title": "a\nb\nc"}
    with Painters(1) as painters:
        for folder, ask in (("there", painters.draw), ("here", lambda function, *given: function(*given))):
            ask(draw_maps, tmp_path / folder, look, [("one.png", content)])
        painters.finish(tick=tick)
    assert (tmp_path / "there" / "one.png").read_bytes() == (tmp_path / "here" / "one.png").read_bytes()


def test_what_goes_wrong_there_is_raised_here(tmp_path: Path):
    (tmp_path / "file").touch()
    with Painters(1) as painters:
        painters.draw(draw_maps, tmp_path / "file", {"input_shape": (3, 4), "limit": 1.0}, [("a.png", {
            "image_HW": np.zeros((3, 4)), "map_HW": np.zeros((3, 4)), "title": ""})])  # fmt: skip
        with pytest.raises(OutputError, match="cannot write"):
            painters.finish(tick=tick)


def test_a_killed_process_leaves_its_work_to_this_one(tmp_path: Path):
    with Painters(2) as painters:
        for process in painters._processes:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        for number in range(4):
            painters.draw(note, tmp_path / str(number))
        painters.finish(tick=tick)
    assert noted(tmp_path) == [os.getpid()] * 4


def test_a_signal_ends_the_processes(tmp_path: Path):
    def interrupted() -> None:
        raise Interrupted(signal.SIGTERM)

    def draw() -> None:
        with Painters(1) as painters:
            processes.extend(painters._processes)
            painters.draw(os.mkfifo, tmp_path / "pipe")
            painters.draw(Path.read_text, tmp_path / "pipe")  # type: ignore[arg-type] - never ends
            painters.finish(tick=interrupted)

    processes = []
    with pytest.raises(Interrupted):
        draw()
    assert [process.poll() for process in processes] == [-signal.SIGKILL]
