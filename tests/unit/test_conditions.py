"""Which images are cold and which warm, and the sentence that says why (spec hdmap 1)."""

import os
from pathlib import Path

import pytest

from dinomaly_hd.data.rows import ImageRecord
from dinomaly_hd.data.tree import Assignment, ConditionRule, Tree, assign_conditions

TRAIN = ["domain_A/train/good/0.tiff"]


def folder(name: str, count: int) -> dict[str, list[str]]:
    return {name: [f"{name}/{position:04d}.tiff" for position in range(count)]}


def assign(root: Path, test: dict[str, list[str]], *, rule: ConditionRule = "auto") -> Assignment:
    paths = [*TRAIN, *(path for paths in test.values() for path in paths)]
    records = [ImageRecord(path, "domain_A", path.split("/")[1], 0) for path in paths]
    return assign_conditions(Tree(root, ("domain_A",), tuple(records), ()), rule=rule)


def test_auto_takes_halves_where_every_test_folder_holds_the_same_even_number(tmp_path: Path) -> None:
    test = folder("domain_A/test/good", 200) | folder("domain_A/test/fault", 200)
    assigned = assign(tmp_path, test)
    for paths in test.values():
        assert [assigned.by_path[path] for path in paths] == ["cold"] * 100 + ["warm"] * 100
    assert assigned.by_path[TRAIN[0]] == "all"
    assert assigned.rule.startswith("first half of each test folder cold, second half warm (conditions=auto")
    assert assigned.faults == ()


@pytest.mark.parametrize(("good", "fault"), [(198, 198), (201, 201), (200, 202), (67, 72)])
def test_auto_knows_one_condition_elsewhere(tmp_path: Path, good: int, fault: int) -> None:
    assigned = assign(tmp_path, folder("domain_A/test/good", good) | folder("domain_A/test/fault", fault))
    assert set(assigned.by_path.values()) == {"all"}
    assert assigned.rule.startswith("one condition (conditions=auto: no conditions.csv")


def test_none_forces_one_condition_and_halves_forces_halves(tmp_path: Path) -> None:
    (tmp_path / "conditions.csv").write_text("not read at all")
    test = folder("domain_A/test/good", 4) | folder("domain_A/test/fault", 2)
    assert set(assign(tmp_path, test, rule="none").by_path.values()) == {"all"}
    forced = assign(tmp_path, test, rule="halves")
    assert [forced.by_path[path] for paths in test.values() for path in paths] == [
        *("cold", "cold", "warm", "warm"),
        *("cold", "warm"),
    ]


def test_halves_refuses_an_odd_folder(tmp_path: Path) -> None:
    assigned = assign(tmp_path, folder("domain_A/test/good", 3), rule="halves")
    assert assigned.faults == ("domain_A/test/good: 3 files, conditions=halves needs an even number",)


def test_csv_is_preferred_and_may_name_training_images_and_domains_left_out(tmp_path: Path) -> None:
    test = folder("domain_A/test/good", 2)
    (tmp_path / "conditions.csv").write_text(
        "path,condition\n"
        "domain_A/test/good/0000.tiff,warm\ndomain_A/test/good/0001.tiff,idle-2\n"
        "domain_A/train/good/0.tiff,cold\ndomain_D/test/good/9.tiff,cold\n"
    )
    assigned = assign(tmp_path, test)
    assert assigned.by_path == {
        "domain_A/train/good/0.tiff": "cold",
        "domain_A/test/good/0000.tiff": "warm",
        "domain_A/test/good/0001.tiff": "idle-2",
    }
    assert assigned.rule == "read from conditions.csv: idle-2, warm"
    assert assigned.faults == ()


CSV_FAULTS = {
    "unlisted": (["0000,cold"], "domain_A/test/good/0001.tiff: not listed in conditions.csv"),
    "twice": (
        ["0000,cold", "0001,cold", "0001,warm"],
        "line 4: domain_A/test/good/0001.tiff is listed twice",
    ),
    "unknown": (
        ["0000,cold", "0001,cold", "0002,cold"],
        "line 4: no such image 'domain_A/test/good/0002.tiff'",
    ),
    "all": (["0000,cold", "0001,all"], "line 3: condition 'all' of domain_A/test/good/0001.tiff, expected"),
    "empty": (["0000,cold", "0001,"], "line 3: condition '' of domain_A/test/good/0001.tiff, expected"),
    "path": (["0000,cold", "0001,../../x"], "line 3: condition '../../x' of"),
    "line break": (["0000,cold", '0001,"a\nb"'], "condition 'a\\nb' of"),
}


@pytest.mark.parametrize("case", CSV_FAULTS)
def test_each_fault_of_the_csv_is_one_line(tmp_path: Path, case: str) -> None:
    rows, expected = CSV_FAULTS[case]
    lines = [row.replace(",", ".tiff,", 1) for row in rows]
    text = "".join(f"domain_A/test/good/{line}\n" for line in lines)
    (tmp_path / "conditions.csv").write_text(f"path,condition\n{text}")
    (fault,) = assign(tmp_path, folder("domain_A/test/good", 2)).faults
    assert expected in fault
    assert "\n" not in fault


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\n\n", "the first line must be 'path,condition'"),
        (b"condition,path\n", "the first line must be 'path,condition'"),
        (b"path,condition\na,b,c\n", "line 2 holds 3 fields, expected 2"),
        (b"path,condition\n\xff\xfe,cold\n", "codec can't decode"),
        (b"path,condition\n" + b"x" * 200_000 + b",cold\n", "field larger than field limit"),
        (b"", "0 bytes"),
    ],
)
def test_a_file_that_is_no_table_is_one_fault(tmp_path: Path, data: bytes, expected: str) -> None:
    (tmp_path / "conditions.csv").write_bytes(data)
    (fault,) = assign(tmp_path, folder("domain_A/test/good", 2)).faults
    assert fault.startswith("conditions.csv: ")
    assert expected in fault


def test_a_csv_may_be_a_link_and_a_pipe_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "outside.csv").write_text("path,condition\ndomain_A/test/good/0000.tiff,hot\n")
    root = tmp_path / "root"
    root.mkdir()
    (root / "conditions.csv").symlink_to(tmp_path / "outside.csv")
    assert assign(root, folder("domain_A/test/good", 1)).rule == "read from conditions.csv: hot"
    (root / "conditions.csv").unlink()
    os.mkfifo(root / "conditions.csv")
    assert assign(root, folder("domain_A/test/good", 2)).faults == ("conditions.csv: not a regular file",)
