"""Statistics over images (bootstrap, DeLong's test) and over seeds (paired tests).

The two answer different questions. Seeds: would training again, tested on the same images, give the same
sign? Images: would other test images give the same sign for these very runs? What cannot be had is NaN with a
``reason`` and never a warning. Legend: M runs, B draws, R metrics (AUROC, then TPR at each FPR target), N
images, G good ones, F faults, S seeds. Source: protocols.md, "Metrics", "Statistics between methods".
"""

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from dinomaly_hd.evaluation.metrics import NAN, BoolArray, FloatArray, IntArray, check_finite

DRAWS = 2000
LEVEL = 0.95
CHUNK_ELEMENTS = 1 << 18  # counts held at once: small enough for the processor's cache
MOST_ENUMERATED = 12  # pairs up to which Wilcoxon's p-value counts all 2^n signs, ties included
ROUNDING = 1e-12  # spread below this share of the values is rounding, not spread

Counts = NDArray[np.int32]


class Ranked:
    """Where the scores of one run's two classes stand among each other: all that a draw's metrics need.

    A draw is a vector of counts over the sorted images, so cumulative sums replace sorting and no draw ever
    copies a score.
    """

    def __init__(self, good_G: FloatArray, fault_F: FloatArray) -> None:
        self.order_G, self.order_F = _ascending(good_G), _ascending(fault_F)  # sorted ones are not copied
        good_G, fault_F = good_G[self.order_G], fault_F[self.order_F]
        self.below_F = np.searchsorted(good_G, fault_F, side="left")
        self.not_above_F = np.searchsorted(good_G, fault_F, side="right")
        self.first_above_G = np.searchsorted(fault_F, good_G, side="right")

    def metrics(self, good_GB: Counts, fault_FB: Counts, *, max_fprs: Sequence[float]) -> FloatArray:
        """Return those (B, R) of draws, given how often each image is drawn."""
        goods, faults = len(good_GB), len(fault_FB)
        fault_FB = fault_FB[self.order_F]
        goods_below_GB, faults_below_FB = _cumulated(good_GB[self.order_G]), _cumulated(fault_FB)
        pairs_FB = goods_below_GB[self.below_F] + goods_below_GB[self.not_above_F]
        metric_BR: FloatArray = np.ones((good_GB.shape[1], 1 + len(max_fprs)))
        pairs_B = np.einsum("fb,fb->b", pairs_FB, fault_FB, dtype=np.int64)
        metric_BR[:, 0] = pairs_B / (2.0 * goods * faults)
        for column, max_fpr in enumerate(max_fprs, start=1):
            kept = goods - allowed_false_positives(goods, max_fpr=max_fpr)
            if kept > 0:  # the highest good image drawn that may not be called a fault sets the limit
                limit_B = (goods_below_GB[:-1] < kept).sum(axis=0) - 1
                missed_B = faults_below_FB[self.first_above_G[limit_B], np.arange(len(limit_B))]
                metric_BR[:, column] = (faults - missed_B) / faults
        return metric_BR


