"""Bootstrap intervals for AUROC and TPR at a fixed FPR: images drawn with replacement within each class.

Legend: B draws, G good images, F fault images, R FPR targets. A draw is a vector of counts over the sorted
images, so cumulative sums replace sorting and no draw ever copies a score. The result depends on the scores
and the seed, not on the order of the images. Source: protocols.md, "Metrics".
"""

import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from dinomaly_hd.evaluation.metrics import NAN, FloatArray, IntArray, allowed_false_positives, split_by_label

DRAWS = 2000
LEVEL = 0.95
CHUNK_ELEMENTS = 1 << 18  # counts held at once: small enough for the processor's cache


class Interval(NamedTuple):
    """Percentile interval."""

    low: float
    high: float


class Draws(NamedTuple):
    """AUROC and TPR at each FPR target for every bootstrap draw; all NaN where a class is missing."""

    auroc_B: FloatArray
    tpr_BR: FloatArray


def bootstrap(
    score: ArrayLike,
    label: ArrayLike,
    *,
    max_fprs: Sequence[float],
    generator: np.random.Generator,
    draws: int = DRAWS,
) -> Draws:
    """Resample good and fault images separately, each class at its own size, ``draws`` times.

    Raises:
        NonFiniteError: A score is NaN or infinite.
    """
    good, fault = split_by_label(score, label)
    auroc_B = np.full(draws, NAN)
    tpr_BR = np.full((draws, len(max_fprs)), NAN)
    if good.size == 0 or fault.size == 0:
        return Draws(auroc_B, tpr_BR)
    below_F = np.searchsorted(good, fault, side="left")
    not_above_F = np.searchsorted(good, fault, side="right")
    first_above_G = np.searchsorted(fault, good, side="right")
    for chunk in _chunks(draws, good.size + fault.size):
        good_BG = _cumulated(_counts(generator, chunk.stop - chunk.start, good.size))
        faults_BF = _counts(generator, chunk.stop - chunk.start, fault.size)
        pairs_BF = good_BG[:, below_F] + good_BG[:, not_above_F]
        auroc_B[chunk] = np.einsum("bf,bf->b", pairs_BF, faults_BF) / (2.0 * good.size * fault.size)
        faults_below_BF = _cumulated(faults_BF)
        for column, max_fpr in enumerate(max_fprs):
            allowed = allowed_false_positives(good.size, max_fpr=max_fpr)
            tpr_BR[chunk, column] = _tpr(good_BG, faults_below_BF, first_above_G, allowed=allowed)
    return Draws(auroc_B, tpr_BR)


def percentile_interval(value_B: FloatArray, *, level: float = LEVEL) -> Interval:
    """Interval that holds the share ``level`` of the draws, the rest split evenly; NaN if a draw is NaN."""
    if np.isnan(value_B).any():
        return Interval(NAN, NAN)
    low, high = np.quantile(value_B, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return Interval(float(low), float(high))


def named_generator(seed: int, name: str) -> np.random.Generator:
    """Generator that is a function of the run's seed and of what it is used for, and of nothing else."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def _chunks(draws: int, images: int) -> Iterator[slice]:
    size = max(1, CHUNK_ELEMENTS // images)
    for start in range(0, draws, size):
        yield slice(start, min(start + size, draws))


def _counts(generator: np.random.Generator, rows: int, images: int) -> IntArray:
    """How often each of the images is drawn, in ``rows`` independent draws: (rows, images)."""
    drawn = generator.integers(0, images, size=(rows, images))
    drawn += np.arange(rows)[:, None] * images
    return np.bincount(drawn.ravel(), minlength=rows * images).reshape(rows, images)


def _cumulated(counts_BG: IntArray) -> IntArray:
    """Number of drawn images before each sorted position, the end included: (B, G + 1)."""
    before = np.zeros((counts_BG.shape[0], counts_BG.shape[1] + 1), dtype=np.int64)
    np.cumsum(counts_BG, axis=1, out=before[:, 1:])
    return before


def _tpr(good_BG: IntArray, faults_BF: IntArray, first_above_G: IntArray, *, allowed: int) -> FloatArray:
    """TPR of each draw when its ``allowed`` highest good images may be called faults."""
    rows, good_count = good_BG.shape[0], good_BG.shape[1] - 1
    fault_count = faults_BF.shape[1] - 1
    if allowed >= good_count:
        return np.ones(rows)
    # Sorted position of the (allowed + 1)-th highest good image drawn: faults strictly above it are found.
    position_B = (good_BG[:, :-1] <= good_count - allowed - 1).sum(axis=1) - 1
    missed_B = faults_BF[np.arange(rows), first_above_G[position_B]]
    found_B: FloatArray = (fault_count - missed_B) / fault_count
    return found_B
