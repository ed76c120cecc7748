"""Evaluate a score table into the nested result of protocols.md, "Result file".

A score table is a ``pandas.DataFrame`` with one row per test image: ``path`` (posix, relative to the data
root), ``domain``, ``label`` (0 good, 1 fault), ``condition`` (cold, warm, or all where only one is known),
``score`` and any number of ``trivial/...`` score columns. Domains keep the order of first appearance.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dinomaly_hd.errors import ConfigError, DataError, nearest
from dinomaly_hd.evaluation import blocks, intervals, metrics, thresholds
from dinomaly_hd.evaluation.blocks import Block, Evaluated
from dinomaly_hd.evaluation.metrics import FloatArray, IntArray
from dinomaly_hd.evaluation.thresholds import Threshold
from dinomaly_hd.trivial import PREFIX

COLUMNS = ("path", "domain", "label", "condition", "score")
RESERVED_DOMAINS = ("mean", "pooled", "trivial")
ALL = "all"


class PixelScores(NamedTuple):
    """Pixel metrics of one domain, where ground-truth masks exist."""

    pixel_auroc: float
    aupro: float


class _Images(NamedTuple):
    """Scores of the images of one domain (or of all), and the name that seeds their random draws."""

    name: str
    score: FloatArray
    label: IntArray
    condition: NDArray[np.str_]

    def only(self, condition: str) -> "_Images":
        chosen = np.full(self.label.size, True) if condition == ALL else self.condition == condition
        name = f"{self.name}/{condition}"
        return _Images(name, self.score[chosen], self.label[chosen], self.condition[chosen])


class _Plan(NamedTuple):
    """What is the same for every block of one evaluation."""

    conditions: tuple[str, ...]
    seed: int
    draws: int


def check_table(table: pd.DataFrame) -> None:
    """Refuse a score table that cannot be evaluated.

    Raises:
        DataError: A column is missing, there is no row, a label is not 0 or 1, a path occurs twice, or a
            domain has a reserved name.
        NonFiniteError: A score is NaN or infinite; names the first such path and, if trivial, the column.
    """
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        raise DataError(f"score table: no column {', '.join(missing)}, expected {', '.join(COLUMNS)}")
    if table.empty:
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
    draws: int = intervals.DRAWS,
    pixel: Mapping[str, PixelScores] | None = None,
) -> dict[str, Any]:
    """Evaluate every domain x condition, the mean over domains, the pooled images and the trivial scores.

    ``normal_thresholds`` holds each domain's threshold from normal scores (``thresholds.normal_quantile``, or
    the source's in a transfer). Precision, recall, F1, accuracy and ``optimal_threshold`` of a block belong
    to it; they are NaN with a reason for a domain without one. Pooled counts are the sum of the domains'
    counts, each at its own threshold. NaN stays a float here; the JSON writer turns it into null.

    Raises:
        ConfigError: A threshold or pixel score names a domain that the table does not hold.
        DataError: See ``check_table``.
        NonFiniteError: See ``check_table``.
    """
    check_table(table)
    domains = domain_names(table)
    for domain in [*normal_thresholds, *(pixel or {})]:
        if domain not in domains:
            raise ConfigError(f"domain {domain!r} is not in the score table.{nearest(domain, domains)}")
    plan = _Plan(condition_names(table), seed, draws)
    evaluated = {domain: _ranked(_images(table, "score", domain), plan) for domain in domains}
    for domain, parts in evaluated.items():
        _add_thresholds(parts, _images(table, "score", domain), normal_thresholds.get(domain))
        _add_pixel(parts[ALL].block, (pixel or {}).get(domain))
    pooled = _ranked(_images(table, "score", None), plan)
    for condition, part in pooled.items():
        blocks.pool_calls(part.block, {domain: parts[condition].block for domain, parts in evaluated.items()})
    return {
        "overall_auroc": pooled[ALL].block["auroc"],
        "per_domain_metrics": {domain: _nested(parts) for domain, parts in evaluated.items()},
        "mean_metrics": _mean(evaluated, plan),
        "overall_pooled_metrics": _nested(pooled),
        "trivial": {
            column.removeprefix(PREFIX): _trivial(table, column, plan) for column in trivial_columns(table)
        },
    }


def domain_names(table: pd.DataFrame) -> list[str]:
    """Domains of a score table in the order of first appearance."""
    return [str(domain) for domain in table["domain"].unique()]


def condition_names(table: pd.DataFrame) -> tuple[str, ...]:
    """Conditions of a score table: cold, warm, then others by first appearance, and always ``all`` last."""
    found = [str(condition) for condition in table["condition"].unique()]
    known = [name for name in ("cold", "warm") if name in found]
    return (*known, *(name for name in found if name not in (*known, ALL)), ALL)


def trivial_columns(table: pd.DataFrame) -> list[str]:
    """Columns of a score table that hold model-free scores."""
    return [str(column) for column in table.columns if str(column).startswith(PREFIX)]


def _images(table: pd.DataFrame, column: str, domain: str | None) -> _Images:
    rows = table if domain is None else table[table["domain"] == domain]
    return _Images(
        f"{column}/{'pooled' if domain is None else domain}",
        rows[column].to_numpy(dtype=np.float64),
        rows["label"].to_numpy(dtype=np.int64),
        np.array([str(condition) for condition in rows["condition"]], dtype=np.str_),
    )


def _ranked(images: _Images, plan: _Plan) -> dict[str, Evaluated]:
    """Blocks by condition, with what needs no threshold."""
    parts = {}
    for condition in plan.conditions:
        chosen = images.only(condition)
        generator = intervals.named_generator(plan.seed, chosen.name)
        parts[condition] = blocks.ranking(chosen.score, chosen.label, generator=generator, draws=plan.draws)
    return parts


def _add_thresholds(parts: Mapping[str, Evaluated], images: _Images, normal: Threshold | None) -> None:
    """Add the calls at thresholds that belong to the domain: all its conditions share them."""
    chosen = [thresholds.youden(images.score, images.label), thresholds.f1(images.score, images.label)]
    if normal is not None:
        chosen.append(normal)
    for condition, part in parts.items():
        score, label = images.only(condition)[1:3]
        part.block["thresholds"] = {rule.name: blocks.at_threshold(score, label, rule) for rule in chosen}
        entry = None if normal is None else part.block["thresholds"][normal.name]
        blocks.set_calls(part.block, entry)


def _add_pixel(block: Block, scores: PixelScores | None) -> None:
    if scores is None:
        return
    block.update(scores._asdict())
    reason = "needs defect and normal pixels in the ground-truth masks"
    block["reasons"].update({name: reason for name, value in scores._asdict().items() if np.isnan(value)})


def _nested(parts: Mapping[str, Evaluated]) -> Block:
    """The block of all images, with every condition's block (its own included) under ``by_condition``."""
    return parts[ALL].block | {"by_condition": {name: part.block for name, part in parts.items()}}


def _mean(evaluated: Mapping[str, Mapping[str, Evaluated]], plan: _Plan) -> Block:
    by_condition = {
        condition: blocks.mean({domain: parts[condition] for domain, parts in evaluated.items()})
        for condition in plan.conditions
    }
    return by_condition[ALL] | {"by_condition": by_condition}


def _trivial(table: pd.DataFrame, column: str, plan: _Plan) -> Block:
    evaluated: dict[str, Mapping[str, Evaluated]] = {
        domain: _ranked(_images(table, column, domain), plan) for domain in domain_names(table)
    }
    return {domain: _nested(parts) for domain, parts in evaluated.items()} | {"mean": _mean(evaluated, plan)}
