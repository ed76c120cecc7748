"""Tables of a comparison as texts, ready for a page."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from dinomaly_hd.evaluation.compare import HIGHER, LOWER, MEAN, NAMES, Comparison, Focus, focus_table, where
from dinomaly_hd.evaluation.comparison_members import MemberRun
from dinomaly_hd.evaluation.metrics import number
from dinomaly_hd.evaluation.report import mean_and_spread, percent
from dinomaly_hd.evaluation.results import ALL

MARKS = {HIGHER: "▲ ", LOWER: "▼ "}
TRANSFER_FIGURES = {
    "source_auroc": "source AUROC",
    "average_target_auroc": "mean target AUROC",
    "transfer_ratio": "ratio",
    "domain_gap": "gap",
    "chance_corrected_ratio": "ratio above chance",
}
DIFFERENCE = ("difference", "95 % over seeds", "95 % over images")
TESTS = ("t-test p", "Wilcoxon p", "d_z", "p domains", "p labels")


class Table(NamedTuple):
    """Texts, the first column being the row headings, and which of ``templates/notes.txt`` stand below."""

    caption: str
    frame: pd.DataFrame
    notes: tuple[str, ...]


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
    """One cell's labels, best first."""
    rows = focus_table(comparison, focus, metric=metric)
    caption = f"{focus.domain} {focus.condition}: {NAMES[metric]}, difference to {comparison.reference}"
    return Table(caption, _told(rows, "label", "seeds", *DIFFERENCE, "p (labels)", "verdict"), ("focus",))


def differences_text(comparison: Comparison, *, metric: str) -> Table:
    """Every difference of one metric."""
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


def transfer_table(members: Sequence[MemberRun]) -> Table | None:
    """Return the transfer figures of each label, None unless every run has some."""
    if not all("transfer" in member.result for member in members):
        return None
    rows = []
    for label in dict.fromkeys(member.label for member in members):
        transfers = pd.DataFrame([one.result["transfer"] for one in members if one.label == label])
        row = {"label": label, "source": " ".join(transfers["source_domains"].iloc[0])}
        for name, title in TRANSFER_FIGURES.items():
            row[title] = mean_and_spread(transfers[name].map(number))
        row["left out"] = ", ".join(sorted(set().union(*transfers["missing_targets"]))) or "-"
        rows.append(row)
    return Table("Transfer from the source to the other domains", pd.DataFrame(rows), ("transfer",))


def points(value: float) -> str:
    """Return a difference of shares in signed percentage points, "-" for NaN."""
    return "-" if np.isnan(value) else f"{100 * value:+.2f}"


def points_interval(low: float, high: float) -> str:
    """Return "[low, high]" in percentage points, "-" where there is none."""
    return "-" if np.isnan(low) else f"[{points(low)}, {points(high)}]"


def p_text(p: float) -> str:
    """Return a p-value with three decimals, "-" for NaN."""
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
