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


class Ranked(NamedTuple):
    """Where the sorted scores of the two classes stand among each other: all that a draw's metrics need.

    Attributes:
        below_F: Good images strictly below each fault.
        not_above_F: Good images at or below each fault.
        first_above_G: Faults at or below each good image, which is the position of the first above it.
    """

    below_F: IntArray
    not_above_F: IntArray
    first_above_G: IntArray

    @classmethod
    def of(cls, good_G: FloatArray, fault_F: FloatArray) -> "Ranked":
        """Rank scores that are sorted within their class."""
        return cls(
            np.searchsorted(good_G, fault_F, side="left"),
            np.searchsorted(good_G, fault_F, side="right"),
            np.searchsorted(fault_F, good_G, side="right"),
        )

    def metrics(self, good_BG: IntArray, fault_BF: IntArray, *, max_fprs: Sequence[float]) -> Draws:
        """Return the metrics of draws, given how often each image is drawn."""
        goods, faults = len(self.first_above_G), len(self.below_F)
        goods_below_BG, faults_below_BF = _cumulated(good_BG), _cumulated(fault_BF)
        pairs_BF = goods_below_BG[:, self.below_F] + goods_below_BG[:, self.not_above_F]
        auroc_B = np.einsum("bf,bf->b", pairs_BF, fault_BF) / (2.0 * goods * faults)
        tpr_BR = np.ones((len(good_BG), len(max_fprs)))
        for column, max_fpr in enumerate(max_fprs):
            kept = goods - allowed_false_positives(goods, max_fpr=max_fpr)
            if kept > 0:  # the highest good image drawn that may not be called a fault sets the limit
                limit_B = (goods_below_BG[:, :-1] < kept).sum(axis=1) - 1
                missed_B = faults_below_BF[np.arange(len(limit_B)), self.first_above_G[limit_B]]
                tpr_BR[:, column] = (faults - missed_B) / faults
        return Draws(auroc_B, tpr_BR)


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
    ranked = Ranked.of(good, fault)
    for chunk in chunks(draws, good.size + fault.size):
        good_BG = counts(generator, chunk.stop - chunk.start, good.size)
        fault_BF = counts(generator, chunk.stop - chunk.start, fault.size)
        auroc_B[chunk], tpr_BR[chunk] = ranked.metrics(good_BG, fault_BF, max_fprs=max_fprs)
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


def chunks(draws: int, images: int) -> Iterator[slice]:
    """Yield draws in pieces whose counts fit the processor's cache."""
    size = max(1, CHUNK_ELEMENTS // images)
    for start in range(0, draws, size):
        yield slice(start, min(start + size, draws))


def counts(generator: np.random.Generator, rows: int, images: int) -> IntArray:
    """How often each of the images is drawn, in ``rows`` independent draws: (rows, images)."""
    drawn = generator.integers(0, images, size=(rows, images))
    drawn += np.arange(rows)[:, None] * images
    return np.bincount(drawn.ravel(), minlength=rows * images).reshape(rows, images)


def _cumulated(counts_BG: IntArray) -> IntArray:
    """Number of drawn images before each sorted position, the end included: (B, G + 1)."""
    before = np.zeros((counts_BG.shape[0], counts_BG.shape[1] + 1), dtype=np.int64)
    np.cumsum(counts_BG, axis=1, out=before[:, 1:])
    return before
