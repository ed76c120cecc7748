"""HDMAP's folders as one checked, ordered, digested list of images: the Manifest (spec hdmap 1)."""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dinomaly_hd.data.conditions import ConditionRule, assign_conditions
from dinomaly_hd.data.formats import FORMAT_NAMES, ImageHeader
from dinomaly_hd.data.images import decode_image, printable, read_file
from dinomaly_hd.data.tree import Entry, leads_out, survey
from dinomaly_hd.errors import DataError, ImageError, LayoutError

FAULTS_SHOWN = 20
GROUND_TRUTH = "ground_truth"


class ImageRecord(NamedTuple):
    """One image: path relative to the root, its folder's meaning, its condition, sha256 of its bytes.

    ``split`` is "train" or "test"; ``label`` is 0 for good and 1 for fault.
    """

    path: str
    domain: str
    split: str
    label: int
    condition: str
    digest: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All images of a run in fixed order: domains as given; in each train good, test good, test fault.

    ``shape`` is (H, W) and ``dtype`` the stored number type ("float32", "uint8", "uint16"), one for all
    images. ``digest`` covers paths, bytes, labels and conditions, not where the root lies.
    """

    root: Path
    domains: tuple[str, ...]
    records: tuple[ImageRecord, ...]
    shape: tuple[int, int]
    dtype: str
    condition_rule: str
    digest: str
    warnings: tuple[str, ...]

    def path(self, position: int) -> Path:
        """Return the file of one record."""
        return self.root / self.records[position].path

    def indices(
        self, *, domain: str | None = None, split: str | None = None, label: int | None = None
    ) -> npt.NDArray[np.int64]:
        """Return the positions of the records that match every value given, in order."""
        wanted = [("domain", domain), ("split", split), ("label", label)]
        tests = [(name, value) for name, value in wanted if value is not None]
        matches = [
            position
            for position, record in enumerate(self.records)
            if all(getattr(record, name) == value for name, value in tests)
        ]
        return np.array(matches, dtype=np.int64)

    def counts(self) -> dict[str, dict[str, int]]:
        """Return domain -> {"train/good", "test/good", "test/fault"} -> number of images."""
        table: dict[str, dict[str, int]] = {domain: {} for domain in self.domains}
        for record in self.records:
            folder = f"{record.split}/{('good', 'fault')[record.label]}"
            table[record.domain][folder] = table[record.domain].get(folder, 0) + 1
        return table


def load_manifest(
    root: Path,
    *,
    domains: Sequence[str],
    conditions: ConditionRule,
    tick: Callable[[], None] = lambda: None,
) -> Manifest:
    """Read and check every image of the domains, and every mask of a fault, and return their manifest.

    Args:
        root: Folder that holds the domain folders.
        domains: Folder names, or what follows ``domain_`` in them ("C"), in the order wanted.
        conditions: ``auto``, ``halves`` or ``none``.
        tick: Called after each image.

    Raises:
        ImageError: One image is bad and nothing else is.
        LayoutError: Anything else; lists every fault of the tree, the first 20 and the number of all.
    """
    tree = survey(root, domains=domains)
    if not tree.entries:
        raise _layout_error(root, tree.faults)
    assigned = assign_conditions(
        tree.root,
        rule=conditions,
        train=[entry.path for entry in tree.entries if entry.split == "train"],
        test=_test_folders(tree.entries),
        ignored_folders=tree.other_domains,
    )
    records, headers = list[ImageRecord](), list[ImageHeader]()
    bad: list[DataError] = []
    for entry in tree.entries:
        try:
            digest, header = _read(tree.root / entry.path, name=entry.path)
            if entry.label:
                _check_mask(tree.root, entry.path, header)
        except DataError as error:
            bad.append(error)
        else:
            condition = assigned.by_path[entry.path]
            records.append(ImageRecord(*entry, condition=condition, digest=digest))
            headers.append(header)
        tick()
    faults = [*tree.faults, *assigned.faults, *_mixtures(records, headers)]
    if len(bad) == 1 and not faults:
        raise bad[0]
    if faults or bad:
        raise _layout_error(root, [*faults, *map(str, bad)])
    return Manifest(
        root=tree.root,
        domains=tree.domains,
        records=tuple(records),
        shape=(headers[0].height, headers[0].width),
        dtype=headers[0].dtype,
        condition_rule=assigned.rule,
        digest=_digest(records),
        warnings=_warnings(records, headers[0].dtype),
    )


def ground_truth_path(root: Path, image: str) -> Path | None:
    """Return the place of an image's mask, ``ground_truth/{image}`` in the root, or None where there is none.

    Raises:
        LayoutError: The mask is a link that leads out of the root.
    """
    name = f"{GROUND_TRUTH}/{image}"
    path = root / name
    if not os.path.lexists(path):
        return None
    if leads_out(root, path):
        raise LayoutError(f"{printable(name)}: a link that leads out of the data root; copy the file instead")
    return path


def _check_mask(root: Path, image: str, header: ImageHeader) -> None:
    """Refuse a fault's mask that the evaluation could not use, hours later."""
    path = ground_truth_path(root, image)
    if path is None:
        return
    name = str(path.relative_to(root))
    _, mask = _read(path, name=name)
    if (mask.height, mask.width) != (header.height, header.width):
        raise ImageError(
            f"{printable(name)}: {mask.height} x {mask.width}, its image is {header.height} x {header.width}"
        )


