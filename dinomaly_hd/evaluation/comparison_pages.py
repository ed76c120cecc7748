"""The pages of a comparison: its tables as texts, and in plain sentences what they allow to conclude."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from dinomaly_hd.evaluation.compare import (
    HIGHER,
    LEAST_SEEDS,
    LOWER,
    MEAN,
    METRICS,
    NAMES,
    SHOWN,
    SIGNIFICANT,
    Comparison,
    Focus,
    focus_table,
    where,
)
from dinomaly_hd.evaluation.report import Picture, mean_and_spread, percent, render, resolution_lines
from dinomaly_hd.evaluation.results import ALL
from dinomaly_hd.names import listed

MARKS = {HIGHER: "▲ ", LOWER: "▼ "}
SHOWN_FINDINGS = 8
DIFFERENCE = ("difference", "95 % over seeds", "95 % over images")
TESTS = ("t-test p", "Wilcoxon p", "d_z", "p domains", "p labels")


class Question(NamedTuple):
    """What a comparison asks: title, text, the settings beside the model's that it compares, and where."""

    title: str
    text: str
    compared: tuple[str, ...] = ()
    reference: str | None = None
    place: str = "domain_C"  # the hard one, or "mean"


class Table(NamedTuple):
    """Texts, the first column being the row headings, and which of ``templates/notes.txt`` stand below."""

    caption: str
    frame: pd.DataFrame
    notes: tuple[str, ...]


