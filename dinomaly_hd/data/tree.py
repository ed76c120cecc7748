"""The walk over HDMAP's folders: which image files there are, in which order, and what is wrong."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dinomaly_hd.data.images import DECODERS, printable
from dinomaly_hd.errors import nearest
from dinomaly_hd.names import FORMULA_STARTS, has_hidden, misread

FOLDERS = (("train", "good", 0), ("test", "good", 0), ("test", "fault", 1))  # split, folder, label: the order
PREFIX = "domain_"
LONGEST_DOMAIN = 100  # bytes: MLflow puts 90 more around it in a picture's name, and file systems take 255
NORMALS = "_normals"  # ends the names of results on a domain's held-out normals
IGNORED = frozenset({"thumbs.db", "desktop.ini"})  # file managers leave these; hidden files are ignored too


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
    name = str(path.relative_to(root))
    if reason := misread(name):
        return f"the path {reason}, or rename it"
    return "the name holds control or invisible characters; rename it" if has_hidden(name) else None


def _outwards(path: Path) -> str:
    return f"a link leads out of the data root to {printable(os.path.realpath(path))}"


def _names(folder: Path) -> list[str]:
    visible = [name for name in os.listdir(folder) if name[0] != "." and name.lower() not in IGNORED]
    return sorted(visible, key=os.fsencode)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
