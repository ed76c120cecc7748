"""Bootstrap intervals for AUROC and TPR at a fixed FPR: images drawn with replacement within each class.

Legend: M runs, B draws, R metrics (AUROC, then TPR at each FPR target), N images, G good ones, F faults. A
draw is a vector of counts over the sorted images, so cumulative sums replace sorting and no draw ever copies
a score. Source: protocols.md, "Metrics".
"""

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from dinomaly_hd.evaluation.metrics import NAN, FloatArray, IntArray, check_finite, split_by_label

DRAWS = 2000
LEVEL = 0.95
CHUNK_ELEMENTS = 1 << 18  # counts held at once: small enough for the processor's cache


class Ranked:
    """Where the scores of one run's two classes stand among each other: all that a draw's metrics need.

    ``order_G`` and ``order_F`` sort the classes' images; those that are sorted already are not copied.
    """

    def __init__(self, good_G: FloatArray, fault_F: FloatArray) -> None:
        self.order_G, self.order_F = _ascending(good_G), _ascending(fault_F)
        good_G, fault_F = good_G[self.order_G], fault_F[self.order_F]
        self.below_F = np.searchsorted(good_G, fault_F, side="left")
        self.not_above_F = np.searchsorted(good_G, fault_F, side="right")
        self.first_above_G = np.searchsorted(fault_F, good_G, side="right")

    def metrics(self, good_BG: IntArray, fault_BF: IntArray, *, max_fprs: Sequence[float]) -> FloatArray:
        """Return the metrics (B, R) of draws, given how often each image is drawn."""
        goods, faults = good_BG.shape[1], fault_BF.shape[1]
        fault_BF = fault_BF[:, self.order_F]
        goods_below_BG, faults_below_BF = _cumulated(good_BG[:, self.order_G]), _cumulated(fault_BF)
        pairs_BF = goods_below_BG[:, self.below_F] + goods_below_BG[:, self.not_above_F]
        metric_BR: FloatArray = np.ones((len(good_BG), 1 + len(max_fprs)))
        metric_BR[:, 0] = np.einsum("bf,bf->b", pairs_BF, fault_BF) / (2.0 * goods * faults)
        for column, max_fpr in enumerate(max_fprs, start=1):
            kept = goods - allowed_false_positives(goods, max_fpr=max_fpr)
            if kept > 0:  # the highest good image drawn that may not be called a fault sets the limit
                limit_B = (goods_below_BG[:, :-1] < kept).sum(axis=1) - 1
                missed_B = faults_below_BF[np.arange(len(limit_B)), self.first_above_G[limit_B]]
                metric_BR[:, column] = (faults - missed_B) / faults
        return metric_BR


def bootstrap(
    score: ArrayLike,
    label: ArrayLike,
    *,
    max_fprs: Sequence[float],
    generator: np.random.Generator,
    draws: int = DRAWS,
) -> FloatArray:
    """Metrics (B, R) of one run; they depend on scores and generator, not on the order of the images."""
    good, fault = split_by_label(score, label)
    return shared_bootstrap(
        np.concatenate([good, fault])[None],
        label=np.repeat([0, 1], [good.size, fault.size]),
        max_fprs=max_fprs,
        generator=generator,
        draws=draws,
    ).squeeze(0)


def shared_bootstrap(
    scores_MN: ArrayLike,
    *,
    label: ArrayLike,
    max_fprs: Sequence[float],
    generator: np.random.Generator,
    draws: int = DRAWS,
) -> FloatArray:
    """Metrics (M, B, R) on the same drawn images for all runs, each class drawn at its own size.

    Columns are images in an order that is the same for all runs. All NaN where a class is missing.
    """
    scores, labels = np.asarray(scores_MN, dtype=np.float64), np.asarray(label)
    assert scores.ndim == 2, f"scores of shape {scores.shape}, expected (runs, images)"
    check_finite(scores)
    good_MG, fault_MF = scores[:, labels == 0], scores[:, labels == 1]
    draws_MBR = np.full((len(scores), draws, 1 + len(max_fprs)), NAN)
    if good_MG.shape[1] == 0 or fault_MF.shape[1] == 0:
        return draws_MBR
    ranked = [Ranked(good_G, fault_F) for good_G, fault_F in zip(good_MG, fault_MF, strict=True)]
    size = max(1, CHUNK_ELEMENTS // scores.shape[1])
    for start in range(0, draws, size):
        chunk = slice(start, min(start + size, draws))
        good_BG = _counts(generator, chunk.stop - chunk.start, good_MG.shape[1])
        fault_BF = _counts(generator, chunk.stop - chunk.start, fault_MF.shape[1])
        for run, own in enumerate(ranked):
            draws_MBR[run, chunk] = own.metrics(good_BG, fault_BF, max_fprs=max_fprs)
    return draws_MBR


def percentile_interval(value_B: FloatArray, *, level: float = LEVEL) -> tuple[float, float]:
    """Return the ends between which the share ``level`` of the draws lies; NaN if a draw is NaN."""
    if np.isnan(value_B).any():
        return NAN, NAN
    low, high = np.quantile(value_B, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return float(low), float(high)


def named_generator(seed: int, name: str) -> np.random.Generator:
    """Generator that is a function of the run's seed and of what it is used for, and of nothing else."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def allowed_false_positives(good_count: int, *, max_fpr: float) -> int:
    """Largest k with ``k / good_count <= max_fpr`` in floating point, as a ROC curve compares them."""
    rounded = round(max_fpr * good_count)
    return rounded if rounded / good_count <= max_fpr else rounded - 1


def _ascending(score_N: FloatArray) -> IntArray | slice:
    return slice(None) if bool((np.diff(score_N) >= 0).all()) else score_N.argsort()


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
