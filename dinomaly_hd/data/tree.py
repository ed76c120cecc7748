"""What images a data root holds: each layout lists them as the same rows, in a fixed order, with its faults.

Names come from listings of folders, or from a table that may name only what lies below it. Links are followed
wherever they lead, with the rights of whoever runs this; what they lead to is read as an image or refused.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from dinomaly_hd.config.run import FOUND_DOMAINS
from dinomaly_hd.data.images import DECODERS, printable, read_file
from dinomaly_hd.data.rows import (
    CSV_BYTES,
    FAULT,
    GOOD,
    SPLITS,
    WORD,
    WORD_RULE,
    Domains,
    ImageRecord,
    Listing,
    rows_of_table,
)
from dinomaly_hd.errors import ImageError, nearest
from dinomaly_hd.files import csv_rows
from dinomaly_hd.names import FORMULA, FORMULA_STARTS, LONGEST_DOMAIN, refusal_of, refusal_of_domain

FOLDERS = (("train", "good", 0), ("test", "good", 0), ("test", "fault", 1))  # split, folder, label: the order
PREFIX = "domain_"
GROUND_TRUTH = "ground_truth"
MASK_ENDING = "_mask"  # of a mask's name where it is not its image's own
IGNORED = frozenset({"thumbs.db", "desktop.ini", "@eadir", "__macosx"})  # left by others; so are hidden files

ConditionRule = Literal["auto", "halves", "none"]

ALL = "all"  # the one condition where none is known, and the pooled row of every table
CSV_NAME = "conditions.csv"
FEWEST_FOR_HALVES = 200  # HDMAP's folders hold 1000; a short folder is no sign of two recordings


class Tree(NamedTuple):
    """A data root: resolved, its domains that are asked for, their images unread, and fault lines."""

    root: Path
    domains: tuple[str, ...]
    entries: tuple[ImageRecord, ...]
    faults: tuple[str, ...]


def survey(root: Path, *, domains: Sequence[str]) -> Tree:
    """List the images of the domains, or of all (``FOUND_DOMAINS``), and every fault; no image is opened.

    Files are in the order of their names' bytes, whatever the locale and the file system.
    """
    try:
        found, known = _listed(root)
    except (OSError, ValueError, RuntimeError, ImageError) as error:  # RuntimeError: a loop of links
        return Tree(root, (), (), (f"the data root cannot be read: {_reason(error)}",))
    chosen, faults = _choose(known if tuple(domains) == (FOUND_DOMAINS,) else domains, found, known=known)
    records: list[ImageRecord] = []
    for domain in chosen:
        listing = found[domain]()
        records += listing.records
        faults += listing.faults
    # Not what a linked table leads to: its rows are meant from where it is seen.
    folder = root.parent if os.path.isfile(root) else root
    return Tree(folder.resolve(), tuple(chosen), tuple(records), tuple(faults))


def domains_in(root: Path) -> tuple[str, ...]:
    """Return the domains of a root as they are said shortest, "A" for domain_A; none if it cannot be read."""
    try:
        _, known = _listed(root)
    except (OSError, ValueError, RuntimeError, ImageError):  # which the reading of the data will report
        return ()
    return tuple(
        short if (short := name.removeprefix(PREFIX)) and short not in known else name for name in known
    )


def found_domains(root: Path, *, usual: Sequence[str]) -> tuple[str, ...]:
    """Return the usual domains where the root holds them all, else all that it holds."""
    there = domains_in(root)
    return tuple(usual) if set(usual) <= set(there) else there


def _choose(asked: Sequence[str], found: Domains, *, known: Sequence[str]) -> tuple[list[str], list[str]]:
    chosen: list[str] = []
    faults = [] if asked else [f"no domain {'asked for' if known else 'found'}.{_known('', known)}"]
    for name in asked:
        folder = next((folder for folder in (name, PREFIX + name) if folder in found), None)
        if folder is None:
            faults.append(f"unknown domain {name!r}.{_known(name, known)}")
        elif folder in chosen:
            faults.append(f"domain {printable(folder)} is asked for twice")
        elif reason := refusal_of_domain(folder):
            shown = printable(folder)[:LONGEST_DOMAIN]
            faults.append(f"{shown}: the domain's name {reason}; rename the folder")
        else:
            chosen.append(folder)
    return chosen, faults


def _known(name: str, known: Sequence[str]) -> str:
    if not known:
        return " The root holds no domain folders (domain_A/train/good ...), and no train folder of its own."
    shown = [printable(folder) for folder in known]
    hint = nearest(name, shown)
    hint = f"{hint} Known: {', '.join(shown)}." if "Did you mean" in hint else hint
    return f"{hint} Choose with domains=, or leave it out for all."


# ---- layouts ----


def _many(root: Path) -> Domains:
    """``{root}/{domain}/train/good``, ``test/good``, ``test/{defect}``: HDMAP's, and MVTec's categories."""
    folders = [name for name in _names(root) if os.path.isdir(root / name)]
    return {name: partial(_of_folders, root, name, f"{name}/") for name in folders}


def _one(root: Path) -> Domains:
    """``{root}/train/good`` ...: the root is the one domain, and bears its name."""
    name = os.path.basename(os.path.abspath(root))
    return {name: partial(_of_folders, root, name, "")}


LAYOUTS: dict[str, Callable[[Path], Domains]] = {"domains": _many, "category": _one, "table": rows_of_table}


def layout_of(root: Path) -> str:
    """Return the name of a root's layout, by what it is and holds."""
    if root.suffix.lower() == ".csv" and os.path.isfile(root):
        return "table"
    several = not _holds_images(root) or any(
        _holds_images(root / name) for name in _names(root) if name != GROUND_TRUTH
    )
    return "domains" if several else "category"


