"""A data root as one checked, ordered, digested list of images (spec hdmap 1), and its hold-out."""

import hashlib
import json
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dinomaly_hd.data.images import FORMAT_NAMES, SCALES, Form, decode_image, printable, read_file
from dinomaly_hd.data.rows import ImageRecord
from dinomaly_hd.data.tree import ConditionRule, assign_conditions, survey
from dinomaly_hd.errors import ConfigError, DataError, ImageError, LayoutError
from dinomaly_hd.progress import Progress

FAULTS_SHOWN = 20
EXAMPLES = 3  # of one cause; more are counted
KINDS = ("good", "fault")  # by label
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All images of a run in fixed order: domains as given; in each train good, test good, test fault.

    ``shape`` is (H, W) and ``dtype`` the stored number type ("float32", "uint16"), one for all images;
    ``grey`` says that RGB is read as grey. ``digest`` covers paths, bytes, labels, kinds of defects and
    conditions, not where the root lies.
    """

    root: Path
    domains: tuple[str, ...]
    records: tuple[ImageRecord, ...]
    shape: tuple[int, int]
    dtype: str
    condition_rule: str
    digest: str
    warnings: tuple[str, ...]
    grey: bool = False

    def path(self, position: int) -> Path:
        """Return the file of one record."""
        return self.root / self.records[position].path

    def indices(
        self, *, domain: str | None = None, split: str | None = None, label: int | None = None
    ) -> Indices:
        """Return the positions of the records that match every value given, in order."""
        wanted = np.ones(len(self.records), bool)
        for name, value in {"domain": domain, "split": split, "label": label}.items():
            if value is not None:
                wanted &= np.array([getattr(record, name) == value for record in self.records], bool)
        return np.flatnonzero(wanted)

    def counts(self) -> dict[str, dict[str, int]]:
        """Return domain -> {"train/good", "test/good", "test/fault"} -> number of images.

        Faults that are learned from (``with_labelled_faults``) are "train/fault".
        """
        table: dict[str, Counter[str]] = {domain: Counter() for domain in self.domains}
        for record in self.records:
            table[record.domain][f"{record.split}/{KINDS[record.label]}"] += 1
        return {domain: dict(counts) for domain, counts in table.items()}


def load_manifest(
    root: Path,
    *,
    domains: Sequence[str],
    conditions: ConditionRule,
    grey: bool = False,
    tick: Callable[[], None] = lambda: None,
) -> Manifest:
    """Read and check every image of the domains, and every mask of a fault, and return their manifest.

    ``domains`` are folder names, or what follows ``domain_`` in them ("C"), in the order wanted; ("auto",)
    are all that there are. ``tick`` is called after each image.

    Raises:
        ImageError: One image is bad and nothing else is.
        LayoutError: Anything else; lists every cause with its count, the first 20.
    """
    tree = survey(root, domains=domains)
    if not tree.entries:
        raise _layout_error(root, tree.faults)
    assigned = assign_conditions(tree, rule=conditions)
    read: list[tuple[ImageRecord, Form]] = []
    bad: list[DataError] = []
    with Progress("reading", len(tree.entries), unit="image") as progress:
        for record in tree.entries:
            try:
                digest, form = _read(tree.root, record.path, grey=grey)
                mask = _read(tree.root, record.mask, grey=grey)[1] if record.label and record.mask else form
                if mask.shape != form.shape:  # no evaluation could use it, hours later
                    sides = [f"{height} x {width}" for height, width in (mask.shape, form.shape)]
                    raise ImageError(f"{printable(record.mask)}: {sides[0]}, its image is {sides[1]}")
            except DataError as error:
                bad.append(error)
            else:
                read.append((record._replace(condition=assigned.by_path[record.path], digest=digest), form))
            tick()
            progress()
    faults = [*tree.faults, *assigned.faults, *_mixtures(read)]
    if len(bad) == 1 and not faults:
        raise bad[0]
    if faults or bad:
        raise _layout_error(root, [*faults, *map(str, bad)])
    records, form = tuple(record for record, _ in read), read[0][1]
    return Manifest(
        root=tree.root,
        domains=tree.domains,
        records=records,
        shape=form.shape,
        dtype=form.dtype,
        condition_rule=assigned.rule,
        digest=_digest(records),
        warnings=tuple(_warnings(records, form.dtype)),
        grey=grey,
    )


def _read(root: Path, name: str, *, grey: bool) -> tuple[str, Form]:
    data = read_file(root / name, name=name)
    return hashlib.sha256(data).hexdigest(), decode_image(data, name=name, grey=grey).form


def _mixtures(read: Sequence[tuple[ImageRecord, Form]]) -> Iterator[str]:
    """Yield one line if the set mixes shapes and one if it mixes formats or PNG depths."""
    spoken = {
        "shapes": [f"{form.shape[0]} x {form.shape[1]}" for _, form in read],
        "formats": [FORMAT_NAMES[form.dtype] for _, form in read],
    }
    for what, values in spoken.items():
        groups = defaultdict(list)
        for (record, _), value in zip(read, values, strict=True):
            groups[value].append(printable(record.path))
        if len(groups) > 1:
            parts = [
                f"{value} ({len(paths)} of {len(read)} files, first {paths[0]})"
                for value, paths in groups.items()
            ]
            yield f"mixed {what}: {', '.join(parts)}; expected one for the whole set: choose fewer domains"


def _layout_error(root: Path, faults: Sequence[str]) -> LayoutError:
    name, causes = printable(str(root)), list(_by_cause(faults))
    if len(causes) == 1:
        return LayoutError(f"{name}: {causes[0]}")
    lines = [f"{name}: {len(faults)} faults", *causes[:FAULTS_SHOWN]]
    if len(causes) > FAULTS_SHOWN:
        lines.append(f"... and {len(causes) - FAULTS_SHOWN} more")
    return LayoutError("\n  ".join(lines))


def _by_cause(faults: Sequence[str]) -> Iterator[str]:
    """Yield the lines, those of one cause together, and as one line where there are more than three.

    Of one cause are those that say the same but for the place before the first colon, numbers and names.
    """
    groups = defaultdict[str, list[str]](list)
    for fault in faults:
        place, _, reason = fault.partition(": ")
        alone = not reason or "'" in place
        groups[fault if alone else re.sub(r"'[^']*'|\S*/\S*|\d+", "*", reason)].append(fault)
    for own in groups.values():
        if len(own) <= EXAMPLES:
            yield from own
        else:
            places = ", ".join(fault.partition(": ")[0] for fault in own[:EXAMPLES])
            yield f"{len(own)} times: {own[0].partition(': ')[2]} ({places}, ...)"


def _digest(records: Sequence[ImageRecord]) -> str:
    total = hashlib.sha256()
    for record in sorted(records, key=lambda record: os.fsencode(record.path)):
        content = [os.fsencode(record.path).decode(), record.digest, record.label, record.condition]
        place = f"{record.domain}/{record.split}/{record.defect}/"
        if not record.path.startswith(place) or record.defect != KINDS[record.label]:
            content += [record.domain, record.split, record.defect]  # what HDMAP's paths say themselves
        total.update(f"{json.dumps(content)}\n".encode())
    return total.hexdigest()


def _warnings(records: Sequence[ImageRecord], dtype: str) -> Iterator[str]:
    if dtype == "float64":
        yield "float64 TIFF: values are rounded to float32"
    if dtype in SCALES:
        divided = f"{FORMAT_NAMES[dtype]}: values are divided by {SCALES[dtype]:.0f}"
        yield f"{divided} and cannot lie above 1: faults brighter than training are cut; use float32 TIFF"
    for domain in dict.fromkeys(record.domain for record in records):
        there = {record.label for record in records if (record.domain, record.split) == (domain, "test")}
        if lacking := [f"no {kind}" for label, kind in enumerate(KINDS) if label not in there]:
            lacks = f"{printable(domain)}: {' and '.join(lacking)} images to test on"
            yield f"{lacks}; AUROC and what else needs both kinds cannot be had there"
    trained = {record.digest for record in records if record.split == "train"}
    tested = [record for record in records if record.split == "test"]
    leaked = [record.path for record in tested if record.digest in trained]
    if leaked:
        copies = f"{len(leaked)} of {len(tested)} test images are copies of training images"
        yield f"{copies}, the first {printable(leaked[0])}"


# ---- the hold-out of normal training images: a function of seed and domain (spec protocols, Splits) ----


class Split(NamedTuple):
    """Positions in ``manifest.records``, sorted: images to train on and normals held out.

    ``normals`` are the training images of every domain, also of those that are only tested.
    """

    train: Indices
    held_out: Indices
    normals: Indices


def hold_out(
    manifest: Manifest, *, ratio: float, seed: int, train_domains: Sequence[str] | None = None
) -> Split:
    """Draw ``ratio`` of each domain's train/good for validation; 0 holds out nothing.

    A domain's draw depends on its folder name, its number of images and the seed, not on which other domains
    are loaded. With a ratio above 0 both sides keep at least one image per domain. ``train_domains`` (folder
    names, None for all) restricts what is trained on.
    """
    asked = manifest.domains if train_domains is None else tuple(train_domains)
    if not asked or not set(asked) <= set(manifest.domains):
        known = ", ".join(manifest.domains)
        raise ConfigError(f"train_domains={','.join(asked)}: expected one or more of {known}")
    train, held_out, normals = [], [], []
    for domain in manifest.domains:
        candidates = manifest.indices(domain=domain, split="train", label=0)
        count = len(candidates)
        if ratio > 0 and count < 2:
            raise LayoutError(
                f"{domain}/train/good: 1 image, val_split_ratio={ratio:g} needs 2; add images or pass 0"
            )
        size = min(max(math.floor(ratio * count + 0.5), 1), count - 1) if ratio > 0 else 0
        drawn = _drawn(size, of=count, name=f"hold_out/{seed}/", domain=domain)
        held_out.append(candidates[drawn])
        normals.append(candidates[~drawn])
        if domain in asked:
            train.append(candidates[~drawn])
    return Split(*(np.sort(np.concatenate(positions)) for positions in (train, held_out, normals)))


def _drawn(size: int, *, of: int, name: str, domain: str) -> npt.NDArray[np.bool_]:
    """Return which of a number of images are drawn; decided by name and domain alone."""
    key = hashlib.sha256(name.encode() + os.fsencode(domain)).digest()[:16]
    # Raw words are fixed for ever; NumPy promises no such thing for permutation().
    words = np.random.Philox(key=int.from_bytes(key, "little")).random_raw(of)
    return np.isin(np.arange(of), np.argsort(words, kind="stable")[:size])


def with_labelled_faults(manifest: Manifest, *, domain: str) -> Manifest:
    """Return the manifest with half of a domain's test faults among its training images, no longer tested.

    The same half for every seed, since a comparison leaves out what any of its runs learned from.
    """
    faults = manifest.indices(domain=domain, split="test", label=1)
    if len(faults) < 2:
        raise LayoutError(
            f"{domain}/test/fault: {len(faults)} images, fault_source=source_domain needs 2 or more: half to "
            "learn from, half to test on"
        )
    records = list(manifest.records)
    for i in faults[_drawn(len(faults) // 2, of=len(faults), name="labelled/", domain=domain)]:
        records[i] = records[i]._replace(split="train")
    return replace(manifest, records=tuple(records))
