"""Recording conditions (cold, warm) of every image, and the rule that gives them (spec hdmap 1)."""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from dinomaly_hd.data.images import printable
from dinomaly_hd.data.rows import FAULT, GOOD, WORD, WORD_RULE, read_table
from dinomaly_hd.data.tree import Tree
from dinomaly_hd.errors import ImageError

ConditionRule = Literal["auto", "halves", "none"]

ALL = "all"  # the one condition where none is known, and the pooled row of every table
CSV_NAME = "conditions.csv"
FEWEST_FOR_HALVES = 200  # HDMAP's folders hold 1000; a short folder is no sign of two recordings


class Assignment(NamedTuple):
    """Condition of every image by path, the rule as a sentence for the run, and faults, one line each."""

    by_path: dict[str, str]
    rule: str
    faults: tuple[str, ...]


def assign_conditions(tree: Tree, *, rule: ConditionRule) -> Assignment:
    """Give every image of the tree its condition.

    Training images are ``all`` unless ``conditions.csv`` says otherwise: nothing is reported on them.
    """
    blank = dict.fromkeys((record.path for record in tree.entries), ALL)
    test = defaultdict[str, list[str]](list)  # folder -> its paths in file order
    for record in tree.entries:
        if record.split == "test":
            test[record.path.rpartition("/")[0]].append(record.path)
    if rule == "none":
        return Assignment(blank, "one condition (conditions=none)", ())
    if rule == "halves":
        return _halves(blank, test, why="conditions=halves")
    if given := {record.path: record.condition for record in tree.entries if record.condition}:
        names = ", ".join(sorted(set(given.values())))
        return Assignment(blank | given, f"read from the table of images: {names}", ())
    if os.path.lexists(tree.root / CSV_NAME):
        return _from_csv(tree, blank)
    sizes = {len(paths) for paths in test.values()}
    hdmap = all(record.defect in (GOOD, FAULT) for record in tree.entries)
    if hdmap and len(sizes) == 1 and min(sizes) >= FEWEST_FOR_HALVES and min(sizes) % 2 == 0:
        return _halves(blank, test, why=f"conditions=auto: every test folder holds {min(sizes)} files")
    why = f"not one even number of files, {FEWEST_FOR_HALVES} or more, in every test folder"
    return Assignment(blank, f"one condition (conditions=auto: no {CSV_NAME}, and {why})", ())


def _halves(blank: dict[str, str], test: Mapping[str, Sequence[str]], *, why: str) -> Assignment:
    by_path, faults = dict(blank), []
    for folder, paths in test.items():
        if len(paths) % 2:
            faults.append(f"{folder}: {len(paths)} files, conditions=halves needs an even number")
        for position, path in enumerate(paths):
            by_path[path] = "cold" if position < len(paths) // 2 else "warm"
    said = f"first half of each test folder cold, second half warm ({why})"
    return Assignment(by_path, said, tuple(faults))


def _from_csv(tree: Tree, blank: dict[str, str]) -> Assignment:
    try:
        rows = read_table(tree.root / CSV_NAME, ("path", "condition"))
    except (ImageError, ValueError) as error:
        return Assignment(blank, "", (f"{CSV_NAME}: {str(error).removeprefix(f'{CSV_NAME}: ')}",))
    tested = dict.fromkeys(record.path for record in tree.entries if record.split == "test")
    given: dict[str, str] = {}
    faults = []
    for line, row in rows:
        path, condition = row["path"], row["condition"]
        where, shown = f"{CSV_NAME} line {line}", printable(path)
        if path not in blank:
            if path.partition("/")[0] in tree.domains:  # it may list files of others
                faults.append(f"{where}: no such image {path[:200]!r}")
        elif path in given:
            faults.append(f"{where}: {shown} is listed twice")
        else:
            given[path] = condition
            if not WORD.fullmatch(condition) or (condition == ALL and path in tested):
                name = f"condition {condition[:40]!r} of {shown}"
                faults.append(f"{where}: {name}, expected a word of {WORD_RULE}, not {ALL!r}")
    faults += [f"{printable(path)}: not listed in {CSV_NAME}" for path in tested if path not in given]
    names = sorted({given.get(path, ALL) for path in tested})
    return Assignment(blank | given, f"read from {CSV_NAME}: {', '.join(names)}", tuple(faults))