def _read(path: Path, *, name: str) -> tuple[str, ImageHeader]:
    data = read_file(path, name=name)
    return hashlib.sha256(data).hexdigest(), decode_image(data, name=name).header


def _test_folders(entries: Iterable[Entry]) -> dict[str, list[str]]:
    folders = defaultdict(list)
    for entry in entries:
        if entry.split == "test":
            folders[entry.path.rpartition("/")[0]].append(entry.path)
    return dict(folders)


def _mixtures(records: Sequence[ImageRecord], headers: Sequence[ImageHeader]) -> list[str]:
    """Return one line if the set mixes shapes and one if it mixes formats or PNG depths."""
    shapes = [f"{header.height} x {header.width}" for header in headers]
    formats = [FORMAT_NAMES[header.dtype] for header in headers]
    faults = []
    for what, values in (("shapes", shapes), ("formats", formats)):
        groups = defaultdict(list)
        for record, value in zip(records, values, strict=True):
            groups[value].append(record.path)
        if len(groups) > 1:
            parts = [
                f"{value} ({len(paths)} of {len(records)} files, first {printable(paths[0])})"
                for value, paths in groups.items()
            ]
            faults.append(f"mixed {what}: {', '.join(parts)}; expected one for the whole set")
    return faults


def _layout_error(root: Path, faults: Sequence[str]) -> LayoutError:
    name = printable(str(root))
    if len(faults) == 1:
        return LayoutError(f"{name}: {faults[0]}")
    lines = [f"{name}: {len(faults)} faults", *faults[:FAULTS_SHOWN]]
    if len(faults) > FAULTS_SHOWN:
        lines.append(f"... and {len(faults) - FAULTS_SHOWN} more")
    return LayoutError("\n  ".join(lines))


def _digest(records: Sequence[ImageRecord]) -> str:
    total = hashlib.sha256()
    for record in sorted(records, key=lambda record: os.fsencode(record.path)):
        line = json.dumps([os.fsencode(record.path).decode(), record.digest, record.label, record.condition])
        total.update(f"{line}\n".encode())
    return total.hexdigest()


def _warnings(records: Sequence[ImageRecord], dtype: str) -> tuple[str, ...]:
    lines = []
    if dtype != "float32":
        name = FORMAT_NAMES[dtype]
        lines.append(
            f"{name} cannot hold values above 1: faults brighter than training are cut; use float32 TIFF"
        )
    trained = {record.digest for record in records if record.split == "train"}
    tested = [record for record in records if record.split == "test"]
    leaked = [record.path for record in tested if record.digest in trained]
    if leaked:
        first = printable(leaked[0])
        lines.append(
            f"{len(leaked)} of {len(tested)} test images are copies of training images, the first {first}"
        )
    return tuple(lines)