def comparison_pages(
    comparison: Comparison,
    question: Question,
    *,
    answer: str,
    ranking: Table,
    one_image: Any = None,
    command: str,
    failed: Mapping[str, str],
    focuses: Sequence[Focus],
    pictures: Mapping[str, Picture],
    more: Sequence[Table] = (),
) -> dict[str, str]:
    """Return the whole as ``report.html``, and as ``report.md`` what is short enough for a README.

    ``answer``, ``ranking`` and ``one_image`` (comparison_answer) come first. ``failed`` says why members are
    missing; ``more`` tables stand behind the means.
    """
    focuses = focuses if comparison.others else ()
    content = {
        "comparison": comparison,
        "title": question.title,
        "question": question.text,
        "answer": answer,
        "ranking": ranking,
        "one_image": one_image,
        "command": command,
        "sentences": reading(comparison, failed=failed),
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


def reading(comparison: Comparison, *, failed: Mapping[str, str]) -> list[str]:
    """Return the sentences, one paragraph an entry, the most restrictive first."""
    common = {label: len(comparison.common_seeds(label)) for label in comparison.others}
    few = [f"{label} ({count})" for label, count in common.items() if count < LEAST_SEEDS]
    if len(few) == len(common) > 1:
        few = [f"any label ({max(common.values())} at most)"]
    text = render(
        "reading.txt",
        reference=comparison.reference,
        failed="; ".join(" ".join(f"{title} ({why})".split()) for title, why in failed.items()),
        missing=listed([f"{label} has no seed {seed}" for label, seed in comparison.missing], most=20),
        labels=len(common),
        coarse=resolution_lines({place: good for place, (good, _) in comparison.counts.items()}),
        one_seed=len(comparison.seeds[comparison.reference]) == 1,
        few=listed(few, most=40),
        enough=[count for count in common.values() if count >= LEAST_SEEDS],
        tests={NAMES[metric]: _tests(comparison, metric) for metric in SHOWN},
        least_p=2.0 ** (1 - max(common.values(), default=0)),
        least_seeds=LEAST_SEEDS,
        significant=SIGNIFICANT,
    )
    return [" ".join(paragraph.split()) for paragraph in text.strip().split("\n\n") if paragraph.strip()]


def _tests(comparison: Comparison, metric: str) -> dict[str, Any]:
    """Count what the t-tests of single domains found; empty where none could be made."""
    rows = where(comparison.differences, metric=metric)
    rows = rows[(rows["domain"] != MEAN) & (rows["seeds"] >= LEAST_SEEDS) & rows["t_p"].notna()]
    found = rows[rows["verdict"].isin((HIGHER, LOWER))]
    shown = found[["label", "verdict", "domain", "condition", "mean_difference"]].itertuples(index=False)
    findings = [
        f"{label} {verdict} on {domain} {condition} ({points(difference)})"
        for label, verdict, domain, condition, difference in shown
    ]
    counts = {
        "count": len(rows),
        "raw": (rows["t_p"] < SIGNIFICANT).sum(),
        "found": len(found),
        "families": len(rows.groupby(["label", "condition"])),
        "findings": listed(findings, most=SHOWN_FINDINGS),
        "also": (found["p_holm_labels"] < SIGNIFICANT).sum(),
    }
    return {} if rows.empty else counts


def means_table(comparison: Comparison, *, condition: str, metric: str) -> Table:
    """Labels x domains: mean and standard deviation over seeds in %."""
    values, differences = (
        where(table, condition=condition, metric=metric)
        for table in (comparison.values, comparison.differences)
    )
    texts = values.groupby(["label", "domain"], sort=False)["value"].agg(mean_and_spread)
    marks = differences.set_index(["label", "domain"])["verdict"].map(MARKS)
    cells = (marks.reindex(texts.index).fillna("") + texts).unstack("domain")
    frame = cells.loc[list(comparison.labels), [*comparison.domains, MEAN]]
    headings = []
    for label in comparison.labels:
        count = len(comparison.seeds[label])
        reference = "reference, " if label == comparison.reference and comparison.others else ""
        headings.append(f"{label} ({reference}{count} seed{'' if count == 1 else 's'})")
    frame.insert(0, "label", headings)
    place = "all conditions" if condition == ALL else condition
    notes = (metric, "cells", *(["marks"] if comparison.others else []))
    return Table(f"{NAMES[metric]} in %, {place}", frame, notes)


def focus_text(comparison: Comparison, focus: Focus, *, metric: str) -> Table:
    rows = focus_table(comparison, focus, metric=metric)
    caption = f"{focus.domain} {focus.condition}: {NAMES[metric]}, difference to {comparison.reference}"
    return Table(caption, _told(rows, "label", "seeds", *DIFFERENCE, "p (labels)", "verdict"), ("focus",))


def differences_text(comparison: Comparison, *, metric: str) -> Table:
    rows = where(comparison.differences, metric=metric)
    reasons = rows["reason"].map(lambda reason: f" ({reason})" if reason else "")
    headings = ("label", "domain", "condition", "seeds", *DIFFERENCE, *TESTS, "verdict")
    caption = f"{NAMES[metric]}: {len(rows)} differences to {comparison.reference}"
    return Table(caption, _told(rows.assign(verdict=rows["verdict"] + reasons), *headings), ("differences",))


def delong_text(comparison: Comparison, focus: Focus) -> Table:
    """DeLong's test, run by run, of one domain and condition."""
    rows = where(comparison.delong, **focus._asdict()).rename(
        columns={"difference": "mean_difference", "low": "images_low", "high": "images_high"}
    )
    headings = ("label", "seed", "AUROC %", "reference %", "difference", "95 % over images", "p", "p domains")
    return Table(
        f"{focus.domain} {focus.condition}: DeLong's test, run by run", _told(rows, *headings), ("delong",)
    )


def points(value: float) -> str:
    return "-" if np.isnan(value) else f"{100 * value:+.2f}"


def points_interval(low: float, high: float) -> str:
    """Return "[low, high]" in percentage points, "-" where there is none."""
    return "-" if np.isnan(low) else f"[{points(low)}, {points(high)}]"


def p_text(p: float) -> str:
    return "-" if np.isnan(p) else "<0.001" if p < 0.001 else f"{p:.3f}"


TOLD: dict[str, Callable[[Mapping[Hashable, Any]], str]] = {
    "AUROC %": lambda row: percent(row["auroc"]),
    "reference %": lambda row: percent(row["auroc_reference"]),
    "difference": lambda row: points(row["mean_difference"]),
    "95 % over seeds": lambda row: points_interval(row["seeds_low"], row["seeds_high"]),
    "95 % over images": lambda row: points_interval(row["images_low"], row["images_high"]),
    "p": lambda row: p_text(row["p"]),
    "t-test p": lambda row: p_text(row["t_p"]),
    "Wilcoxon p": lambda row: p_text(row["wilcoxon_p"]),
    "d_z": lambda row: "-" if np.isnan(row["effect_size"]) else f"{row['effect_size']:+.2f}",
    "p domains": lambda row: p_text(row["p_holm"]),
    "p labels": lambda row: p_text(row["p_holm_labels"]),
    "p (labels)": lambda row: p_text(row["p_holm_labels"]),
}
"""How a column is told; others as they are."""


def _told(rows: pd.DataFrame, *headings: str) -> pd.DataFrame:
    tell = [TOLD.get(heading, itemgetter(heading)) for heading in headings]
    return pd.DataFrame([[one(row) for one in tell] for row in rows.to_dict("records")], columns=headings)
