"""Evaluate a score table into the nested result of protocols.md, "Result file".

A score table is a ``pandas.DataFrame`` with one row per test image: ``path`` (posix, relative to the data
root), ``domain``, ``label`` (0 good, 1 fault), ``condition`` (cold, warm, or all where only one is known),
``score`` and any number of ``trivial/...`` score columns. Domains keep the order of first appearance.
A block of the result is everything measured on one set of images. A metric that cannot be had is NaN, has an
entry under ``reasons``, and is left out of means.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from dinomaly_hd.errors import ConfigError, DataError, nearest
from dinomaly_hd.evaluation import metrics
from dinomaly_hd.evaluation.metrics import NAN, Confusion, FloatArray, IntArray, Threshold
from dinomaly_hd.evaluation.statistics import DRAWS, bootstrap, named_generator, percentile_interval
from dinomaly_hd.trivial import PREFIX

COLUMNS = ("path", "domain", "label", "condition", "score")
RESERVED_DOMAINS = ("mean", "pooled", "trivial")
ALL = "all"

FPR_TARGETS = {"tpr_at_fpr_1pct": 0.01, "tpr_at_fpr_5pct": 0.05}
WITH_INTERVAL = ("auroc", *FPR_TARGETS)
RANKING = (*WITH_INTERVAL, "average_precision", "f1_max")
FIGURES = {name: name.removesuffix("pct") for name in WITH_INTERVAL}
"""Name here -> name of the metric in MLflow."""
COUNTS, CALLS = Confusion._fields[:4], Confusion._fields[4:]
PIXEL = ("pixel_auroc", "aupro", "named_tooth")
BY_DEFECT = ("auroc", "tpr_at_fpr_1pct")
NO_PIXELS = "needs faults with ground-truth masks, and normal pixels"

Block = dict[str, Any]


class Evaluated(NamedTuple):
    """A block with the bootstrap draws (B, R) behind its intervals, which the mean's intervals need."""

    block: Block
    draws_BR: FloatArray


def check_table(table: pd.DataFrame, *, empty: bool = False) -> None:
    """Refuse a score table that cannot be evaluated, by the first path (and trivial column) at fault."""
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        raise DataError(f"score table: no column {', '.join(missing)}, expected {', '.join(COLUMNS)}")
    if table.empty and not empty:
        raise DataError("score table: no rows, expected one per test image")
    paths = [str(path) for path in table["path"]]
    wrong = np.flatnonzero(~np.isin(table["label"].to_numpy(), (0, 1)))
    if wrong.size:
        raise DataError(
            f"{paths[wrong[0]]}: label {table['label'].iloc[wrong[0]]}, expected 0 (good) or 1 (fault)"
        )
    twice = np.flatnonzero(table["path"].duplicated().to_numpy())
    if twice.size:
        raise DataError(f"score table: {paths[twice[0]]} occurs more than once, expected one row per image")
    reserved = [domain for domain in domain_names(table) if domain in RESERVED_DOMAINS]
    if reserved:
        raise DataError(f"domain {reserved[0]!r}: this name stands for a summary; rename the domain's folder")
    for column in ("score", *trivial_columns(table)):
        names = paths if column == "score" else [f"{path} ({column})" for path in paths]
        metrics.check_finite(table[column].to_numpy(dtype=np.float64), names=names)


def evaluate(
    table: pd.DataFrame,
    *,
    normal_thresholds: Mapping[str, Threshold],
    seed: int,
    draws: int = DRAWS,
    pixel: Mapping[str, Mapping[str, float]] | None = None,
    untested: Sequence[str] = (),
) -> dict[str, Any]:
    """Evaluate every domain x condition, the mean over domains, the pooled images and the trivial scores.

    ``normal_thresholds`` holds each domain's threshold from normal scores (``metrics.normal_quantile``, or
    the source's in a transfer). Precision, recall, F1, accuracy and ``optimal_threshold`` of a block belong
    to it; they are NaN with a reason for a domain without one. Pooled counts are the sum of the domains'
    counts, each at its own threshold. ``pixel`` holds the metrics of ``PIXEL`` of domains with ground-truth
    masks; ``untested`` are domains without test images, which have no figures. NaN stays a float here; the
    JSON writer turns it into null.

    A column ``defect`` holds the kind of each fault; where a domain has several, its block says under
    ``by_defect`` how well each is told from the domain's good images.
    """
    check_table(table, empty=bool(untested))
    domains, pixel = [*domain_names(table), *untested], pixel or {}
    for domain in [*normal_thresholds, *pixel]:
        if domain not in domains:
            raise ConfigError(f"domain {domain!r} is not in the score table.{nearest(domain, domains)}")
    ranked = partial(_ranked, conditions=condition_names(table), seed=seed, draws=draws)
    rows_of = {domain: table[table["domain"] == domain] for domain in domains}
    evaluated = {domain: ranked(rows, "score", domain) for domain, rows in rows_of.items()}
    for domain, parts in evaluated.items():
        _add_thresholds(parts, rows_of[domain], normal_thresholds.get(domain))
        parts[ALL].block.update(_by_defect(rows_of[domain]))
        for name, value in pixel.get(domain, {}).items():
            parts[ALL].block[name] = value
            if np.isnan(value):
                parts[ALL].block["reasons"][name] = NO_PIXELS
    pooled = ranked(table, "score", "pooled")
    for condition, part in pooled.items():
        _pool_calls(part.block, {domain: parts[condition].block for domain, parts in evaluated.items()})
    trivial = {
        column.removeprefix(PREFIX): {
            domain: ranked(rows, column, domain) for domain, rows in rows_of.items()
        }
        for column in trivial_columns(table)
    }
    return {
        "overall_auroc": pooled[ALL].block["auroc"],
        "per_domain_metrics": {domain: _nested(parts) for domain, parts in evaluated.items()},
        "mean_metrics": _mean_of(evaluated),
        "overall_pooled_metrics": _nested(pooled),
        "trivial": {
            score: {domain: _nested(parts) for domain, parts in own.items()} | {"mean": _mean_of(own)}
            for score, own in trivial.items()
        },
    }


