"""A page of HTML that needs nothing else: its style, tables and figures, everything in it escaped."""

import base64
import html
from collections.abc import Mapping, Sequence

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }
caption { text-align: left; font-weight: 600; padding: .3rem 0 }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #ddd; text-align: right }
th:first-child { text-align: left }
figure { margin: 1rem 0 }
img { max-width: 100%; margin: .5rem 0; border: 1px solid #ddd }
code { background: #f3f3f3; overflow-wrap: anywhere }
.facts td { text-align: left }
.wide { overflow-x: auto }
.note { color: #555; max-width: 55rem; margin: -.5rem 0 1.5rem }
details { margin: 1rem 0 }
summary { cursor: pointer; font-weight: 600 }
details .wide { font-size: 12px; white-space: nowrap }
details .wide th, details .wide td { padding: .15rem .4rem }
"""


def page(title: str, parts: Sequence[str]) -> str:
    """Return the whole page; ``parts`` are HTML, the title is text."""
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    body = f"<h1>{html.escape(title)}</h1>{''.join(parts)}"
    return f"<!doctype html><html lang=en><head>{head}</head><body>{body}</body></html>\n"


def heading(text: str) -> str:
    """Heading of a section."""
    return f"<h2>{html.escape(text)}</h2>"


def paragraph(text: str) -> str:
    """Paragraph of plain text."""
    return f"<p>{html.escape(text)}</p>"


def note(text: str) -> str:
    """What the table above means."""
    return f"<p class=note>{html.escape(text)}</p>"


def bullets(texts: Sequence[str]) -> str:
    """List of plain texts."""
    return f"<ul>{''.join(f'<li>{html.escape(text)}</li>' for text in texts)}</ul>"


def facts(values: Mapping[str, str]) -> str:
    """Table of names and values, the values as code."""
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td><code>{html.escape(text)}</code></td></tr>"
        for name, text in values.items()
    )
    return f"<div class=facts><table>{rows}</table></div>"


def table(caption: str, head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Table of plain texts; the first cell of a row is its heading."""
    title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    rows = "".join(_row(row) for row in body)
    return f"<div class=wide><table>{title}<tr>{top}</tr>{rows}</table></div>"


def folded(summary: str, part: str) -> str:
    """HTML that opens on a click, without a script."""
    return f"<details><summary>{html.escape(summary)}</summary>{part}</details>"


def figure(caption: str, png: bytes) -> str:
    """Embedded PNG with its caption."""
    data, text = base64.b64encode(png).decode(), html.escape(caption)
    image = f'<img alt="{text}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{text}</figcaption></figure>"


def _row(cells: Sequence[str]) -> str:
    others = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells[1:])
    return f"<tr><th>{html.escape(cells[0])}</th>{others}</tr>"
