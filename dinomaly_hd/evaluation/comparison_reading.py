"""Say in plain sentences what a comparison's numbers allow to conclude, and what not."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from dinomaly_hd.evaluation.comparison import Comparison, Focus, focus_table
from dinomaly_hd.evaluation.comparison_cells import MEAN, NAMES, SHOWN
from dinomaly_hd.evaluation.comparison_differences import HIGHER, LEAST_SEEDS, LOWER, NOT_SHOWN, SIGNIFICANT

SHOWN_FINDINGS = 8
SOURCES = (
    "The two kinds of interval answer different questions. Over seeds: would training again, tested on the "
    "same images, give the same sign? Over images: would other test images give the same sign for these "
    "very runs? Each ignores what the other measures, and neither is corrected for the number of tests: a "
    "claim needs a corrected p-value, and is safe from the choice of test images only if the interval over "
    "images leaves out zero too."
)
ABSENCE = (
    '"No difference shown" does not say that two labels are equal: with few seeds only large effects show.'
)


class Story(NamedTuple):
    """What the numbers cannot tell: title, question, command, and failed members (label/seed -> reason)."""

    title: str
    question: str
    command: str
    failed: Mapping[str, str]


def reading(comparison: Comparison, *, failed: Mapping[str, str], focuses: Sequence[Focus]) -> list[str]:
    """Return the sentences, one paragraph an entry, the most restrictive first."""
    sentences = [*_failed(failed), *_missing(comparison)]
    if not comparison.others:
        return [*sentences, *_alone(comparison)]
    sentences += _seeds(comparison)
    if (comparison.differences["seeds"] < LEAST_SEEDS).all():
        return [*sentences, *_best_guesses(comparison, focuses), SOURCES]
    sentences += [text for metric in SHOWN for text in _tests(comparison, metric)]
    sentences += _best_guesses(comparison, focuses)
    return [*sentences, SOURCES, *_wilcoxon(comparison), ABSENCE]


def points(value: float) -> str:
    """Return a difference of shares in signed percentage points, "-" for NaN."""
    return "-" if np.isnan(value) else f"{100 * value:+.2f}"


def points_interval(low: float, high: float) -> str:
    """Return "[low, high]" in percentage points, "-" where there is none."""
    return "-" if np.isnan(low) else f"[{points(low)}, {points(high)}]"


def listed(names: Sequence[str], *, most: int = SHOWN_FINDINGS) -> str:
    """Return the names with commas, the surplus as a count."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _failed(failed: Mapping[str, str]) -> list[str]:
    if not failed:
        return []
    return [f"Failed and therefore not in any number: {'; '.join(f'{k} ({v})' for k, v in failed.items())}."]


def _missing(comparison: Comparison) -> list[str]:
    if not comparison.missing:
        return []
    names = listed([f"{label} has no seed {seed}" for label, seed in comparison.missing], most=20)
    return [
        f"Missing seeds: {names}. Means use the seeds each label has; paired tests use common seeds only."
    ]


def _alone(comparison: Comparison) -> list[str]:
    seeds = comparison.seeds[comparison.reference]
    spread = "One seed: its spread is unknown." if len(seeds) == 1 else "The tables show its mean and spread."
    return [f"There is one label only, {comparison.reference}, so nothing is compared. {spread}"]


def _seeds(comparison: Comparison) -> list[str]:
    common = {label: len(comparison.common_seeds(label)) for label in comparison.others}
    few = [f"{label} ({count})" for label, count in common.items() if count < LEAST_SEEDS]
    if len(few) == len(common) > 1:
        few = [f"any label ({max(common.values())} at most)"]
    enough = [count for count in common.values() if count >= LEAST_SEEDS]
    texts = []
    if few:
        texts.append(
            f"Nothing can be concluded about {listed(few, most=40)}: fewer than {LEAST_SEEDS} seeds in "
            f"common with the reference {comparison.reference} (their number in brackets). The numbers "
            "describe these runs, not the methods behind them."
        )
    if enough:
        span = f"{min(enough)}" if min(enough) == max(enough) else f"{min(enough)} to {max(enough)}"
        texts.append(
            f"{len(enough)} of {len(common)} labels have {span} seeds in common with the reference "
            f"{comparison.reference} and are tested, seed by seed, against it."
        )
    return texts


