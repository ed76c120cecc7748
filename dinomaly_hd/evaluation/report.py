"""Pages as HTML files that need nothing else, and as Markdown to paste; here a run's.

One environment fills all templates: in pages every text is escaped, in Markdown by the filter ``md``.
"""

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from dinomaly_hd.evaluation.tables import MEANINGS, detector_table, named_rows, trivial_table


class Picture(NamedTuple):
    """A PNG and what it shows."""

    caption: str
    png: bytes


def render(template: str, **values: Any) -> str:
    """Fill one of ``templates/``."""
    return ENVIRONMENT.get_template(template).render(values)


def report_html(
    title: str, *, facts: Mapping[str, str], result: Mapping[str, Any], pictures: Sequence[Picture]
) -> str:
    """Return the page of a run: ``facts`` say what it was, ``result`` comes from ``results.evaluate``."""
    return render(
        "run.html",
        title=title,
        facts=facts,
        detector=named_rows(detector_table(result)),
        trivial=named_rows(trivial_table(result)),
        meanings=MEANINGS,
        missing=result["mean_metrics"]["missing"].get("auroc", []),
        pictures=pictures,
    )


def _markdown(text: object) -> str:
    """Keep a text from breaking a table, opening a tag or changing the type.

    A "<" behind a backslash makes MLflow's pages drop every tag up to the next ">".
    """
    escaped = re.sub(r"([\\|>`*])", r"\\\1", str(text))
    return _line(re.sub(r"<(?=[A-Za-z/!?])", "&lt;", escaped))


def _line(text: str) -> str:
    return " ".join(text.split())


ENVIRONMENT = Environment(
    loader=PackageLoader("dinomaly_hd.evaluation"),
    autoescape=select_autoescape(["html"]),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
ENVIRONMENT.filters["base64"] = lambda png: base64.b64encode(png).decode()
ENVIRONMENT.filters["line"] = _line
ENVIRONMENT.filters["md"] = _markdown
