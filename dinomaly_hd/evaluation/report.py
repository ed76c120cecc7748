"""Pages of a run and of a comparison as HTML files that need nothing else, and as Markdown to paste.

One environment fills all templates: in pages every text is escaped, in Markdown by the filter ``md``.
"""

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
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
from dinomaly_hd.evaluation.tables import detector_table, titles, trivial_table


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
    detector = detector_table(result)
    return render(
        "run.html",
        title=title,
        facts=facts,
        detector=detector.set_axis(titles(detector), axis=1).reset_index(names=""),
        trivial=trivial_table(result).reset_index(names=""),
        missing=result["mean_metrics"]["missing"].get("auroc", []),
        pictures=pictures,
    )


def comparison_csv(comparison: Comparison) -> dict[str, str]:
    """Return the four tables as CSV texts by file name; shares in [0, 1], NaN empty."""
    names = ("values", "means", "differences", "delong")
    tables = {name: getattr(comparison, name) for name in names}
    return {f"{name}.csv": table.to_csv(index=False, lineterminator="\n") for name, table in tables.items()}


def comparison_markdown(
    comparison: Comparison, *, story: Story, focuses: Sequence[Focus], more: Sequence[Table] = ()
) -> str:
    """Return question, reading, main tables, ``more`` and focus tables, short enough for a README."""
    tables = [means_table(comparison, condition=ALL, metric=metric) for metric in SHOWN]
    tables += [*more, *(table for _, own, _ in _focused(comparison, focuses) for table in own)]
    page = render("comparison.md", **_said(comparison, story, focuses), tables=tables)
    return page.rstrip() + "\n"


def comparison_html(
    comparison: Comparison,
    *,
    story: Story,
    focuses: Sequence[Focus],
    pictures: Mapping[str, Picture],
    more: Sequence[Table] = (),
) -> str:
    """Return the page; ``more`` tables stand behind the means, ``pictures`` in their order."""
    return render(
        "comparison.html",
        **_said(comparison, story, focuses),
        runs=pd.DataFrame(comparison.runs),
        means=[
            means_table(comparison, condition=condition, metric=metric)
            for condition in dict.fromkeys([ALL, *comparison.conditions])
            for metric in SHOWN
        ],
        more=more,
        focuses=_focused(comparison, focuses),
        differences=[differences_text(comparison, metric=m) for m in METRICS if comparison.others],
        pictures=pictures.values(),
    )


def _said(comparison: Comparison, story: Story, focuses: Sequence[Focus]) -> dict[str, Any]:
    """What both forms of a report say beside their tables."""
    seeds = sorted(set[int]().union(*comparison.seeds.values()))
    counts = [f"{domain} {good} + {fault}" for domain, (good, fault) in comparison.counts.items()]
    facts = {
        "labels": ", ".join(comparison.labels),
        "reference": comparison.reference,
        "seeds": ", ".join(map(str, seeds)),
        "runs": str(len(comparison.runs)),
        "test images (good + fault)": ", ".join(counts),
        "data digest": comparison.data_digest,
    }
    if not comparison.others:
        del facts["reference"]
    sentences = reading(comparison, failed=story.failed, focuses=focuses)
    return {**story._asdict(), "facts": facts, "settings": comparison.settings, "sentences": sentences}


def _focused(
    comparison: Comparison, focuses: Sequence[Focus]
) -> list[tuple[Focus, list[Table], list[Table]]]:
    """By focus its tables, and DeLong's where it is no mean."""
    return [
        (
            focus,
            [focus_text(comparison, focus, metric=metric) for metric in SHOWN],
            [delong_text(comparison, focus)] if focus.domain != MEAN else [],
        )
        for focus in (focuses if comparison.others else ())
    ]


def _markdown(text: object) -> str:
    """Keep a text from breaking a table, opening a tag or changing the type.

    A "<" behind a backslash makes MLflow's pages drop every tag up to the next ">".
    """
    escaped = re.sub(r"([\\|>`*])", r"\\\1", str(text))
    return _line(re.sub(r"<(?=[A-Za-z/!?])", "&lt;", escaped))


def _line(text: str) -> str:
    return " ".join(text.split())


def _stand_for(by_label: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """What is behind each label: the compared settings that it has."""
    return {
        label: ", ".join(f"{name} {text}" for name, text in values.items() if text != "-")
        or "no such settings"
        for label, values in by_label.items()
    }


ENVIRONMENT = Environment(
    loader=PackageLoader("dinomaly_hd.evaluation"),
    autoescape=select_autoescape(["html"]),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
ENVIRONMENT.filters |= {
    "base64": lambda png: base64.b64encode(png).decode(),
    "line": _line,
    "md": _markdown,
    "stand_for": _stand_for,
}