def synthetic_figures(score: ArrayLike, label: ArrayLike, domain: NDArray[np.str_]) -> dict[str, Any]:
    """Return ``per_domain`` and ``mean``: AUROC and TPR at FPR 1 % and 5 % on held-out normals against copies
    of them with bands, which may choose settings.

    ``score`` (N,) is finite, higher is more anomalous; ``label`` (N,) is 0 normal, 1 with a band; ``domain``
    (N,) names each image's domain.
    """
    score, label = np.asarray(score, np.float64), np.asarray(label)
    per_domain = {}
    for name in dict.fromkeys(domain.tolist()):
        own = label[domain == name]
        counts = {"normals": int((own == 0).sum()), "bands": int((own == 1).sum())}
        per_domain[name] = rates(score[domain == name], own) | counts
    mean = {figure: metrics.mean_of([block[figure] for block in per_domain.values()]) for figure in FIGURES}
    return {"per_domain": per_domain, "mean": mean}


def domain_names(table: pd.DataFrame) -> list[str]:
    return [str(domain) for domain in table["domain"].unique()]


def condition_names(table: pd.DataFrame) -> tuple[str, ...]:
    """Conditions of a score table: cold, warm, then others by first appearance, and always ``all`` last."""
    found = [str(condition) for condition in table["condition"].unique()]
    cold_warm = [name for name in ("cold", "warm") if name in found]
    return (*cold_warm, *(name for name in found if name not in (*cold_warm, ALL)), ALL)


def shown_conditions(table: pd.DataFrame) -> tuple[str, ...]:
    """Conditions to tell apart, ``all`` last; only ``all`` where there is a single condition."""
    names = condition_names(table)
    return names if len(names) > 2 else (ALL,)


def trivial_columns(table: pd.DataFrame) -> list[str]:
    return [str(column) for column in table.columns if str(column).startswith(PREFIX)]


def of_condition(table: pd.DataFrame, condition: str) -> pd.DataFrame:
    return table if condition == ALL else table[table["condition"].astype(str) == condition]


def rates(score: FloatArray, label: IntArray) -> dict[str, float]:
    """The metrics that have an interval: AUROC, and TPR at each FPR of ``FPR_TARGETS``."""
    at_fpr = {name: metrics.tpr_at_fpr(score, label, max_fpr=fpr) for name, fpr in FPR_TARGETS.items()}
    return {"auroc": metrics.auroc(score, label)} | at_fpr


def score_and_label(rows: pd.DataFrame, column: str = "score") -> tuple[FloatArray, IntArray]:
    return rows[column].to_numpy(dtype=np.float64), rows["label"].to_numpy(dtype=np.int64)


def _ranked(
    rows: pd.DataFrame, column: str, name: str, *, conditions: tuple[str, ...], seed: int, draws: int
) -> dict[str, Evaluated]:
    """By condition what needs no threshold, with intervals, counts and reasons."""
    parts = {}
    for condition in conditions:
        score, label = score_and_label(of_condition(rows, condition), column)
        generator, fprs = named_generator(seed, f"{column}/{name}/{condition}"), tuple(FPR_TARGETS.values())
        order = np.lexsort((score, label))  # draws are those of the scores, in whatever order images come
        (draws_BR,) = bootstrap(
            score[order][None], label=label[order], max_fprs=fprs, generator=generator, draws=draws
        )
        faults = int(label.sum())
        counts = {"good": label.size - faults, "fault": faults}
        block: Block = {
            **rates(score, label),
            "average_precision": metrics.average_precision(score, label),
            "f1_max": metrics.f1_max(score, label)[0],
            "intervals": _intervals(draws_BR),
            "counts": counts,
            "reasons": dict.fromkeys(RANKING, _one_class(counts)) if 0 in counts.values() else {},
        }
        parts[condition] = Evaluated(block, draws_BR)
    return parts


