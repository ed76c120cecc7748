"""The walk over HDMAP's folders: which images there are, in which order and condition, and what is wrong."""

import csv
import io
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from dinomaly_hd.data.images import DECODERS, printable, read_file
from dinomaly_hd.errors import ImageError, nearest
from dinomaly_hd.names import FORMULA_STARTS, has_hidden, misread, refusal_of

FOLDERS = (("train", "good", 0), ("test", "good", 0), ("test", "fault", 1))  # split, folder, label: the order
PREFIX = "domain_"
GROUND_TRUTH = "ground_truth"  # holds a mask for each image that has one, at the same path
LONGEST_DOMAIN = 100  # bytes: MLflow puts 90 more around it in a picture's name, and file systems take 255
NORMALS = "_normals"  # ends the names of results on a domain's held-out normals
IGNORED = frozenset({"thumbs.db", "desktop.ini"})  # file managers leave these; hidden files are ignored too

ConditionRule = Literal["auto", "halves", "none"]

ALL = "all"  # the one condition where none is known, and the pooled row of every table
CSV_NAME = "conditions.csv"
CSV_BYTES = 2**26
FEWEST_FOR_HALVES = 200  # HDMAP's folders hold 1000; a short folder is no sign of two recordings
CONDITION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")
CONDITION_RULE = "1 to 32 letters, digits, '_', '-' or '.'"


class ImageRecord(NamedTuple):
    """One image: path relative to the root, its folder's meaning, its condition, sha256 of its bytes.

    ``split`` is "train" or "test"; ``label`` is 0 for good and 1 for fault. The last two are known when it
    has been read.
    """

    path: str
    domain: str
    split: str
    label: int
    condition: str = ""
    digest: str = ""


class Tree(NamedTuple):
    """A data root: resolved, its domains asked for and left out, their images unread, and fault lines."""

    root: Path
    domains: tuple[str, ...]
    other_domains: frozenset[str]
    entries: tuple[ImageRecord, ...]
    faults: tuple[str, ...]


def survey(root: Path, *, domains: Sequence[str]) -> Tree:
    """List the image files of the domains and every fault of the folders; no image is opened.

    Names are taken from the listing of the root only, so no domain name can point elsewhere. Files are in
    the order of their names' bytes, whatever the locale and the file system.
    """
    try:
        resolved = root.resolve(strict=True)
        found = [name for name in _names(resolved) if os.path.isdir(resolved / name)]
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a loop of links
        return Tree(root, (), frozenset(), (), (f"the data root cannot be read: {_reason(error)}",))
    chosen, faults = _choose(domains, found, root=resolved)
    records: list[ImageRecord] = []
    for domain in chosen:
        for split, folder, label in FOLDERS:
            place = f"{domain}/{split}/{folder}"
            try:
                names, wrong = _images(resolved, place)
            except OSError as error:
                names, wrong = [], [f"{printable(place)}: cannot be read: {_reason(error)}"]
            records += [ImageRecord(f"{place}/{name}", domain, split, label) for name in names]
            faults += wrong
    return Tree(resolved, tuple(chosen), frozenset(found) - set(chosen), tuple(records), tuple(faults))


def leads_out(root: Path, path: Path) -> bool:
    """Tell whether links take the path out of the (resolved) root."""
    return not Path(os.path.realpath(path)).is_relative_to(root)


def _choose(asked: Sequence[str], found: Sequence[str], *, root: Path) -> tuple[list[str], list[str]]:
    chosen: list[str] = []
    faults = [] if asked else ["no domain asked for"]
    for name in asked:
        folder = next((folder for folder in (name, PREFIX + name) if folder in found), None)
        if folder is None:
            faults.append(f"unknown domain {name!r}.{_known(name, found, root=root)}")
        elif folder in chosen:
            faults.append(f"domain {printable(folder)} is asked for twice")
        elif reason := _misnamed(folder):
            shown = printable(folder)[:LONGEST_DOMAIN]
            faults.append(f"{shown}: the domain's name {reason}; rename the folder")
        else:
            chosen.append(folder)
    return chosen, faults


def _known(name: str, found: Sequence[str], *, root: Path) -> str:
    domains = [folder for folder in found if any(os.path.isdir(root / folder / part) for part, *_ in FOLDERS)]
    known = [printable(folder) for folder in domains]
    hint = nearest(name, known) if known else " The root holds no domain folders."
    return f"{hint} Known: {', '.join(known)}." if "Did you mean" in hint else hint


