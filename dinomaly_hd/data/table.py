"""CSV files that say something about images: read whole, every row of as many fields as the first line."""

import csv
import io
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from dinomaly_hd.data.images import read_file
from dinomaly_hd.errors import ImageError

BYTES = 2**26
WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")
WORD_RULE = "1 to 32 letters, digits, '_', '-' or '.'"


def read_table(
    path: Path, columns: Sequence[str], *, more: Collection[str] = ()
) -> list[tuple[int, dict[str, str]]]:
    """Return (line, fields by column) of each row; ImageError with the reason if the file is no such table.

    Its first line names ``columns`` in this order, then any of ``more``. A semicolon may stand for the comma.
    """
    text = read_file(path, name=path.name, limit=BYTES).decode("utf-8-sig")
    first = text.partition("\n")[0]
    separator = ";" if ";" in first and "," not in first else ","  # of some countries' spreadsheets
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        lines = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise ImageError(f"{path.name}: line {reader.line_num}: {error}") from error
    head = lines[0][1] if lines else []
    rest = head[len(columns) :]
    if head[: len(columns)] != list(columns) or len(set(rest)) < len(rest) or not set(rest) <= set(more):
        beside = f", then any of {', '.join(more)}" if more else ""
        raise ImageError(f"{path.name}: the first line must be {','.join(columns)!r}{beside}")
    for line, row in lines[1:]:
        if len(row) != len(head):
            raise ImageError(f"{path.name}: line {line} holds {len(row)} fields, expected {len(head)}")
    return [(line, dict(zip(head, row, strict=True))) for line, row in lines[1:]]
