"""Pages of a run and of a comparison as HTML files that need nothing else, and as Markdown to paste.

One environment fills all templates: in pages every text is escaped, in Markdown by the filter ``md``.
"""

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from dinomaly_hd.evaluation.compare import MEAN, METRICS, SHOWN, Comparison, Focus
from dinomaly_hd.evaluation.comparison_reading import reading
from dinomaly_hd.evaluation.comparison_tables import (
    Table,
    delong_text,
    differences_text,
    focus_text,
    means_table,
)
from dinomaly_hd.evaluation.results import ALL
from dinomaly_hd.evaluation.tables import detector_table, named_rows, trivial_table


class Picture(NamedTuple):
    """A PNG and what it shows."""

    caption: str
    png: bytes


class Story(NamedTuple):
    """What the numbers cannot tell: title, question, command, and failed members (label/seed -> reason)."""

    title: str
    question: str
    command: str
    failed: Mapping[str, str]


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
        missing=result["mean_metrics"]["missing"].get("auroc", []),
        pictures=pictures,
    )


def comparison_csv(comparison: Comparison) -> dict[str, str]:
    """Return the four tables as CSV texts by file name; shares in [0, 1], NaN empty."""
    tables = {name: getattr(comparison, name) for name in ("values", "means", "differences", "delong")}
    return {f"{name}.csv": table.to_csv(index=False, lineterminator="\n") for name, table in tables.items()}


def comparison_pages(
    comparison: Comparison,
    *,
    story: Story,
    focuses: Sequence[Focus],
    pictures: Mapping[str, Picture],
    more: Sequence[Table] = (),
) -> dict[str, str]:
    """Return the whole as ``report.html``, and as ``report.md`` what is short enough for a README.

    ``more`` tables stand behind the means, ``pictures`` in their order.
    """
    seeds = sorted(set[int]().union(*comparison.seeds.values()))
    counts = [f"{domain} {good} + {fault}" for domain, (good, fault) in comparison.counts.items()]
    facts = {
        "labels": ", ".join(comparison.labels),
        **({"reference": comparison.reference} if comparison.others else {}),
        "seeds": ", ".join(map(str, seeds)),
        "runs": str(len(comparison.runs)),
        "test images (good + fault)": ", ".join(counts),
        "data digest": comparison.data_digest,
    }
    stands_for = {
        label: ", ".join(f"{name} {text}" for name, text in values.items() if text != "-")
        for label, values in comparison.settings.by_label.items()
    }
    focuses = focuses if comparison.others else ()
    content = {
        **story._asdict(),
        "facts": facts,
        "settings": comparison.settings,
        "stands_for": {label: text or "no such settings" for label, text in stands_for.items()},
        "sentences": reading(comparison, failed=story.failed, focuses=focuses),
        "runs": [list(run.values()) for run in comparison.runs],
        "means": [
            means_table(comparison, condition=condition, metric=metric)
            for condition in dict.fromkeys([ALL, *comparison.conditions])
            for metric in SHOWN
        ],
        "shown": len(SHOWN),
        "more": list(more),
        "focuses": {
            focus: [focus_text(comparison, focus, metric=metric) for metric in SHOWN] for focus in focuses
        },
        "delong": {focus: delong_text(comparison, focus) for focus in focuses if focus.domain != MEAN},
        "differences": [differences_text(comparison, metric=m) for m in METRICS if comparison.others],
        "pictures": pictures.values(),
    }
    forms = {form: render(f"comparison.{form}", **content) for form in ("html", "md")}
    return {f"report.{form}": text.rstrip() + "\n" for form, text in forms.items()}


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