def _misnamed(folder: str) -> str | None:
    """Return why a domain cannot be called so in results: files, metrics and tables bear its name."""
    if reason := misread(folder):
        return reason
    if (size := len(folder.encode())) > LONGEST_DOMAIN:
        return f"has {size} bytes, expected up to {LONGEST_DOMAIN}"
    if has_hidden(folder):
        return "holds control or invisible characters"
    if folder.endswith(NORMALS):
        return f"ends in {NORMALS}, as files on the normals of another domain do"
    if folder.startswith(FORMULA_STARTS):
        return f"begins with one of {' '.join(FORMULA_STARTS)}, as a formula or a flag does"
    return None


def _images(root: Path, place: str) -> tuple[list[str], list[str]]:
    """Return the image names of one folder in order, and its faults."""
    folder = root / place
    if not folder.is_dir():
        return [], [f"{printable(place)}: no such folder"]
    if leads_out(root, folder):
        return [], [f"{printable(place)}: {_outwards(folder)}"]
    images, faults = [], []
    for name in _names(folder):
        if reason := _refusal(root, folder / name):
            faults.append(f"{printable(f'{place}/{name}')}: {reason}")
        else:
            images.append(name)
    return images, faults if images or faults else [f"{printable(place)}: holds no images"]


def _refusal(root: Path, path: Path) -> str | None:
    if path.suffix.lower() not in DECODERS:
        return f"not an image of a known extension ({', '.join(DECODERS)}); move it out of this folder"
    if path.is_symlink() and leads_out(root, path):
        return _outwards(path)
    return refusal_of(str(path.relative_to(root)))


def _outwards(path: Path) -> str:
    return f"a link leads out of the data root to {printable(os.path.realpath(path))}"


def _names(folder: Path) -> list[str]:
    visible = [name for name in os.listdir(folder) if name[0] != "." and name.lower() not in IGNORED]
    return sorted(visible, key=os.fsencode)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


# ---- recording conditions (cold, warm) and the rule that gives them ----


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
    if os.path.lexists(tree.root / CSV_NAME):
        return _from_csv(tree, blank)
    sizes = {len(paths) for paths in test.values()}
    if len(sizes) == 1 and min(sizes) >= FEWEST_FOR_HALVES and min(sizes) % 2 == 0:
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
        rows = _csv_rows(tree.root)
    except (ImageError, ValueError) as error:
        return Assignment(blank, "", (f"{CSV_NAME}: {str(error).removeprefix(f'{CSV_NAME}: ')}",))
    tested = dict.fromkeys(record.path for record in tree.entries if record.split == "test")
    given: dict[str, str] = {}
    faults = []
    for line, path, condition in rows:
        where, shown = f"{CSV_NAME} line {line}", printable(path)
        if path not in blank:
            if path.partition("/")[0] not in tree.other_domains:  # whose files the table may list
                faults.append(f"{where}: no such image {path[:200]!r}")
        elif path in given:
            faults.append(f"{where}: {shown} is listed twice")
        else:
            given[path] = condition
            if not CONDITION.fullmatch(condition) or (condition == ALL and path in tested):
                name = f"condition {condition[:40]!r} of {shown}"
                faults.append(f"{where}: {name}, expected a word of {CONDITION_RULE}, not {ALL!r}")
    faults += [f"{CSV_NAME}: {printable(path)} is not listed" for path in tested if path not in given]
    names = sorted({given.get(path, ALL) for path in tested})
    return Assignment(blank | given, f"read from {CSV_NAME}: {', '.join(names)}", tuple(faults))


def _csv_rows(root: Path) -> list[tuple[int, str, str]]:
    """Return (line, path, condition) of each row; ValueError with the reason if the file is no such table."""
    path = root / CSV_NAME
    if leads_out(root, path):
        raise ValueError("a link that leads out of the data root")
    text = read_file(path, name=CSV_NAME, limit=CSV_BYTES).decode("utf-8-sig")
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        lines = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from error
    if not lines or lines[0][1] != ["path", "condition"]:
        raise ValueError("the first line must be 'path,condition'")
    for line, row in lines[1:]:
        if len(row) != 2:
            raise ValueError(f"line {line} holds {len(row)} fields, expected 2")
    return [(line, row[0], row[1]) for line, row in lines[1:]]
