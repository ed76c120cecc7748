"""Folders to Manifest: order, digests, all faults in one error (reliability rows 8, 9, 15, 17)."""

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from dinomaly_hd.data.features import ImageStore
from dinomaly_hd.data.hdmap import Manifest, load_manifest
from dinomaly_hd.errors import DataError, ImageError, LayoutError

FOLDERS = ("train/good", "test/good", "test/fault")
ONE = np.ones((5, 7), np.float32)
PLACE = "domain_C/test/good"


def write_tree(root: Path, *, domains: str = "AC") -> Path:
    for place in product(domains, FOLDERS, ("000000.tiff", "000001.tiff")):
        path = root.joinpath(f"domain_{place[0]}", *place[1:])
        path.parent.mkdir(parents=True, exist_ok=True)
        draw = np.random.default_rng([ord(letter) for part in place for letter in part])
        tifffile.imwrite(path, draw.random((5, 7), dtype=np.float32) * 2)
    return root


def load(root: Path, domains: Sequence[str] = ("A", "C")) -> Manifest:
    return load_manifest(root, domains=domains, conditions="auto")


def put(path: Path, image: np.ndarray, **options: str) -> None:
    if path.suffix == ".png":
        Image.fromarray(image).save(path)
    else:
        tifffile.imwrite(path, image, **options)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "root")


# The manifest ----------------------------------------------------------------------------------------------


def test_records_keep_one_order_and_know_their_folder(root: Path) -> None:
    ticks: list[None] = []
    names = ["C", "domain_A"]
    manifest = load_manifest(root, domains=names, conditions="auto", tick=lambda: ticks.append(None))
    assert len(ticks) == 12
    assert manifest.domains == ("domain_C", "domain_A")
    assert [record[:4] for record in manifest.records[:6]] == [
        ("domain_C/train/good/000000.tiff", "domain_C", "train", 0),
        ("domain_C/train/good/000001.tiff", "domain_C", "train", 0),
        ("domain_C/test/good/000000.tiff", "domain_C", "test", 0),
        ("domain_C/test/good/000001.tiff", "domain_C", "test", 0),
        ("domain_C/test/fault/000000.tiff", "domain_C", "test", 1),
        ("domain_C/test/fault/000001.tiff", "domain_C", "test", 1),
    ]
    assert (manifest.shape, manifest.dtype, manifest.warnings) == ((5, 7), "float32", ())
    assert manifest.condition_rule.startswith("one condition")
    assert manifest.counts()["domain_A"] == dict.fromkeys(FOLDERS, 2)
    assert manifest.indices(domain="domain_A", label=1).tolist() == [10, 11]
    assert manifest.indices(split="train").tolist() == [0, 1, 6, 7]
    assert manifest.indices(domain="domain_B").tolist() == []
    assert manifest.path(0) == root / "domain_C/train/good/000000.tiff"


def test_digest_depends_on_content_names_and_conditions_only(root: Path, tmp_path: Path) -> None:
    digest = load(root).digest
    moved = shutil.copytree(root, tmp_path / "elsewhere")
    assert load(moved).digest == load(moved, ("C", "A")).digest == digest
    others = [load(moved, ("A",)).digest]
    others.append(load_manifest(moved, domains=["A", "C"], conditions="halves").digest)
    (moved / "domain_A/test/good/000001.tiff").rename(moved / "domain_A/test/good/000002.tiff")
    others.append(load(moved).digest)
    put(moved / "domain_A/test/good/000002.tiff", ONE)
    assert len({digest, *others, load(moved).digest}) == 5


def test_a_name_that_the_locale_reads_otherwise_is_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "domain_A/test/good/000000.tiff").rename(root / "domain_A/test/good/Ã©.tiff")
    monkeypatch.setattr(os, "fsencode", lambda path: os.fspath(path).encode("latin-1"))
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "iso8859-1")
    reason = r"good/Ã©\.tiff: the path is read as iso8859-1 in this locale, not as UTF-8; set PYTHONUTF8=1"
    with pytest.raises(LayoutError, match=reason):
        load(root)


