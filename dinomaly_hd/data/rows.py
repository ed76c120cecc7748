"""The rows that every layout of a data root gives, one an image, and CSV files that hold them."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from dinomaly_hd.data.images import DECODERS, printable, read_file
from dinomaly_hd.files import csv_rows
from dinomaly_hd.names import FORMULA, FORMULA_STARTS, refusal_of

CSV_BYTES = 2**26
WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")
WORD_RULE = "1 to 32 letters, digits, '_', '-' or '.'"
COLUMNS, MORE_COLUMNS = ("path", "label", "split"), ("domain", "condition", "mask")
GOOD, FAULT = "good", "fault"
LABELS = {"0": GOOD, "good": GOOD, "normal": GOOD, "1": FAULT}  # any other word is a kind of defect
SPLITS = ("train", "test")


class ImageRecord(NamedTuple):
    """One image: path relative to the root, what its place means, its condition, sha256 of its bytes.

    ``split`` is "train" or "test"; ``label`` is 0 for good and 1 for fault, of which ``defect`` is the kind;
    ``mask`` is the path of a fault's ground truth, "" where none is. Condition (but for a table's) and digest
    are known when it has been read.
    """

    path: str
    domain: str
    split: str
    label: int
    condition: str = ""
    digest: str = ""
    defect: str = GOOD
    mask: str = ""


class Listing(NamedTuple):
    """A domain's rows in order, and one line for each fault."""

    records: list[ImageRecord]
    faults: list[str]


Domains = dict[str, Callable[[], Listing]]
"""By its name what lists a domain, which costs nothing for those that nobody asks for."""


def rows_of_table(file: Path) -> Domains:
    """A CSV file beside or above the images; without a column ``domain`` it is the one domain."""
    listings: dict[str, Listing] = {}
    text = read_file(file, name=file.name, limit=CSV_BYTES).decode("utf-8-sig")
    for line, row in csv_rows(text, COLUMNS, more=MORE_COLUMNS):
        domain = row.get("domain") or file.stem
        records, faults = listings.setdefault(domain, Listing([], []))
        record = _record_of(file.parent, domain, row)
        faults += [f"{file.name} line {line}: {reason}" for reason in _wrong_in_row(row, record)]
        records.append(record)
    times = Counter(record.path for records, _ in listings.values() for record in records)
    for name, (records, faults) in listings.items():
        faults += [f"{printable(one.path)}: listed twice" for one in records if times[one.path] > 1]
        if not any(record.split == "train" for record in records):
            faults.append(f"{file.name}: {printable(name)} has no row to train on (split train, label good)")
        records.sort(key=lambda r: (r.split != "train", r.label, os.fsencode(r.path)))
    return {name: partial(lambda listing: listing, listing) for name, listing in listings.items()}


def _record_of(root: Path, domain: str, row: dict[str, str]) -> ImageRecord:
    path, mask = (_posix(root, row.get(name, "")) for name in ("path", "mask"))
    defect = LABELS.get(row["label"].lower(), row["label"])
    condition = row.get("condition", "")
    return ImageRecord(path, domain, row["split"].lower(), int(defect != GOOD), condition, "", defect, mask)


def _posix(root: Path, path: str) -> str:
    """Return a path of a table that Windows may have written."""
    return path.replace("\\", "/") if "\\" in path and not os.path.lexists(root / path) else path


def _wrong_in_row(row: dict[str, str], record: ImageRecord) -> Iterator[str]:
    for path in filter(None, (record.path, record.mask)):
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts or path[1:2] == ":":
            yield f"{path[:200]!r} does not lie below the table; link it there"
        elif PurePosixPath(path).suffix.lower() not in DECODERS:
            yield f"{path[:200]!r} is not an image of a known extension ({', '.join(DECODERS)})"
        elif reason := FORMULA if path.startswith(FORMULA_STARTS) else refusal_of(path):
            yield f"{printable(path)}: {reason}"
    if record.split not in SPLITS:
        yield f"split {row['split'][:40]!r}, expected train or test"
    if not WORD.fullmatch(record.defect):
        yield f"label {row['label'][:40]!r}, expected good, or a kind of defect: a word of {WORD_RULE}"
    elif record.split == "train" and record.label:
        yield f"label {row['label']!r} to train on, expected good: only normals are"
    if record.condition and not WORD.fullmatch(record.condition):
        yield f"condition {record.condition[:40]!r}, expected a word of {WORD_RULE}"
