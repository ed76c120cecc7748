"""Tables of a comparison as text, ready for Markdown or HTML, each with a line that defines its terms."""

from collections.abc import Hashable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from dinomaly_hd.evaluation.comparison import Comparison, Focus, focus_table
from dinomaly_hd.evaluation.comparison_cells import MEAN, NAMES
from dinomaly_hd.evaluation.comparison_differences import HIGHER, LOWER
from dinomaly_hd.evaluation.comparison_reading import points, points_interval
from dinomaly_hd.evaluation.results import ALL
from dinomaly_hd.evaluation.summary import percent

MARKS = {HIGHER: "▲ ", LOWER: "▼ "}
METRIC_NOTES = {
    "auroc": (
        "AUROC: share of (fault, good) pairs of images in which the fault has the higher score; 50 is "
        "chance, 100 is perfect."
    ),
    "tpr_at_fpr_1pct": (
        "TPR at FPR 1 %: share of faults found when at most 1 % of the good images are called faults."
    ),
    "tpr_at_fpr_5pct": (
        "TPR at FPR 5 %: share of faults found when at most 5 % of the good images are called faults."
    ),
    "average_precision": (
        "Average precision: mean precision over the recall steps; chance is the share of faults."
    ),
}
CELL_NOTE = (
    "Cells: mean ± standard deviation over seeds (no deviation with one seed). Column mean: mean over the "
    "domains."
)
MARK_NOTE = (
    "▲ ▼: higher or lower than the reference at p < .05 after Holm's correction over domains (column mean: "
    "over labels)."
)
FOCUS_NOTE = (
    "Difference: mean over common seeds of label minus reference, in percentage points. Over seeds: 95 % "
    "t-interval. Over images: 95 % bootstrap interval, the same drawn images for all runs. p: paired "
    "t-test, corrected after Holm over the labels of this table."
)
DIFFERENCE_NOTE = (
    "Percentage points, label minus reference. d_z: mean difference over the standard deviation of the "
    "differences. p domains: t-test corrected after Holm over the domains of one label, condition and "
    "metric (row mean: over labels), which decides the verdict. p labels: corrected over the labels of one "
    "domain, condition and metric."
)
DELONG_NOTE = (
    "DeLong's test compares the AUROC of two single runs of one seed on the same images; its interval is "
    "over images. p domains: corrected after Holm over domains. It says nothing about other seeds."
)


class Table(NamedTuple):
    """Texts of a table, the first column its row headings, and the notes that stand below it."""

    caption: str
    head: list[str]
    body: list[list[str]]
    notes: tuple[str, ...]


def means_table(comparison: Comparison, *, condition: str, metric: str) -> Table:
    """Labels x domains: mean and standard deviation over seeds in %."""
    places = (*comparison.domains, MEAN)
    means = _cells(comparison.means, condition, metric)
    differences = _cells(comparison.differences, condition, metric)
    body = []
    for label in comparison.labels:
        cells = [_heading(comparison, label)]
        for domain in places:
            row, verdict = means[label, domain], differences.get((label, domain), {}).get("verdict", "")
            spread = "" if np.isnan(row["std"]) else f" ± {percent(row['std'])}"
            cells.append(f"{MARKS.get(verdict, '')}{percent(row['mean'])}{spread}")
        body.append(cells)
    notes = (METRIC_NOTES[metric], CELL_NOTE, *([MARK_NOTE] if comparison.others else []))
    where = "all conditions" if condition == ALL else condition
    return Table(f"{NAMES[metric]} in %, {where}", ["label", *places], body, notes)


def focus_text(comparison: Comparison, focus: Focus, *, metric: str) -> Table:
    """One cell's labels, best first."""
    head = ["label", "seeds", "difference", "95 % over seeds", "95 % over images", "p (labels)", "verdict"]
    body = [
        [
            *(row["label"], str(row["seeds"]), points(row["mean_difference"])),
            *(points_interval(row[f"{kind}_low"], row[f"{kind}_high"]) for kind in ("seeds", "images")),
            *(p_text(row["p_holm_labels"]), row["verdict"]),
        ]
        for _, row in focus_table(comparison, focus, metric=metric).iterrows()
    ]
    caption = f"{focus.domain} {focus.condition}: {NAMES[metric]}, difference to {comparison.reference}"
    return Table(caption, head, body, (FOCUS_NOTE,))


def differences_text(comparison: Comparison, *, metric: str) -> Table:
    """Every difference of one metric."""
    head = ["label", "domain", "condition", "seeds", "difference", "95 % over seeds", "95 % over images"]
    head += ["t-test p", "Wilcoxon p", "d_z", "p domains", "p labels", "verdict"]
    body = []
    for _, row in comparison.differences[comparison.differences["metric"] == metric].iterrows():
        cells = [
            row["label"],
            row["domain"],
            row["condition"],
            str(row["seeds"]),
            points(row["mean_difference"]),
        ]
        cells += [points_interval(row[f"{kind}_low"], row[f"{kind}_high"]) for kind in ("seeds", "images")]
        effect = "-" if np.isnan(row["effect_size"]) else f"{row['effect_size']:+.2f}"
        cells += [p_text(row["t_p"]), p_text(row["wilcoxon_p"]), effect]
        reason = f" ({row['reason']})" if row["reason"] else ""
        cells += [p_text(row["p_holm"]), p_text(row["p_holm_labels"]), row["verdict"] + reason]
        body.append(cells)
    return Table(
        f"{NAMES[metric]}: {len(body)} differences to {comparison.reference}", head, body, (DIFFERENCE_NOTE,)
    )


def delong_text(comparison: Comparison, focus: Focus) -> Table:
    """DeLong's test, run by run, of one domain and condition."""
    table = comparison.delong
    rows = table[(table["domain"] == focus.domain) & (table["condition"] == focus.condition)]
    head = ["label", "seed", "AUROC %", "reference %", "difference", "95 % over images", "p", "p domains"]
    body = [
        [
            *(row["label"], str(row["seed"]), percent(row["auroc"]), percent(row["auroc_reference"])),
            *(points(row["difference"]), points_interval(row["low"], row["high"])),
            *(p_text(row["p"]), p_text(row["p_holm"])),
        ]
        for _, row in rows.iterrows()
    ]
    return Table(f"{focus.domain} {focus.condition}: DeLong's test, run by run", head, body, (DELONG_NOTE,))


def p_text(p: float) -> str:
    """Return a p-value with three decimals, "-" for NaN."""
    return "-" if np.isnan(p) else "<0.001" if p < 0.001 else f"{p:.3f}"


def _cells(table: pd.DataFrame, condition: str, metric: str) -> dict[tuple[str, str], dict[Hashable, Any]]:
    rows = table[(table["condition"] == condition) & (table["metric"] == metric)]
    return {(row["label"], row["domain"]): row.to_dict() for _, row in rows.iterrows()}


def _heading(comparison: Comparison, label: str) -> str:
    count = len(comparison.seeds[label])
    reference = "reference, " if label == comparison.reference and comparison.others else ""
    return f"{label} ({reference}{count} seed{'' if count == 1 else 's'})"
