"""Detection metrics by ranks, in float64, exact at any score scale; thresholds that turn a score into a call.

Decision rule, here and everywhere else: a score is called a fault when ``score >= threshold``, so that every
threshold can be a score that occurs. Ties between thresholds go to the higher one (fewer false alarms).
Labels are 0 (good) and 1 (fault). Fewer than two classes give NaN; a NaN or infinite score is an error.
Source: protocols.md, "Metrics" and "Splits".
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from dinomaly_hd.errors import DataError, NonFiniteError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

NAN = float("nan")
NORMAL_QUANTILE = 0.995


class Threshold(NamedTuple):
    """A decision value, NaN where it cannot be had (one class only), with where it came from.

    It is optimistic when it saw what a deployed detector cannot have: the test labels, or scores of the
    images that the model was trained on.
    """

    name: str
    value: float
    optimistic: bool
    source: str


class Confusion(NamedTuple):
    """At one threshold; ratios are NaN with one class, precision also if tp + fp = 0."""

    tp: int
    fp: int
    tn: int
    fn: int
    precision: float
    recall: float
    f1_score: float
    accuracy: float


class OperatingPoints(NamedTuple):
    """Counts of calls at each distinct fault score, highest first: no other threshold can be best."""

    threshold_K: FloatArray
    true_positives_K: IntArray
    false_positives_K: IntArray
    fault_count: int
    good_count: int

    @property
    def one_class(self) -> bool:
        return not (self.fault_count and self.good_count)


def number(value: float | None) -> float:
    """Return a figure that may come from results.json, where NaN is null."""
    return NAN if value is None else float(value)


def known(figures: Mapping[str, float | None]) -> dict[str, float]:
    return {name: number(value) for name, value in figures.items() if not np.isnan(number(value))}


def mean_of(values: Collection[float]) -> float:
    return float(np.mean(list(values))) if values else NAN


def check_finite(score: ArrayLike, *, names: Sequence[str] | None = None) -> None:
    """Refuse NaN and infinite scores by the first one's entry in ``names``, else its position."""
    values = np.asarray(score)
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        first = names[bad[0]] if names is not None else f"position {bad[0]}"
        raise NonFiniteError(
            f"{first}: score {values.ravel()[bad[0]]}, expected a finite number "
            f"({bad.size} of {values.size} scores are not)"
        )


