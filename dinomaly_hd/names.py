"""Names and values that others chose: what is refused in them, and how they are written where they act."""

import os
import re
import reprlib
import sys
import unicodedata
from collections.abc import Sequence
from typing import Any

# Unicode's categories of what is not seen: control, format (right-to-left too), line ends.
HIDDEN = {"Cc", "Cf", "Zl", "Zp"}
FORMULA_STARTS = ("=", "+", "-", "@")
FORMULA = f"begins with one of {' '.join(FORMULA_STARTS)}, as a formula or a flag does"
LONGEST_DOMAIN = 100  # bytes: MLflow puts 90 more around it in a picture's name, and file systems take 255
LONGEST_FOLDER = 80  # of what is asked, in a folder's name
NORMALS = "_normals"  # ends the names of results on a domain's held-out normals
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxlist, _SHORT.maxdict, _SHORT.maxother = 2, 120, 6, 3, 60


def has_hidden(text: str) -> bool:
    """Tell whether a text holds characters that are not seen but act: on terminals, in pages, in logs."""
    return any(unicodedata.category(character) in HIDDEN for character in text)


def shown(value: Any) -> str:
    """Return a value for a message: on one line, cut where it is long."""
    return _SHORT.repr(value)


def listed(names: Sequence[str], *, most: int) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def misread(name: str) -> str | None:
    """Return why a file's name is not the UTF-8 text that results show: other bytes, or another locale."""
    try:
        text = os.fsencode(name).decode()
    except UnicodeDecodeError:
        return "is not UTF-8, which results are written in"
    if text == name:
        return None
    return f"is read as {sys.getfilesystemencoding()} in this locale, not as UTF-8; set PYTHONUTF8=1"


def refusal_of(path: str) -> str | None:
    """Return why a path cannot be shown in results as it is."""
    if reason := misread(path):
        return f"the path {reason}, or rename it"
    return "the name holds control or invisible characters; rename it" if has_hidden(path) else None


def refusal_of_domain(folder: str) -> str | None:
    """Return why a domain cannot be called so in results: files, metrics and tables bear its name."""
    if reason := misread(folder):
        return reason
    if (size := len(folder.encode())) > LONGEST_DOMAIN:
        return f"has {size} bytes, expected up to {LONGEST_DOMAIN}"
    if has_hidden(folder):
        return "holds control or invisible characters"
    if folder.endswith(NORMALS):
        return f"ends in {NORMALS}, as files on the normals of another domain do"
    if "," in folder or folder != folder.strip():
        return "holds a comma, or begins or ends with a blank, which a list of domains cannot"
    return FORMULA if folder.startswith(FORMULA_STARTS) else None


def as_cell(path: str) -> str:
    """Return a path as a cell of a CSV file that no spreadsheet takes for a formula: the same path.

    >>> as_cell("=1+1.tiff"), as_cell("a/b.tiff")
    ('./=1+1.tiff', 'a/b.tiff')
    """
    return f"./{path}" if path.startswith(FORMULA_STARTS) else path


def as_folder(text: str) -> str:
    """Return a text as a folder's name, with "_" for what shells and file systems take otherwise."""
    return re.sub(r"[^A-Za-z0-9._=,-]", "_", text)


def as_markdown(text: str) -> str:
    r"""Return a text as Markdown that shows it and does nothing else: no link, picture, tag or cell.

    >>> print(as_markdown("![x](y)|<b>"))
    \!\[x\](y)\|\<b\>
    """
    return "".join(f"\\{character}" if character in "\\`*[]<>!|" else character for character in text)
