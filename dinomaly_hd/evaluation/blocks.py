"""Blocks of the result: everything measured on one set of images, and the mean of such blocks over domains.

A metric that cannot be had is NaN, has an entry under ``reasons``, and is left out of means.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from dinomaly_hd.evaluation import intervals, metrics
from dinomaly_hd.evaluation.metrics import NAN, Confusion, FloatArray, IntArray
from dinomaly_hd.evaluation.thresholds import Threshold

FPR_TARGETS = {"tpr_at_fpr_1pct": 0.01, "tpr_at_fpr_5pct": 0.05}
WITH_INTERVAL = ("auroc", *FPR_TARGETS)
RANKING = (*WITH_INTERVAL, "average_precision", "f1_max")
CALLS = ("precision", "recall", "f1_score", "accuracy")
PIXEL = ("pixel_auroc", "aupro")

Block = dict[str, Any]


class Evaluated(NamedTuple):
    """A block with the bootstrap draws behind its intervals, which the mean's intervals need."""

    block: Block
    draws: dict[str, FloatArray]


def ranking(score: FloatArray, label: IntArray, *, generator: np.random.Generator, draws: int) -> Evaluated:
    """Measure what needs no threshold, with intervals, counts and reasons."""
    block: Block = {
        "auroc": metrics.auroc(score, label),
        **{name: metrics.tpr_at_fpr(score, label, max_fpr=fpr) for name, fpr in FPR_TARGETS.items()},
        "average_precision": metrics.average_precision(score, label),
        "f1_max": metrics.f1_max(score, label).value,
    }
    max_fprs = tuple(FPR_TARGETS.values())
    drawn = intervals.bootstrap(score, label, max_fprs=max_fprs, generator=generator, draws=draws)
    draws_by_name = dict(zip(WITH_INTERVAL, [drawn.auroc_B, *drawn.tpr_BR.T], strict=True))
    faults = int(label.sum())
    counts = {"good": label.size - faults, "fault": faults}
    block["intervals"] = _intervals(draws_by_name)
    block["counts"] = counts
    block["reasons"] = dict.fromkeys(RANKING, _one_class(counts)) if 0 in counts.values() else {}
    return Evaluated(block, draws_by_name)


def at_threshold(score: FloatArray, label: IntArray, threshold: Threshold) -> Block:
    """One entry of ``thresholds``: the value, whether it is optimistic, and the calls it makes."""
    entry: Block = {"value": threshold.value, "optimistic": threshold.optimistic, "source": threshold.source}
    if np.isnan(threshold.value):
        return entry | dict.fromkeys(CALLS, NAN) | {"confusion": None}
    return entry | _calls(metrics.confusion_at(score, label, threshold=threshold.value))


def set_calls(block: Block, entry: Block | None) -> None:
    """Put the calls of one ``thresholds`` entry at the block's top level, with reasons for what is NaN."""
    if entry is None:
        missing = dict.fromkeys(CALLS, NAN) | {"confusion": None, "optimal_threshold": NAN}
        block.update(missing)
        reason = "no threshold: no scores of normal images were given"
        block["reasons"].update(dict.fromkeys([*CALLS, "optimal_threshold"], reason))
        return
    block.update({name: entry[name] for name in (*CALLS, "confusion")})
    block["optimal_threshold"] = entry["value"]
    _explain_calls(block)


def pool_calls(block: Block, members: Mapping[str, Block]) -> None:
    """Sum the members' confusion counts, each taken at its own threshold, into the pooled block."""
    block["optimal_threshold"] = NAN
    block["reasons"]["optimal_threshold"] = "each domain has its own threshold"
    without = [name for name, member in members.items() if member["confusion"] is None]
    if without:
        block.update(dict.fromkeys(CALLS, NAN) | {"confusion": None})
        block["reasons"].update(dict.fromkeys(CALLS, f"no threshold for {', '.join(without)}"))
        return
    total = {
        name: sum(member["confusion"][name] for member in members.values()) for name in Confusion._fields[:4]
    }
    block.update(_calls(metrics.confusion_from_counts(**total)))
    _explain_calls(block)


def mean(members: Mapping[str, Evaluated]) -> Block:
    """Mean of each metric over the domains that have it, with the number of them and the names of the rest.

    Intervals are those of the mean: the domains are resampled independently of each other.
    """
    names = [
        name for name in (*RANKING, *CALLS, *PIXEL) if any(name in part.block for part in members.values())
    ]
    block: Block = {}
    used, missing, reasons = {}, {}, {}
    for name in names:
        have = {
            key: part.block[name] for key, part in members.items() if not np.isnan(part.block.get(name, NAN))
        }
        block[name] = float(np.mean(list(have.values()))) if have else NAN
        used[name] = len(have)
        if len(have) < len(members):
            missing[name] = [key for key in members if key not in have]
        if not have:
            reasons[name] = "no domain has it"
    draws = {name: _mean_draws(members, name) for name in WITH_INTERVAL}
    return block | {
        "intervals": _intervals(draws),
        "domains": len(members),
        "domains_used": used,
        "missing": missing,
        "reasons": reasons,
    }


def _mean_draws(members: Mapping[str, Evaluated], name: str) -> FloatArray:
    have = [part.draws[name] for part in members.values() if not np.isnan(part.block[name])]
    return np.mean(have, axis=0) if have else np.full(1, NAN)


def _intervals(draws: Mapping[str, FloatArray]) -> dict[str, list[float]]:
    return {name: list(intervals.percentile_interval(value_B)) for name, value_B in draws.items()}


def _calls(confusion: Confusion) -> Block:
    return {
        "precision": confusion.precision,
        "recall": confusion.recall,
        "f1_score": confusion.f1,
        "accuracy": confusion.accuracy,
        "confusion": {"tp": confusion.tp, "fp": confusion.fp, "tn": confusion.tn, "fn": confusion.fn},
    }


def _explain_calls(block: Block) -> None:
    one_class = 0 in block["counts"].values()
    reason = _one_class(block["counts"]) if one_class else "no image was called a fault at this threshold"
    block["reasons"].update({name: reason for name in CALLS if np.isnan(block[name])})


def _one_class(counts: Mapping[str, int]) -> str:
    return f"needs both classes, has {counts['good']} good and {counts['fault']} fault images"
