"""Tables of a comparison as texts, ready for a page, each with notes that define its terms."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from dinomaly_hd.evaluation.compare import HIGHER, LOWER, MEAN, NAMES, Comparison, Focus, focus_table, where
from dinomaly_hd.evaluation.comparison_members import MemberRun
from dinomaly_hd.evaluation.metrics import number
from dinomaly_hd.evaluation.results import ALL
from dinomaly_hd.evaluation.tables import mean_and_spread, percent

MARKS = {HIGHER: "▲ ", LOWER: "▼ "}
METRIC_NOTES = {
    "auroc": (
        "AUROC: share of (fault, good) pairs of images in which the fault has the higher score; 50 is "
        "chance, 100 is perfect."
    ),
    "tpr_at_fpr_1pct": (
        "TPR at FPR 1 %: share of faults found when at most 1 % of the good images are called faults."
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
TRANSFER_FIGURES = {
    "source_auroc": "source AUROC",
    "average_target_auroc": "mean target AUROC",
    "transfer_ratio": "ratio",
    "domain_gap": "gap",
    "chance_corrected_ratio": "ratio above chance",
}
TRANSFER_NOTE = (
    "All in %: mean ± standard deviation over seeds. Ratio: mean target over source; gap: source less mean "
    "target; ratio above chance: the same of what each has beyond 50. Targets without an AUROC are left "
    "out of the mean, and named."
)


class Table(NamedTuple):
    """Texts of a table, the first column its row headings, and the notes that stand below it."""

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
    notes = (METRIC_NOTES[metric], CELL_NOTE, *([MARK_NOTE] if comparison.others else []))
    return Table(f"{NAMES[metric]} in %, {place}", frame, notes)


def focus_text(comparison: Comparison, focus: Focus, *, metric: str) -> Table:
    """One cell's labels, best first."""
    rows = focus_table(comparison, focus, metric=metric)
    frame = rows[["label", "seeds"]].assign(
        **_differences(rows), **{"p (labels)": rows["p_holm_labels"].map(p_text)}, verdict=rows["verdict"]
    )
    caption = f"{focus.domain} {focus.condition}: {NAMES[metric]}, difference to {comparison.reference}"
    return Table(caption, frame, (FOCUS_NOTE,))


def differences_text(comparison: Comparison, *, metric: str) -> Table:
    """Every difference of one metric."""
    rows = where(comparison.differences, metric=metric)
    p_values = {
        "t-test p": "t_p",
        "Wilcoxon p": "wilcoxon_p",
        "p domains": "p_holm",
        "p labels": "p_holm_labels",
    }
    texts = {name: rows[column].map(p_text) for name, column in p_values.items()}
    texts["d_z"] = rows["effect_size"].map(lambda size: "-" if np.isnan(size) else f"{size:+.2f}")
    texts["verdict"] = rows["verdict"] + rows["reason"].map(lambda reason: f" ({reason})" if reason else "")
    order = ["t-test p", "Wilcoxon p", "d_z", "p domains", "p labels", "verdict"]
    frame = rows[["label", "domain", "condition", "seeds"]].assign(
        **_differences(rows), **{name: texts[name] for name in order}
    )
    caption = f"{NAMES[metric]}: {len(rows)} differences to {comparison.reference}"
    return Table(caption, frame, (DIFFERENCE_NOTE,))


def delong_text(comparison: Comparison, focus: Focus) -> Table:
    """DeLong's test, run by run, of one domain and condition."""
    rows = where(comparison.delong, domain=focus.domain, condition=focus.condition)
    frame = rows[["label", "seed"]].assign(
        **{
            "AUROC %": rows["auroc"].map(percent),
            "reference %": rows["auroc_reference"].map(percent),
            "difference": rows["difference"].map(points),
            "95 % over images": _intervals(rows["low"], rows["high"]),
            "p": rows["p"].map(p_text),
            "p domains": rows["p_holm"].map(p_text),
        }
    )
    return Table(f"{focus.domain} {focus.condition}: DeLong's test, run by run", frame, (DELONG_NOTE,))


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
    return Table("Transfer from the source to the other domains", pd.DataFrame(rows), (TRANSFER_NOTE,))


def points(value: float) -> str:
    """Return a difference of shares in signed percentage points, "-" for NaN."""
    return "-" if np.isnan(value) else f"{100 * value:+.2f}"


def points_interval(low: float, high: float) -> str:
    """Return "[low, high]" in percentage points, "-" where there is none."""
    return "-" if np.isnan(low) else f"[{points(low)}, {points(high)}]"


def p_text(p: float) -> str:
    """Return a p-value with three decimals, "-" for NaN."""
    return "-" if np.isnan(p) else "<0.001" if p < 0.001 else f"{p:.3f}"


def _differences(rows: pd.DataFrame) -> dict[str, pd.Series | list[str]]:
    return {
        "difference": rows["mean_difference"].map(points),
        "95 % over seeds": _intervals(rows["seeds_low"], rows["seeds_high"]),
        "95 % over images": _intervals(rows["images_low"], rows["images_high"]),
    }


def _intervals(low: pd.Series, high: pd.Series) -> list[str]:
    return [points_interval(*ends) for ends in zip(low, high, strict=True)]
