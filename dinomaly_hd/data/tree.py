"""The walk over HDMAP's folders: which image files there are, in which order, and what is wrong."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dinomaly_hd.data.formats import OPENERS
from dinomaly_hd.data.images import printable
from dinomaly_hd.errors import nearest
from dinomaly_hd.names import FORMULA_STARTS, has_hidden, misread

FOLDERS = (("train", "good", 0), ("test", "good", 0), ("test", "fault", 1))  # split, folder, label: the order
PREFIX = "domain_"
LONGEST_DOMAIN = 100
"""Bytes: MLflow puts 90 more around a domain in a picture's file name, and file systems take 255."""
NORMALS = "_normals"
"""Ends the names of results on a domain's held-out normals."""
IGNORED = frozenset({"thumbs.db", "desktop.ini"})  # file managers leave these; hidden files are ignored too


class Entry(NamedTuple):
    """An image file before it is read; ``path`` is relative to the root, with slashes."""

    path: str
    domain: str
    split: str
    label: int


class Tree(NamedTuple):
    """A data root: resolved, its domains asked for and left out, their image files, and fault lines."""

    root: Path
    domains: tuple[str, ...]
    other_domains: frozenset[str]
    entries: tuple[Entry, ...]
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
        fault = f"the data root cannot be read: {_reason(error)}"
        return Tree(root, (), frozenset(), (), (fault,))
    chosen, faults = _choose(domains, found, known=[name for name in found if _is_domain(resolved / name)])
    entries: list[Entry] = []
    for domain in chosen:
        for split, folder, label in FOLDERS:
            place = f"{domain}/{split}/{folder}"
            names, wrong = _images(resolved, place)
            entries += [Entry(f"{place}/{name}", domain, split, label) for name in names]
            faults += wrong
    return Tree(resolved, tuple(chosen), frozenset(found) - set(chosen), tuple(entries), tuple(faults))


def leads_out(root: Path, path: Path) -> bool:
    """Tell whether links take the path out of the (resolved) root."""
    return not Path(os.path.realpath(path)).is_relative_to(root)


def _choose(
    asked: Sequence[str], found: Sequence[str], *, known: Sequence[str]
) -> tuple[list[str], list[str]]:
    chosen: list[str] = []
    faults = [] if asked else ["no domain asked for"]
    listed = [printable(name) for name in known]
    for name in asked:
        folder = next((folder for folder in (name, PREFIX + name) if folder in found), None)
        if folder is None:
            hint = nearest(name, listed) if listed else " The root holds no domain folders."
            choice = f" Known: {', '.join(listed)}." if "Did you mean" in hint else ""
            faults.append(f"unknown domain {name!r}.{hint}{choice}")
        elif folder in chosen:
            faults.append(f"domain {printable(folder)} is asked for twice")
        elif reason := _misnamed(folder):
            faults.append(f"{printable(folder)[:LONGEST_DOMAIN]}: {reason}; rename the folder")
        else:
            chosen.append(folder)
    return chosen, faults


def _misnamed(folder: str) -> str | None:
    """Return why a domain cannot be called so in results: files, metrics and tables bear its name."""
    if reason := misread(folder):
        return f"the domain's name {reason}"
    size = len(folder.encode())
    if size > LONGEST_DOMAIN:
        return f"the domain's name has {size} bytes, expected up to {LONGEST_DOMAIN}"
    if has_hidden(folder):
        return "the domain's name holds control or invisible characters"
    if folder.endswith(NORMALS):
        return f"the domain's name ends in {NORMALS}, as files on the normals of another domain do"
    if folder.startswith(FORMULA_STARTS):
        return f"the domain's name begins with one of {' '.join(FORMULA_STARTS)}, as a formula or a flag does"
    return None


def _images(root: Path, place: str) -> tuple[list[str], list[str]]:
    """Return the image names of one folder in order, and its faults."""
    folder, shown = root / place, printable(place)
    try:
        if not folder.is_dir():
            return [], [f"{shown}: no such folder"]
        if leads_out(root, folder):
            return [], [
                f"{shown}: a link leads out of the data root to {printable(os.path.realpath(folder))}"
            ]
        names = _names(folder)
    except OSError as error:
        return [], [f"{shown}: cannot be read: {_reason(error)}"]
    images, faults = [], []
    for name in names:
        reason = _refusal(root, folder / name)
        if reason is None:
            images.append(name)
        else:
            faults.append(f"{printable(f'{place}/{name}')}: {reason}")
    return images, faults if images or faults else [f"{shown}: holds no images"]


def _refusal(root: Path, path: Path) -> str | None:
    if path.suffix.lower() not in OPENERS:
        return f"not an image of a known extension ({', '.join(OPENERS)}); move it out of this folder"
    if path.is_symlink() and leads_out(root, path):
        return f"a link leads out of the data root to {printable(os.path.realpath(path))}"
    name = str(path.relative_to(root))
    if reason := misread(name):
        return f"the path {reason}, or rename it"
    if has_hidden(name):
        return "the name holds control or invisible characters; rename it"
    return None


def _names(folder: Path) -> list[str]:
    visible = [name for name in os.listdir(folder) if name[0] != "." and name.lower() not in IGNORED]
    return sorted(visible, key=os.fsencode)


def _is_domain(folder: Path) -> bool:
    return os.path.isdir(folder / "train") or os.path.isdir(folder / "test")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