def _by_defect(rows: pd.DataFrame) -> Block:
    """Return the figures of each kind of defect, nothing where there are not several."""
    faults = rows[rows["label"] == 1]
    kinds = sorted(faults["defect"].astype(str).unique()) if "defect" in rows else []
    if len(kinds) < 2:
        return {}
    of_kind = {kind: rows[(rows["label"] == 0) | (rows["defect"].astype(str) == kind)] for kind in kinds}
    found = {kind: rates(*score_and_label(own)) for kind, own in of_kind.items()}
    counts = faults["defect"].astype(str).value_counts()
    return {
        "by_defect": {
            kind: {"fault": int(counts[kind]), **{name: own[name] for name in BY_DEFECT}}
            for kind, own in found.items()
        }
    }


def _add_thresholds(parts: Mapping[str, Evaluated], rows: pd.DataFrame, normal: Threshold | None) -> None:
    """Add the calls at thresholds that belong to the domain, so all its conditions share them."""
    chosen = [metrics.youden(*score_and_label(rows)), metrics.f1(*score_and_label(rows))]
    chosen += [normal] if normal else []
    for condition, (block, _) in parts.items():
        score, label = score_and_label(of_condition(rows, condition))
        entries, calls = block.setdefault("thresholds", {}), None
        for rule in chosen:
            known = not np.isnan(rule.value)
            calls = metrics.confusion_at(score, label, threshold=rule.value) if known else None
            entries[rule.name] = {"value": rule.value, "optimistic": rule.optimistic, "source": rule.source}
            entries[rule.name] |= _calls(calls)
        without = "no threshold: no scores of normal images were given"
        _add_calls(block, calls if normal else None, without=without)
        block["optimal_threshold"] = normal.value if normal else NAN
        block["reasons"] |= {} if normal else {"optimal_threshold": without}


def _pool_calls(block: Block, members: Mapping[str, Block]) -> None:
    """Sum the members' confusion counts, each taken at its own threshold, into the pooled block."""
    block["optimal_threshold"] = NAN
    block["reasons"]["optimal_threshold"] = "each domain has its own threshold"
    without = [name for name, member in members.items() if member["confusion"] is None]
    pooled = None
    if not without:
        counts = {name: sum(member["confusion"][name] for member in members.values()) for name in COUNTS}
        pooled = metrics.confusion_from_counts(**counts)
    _add_calls(block, pooled, without=f"no threshold for {', '.join(without)}")


def _add_calls(block: Block, confusion: Confusion | None, *, without: str) -> None:
    block |= _calls(confusion)
    reason = without if confusion is None else "no image was called a fault at this threshold"
    if confusion is not None and 0 in block["counts"].values():
        reason = _one_class(block["counts"])
    block["reasons"] |= {name: reason for name in CALLS if np.isnan(block[name])}


def _calls(confusion: Confusion | None) -> Block:
    if confusion is None:
        return dict.fromkeys(CALLS, NAN) | {"confusion": None}
    values = confusion._asdict()
    return {name: values[name] for name in CALLS} | {"confusion": {name: values[name] for name in COUNTS}}


def _nested(parts: Mapping[str, Evaluated]) -> Block:
    """The block of all images, with every condition's block (its own included) under ``by_condition``."""
    return parts[ALL].block | {"by_condition": {name: part.block for name, part in parts.items()}}


def _mean_of(evaluated: Mapping[str, Mapping[str, Evaluated]]) -> Block:
    by_condition = {
        condition: _mean({domain: parts[condition] for domain, parts in evaluated.items()})
        for condition in next(iter(evaluated.values()))
    }
    return by_condition[ALL] | {"by_condition": by_condition}


def _mean(members: Mapping[str, Evaluated]) -> Block:
    """Mean of each metric over the domains that have it, with the number of them and the names of the rest.

    Intervals are those of the mean: the domains are resampled independently of each other.
    """
    block: Block = {}
    used, missing, reasons = {}, {}, {}
    for name in (*RANKING, *CALLS, *PIXEL):
        if not any(name in part.block for part in members.values()):
            continue
        have = metrics.known({key: part.block.get(name, NAN) for key, part in members.items()})
        block[name] = metrics.mean_of(have.values())
        used[name] = len(have)
        if len(have) < len(members):
            missing[name] = [key for key in members if key not in have]
        if not have:
            reasons[name] = "no domain has it"
    have_both = [part.draws_BR for part in members.values() if not np.isnan(part.block["auroc"])]
    draws_BR = np.mean(have_both, axis=0) if have_both else np.full((1, len(WITH_INTERVAL)), NAN)
    return block | {
        "intervals": _intervals(draws_BR),
        "domains": len(members),
        "domains_used": used,
        "missing": missing,
        "reasons": reasons,
    }


def _intervals(draws_BR: FloatArray) -> dict[str, list[float]]:
    return {name: list(percentile_interval(draws_BR[:, r])) for r, name in enumerate(WITH_INTERVAL)}


def _one_class(counts: Mapping[str, int]) -> str:
    return f"needs both classes, has {counts['good']} good and {counts['fault']} fault images"