def bootstrap(
    scores_MN: ArrayLike,
    *,
    label: ArrayLike,
    max_fprs: Sequence[float],
    generator: np.random.Generator,
    draws: int = DRAWS,
) -> FloatArray:
    """Metrics (M, B, R) on the same drawn images for all runs, each class drawn at its own size.

    Columns are images in an order that is the same for all runs, on which the draws depend. All NaN where a
    class is missing.
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
        good_GB = _counts(generator, chunk.stop - chunk.start, good_MG.shape[1])
        fault_FB = _counts(generator, chunk.stop - chunk.start, fault_MF.shape[1])
        for run, own in enumerate(ranked):
            draws_MBR[run, chunk] = own.metrics(good_GB, fault_FB, max_fprs=max_fprs)
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


def _counts(generator: np.random.Generator, draws: int, images: int) -> Counts:
    """How often each of the images is drawn, in independent draws: (images, draws).

    Draws lie side by side, so that what is done with an image is done with all of them at once.
    """
    drawn = generator.integers(0, images, size=(draws, images))
    drawn *= draws
    drawn += np.arange(draws)[:, None]
    return np.bincount(drawn.ravel(), minlength=draws * images).reshape(images, draws).astype(np.int32)


def _cumulated(counts_GB: Counts) -> Counts:
    """Number of drawn images before each sorted position, the end included: (G + 1, B)."""
    before = np.zeros((counts_GB.shape[0] + 1, counts_GB.shape[1]), np.int32)
    np.cumsum(counts_GB, axis=0, out=before[1:])
    return before


class PairedTest(NamedTuple):
    """Second minus first over pairs (seeds): mean, 95 % t-interval, p-values, and the effect size d_z."""

    seeds: int
    mean_difference: float = NAN
    seeds_low: float = NAN
    seeds_high: float = NAN
    t_p: float = NAN
    wilcoxon_p: float = NAN
    effect_size: float = NAN
    reason: str = ""


class DeLong(NamedTuple):
    """AUROC of the reference and of a run on the same images, and their difference with its 95 % interval."""

    auroc_reference: float = NAN
    auroc: float = NAN
    difference: float = NAN
    standard_error: float = NAN
    low: float = NAN
    high: float = NAN
    p: float = NAN
    reason: str = ""


def paired_test(first_S: ArrayLike, second_S: ArrayLike) -> PairedTest:
    """Compare two methods over seeds: ``scipy.stats.ttest_rel``, Wilcoxon's signed rank and Cohen's d_z.

    d_z is the mean difference over the standard deviation of the differences (ddof 1): Cohen, "Statistical
    Power Analysis" (1988), section 2.3.5. Wilcoxon is two-sided, leaves out zeros, and is exact for up to
    12 pairs. Fewer than two pairs, a NaN value, and differences without spread give NaN with a reason: a
    t-test would otherwise call them p = 0.
    """
    first, second = np.asarray(first_S, dtype=np.float64), np.asarray(second_S, dtype=np.float64)
    assert first.shape == second.shape, f"{first.shape} and {second.shape}: pairs have equal shapes"
    assert first.ndim == 1, f"values of shape {first.shape}, expected one axis"
    count = first.size
    if count == 0:
        return PairedTest(count, reason="no pairs")
    if not np.isfinite([first, second]).all():
        return PairedTest(count, reason="a value is missing (NaN)")
    difference = second - first
    rounding = ROUNDING * float(np.abs([first, second]).max())
    difference[np.abs(difference) <= rounding] = 0.0
    mean = float(difference.mean())
    if count < 2:
        return PairedTest(count, mean, reason=f"needs at least two pairs, has {count}")
    if not difference.any():
        return PairedTest(count, 0.0, reason="all differences are zero")
    found = PairedTest(count, mean, wilcoxon_p=_wilcoxon(np.round(difference / np.abs(difference).max(), 12)))
    if np.ptp(difference) <= rounding:
        return found._replace(reason="all differences are equal, so they have no spread")
    spread = float(difference.std(ddof=1))
    half = float(stats.t.ppf((1.0 + LEVEL) / 2.0, count - 1)) * spread / count**0.5
    t_p = float(stats.ttest_1samp(difference, 0.0).pvalue)  # of the differences: ttest_rel itself
    return found._replace(seeds_low=mean - half, seeds_high=mean + half, t_p=t_p, effect_size=mean / spread)


def holm(p_values: ArrayLike) -> FloatArray:
    """Return Holm's corrected p-values in the order given; NaN stays NaN and counts as no test.

    Source: Holm, "A simple sequentially rejective multiple test procedure" (1979).
    """
    p = np.asarray(p_values, dtype=np.float64)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    corrected = np.full(p.size, NAN)
    factors = np.arange(order.size, 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1.0)
    return corrected


def delong(first_N: ArrayLike, second_N: ArrayLike, *, label: ArrayLike) -> DeLong:
    """Test the difference of two AUROCs measured on the same images, in O(N log N).

    Needs two images of each class. Source: DeLong et al., Biometrics 44 (1988); midranks as in Sun and Xu,
    IEEE Signal Processing Letters 21 (2014).
    """
    fault = np.asarray(label) == 1
    faults, good = int(fault.sum()), int((~fault).sum())
    if faults == 0 or good == 0:
        return DeLong(reason=f"needs both classes, has {good} good and {faults} fault images")
    (fault_1, good_1), (fault_2, good_2) = (_placements(score, fault) for score in (first_N, second_N))
    first, second = float(fault_1.mean()), float(fault_2.mean())
    difference = second - first
    found = DeLong(first, second, difference)
    if faults < 2 or good < 2:
        reason = f"needs two images of each class, has {good} good and {faults} fault images"
        return found._replace(reason=reason)
    change_F, change_G = fault_2 - fault_1, good_2 - good_1
    if np.ptp(change_F) <= ROUNDING and np.ptp(change_G) <= ROUNDING:
        return found._replace(reason="the difference is the same for every image, so it has no spread")
    error = float(np.sqrt(change_F.var(ddof=1) / faults + change_G.var(ddof=1) / good))
    half = float(stats.norm.ppf((1.0 + LEVEL) / 2.0)) * error
    p = float(2.0 * stats.norm.sf(abs(difference) / error))
    return found._replace(standard_error=error, low=difference - half, high=difference + half, p=p)


def mean_difference_interval(first_SB: ArrayLike, second_SB: ArrayLike) -> tuple[float, float, str]:
    """Interval over images of the seed-mean difference, second minus first, from ``bootstrap``.

    Where there is none, both ends are NaN and the third value says why.
    """
    first, second = np.asarray(first_SB, dtype=np.float64), np.asarray(second_SB, dtype=np.float64)
    if len(first) == 0 or len(second) == 0:
        return NAN, NAN, "no pairs"
    difference_B = second.mean(axis=0) - first.mean(axis=0)
    if np.isnan(difference_B).any():
        return NAN, NAN, "needs both classes"
    if np.ptp(difference_B) <= ROUNDING:
        return NAN, NAN, "the difference is the same in every draw of images"
    return *percentile_interval(difference_B), ""


def _wilcoxon(difference_S: FloatArray) -> float:
    nonzero = difference_S[difference_S != 0.0]
    if nonzero.size > MOST_ENUMERATED:
        return float(stats.wilcoxon(nonzero).pvalue)
    # scipy comes to the same, but 3 to 1000 times as slowly: a report makes hundreds of these tests.
    rank = stats.rankdata(np.abs(nonzero))
    signs = (np.arange(2**nonzero.size)[:, None] >> np.arange(nonzero.size)) & 1
    away = np.abs(signs @ rank - rank.sum() / 2.0)
    observed = abs(rank[nonzero > 0].sum() - rank.sum() / 2.0)
    return float((away >= observed).mean())  # midranks are multiples of 1/2: exact sums


def _placements(score: ArrayLike, fault_N: BoolArray) -> tuple[FloatArray, FloatArray]:
    """Share of good images below each fault and share of faults above each good image, ties half."""
    values = np.asarray(score, dtype=np.float64)
    check_finite(values)
    fault_F, good_G = values[fault_N], values[~fault_N]
    rank_N = stats.rankdata(values)
    below_F = (rank_N[fault_N] - stats.rankdata(fault_F)) / good_G.size
    above_G = 1.0 - (rank_N[~fault_N] - stats.rankdata(good_G)) / fault_F.size
    return below_F, above_G
