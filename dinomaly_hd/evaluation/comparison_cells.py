"""All runs of a comparison on one domain and condition: their metrics, and shared draws of images.

Legend: M runs, N images, B draws, R metrics with an interval over images.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from dinomaly_hd.evaluation import metrics, statistics
from dinomaly_hd.evaluation.blocks import FPR_TARGETS
from dinomaly_hd.evaluation.comparison_members import MemberRun, SameImages
from dinomaly_hd.evaluation.intervals import named_generator
from dinomaly_hd.evaluation.metrics import NAN, FloatArray, IntArray
from dinomaly_hd.evaluation.results import ALL, condition_names, domain_names

NAMES = {
    "auroc": "AUROC",
    "tpr_at_fpr_1pct": "TPR at FPR 1 %",
    "tpr_at_fpr_5pct": "TPR at FPR 5 %",
    "average_precision": "average precision",
}
METRICS = tuple(NAMES)
SHOWN = ("auroc", "tpr_at_fpr_1pct")  # what a report shows; the tables hold all metrics
MEAN = "mean"
VALUE_COLUMNS = ("label", "seed", "domain", "condition", "metric", "value")
MEANS_COLUMNS = ("label", "domain", "condition", "metric", "mean", "std", "n")

Place = tuple[str, str]  # domain (or MEAN), condition
ValueKey = tuple[str, int, str, str, str]  # label, seed, domain, condition, metric


class Cell(NamedTuple):
    """Scores (M, N) and labels (N,) of one domain and condition, and the draws (M, B, R) of their metrics."""

    scores_MN: FloatArray
    label: IntArray
    draws_MBR: FloatArray


def shown_conditions(images: pd.DataFrame) -> tuple[str, ...]:
    """Conditions to tell apart, ``all`` last; only ``all`` where there is a single condition."""
    names = condition_names(images)
    return names if len(names) > 2 else (ALL,)


def cells_of(same: SameImages, *, draws: int, draw_seed: int, tick: Callable[[], None]) -> dict[Place, Cell]:
    """Cut the images into domains x conditions and draw each cell's images once for all runs."""
    cells = {}
    for domain in domain_names(same.images):
        for condition in shown_conditions(same.images):
            chosen = (same.images["domain"] == domain).to_numpy()
            if condition != ALL:
                chosen = chosen & (same.images["condition"] == condition).to_numpy()
            scores_MN, label = same.scores_MN[:, chosen], same.images["label"].to_numpy(np.int64)[chosen]
            drawn = statistics.shared_bootstrap(
                scores_MN,
                label=label,
                max_fprs=tuple(FPR_TARGETS.values()),
                generator=named_generator(draw_seed, f"comparison/{domain}/{condition}"),
                draws=draws,
            )
            draws_MBR = np.concatenate([drawn.auroc_MB[..., None], drawn.tpr_MBR], axis=-1)
            cells[domain, condition] = Cell(scores_MN, label, draws_MBR)
            tick()
    return cells


def draws_of(cells: Mapping[Place, Cell]) -> dict[Place, FloatArray]:
    """Draws (M, B, R) of every cell, and of the mean over the domains that have both classes.

    Domains are drawn independently of each other.
    """
    draws = {place: cell.draws_MBR for place, cell in cells.items()}
    for condition in dict.fromkeys(condition for _, condition in cells):
        parts = [cell.draws_MBR for (_, name), cell in cells.items() if name == condition]
        known = [part for part in parts if not np.isnan(part).any()]
        draws[MEAN, condition] = np.mean(known, axis=0) if known else np.full_like(parts[0], NAN)
    return draws


def values_of(members: Sequence[MemberRun], cells: Mapping[Place, Cell]) -> dict[ValueKey, float]:
    """Every metric of every run in every cell, and its mean over the domains that have it."""
    values: dict[ValueKey, float] = {}
    for (domain, condition), cell in cells.items():
        for member, score in zip(members, cell.scores_MN, strict=True):
            for name, value in _measured(score, cell.label).items():
                values[member.label, member.seed, domain, condition, name] = value
    over_domains: dict[ValueKey, list[float]] = {}
    for (label, seed, _, condition, name), value in values.items():
        over_domains.setdefault((label, seed, MEAN, condition, name), []).append(value)
    return values | {key: _mean(found) for key, found in over_domains.items()}


def means_of(values: Mapping[ValueKey, float]) -> pd.DataFrame:
    """Mean, standard deviation (ddof 1, NaN with one seed) and number of seeds: ``MEANS_COLUMNS``."""
    groups: dict[tuple[str, str, str, str], list[float]] = {}
    for (label, _, domain, condition, name), value in values.items():
        groups.setdefault((label, domain, condition, name), []).append(value)
    rows = []
    for key, found in groups.items():
        known = [value for value in found if not np.isnan(value)]
        std = float(np.std(known, ddof=1)) if len(known) > 1 else NAN
        rows.append((*key, _mean(known), std, len(known)))
    return pd.DataFrame(rows, columns=list(MEANS_COLUMNS))


def _measured(score: FloatArray, label: IntArray) -> dict[str, float]:
    rates = {name: metrics.tpr_at_fpr(score, label, max_fpr=fpr) for name, fpr in FPR_TARGETS.items()}
    area, precision = metrics.auroc(score, label), metrics.average_precision(score, label)
    return {"auroc": area, **rates, "average_precision": precision}


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else NAN
