"""The pages of a comparison: its tables, and in plain sentences what they allow to conclude and what not."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from dinomaly_hd.evaluation.compare import (
    HIGHER,
    LEAST_SEEDS,
    LOWER,
    MEAN,
    METRICS,
    NAMES,
    NOT_SHOWN,
    SHOWN,
    SIGNIFICANT,
    Comparison,
    Focus,
    focus_table,
    where,
)
from dinomaly_hd.evaluation.comparison_members import listed
from dinomaly_hd.evaluation.comparison_tables import (
    Table,
    delong_text,
    differences_text,
    focus_text,
    means_table,
    points,
    points_interval,
)
from dinomaly_hd.evaluation.report import Picture, render
from dinomaly_hd.evaluation.results import ALL

SHOWN_FINDINGS = 8


class Story(NamedTuple):
    """What the numbers cannot tell: title, question, command, and failed members (label/seed -> reason)."""

    title: str
    question: str
    command: str
    failed: Mapping[str, str]


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


def reading(comparison: Comparison, *, failed: Mapping[str, str], focuses: Sequence[Focus]) -> list[str]:
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
        one_seed=len(comparison.seeds[comparison.reference]) == 1,
        few=listed(few, most=40),
        enough=[count for count in common.values() if count >= LEAST_SEEDS],
        tests={NAMES[metric]: _tests(comparison, metric) for metric in SHOWN},
        focuses={
            f"{focus.domain} {focus.condition}, {NAMES[metric]}": _focus(comparison, focus, metric)
            for focus in focuses
            for metric in SHOWN
        },
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


def _focus(comparison: Comparison, focus: Focus, metric: str) -> dict[str, Any]:
    """Return what is to be said of one cell; empty where no label can be measured."""
    rows = focus_table(comparison, focus, metric=metric)
    rows = rows[rows["mean_difference"].notna()]
    if rows.empty:
        return {}

    def labels_of(chosen: pd.Series) -> str:
        return listed(list(rows["label"][chosen]), most=SHOWN_FINDINGS)

    best, verdict = rows.iloc[0], rows["verdict"]
    holds_zero = rows["images_low"] * rows["images_high"] <= 0
    seeds_off_zero = rows["seeds_low"] * rows["seeds_high"] > 0
    return {
        "best": best,
        "most": rows["seeds"].max(),
        "difference": points(best["mean_difference"]),
        "seeds": points_interval(best["seeds_low"], best["seeds_high"]),
        "images": points_interval(best["images_low"], best["images_high"]),
        "higher": labels_of(verdict == HIGHER),
        "lower": labels_of(verdict == LOWER),
        "unsafe": labels_of(verdict.isin((HIGHER, LOWER)) & holds_zero),
        "off_zero": labels_of(seeds_off_zero & (verdict == NOT_SHOWN)),
    }
