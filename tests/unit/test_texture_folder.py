"""A user's folder of textures: any pictures become one stack, and every fault of it is one line."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from dinomaly_hd.data.folder import MOST_TEXTURES, read_textures
from dinomaly_hd.errors import ImageError

SIZE = (12, 20)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return four pictures of different shapes, types and places."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "textures"
    (folder / "deeper").mkdir(parents=True)
    tifffile.imwrite(folder / "b.tiff", generator.random((31, 95), dtype=np.float32))
    Image.fromarray(generator.integers(0, 255, (40, 7), dtype=np.uint8)).save(folder / "a.png")
    Image.fromarray(generator.integers(0, 65535, (5, 5), dtype=np.uint16)).save(folder / "c.png")
    tifffile.imwrite(folder / "deeper" / "d.tif", np.full((3, 60), 0.25, dtype=np.float32))
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_pictures_of_any_shape_and_type_become_one_stack(folder: Path) -> None:
    ticks: list[None] = []
    stack = read_textures(folder, size=SIZE, tick=lambda: ticks.append(None))
    assert stack.textures_KHW.shape == (4, *SIZE)
    assert stack.textures_KHW.isfinite().all()
    assert len(ticks) == 4
    spread_K = stack.textures_KHW.std(dim=(1, 2))
    assert spread_K[3] == pytest.approx(0, abs=1e-6), "in the order of their paths"
    assert stack.textures_KHW[3].mean() == pytest.approx(0.25)
    assert (spread_K[:3] > 0.01).all()


def test_a_picture_of_the_wanted_size_is_taken_as_it_is(tmp_path: Path) -> None:
    image = np.random.default_rng(1).random(SIZE, dtype=np.float32)
    tifffile.imwrite(tmp_path / "a.tiff", image)
    np.testing.assert_allclose(read_textures(tmp_path, size=SIZE).textures_KHW[0].numpy(), image, atol=1e-6)


def test_the_digest_tells_contents_apart_and_nothing_else(folder: Path) -> None:
    first = read_textures(folder, size=SIZE).digest
    (folder / "notes.txt").write_text("other notes")
    assert read_textures(folder, size=SIZE).digest == first
    assert read_textures(folder, size=(16, 16)).digest == first, "the size is the run's own"
    tifffile.imwrite(folder / "deeper" / "d.tif", np.full((3, 60), 0.5, dtype=np.float32))
    changed = read_textures(folder, size=SIZE).digest
    (folder / "a.png").unlink()
    assert len({first, changed, read_textures(folder, size=SIZE).digest}) == 3


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    for folder in (tmp_path, tmp_path / "none", tmp_path / "notes.txt"):
        with pytest.raises(
            ImageError, match=rf"anomaly_source_path=.*: 0 images .* 1 to {MOST_TEXTURES}"
        ) as caught:
            read_textures(folder, size=SIZE)
        assert "\n" not in str(caught.value)
        assert str(folder) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no tiff", None], ids=["empty", "garbage", "not finite"])
def test_a_broken_picture_is_named(folder: Path, content: bytes | None) -> None:
    if content is None:
        tifffile.imwrite(folder / "b.tiff", np.full((4, 4), np.nan, dtype=np.float32))
    else:
        (folder / "b.tiff").write_bytes(content)
    with pytest.raises(ImageError, match=r"^b\.tiff: ") as caught:
        read_textures(folder, size=SIZE)
    assert "\n" not in str(caught.value)


def test_links_are_followed_to_files_and_nowhere_else(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.png"
    outside.write_bytes(next(folder.glob("**/*.png")).read_bytes())
    count = len(read_textures(folder, size=(4, 6)).textures_KHW)
    (folder / "link.png").symlink_to(outside)
    assert len(read_textures(folder, size=(4, 6)).textures_KHW) == count + 1
    outside.unlink()
    with pytest.raises(ImageError, match=r"link\.png: cannot be read: No such file"):
        read_textures(folder, size=(4, 6))