def test_what_else_lies_in_the_root_does_not_matter(root: Path) -> None:
    expected = load(root)
    for name in ("ground_truth/domain_A/test/fault", "domain_B", "notes"):
        (root / name).mkdir(parents=True)
    for name in ("severity.csv", "domain_A/README", f"{PLACE}/.DS_Store", f"{PLACE}/Thumbs.db"):
        (root / name).write_text("x")
    assert load(root) == expected, "notes and domain_B are no domains"


def test_a_root_of_links_is_the_data_themselves(root: Path, tmp_path: Path) -> None:
    """As DVC and git-annex lay files out, and clusters folders: whatever they are called where they lead."""
    expected, cache, linked = load(root).digest, tmp_path / "cache", tmp_path / "linked"
    cache.mkdir()
    for number, path in enumerate(sorted((root / "domain_A").rglob("*.tiff"))):
        link = linked / path.relative_to(root)
        link.parent.mkdir(parents=True, exist_ok=True)
        path.rename(cache / f"MD5-{number}")
        link.symlink_to(Path(os.path.relpath(cache / f"MD5-{number}", link.parent)))
    (linked / "domain_C").symlink_to(root / "domain_C")
    (tmp_path / "root_link").symlink_to(linked)
    assert load(tmp_path / "root_link").digest == expected