def _tested(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of single domains that a t-test could judge."""
    return table[(table["domain"] != MEAN) & (table["seeds"] >= LEAST_SEEDS) & table["t_p"].notna()]


def _tests(comparison: Comparison, metric: str) -> list[str]:
    rows = _tested(comparison.differences[comparison.differences["metric"] == metric])
    if rows.empty:
        return [f"{NAMES[metric]}: no test could be made; the full table says why."]
    found = rows[rows["verdict"].isin((HIGHER, LOWER))]
    names = found["label"] + " " + found["verdict"] + " on " + found["domain"] + " " + found["condition"]
    differences = found["mean_difference"].map(points)
    findings = [f"{name} ({text})" for name, text in zip(names, differences, strict=True)]
    families = len(rows.groupby(["label", "condition"]))
    also = int((found["p_holm_labels"] < SIGNIFICANT).sum())
    uncorrected = int((rows["t_p"] < SIGNIFICANT).sum())
    texts = [
        f"{NAMES[metric]}: {len(rows)} tests (labels x domains x conditions). Before any correction "
        f"{uncorrected} have p < .05; by chance alone, if no label differed, about "
        f"{SIGNIFICANT * len(rows):.1f} would.",
        f"After Holm's correction over domains: {len(found)} significant. It holds within each of "
        f"{families} groups (one label, one condition), so without any real difference up to about "
        f"{SIGNIFICANT * families:.1f} findings would still be expected.",
    ]
    if findings:
        texts.append(f"Found: {listed(findings)}; {also} of {len(found)} also after correction over labels.")
    return [" ".join(texts)]


def _best_guesses(comparison: Comparison, focuses: Sequence[Focus]) -> list[str]:
    return [_focus(comparison, focus, metric) for focus in focuses for metric in SHOWN]


def _focus(comparison: Comparison, focus: Focus, metric: str) -> str:
    place = f"{focus.domain} {focus.condition}, {NAMES[metric]}"
    rows = focus_table(comparison, focus, metric=metric)
    rows = rows[rows["mean_difference"].notna()]
    if rows.empty:
        return f"{place}: no label can be measured against the reference."
    best = rows.iloc[0]
    seeds = points_interval(best["seeds_low"], best["seeds_high"])
    images = points_interval(best["images_low"], best["images_high"])
    text = (
        f"{place}: the largest mean difference to {comparison.reference} is {best['label']}, "
        f"{points(best['mean_difference'])} points (95 % over seeds {seeds}, over images {images})."
    )
    if (rows["seeds"] < LEAST_SEEDS).all():
        return f"{text} No label has the seeds to be judged."
    if best["seeds"] < LEAST_SEEDS:
        text += f" {best['label']} has too few seeds to be judged."
    judged = {
        word: listed(list(rows["label"][rows["verdict"] == word])) or "none" for word in (HIGHER, LOWER)
    }
    text += f" After correction over labels, significantly higher: {judged[HIGHER]}; lower: {judged[LOWER]}."
    unsafe = rows[rows["verdict"].isin((HIGHER, LOWER)) & (rows["images_low"] * rows["images_high"] <= 0)]
    if len(unsafe):
        text += f" Of these, the interval over images holds zero for {listed(list(unsafe['label']))}."
    off_zero = (rows["seeds_low"] * rows["seeds_high"] > 0) & (rows["verdict"] == NOT_SHOWN)
    if off_zero.any():
        names = listed(list(rows["label"][off_zero]))
        text += f" No finding, though the uncorrected interval over seeds leaves out zero: {names}."
    return text


def _wilcoxon(comparison: Comparison) -> list[str]:
    most = max(len(comparison.common_seeds(label)) for label in comparison.others)
    least_p = 2.0 ** (1 - most)
    if least_p < SIGNIFICANT:
        return []
    return [
        f"With {most} seeds Wilcoxon's test cannot give a p-value under {least_p:.3g}, whatever the "
        "numbers: it is shown for completeness, and the t-test decides."
    ]