def _listed(root: Path) -> tuple[Domains, list[str]]:
    """Return what lists each domain that may be asked for, and those that are there to be found."""
    root.resolve(strict=True)  # refuses loops of links, and what is not there
    layout = layout_of(root)
    found = LAYOUTS[layout](root)
    return found, [name for name in found if layout != "domains" or _holds_images(root / name)]


def _holds_images(folder: Path) -> bool:
    return any(os.path.isdir(folder / split / GOOD) for split in SPLITS)


def _of_folders(root: Path, domain: str, prefix: str) -> Listing:
    """List ``train/good``, ``test/good`` and every other folder of ``test``, which is a kind of defect.

    Without test images of one kind, or of both, a domain can be trained on all the same.
    """
    records: list[ImageRecord] = []
    faults: list[str] = []
    inside = [name for name in _names_of(root, f"{prefix}test", faults) if name != GOOD]
    kinds = [name for name in inside if not os.path.isfile(root / prefix / "test" / name)]
    faults += [
        f"{printable(f'{prefix}test/{kind}')}: the kind of defect {FORMULA}; rename the folder"
        for kind in kinds
        if kind.startswith(FORMULA_STARTS)
    ]
    for split, kind in [("train", GOOD), ("test", GOOD), *(("test", kind) for kind in kinds)]:
        place, label = f"{prefix}{split}/{kind}", int(kind != GOOD)
        images = _images(root, place, faults, needed=split == "train")
        masks = _masks(root, place, f"{prefix}{GROUND_TRUTH}/{kind}", faults) if images and label else {}
        for name in images:
            mask = masks.get(name) or masks.get(os.path.splitext(name)[0], "")
            records.append(ImageRecord(f"{place}/{name}", domain, split, label, defect=kind, mask=mask))
    return Listing(records, faults)


def _images(root: Path, place: str, faults: list[str], *, needed: bool) -> list[str]:
    """Return the image names of one folder in order; adds its faults."""
    if needed and not os.path.lexists(root / place):
        faults.append(f"{printable(place)}: no such folder")
        return []
    images, before = [], len(faults)
    for name in _names_of(root, place, faults):
        path = f"{place}/{name}"
        reason: str | None = f"not an image of a known extension ({', '.join(DECODERS)}); move it out"
        if PurePosixPath(name).suffix.lower() in DECODERS:
            reason = refusal_of(path)
        if reason:
            faults.append(f"{printable(path)}: {reason}")
        else:
            images.append(name)
    if needed and not images and len(faults) == before:
        faults.append(f"{printable(place)}: holds no images")
    return images


def _masks(root: Path, place: str, beside: str, faults: list[str]) -> dict[str, str]:
    """Return the masks of a folder's faults by name and by stem.

    They lie at ``ground_truth/{path of the image}``, or as in MVTec's data at
    ``{category}/ground_truth/{defect}/{name}_mask.png``.
    """
    masks: dict[str, str] = {}
    for folder, ending in ((f"{GROUND_TRUTH}/{place}", ""), (beside, MASK_ENDING), (beside, "")):
        for name in _names_of(root, folder, faults):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in DECODERS and stem.endswith(ending):
                masks.setdefault(name, f"{folder}/{name}")
                masks.setdefault(stem.removesuffix(ending), f"{folder}/{name}")
    return masks


def _names_of(root: Path, place: str, faults: list[str]) -> list[str]:
    """Return what a folder holds, nothing where it is not there; what cannot be listed is a fault."""
    folder = root / place
    if not os.path.lexists(folder):
        return []
    if not os.path.isdir(folder):  # a file, or a link to nothing: not the same as no such images
        faults.append(f"{printable(place)}: no such folder")
        return []
    try:
        return _names(folder)
    except OSError as error:
        faults.append(f"{printable(place)}: cannot be read: {_reason(error)}")
        return []


def _names(folder: Path) -> list[str]:
    visible = [name for name in os.listdir(folder) if name[0] != "." and name.lower() not in IGNORED]
    return sorted(visible, key=os.fsencode)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


# ---- recording conditions (cold, warm) and the rule that gives them (spec hdmap 1) ----


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
        data = read_file(tree.root / CSV_NAME, name=CSV_NAME, limit=CSV_BYTES)
        rows = csv_rows(data.decode("utf-8-sig"), ("path", "condition"))
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
