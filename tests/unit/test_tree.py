"""Every layout of a data root gives the same rows, and says what is wrong with it."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinomaly_hd.data.folder import image_names
from dinomaly_hd.data.hdmap import load_manifest
from dinomaly_hd.data.tree import Tree, domains_in, found_domains, survey
from dinomaly_hd.errors import DataError, LayoutError

PLACES = ("train/good/0.png", "train/good/1.png", "test/good/2.png", "test/crack/3.png", "test/hole/3.png")
MASKS = {"test/crack/3.png": "ground_truth/crack/3_mask.png"}


def write_category(folder: Path) -> Path:
    for number, place in enumerate((*PLACES, *MASKS.values())):
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((5, 7), number, np.uint8)).save(path)
    return folder


def rows(tree: Tree, *, prefix: str) -> list[tuple[str, str, int, str, str]]:
    """Return what rows say but for where the category lies."""
    assert tree.faults == ()
    return [
        (r.path.removeprefix(prefix), r.split, r.label, r.defect, r.mask.removeprefix(prefix))
        for r in tree.entries
    ]


EXPECTED = [
    ("train/good/0.png", "train", 0, "good", ""),
    ("train/good/1.png", "train", 0, "good", ""),
    ("test/good/2.png", "test", 0, "good", ""),
    ("test/crack/3.png", "test", 1, "crack", "ground_truth/crack/3_mask.png"),
    ("test/hole/3.png", "test", 1, "hole", ""),
]
LINES = [
    "test/hole/3.png,hole,test,bottle,,",
    "train/good/1.png,0,train,bottle,,",
    "train\\good\\0.png,good,Train,bottle,,",
    "test/good/2.png,normal,test,bottle,,",
    "test/crack/3.png,crack,test,bottle,,ground_truth/crack/3_mask.png",
]
HEAD = "path,label,split,domain,condition,mask"


def table_in(folder: Path, *lines: str, name: str = "bottle.csv", head: str = HEAD) -> Path:
    (folder / name).write_text("\n".join([head, *lines]) + "\n", encoding="utf-8-sig")
    return folder / name


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "domains": lambda folder: folder.parent,
    "category": lambda folder: folder,
    "table": lambda folder: table_in(folder, *LINES),
    "table of few columns, with semicolons": lambda folder: table_in(
        folder,
        *(line.split(",bottle")[0].replace(",", ";") for line in LINES),
        head="path;label;split",
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_rows(tmp_path: Path, layout: str) -> None:
    root = LAYOUTS[layout](write_category(tmp_path / "bottle"))
    (tmp_path / "license.txt").write_text("x")
    assert domains_in(root) == ("bottle",)
    tree = survey(root, domains=["auto"])
    assert tree.domains == ("bottle",)
    expected = EXPECTED
    if "few" in layout:
        expected = [(*row[:4], "") for row in EXPECTED]
    assert rows(tree, prefix="bottle/") == expected
    manifest = load_manifest(root, domains=["bottle"], conditions="auto")
    assert manifest.counts() == {"bottle": {"train/good": 2, "test/good": 1, "test/fault": 2}}
    assert manifest.condition_rule.startswith("one condition")
    assert manifest.path(0).is_file()


def test_a_digest_tells_kinds_of_defects_apart_where_the_paths_do_not(tmp_path: Path) -> None:
    folder, digests = write_category(tmp_path / "bottle"), set()
    for kind in ("hole", "dent"):
        lines = [line.replace(",hole", f",{kind}") for line in LINES]
        digests.add(load_manifest(table_in(folder, *lines), domains=["bottle"], conditions="auto").digest)
    (folder / "test/fault").mkdir()
    shutil.copy(folder / PLACES[3], folder / "test/fault/x.png")
    for kind in ("hole", "dent", "fault"):  # as HDMAP's paths are
        lines = ["bottle/train/good/0.png,good,train", f"bottle/test/fault/x.png,{kind},test"]
        table = table_in(tmp_path, *lines, head="path,label,split")
        digests.add(load_manifest(table, domains=["bottle"], conditions="auto").digest)
    assert len(digests) == 5


def test_a_table_may_hold_conditions_and_several_domains(tmp_path: Path) -> None:
    folder = write_category(tmp_path / "maps")
    table = table_in(
        folder,
        "train/good/0.png,good,train,B,cold",
        "train/good/1.png,good,train,A,warm",
        "test/good/2.png,good,test,A,warm",
        "test/hole/3.png,1,test,A,cold",
        head="path,label,split,domain,condition",
    )
    manifest = load_manifest(table, domains=["A", "B"], conditions="auto")
    assert [(r.domain, r.condition, r.defect) for r in manifest.records] == [
        ("A", "warm", "good"),
        ("A", "warm", "good"),
        ("A", "cold", "fault"),
        ("B", "cold", "good"),
    ]
    assert manifest.condition_rule == "read from the table of images: cold, warm"
    lacks = (
        "B: no good and no fault images to test on; AUROC and what else needs both kinds cannot be had there"
    )
    assert manifest.warnings[1:] == (lacks,)
    assert {r.condition for r in load_manifest(table, domains=["A"], conditions="none").records} == {"all"}


GOOD_LINES = ("train/good/0.png,good,train", "test/good/2.png,good,test")
BAD_ROWS = {
    "/etc/x.png,good,test": "line 4: '/etc/x.png' does not lie below the table; link it there",
    "../x.png,good,test": "line 4: '../x.png' does not lie below the table",
    "C:\\maps\\x.png,good,test": "line 4: 'C:/maps/x.png' does not lie below the table",
    "a.jpg,good,test": "line 4: 'a.jpg' is not an image of a known extension",
    "a.png,good,val": "line 4: split 'val', expected train or test",
    "a.png,,test": "line 4: label '', expected good, or a kind of defect",
    "a.png,=1+1,test": "line 4: label '=1+1', expected good, or a kind of defect",
    "a.png,crack,train": "line 4: label 'crack' to train on, expected good",
    "a\x1b.png,good,test": "line 4: a\\x1b.png: the name holds control or invisible characters",
    "test/good/2.png,good,test": "test/good/2.png: listed twice",
    "=1+1.png,good,test": "line 4: =1+1.png: begins with one of = + - @, as a formula or a flag does",
    "test/good/9.png,good,test": "test/good/9.png: cannot be read: No such file",
    "a.png,good": "line 4 holds 2 fields, expected 3",
}


@pytest.mark.parametrize("row", BAD_ROWS)
def test_each_wrong_row_of_a_table_is_named(tmp_path: Path, row: str) -> None:
    table = table_in(write_category(tmp_path / "maps"), *GOOD_LINES, row, head="path,label,split")
    with pytest.raises(DataError) as caught:
        load_manifest(table, domains=["bottle"], conditions="auto")
    assert BAD_ROWS[row] in str(caught.value)
    assert str(caught.value).isprintable() or "\n" in str(caught.value)


@pytest.mark.parametrize(
    ("head", "lines", "reason"),
    [
        (
            "path,split,label",
            GOOD_LINES,
            "the first line must be 'path,label,split', then any of domain, cond",
        ),
        ("path,label,split,colour", (), "the first line must be"),
        ("path,label,split", GOOD_LINES[1:], "bottle has no row to train on"),
        ("path,label,split", (), "holds no"),
    ],
)
def test_a_file_that_is_no_table_of_images_is_refused(
    tmp_path: Path, head: str, lines: tuple[str, ...], reason: str
) -> None:
    table = table_in(write_category(tmp_path / "maps"), *lines, head=head)
    with pytest.raises(LayoutError, match=reason):
        load_manifest(table, domains=["auto"], conditions="auto")


def test_a_table_is_meant_from_where_it_is_seen(tmp_path: Path) -> None:
    folder = write_category(tmp_path / "maps")
    table = table_in(folder, *GOOD_LINES, head="path,label,split")
    (tmp_path / "cache").mkdir()
    table.rename(tmp_path / "cache" / "md5")
    table.symlink_to(tmp_path / "cache" / "md5")
    assert len(load_manifest(table, domains=["auto"], conditions="auto").records) == 2


def test_domains_are_found_and_unknown_ones_are_answered_with_those(tmp_path: Path) -> None:
    for name in ("domain_C", "domain_A", "Zahnrad äöü", "notes", "ground_truth"):
        write_category(tmp_path / name)
    shutil.rmtree(tmp_path / "notes/train")
    shutil.rmtree(tmp_path / "notes/test")
    shutil.rmtree(tmp_path / "ground_truth")
    assert domains_in(tmp_path) == ("Zahnrad äöü", "A", "C")
    assert len(load_manifest(tmp_path, domains=["auto"], conditions="auto").records) == 15
    with pytest.raises(
        LayoutError, match=r"unknown domain 'B'\. Known: .*domain_A, domain_C\. Choose with dom"
    ):
        load_manifest(tmp_path, domains=["B"], conditions="auto")
    with pytest.raises(LayoutError, match=r"no domain found\. The root holds no domain folders"):
        load_manifest(tmp_path / "notes", domains=["auto"], conditions="auto")
    assert domains_in(tmp_path / "nowhere") == found_domains(tmp_path / "nowhere", usual=("A",)) == ()
    assert found_domains(tmp_path, usual=("C", "A")) == ("C", "A")
    assert found_domains(tmp_path, usual=("A", "B")) == ("Zahnrad äöü", "A", "C")


@pytest.mark.parametrize(
    ("without", "lacks"),
    [
        (("test/crack", "test/hole"), "no fault images to test on"),
        (("test/good",), "no good images to test on"),
        (("test",), "no good and no fault images to test on"),
    ],
)
@pytest.mark.parametrize("how", ["missing", "empty"])
def test_test_images_may_lack_and_that_is_said(
    tmp_path: Path, without: tuple[str, ...], lacks: str, how: str
) -> None:
    folder = write_category(tmp_path / "bottle")
    for name in without:
        shutil.rmtree(folder / name)
        if how == "empty":
            (folder / name).mkdir()
            (folder / name / ".DS_Store").write_text("x")
    manifest = load_manifest(folder, domains=["auto"], conditions="auto")
    assert manifest.warnings[-1].startswith(f"bottle: {lacks}")
    assert len(manifest.indices(split="train")) == 2


def test_a_kind_of_defect_that_a_table_cannot_hold_is_refused(tmp_path: Path) -> None:
    folder = write_category(tmp_path / "bottle")
    (folder / "test/hole").rename(folder / "test/=1+1")
    reason = r"bottle/test/=1\+1: the kind of defect begins with one of .*; rename the folder"
    with pytest.raises(LayoutError, match=reason):
        load_manifest(tmp_path, domains=["bottle"], conditions="auto")


def test_masks_lie_at_the_images_path_or_as_in_mvtec(tmp_path: Path) -> None:
    folder = write_category(tmp_path / "bottle")
    assert [r.mask for r in survey(tmp_path, domains=["bottle"]).entries if r.mask] == [
        "bottle/ground_truth/crack/3_mask.png"
    ]
    (folder / "ground_truth/test/good").mkdir(parents=True)  # masks of good images are empty ones
    assert domains_in(folder) == ("bottle",)
    own = tmp_path / "ground_truth/bottle/test"
    (own / "crack").mkdir(parents=True)
    (own / "hole").mkdir()
    shutil.copy(folder / PLACES[3], own / "crack/3.tiff")
    shutil.copy(folder / PLACES[4], own / "hole/3.png")
    assert [r.mask for r in survey(tmp_path, domains=["bottle"]).entries if r.mask] == [
        "ground_truth/bottle/test/crack/3.tiff",
        "ground_truth/bottle/test/hole/3.png",
    ]


def test_folders_to_predict_are_walked_through_links_and_loops_end(tmp_path: Path) -> None:
    folder = write_category(tmp_path / "bottle")
    (folder / "test" / "around").symlink_to(folder)
    (folder / "elsewhere").symlink_to(write_category(tmp_path / "other"))
    (folder / "one.png").symlink_to(tmp_path / "other" / PLACES[0])
    expected = {*PLACES, "one.png", *(f"elsewhere/{place}" for place in PLACES)}
    assert image_names(folder) == sorted(expected, key=os.fsencode)
