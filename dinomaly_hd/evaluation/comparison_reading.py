"""Say in plain sentences what a comparison's numbers allow to conclude, and what not."""

from collections.abc import Mapping, Sequence

import pandas as pd

from dinomaly_hd.evaluation.compare import (
    HIGHER,
    LEAST_SEEDS,
    LOWER,
    MEAN,
    NAMES,
    NOT_SHOWN,
    SHOWN,
    SIGNIFICANT,
    Comparison,
    Focus,
    focus_table,
    where,
)
from dinomaly_hd.evaluation.comparison_tables import points, points_interval

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


def reading(comparison: Comparison, *, failed: Mapping[str, str], focuses: Sequence[Focus]) -> list[str]:
    """Return the sentences, one paragraph an entry, the most restrictive first."""
    sentences = []
    if failed:
        names = "; ".join(f"{title} ({why})" for title, why in failed.items())
        sentences.append(f"Failed and therefore not in any number: {names}.")
    if comparison.missing:
        names = listed([f"{label} has no seed {seed}" for label, seed in comparison.missing], most=20)
        sentences.append(
            f"Missing seeds: {names}. Means use the seeds each label has; paired tests use common seeds only."
        )
    if not comparison.others:
        one = len(comparison.seeds[comparison.reference]) == 1
        spread = "One seed: its spread is unknown." if one else "The tables show its mean and spread."
        label = comparison.reference
        return [*sentences, f"There is one label only, {label}, so nothing is compared. {spread}"]
    sentences += _seeds(comparison)
    guesses = [_focus(comparison, focus, metric) for focus in focuses for metric in SHOWN]
    if (comparison.differences["seeds"] < LEAST_SEEDS).all():
        return [*sentences, *guesses, SOURCES]
    sentences += [_tests(comparison, metric) for metric in SHOWN]
    most = max(len(comparison.common_seeds(label)) for label in comparison.others)
    least_p = 2.0 ** (1 - most)
    wilcoxon = (
        f"With {most} seeds Wilcoxon's test cannot give a p-value under {least_p:.3g}, whatever the "
        "numbers: it is shown for completeness, and the t-test decides."
    )
    return [*sentences, *guesses, SOURCES, *([wilcoxon] if least_p >= SIGNIFICANT else []), ABSENCE]


def listed(names: Sequence[str], *, most: int = SHOWN_FINDINGS) -> str:
    """Return the names with commas, the surplus as a count."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


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


def _tests(comparison: Comparison, metric: str) -> str:
    """Count what the t-tests of single domains found, and what chance alone would have."""
    rows = where(comparison.differences, metric=metric)
    rows = rows[(rows["domain"] != MEAN) & (rows["seeds"] >= LEAST_SEEDS) & rows["t_p"].notna()]
    if rows.empty:
        return f"{NAMES[metric]}: no test could be made; the full table says why."
    found = rows[rows["verdict"].isin((HIGHER, LOWER))]
    findings = [
        f"{name} ({points(difference)})"
        for name, difference in zip(
            found["label"] + " " + found["verdict"] + " on " + found["domain"] + " " + found["condition"],
            found["mean_difference"],
            strict=True,
        )
    ]
    families = len(rows.groupby(["label", "condition"]))
    also = int((found["p_holm_labels"] < SIGNIFICANT).sum())
    text = (
        f"{NAMES[metric]}: {len(rows)} tests (labels x domains x conditions). Before any correction "
        f"{(rows['t_p'] < SIGNIFICANT).sum()} have p < .05; by chance alone, if no label differed, about "
        f"{SIGNIFICANT * len(rows):.1f} would. "
        f"After Holm's correction over domains: {len(found)} significant. It holds within each of "
        f"{families} groups (one label, one condition), so without any real difference up to about "
        f"{SIGNIFICANT * families:.1f} findings would still be expected."
    )
    if findings:
        text += f" Found: {listed(findings)}; {also} of {len(found)} also after correction over labels."
    return text


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

    def labels_of(chosen: pd.Series) -> str:
        return listed(list(rows["label"][chosen]))

    verdict = rows["verdict"]
    higher, lower = labels_of(verdict == HIGHER) or "none", labels_of(verdict == LOWER) or "none"
    text += f" After correction over labels, significantly higher: {higher}; lower: {lower}."
    unsafe = labels_of(verdict.isin((HIGHER, LOWER)) & (rows["images_low"] * rows["images_high"] <= 0))
    if unsafe:
        text += f" Of these, the interval over images holds zero for {unsafe}."
    off_zero = labels_of((rows["seeds_low"] * rows["seeds_high"] > 0) & (verdict == NOT_SHOWN))
    if off_zero:
        text += f" No finding, though the uncorrected interval over seeds leaves out zero: {off_zero}."
    return text
