"""Names and values that others chose: what is refused in them, and how they are written where they act."""

import unicodedata

HIDDEN = {"Cc", "Cf", "Zl", "Zp"}
"""Unicode's categories of what is not seen: control, format (right-to-left too), line ends."""
FORMULA_STARTS = ("=", "+", "-", "@")


def has_hidden(text: str) -> bool:
    """Tell whether a text holds characters that are not seen but act: on terminals, in pages, in logs."""
    return any(unicodedata.category(character) in HIDDEN for character in text)


def as_cell(path: str) -> str:
    """Return a path as a cell of a CSV file that no spreadsheet takes for a formula: the same path.

    >>> as_cell("=1+1.tiff"), as_cell("a/b.tiff")
    ('./=1+1.tiff', 'a/b.tiff')
    """
    return f"./{path}" if path.startswith(FORMULA_STARTS) else path


def as_markdown(text: str) -> str:
    r"""Return a text as Markdown that shows it and does nothing else: no link, picture, tag or cell.

    >>> print(as_markdown("![x](y)|<b>"))
    \!\[x\](y)\|\<b\>
    """
    return "".join(f"\\{character}" if character in "\\`*[]<>!|" else character for character in text)