def split_by_label(score: ArrayLike, label: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Return the good scores and the fault scores, each in ascending order."""
    scores, labels = np.asarray(score, dtype=np.float64), np.asarray(label)
    assert scores.ndim == 1, f"scores of shape {scores.shape}, expected one axis"
    assert scores.shape == labels.shape, f"{scores.shape} scores, {labels.shape} labels"
    assert bool(((labels == 0) | (labels == 1)).all()), "labels are 0 (good) or 1 (fault)"
    check_finite(scores)
    fault = labels == 1
    return np.sort(scores[~fault]), np.sort(scores[fault])


# scikit-learn gives the areas below within 1e-16, but not to the last bit of results on file, and takes 25 to
# 50 times as long on a domain's images; only what is drawn comes from there.


def auroc(score: ArrayLike, label: ArrayLike) -> float:
    """Area under the ROC curve in [0, 1]: the share of (fault, good) pairs in the right order, ties half."""
    good, fault = split_by_label(score, label)
    return _area(good, fault, np.ones(fault.size), limit=1.0)


def roc_curve(score: ArrayLike, label: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """FPR and TPR at each distinct score, from (0, 0) to (1, 1); empty with one class only."""
    from sklearn import metrics  # half a second, for pictures only

    if operating_points(score, label).one_class:
        return np.empty(0), np.empty(0)
    fpr, tpr, _ = metrics.roc_curve(label, score, drop_intermediate=False)
    return fpr, tpr


def operating_points(score: ArrayLike, label: ArrayLike) -> OperatingPoints:
    good, fault = split_by_label(score, label)
    threshold_K = np.unique(fault)[::-1]
    return OperatingPoints(
        threshold_K,
        fault.size - np.searchsorted(fault, threshold_K, side="left"),
        good.size - np.searchsorted(good, threshold_K, side="left"),
        fault.size,
        good.size,
    )


def tpr_at_fpr(score: ArrayLike, label: ArrayLike, *, max_fpr: float) -> float:
    """Largest true-positive rate whose false-positive rate does not exceed ``max_fpr`` (in [0, 1])."""
    points = operating_points(score, label)
    if points.one_class:
        return NAN
    allowed_K = points.false_positives_K / points.good_count <= max_fpr
    return float(points.true_positives_K[allowed_K].max(initial=0) / points.fault_count)


def average_precision(score: ArrayLike, label: ArrayLike) -> float:
    """Sum over thresholds of precision times the step in recall, in [0, 1] (no interpolation)."""
    points = operating_points(score, label)
    if points.one_class:
        return NAN
    precision_K = points.true_positives_K / (points.true_positives_K + points.false_positives_K)
    step_K = np.diff(points.true_positives_K, prepend=0)
    return float((precision_K * step_K).sum() / points.fault_count)


def f1_max(score: ArrayLike, label: ArrayLike) -> tuple[float, float]:
    """Largest F1 = 2 tp / (2 tp + fp + fn) over all thresholds, and the highest threshold that reaches it."""
    points = operating_points(score, label)
    if points.one_class:
        return NAN, NAN
    called_K = points.true_positives_K + points.false_positives_K
    f1_K = 2 * points.true_positives_K / (called_K + points.fault_count)
    best = int(f1_K.argmax())
    return float(f1_K[best]), float(points.threshold_K[best])


def youden(score: ArrayLike, label: ArrayLike) -> Threshold:
    """Maximise TPR - FPR on the test labels (the authors' rule)."""
    points, value = operating_points(score, label), NAN
    if not points.one_class:
        # Integers, so that ties are exact: J times both counts.
        gain_K = points.true_positives_K * points.good_count - points.false_positives_K * points.fault_count
        value = float(points.threshold_K[gain_K.argmax()])
    return Threshold("youden", value, True, "test labels")


def f1(score: ArrayLike, label: ArrayLike) -> Threshold:
    return Threshold("f1", f1_max(score, label)[1], True, "test labels")


def normal_quantile(score: ArrayLike, *, held_out: bool, quantile: float = NORMAL_QUANTILE) -> Threshold:
    """Lie just above the ``quantile`` (linear interpolation) of normal scores: the honest default.

    ``held_out=False`` says that the scores are those of training images, and marks the threshold optimistic.
    """
    scores = np.asarray(score, dtype=np.float64)
    source = "held-out normals" if held_out else "training normals"
    if scores.size == 0:
        raise DataError(f"threshold normal_quantile: no scores of {source}, expected at least 1")
    check_finite(scores)
    # The next float64: a score equal to the quantile is no fault, not even if all are equal.
    value = float(np.nextafter(np.quantile(scores, quantile), np.inf))
    return Threshold("normal_quantile", value, not held_out, source)


def confusion_at(score: ArrayLike, label: ArrayLike, *, threshold: float) -> Confusion:
    good, fault = split_by_label(score, label)
    assert not np.isnan(threshold), "a NaN threshold decides nothing"
    tp, fp = int((fault >= threshold).sum()), int((good >= threshold).sum())
    return confusion_from_counts(tp=tp, fp=fp, tn=good.size - fp, fn=fault.size - tp)


def confusion_from_counts(*, tp: int, fp: int, tn: int, fn: int) -> Confusion:
    if tp + fn == 0 or fp + tn == 0:
        return Confusion(tp, fp, tn, fn, NAN, NAN, NAN, NAN)
    precision = tp / (tp + fp) if tp + fp else NAN
    best = 2 * tp / (2 * tp + fp + fn)
    return Confusion(tp, fp, tn, fn, precision, tp / (tp + fn), best, (tp + tn) / (tp + fp + tn + fn))


def pixel_auroc(maps_NHW: NDArray[np.floating], masks_NHW: BoolArray) -> float:
    """Area under the ROC curve over all pixels; masks are True on the defect, all False on good images."""
    _check_maps(maps_NHW, masks_NHW)
    fault = np.sort(maps_NHW[masks_NHW])
    return _area(np.sort(maps_NHW[~masks_NHW]), fault, np.ones(fault.size), limit=1.0)


def aupro(maps_NHW: NDArray[np.floating], masks_NHW: BoolArray, *, max_fpr: float = 0.3) -> float:
    """Area under the per-region-overlap curve up to pixel FPR ``max_fpr``, divided by it: in [0, 1].

    Every 8-connected defect region counts the same, whatever its size. NaN without defect or normal pixels.
    Source: Bergmann et al., "MVTec AD" (IJCV 2021), section 6.
    """
    _check_maps(maps_NHW, masks_NHW)
    weights = [np.ones(0)]  # of each defect pixel, image by image and row by row: one over its region's size
    for mask_HW in masks_NHW[masks_NHW.any(axis=(1, 2))]:
        region = ndimage.label(mask_HW, structure=np.ones((3, 3)))[0][mask_HW]
        weights.append(1.0 / np.bincount(region)[region])
    fault = maps_NHW[masks_NHW]
    order = np.argsort(fault, kind="stable")
    return _area(np.sort(maps_NHW[~masks_NHW]), fault[order], np.concatenate(weights)[order], limit=max_fpr)


def _area(
    good: NDArray[np.floating], fault: NDArray[np.floating], weight: FloatArray, *, limit: float
) -> float:
    """Area under the weighted ROC curve for FPR in [0, limit], divided by ``limit``; both arrays ascending.

    A fault tied with good scores raises the curve linearly from the FPR above the tie to the FPR with it, so
    its share of the area has a closed form and no merged curve is needed.
    """
    if good.size == 0 or fault.size == 0:
        return NAN
    before = (good.size - np.searchsorted(good, fault, side="right")) / good.size
    after = (good.size - np.searchsorted(good, fault, side="left")) / good.size
    ramp = np.where(after > before, after - before, 1.0)
    cut = np.maximum(limit - before, 0.0) ** 2 / (2.0 * ramp)
    gain = np.where(after <= limit, limit - (before + after) / 2.0, np.where(before >= limit, 0.0, cut))
    return float((weight * gain).sum() / (weight.sum() * limit))


def _check_maps(maps_NHW: NDArray[np.floating], masks_NHW: BoolArray) -> None:
    assert maps_NHW.ndim == 3, f"maps of shape {maps_NHW.shape}, expected (N, H, W)"
    assert maps_NHW.shape == masks_NHW.shape, f"{maps_NHW.shape} maps, {masks_NHW.shape} masks"
    assert masks_NHW.dtype == np.bool_, f"masks of type {masks_NHW.dtype}, expected bool"
    finite_N = np.isfinite(maps_NHW).all(axis=(1, 2))
    if not finite_N.all():
        raise NonFiniteError(f"anomaly map {int(finite_N.argmin())}: NaN or infinite values, expected finite")
