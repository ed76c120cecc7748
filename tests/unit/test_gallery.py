"""Pictures are written while the next ones are drawn: all of them, and an error is not lost."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinomaly_hd.errors import OutputError
from dinomaly_hd.evaluation.pictures import MOST_WAITING, pictures_saved


def picture(value: int) -> np.ndarray:
    return np.full((4, 6, 3), value, dtype=np.uint8)


def test_all_pictures_are_there_at_the_end(tmp_path: Path) -> None:
    count = 3 * MOST_WAITING
    with pictures_saved() as save:
        for number in range(count):
            save(tmp_path / f"{number}.png", picture(number))
    for number in range(count):
        assert np.array_equal(np.asarray(Image.open(tmp_path / f"{number}.png")), picture(number))


@pytest.mark.parametrize("others", [0, 3 * MOST_WAITING])
def test_a_picture_that_cannot_be_written_is_an_error(tmp_path: Path, others: int) -> None:
    (tmp_path / "file").write_text("no folder")
    saved = []

    def draw() -> None:
        with pictures_saved() as save:
            save(tmp_path / "file" / "first.png", picture(0))
            for number in range(others):
                save(tmp_path / f"{number}.png", picture(number))
                saved.append(number)

    with pytest.raises(OutputError, match="cannot write"):
        draw()
    assert len(saved) <= MOST_WAITING


def test_what_stops_the_drawing_goes_through(tmp_path: Path) -> None:
    def draw() -> None:
        with pictures_saved() as save:
            save(tmp_path / "drawn.png", picture(1))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw()
    assert (tmp_path / "drawn.png").exists()