def test_links_end_in_a_regular_image_or_in_a_fault(root: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("my password")
    links = {"secret": tmp_path / "secret", "device": "/dev/zero", "loop": "loop.tiff", "gone": "nowhere"}
    for name, target in links.items():
        (root / PLACE / f"{name}.tiff").symlink_to(target)
    (root / "domain_C/test/around").symlink_to(root / "domain_C/test")
    with pytest.raises(LayoutError) as caught:
        load(root)
    said = str(caught.value)
    for part in (
        "secret.tiff: not a TIFF (begins with b'my p'",
        "device.tiff: not a regular file",
        "loop.tiff: cannot be read: Too many levels of symbolic links",
        "gone.tiff: cannot be read: No such file",
        "domain_C/test/around/good: not an image",
    ):
        assert part in said
    assert "password" not in said


def test_conditions_reach_the_records(root: Path) -> None:
    records = load_manifest(root, domains=["A"], conditions="halves").records
    assert [record.condition for record in records] == ["all", "all", "cold", "warm", "cold", "warm"]


@pytest.mark.parametrize(
    ("suffix", "dtype", "warning"),
    [
        ("png", np.uint16, "16-bit PNG or TIFF: values are divided by 65535 and cannot lie above 1: faults "),
        ("tiff", np.uint8, "8-bit PNG or TIFF: values are divided by 255 and cannot lie above 1: faults bri"),
        ("tiff", np.float64, "float64 TIFF: values are rounded to float32"),
        ("tiff", np.float32, None),
    ],
)
def test_each_form_is_read_and_what_becomes_of_it_said_once(
    tmp_path: Path, suffix: str, dtype: type, warning: str | None
) -> None:
    for number, (folder, name) in enumerate(product(FOLDERS, "abc")):
        (tmp_path / "domain_A" / folder).mkdir(parents=True, exist_ok=True)
        put(tmp_path / "domain_A" / folder / f"{name}.{suffix}", np.full((5, 7), number, dtype))
    manifest = load(tmp_path, ("A",))
    assert manifest.dtype == np.dtype(dtype).name
    assert len(manifest.warnings) == (warning is not None)
    assert all(line.startswith(str(warning)) for line in manifest.warnings)


def test_a_set_of_one_number_type_may_mix_files_and_their_coding(tmp_path: Path) -> None:
    image = np.arange(35, dtype=np.uint16).reshape(5, 7)
    for folder in FOLDERS:
        (tmp_path / "domain_A" / folder).mkdir(parents=True)
        put(tmp_path / "domain_A" / folder / "a.png", image)
        put(tmp_path / "domain_A" / folder / "b.tiff", image, compression="lzw")
    store = ImageStore(load(tmp_path, ("A",)), keep_bytes=0)
    np.testing.assert_array_equal(store[0], store[1])


def test_test_images_that_are_training_images_are_warned_about(root: Path) -> None:
    shutil.copy(root / "domain_A/train/good/000001.tiff", root / "domain_C/test/good/000000.tiff")
    (warning,) = load(root).warnings
    assert warning.startswith("1 of 8 test images are copies of training images, the first domain_C/test/go")


def test_masks_are_found_and_those_that_no_evaluation_could_use_named_at_once(
    root: Path, tmp_path: Path
) -> None:
    faults = "domain_A/test/fault"
    masks = root / "ground_truth" / faults
    masks.mkdir(parents=True)
    (masks / "000000.tiff").symlink_to(root / faults / "000001.tiff")
    records = load(root).records
    assert [record.mask for record in records if record.mask] == [f"ground_truth/{faults}/000000.tiff"]
    (masks / "000000.tiff").unlink()
    (masks / "000000.tiff").symlink_to(tmp_path)
    put(masks / "000001.tiff", np.zeros((5, 6), np.float32))
    with pytest.raises(LayoutError) as caught:
        load(root)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert "ground_truth/domain_A/test/fault/000000.tiff: cannot be read: Is a directory" in lines[1]
    assert lines[2].endswith("ground_truth/domain_A/test/fault/000001.tiff: 5 x 6, its image is 5 x 7")
    (masks / "000000.tiff").unlink()
    (masks / "000001.tiff").write_bytes(b"x")
    with pytest.raises(ImageError, match=r"ground_truth/domain_A/test/fault/000001.tiff: "):
        load(root)


# The store -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep_bytes", [0, 4 * 5 * 7 * 3, 10**6])
def test_store_gives_each_image_whatever_it_keeps(root: Path, keep_bytes: int) -> None:
    manifest = load(root)
    store = ImageStore(manifest, keep_bytes=keep_bytes)
    for _ in range(2):
        for position in range(len(store)):
            image = store[position]
            np.testing.assert_array_equal(image, tifffile.imread(manifest.path(position)))
            image[:] = 0  # a caller's change is its own


def test_store_refuses_a_file_that_changed_or_went(root: Path) -> None:
    store = ImageStore(load(root), keep_bytes=0)
    put(root / "domain_A/train/good/000000.tiff", ONE)
    (root / "domain_A/train/good/000001.tiff").unlink()
    with pytest.raises(ImageError, match=r"^domain_A/train/good/000000\.tiff: changed since this run"):
        store[0]
    with pytest.raises(ImageError, match=r"^domain_A/train/good/000001\.tiff: cannot be read: No such file"):
        store[1]


# Broken trees; benchmarks/drills/folders.py breaks them in 20 more ways ------------------------------------


MIXED = "of 13 files, first domain_A/train/good/000000.tiff)"
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "folder among images": (
        lambda root: (root / PLACE / "more").mkdir(),
        f"{PLACE}/more: not an image of a known extension",
    ),
    "mixed formats": (
        lambda root: put(root / PLACE / "9.png", np.ones((5, 7), np.uint8)),
        f"mixed formats: float32 TIFF (12 {MIXED}, 8-bit PNG or TIFF (1 of 13 files, first {PLACE}/9.png)",
    ),
    "mixed number types": (
        lambda root: put(root / PLACE / "9.tiff", ONE.astype(np.float64)),
        f"mixed formats: float32 TIFF (12 {MIXED}, float64 TIFF (1 of 13 files, first {PLACE}/9.tiff)",
    ),
    "mixed shapes": (
        lambda root: put(root / PLACE / "9.tiff", np.ones((7, 5), np.float32)),
        f"mixed shapes: 5 x 7 (12 {MIXED}, 7 x 5 (1 of 13 files, first {PLACE}/9.tiff)",
    ),
    "bad image": (
        lambda root: put(root / PLACE / "9.tiff", ONE.astype(np.complex64)),
        f"{PLACE}/9.tiff: complex64 TIFF, expected float32",
    ),
    "hidden character": (
        lambda root: (root / PLACE / "000000.tiff").rename(root / PLACE / "a\x1b[2J.tiff"),
        f"{PLACE}/a\\x1b[2J.tiff: the name holds control or invisible characters",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_each_fault_is_named(root: Path, case: str) -> None:
    damage, expected = BROKEN[case]
    damage(root)
    with pytest.raises(DataError) as caught:
        load(root)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_faults_come_at_once(root: Path) -> None:
    shutil.rmtree(root / "domain_A/test/fault")
    (root / "domain_A/test/fault").symlink_to("nowhere")
    (root / "domain_A/train/good/x.jpg").write_text("x")
    put(root / "domain_C/train/good/1.tiff", ONE.astype(np.complex64))
    put(root / "domain_C/train/good/2.tiff", ONE[:2])
    with pytest.raises(LayoutError) as caught:
        load(root, ("A", "C", "E"))
    head, *lines = str(caught.value).split("\n  ")
    assert head == f"{root}: 5 faults"
    for part in ("'E'", "domain_A/test/fault", "x.jpg", "mixed shapes", "1.tiff: complex64"):
        assert sum(part in line for line in lines) >= 1, part


def test_a_cause_is_said_once_with_its_count_and_three_examples(root: Path) -> None:
    for number in range(400):
        (root / PLACE / f"{number:03}.jpg").write_text("x")
    with pytest.raises(LayoutError) as caught:
        load(root)
    examples = ", ".join(f"{PLACE}/{number:03}.jpg" for number in range(3))
    assert str(caught.value) == (
        f"{root}: 400 times: not an image of a known extension (.tif, .tiff, .png); move it out "
        f"({examples}, ...)"
    )
    for number in range(30):  # which say other numbers, and other names
        (root / PLACE / f"{number:03}.tiff").write_bytes(b"x" * (number + 1))
    (root / "conditions.csv").write_text("path,condition\n")
    with pytest.raises(LayoutError) as caught:
        load(root)
    head, *lines = str(caught.value).splitlines()
    assert head == f"{root}: 468 faults"
    assert [line.split(":")[0].strip() for line in lines] == ["400 times", "38 times", "30 times"]


@pytest.mark.parametrize("place", [PLACE, f"{PLACE}/000000.tiff"])
def test_what_may_not_be_read_is_named(root: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    def refusing(function: Callable[..., object]) -> Callable[..., object]:
        def call(path: object, *arguments: object, **options: object) -> object:
            if str(path) == str(root / place):
                raise PermissionError(13, "Permission denied")
            return function(path, *arguments, **options)

        return call

    monkeypatch.setattr(os, "listdir", refusing(os.listdir))
    monkeypatch.setattr(os, "open", refusing(os.open))
    with pytest.raises(DataError, match=f"{place}: cannot be read: Permission denied"):
        load(root)


@pytest.mark.parametrize("name", ["nowhere", "file", "null\0byte"])
def test_a_root_that_is_no_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(LayoutError, match="the data root cannot be read"):
        load(tmp_path / name)


@pytest.mark.parametrize(
    ("domains", "expected"),
    [
        (["domian_C"], "unknown domain 'domian_C'. Did you mean 'domain_C'? Known: domain_A, domain_C. Ch"),
        (["A", "domain_A"], "domain domain_A is asked for twice"),
        ([], "no domain asked for"),
        ([""], "unknown domain ''"),
        (["A\n"], "unknown domain 'A\\n'"),
        (["a\0"], "unknown domain 'a\\x00'"),
    ],
)
def test_domain_names_come_from_the_listing_or_are_refused(
    root: Path, domains: list[str], expected: str
) -> None:
    with pytest.raises(LayoutError) as caught:
        load(root, domains)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a\nb", "control or invisible"),
        ("a\u202eb", "control or invisible"),
        ("=1+1", "begins with one of = + - @"),
        ("-rf", "begins with one of = + - @"),
        ("x" * 101, "101 bytes, expected up to 100"),
        ("\udcff", "not UTF-8"),
        ("domain_A_normals", "ends in _normals"),
    ],
)
def test_a_domain_that_results_cannot_be_named_after_is_refused(root: Path, name: str, reason: str) -> None:
    (root / "domain_C").rename(root / name)
    with pytest.raises(LayoutError, match=reason.replace("+", r"\+")) as raised:
        load(root, ("A", name))
    assert str(raised.value).isprintable()
