"""Thresholds that turn a score into a call (fault when ``score >= value``), each marked honest or optimistic.

A threshold is optimistic when it saw what a deployed detector cannot have: the test labels, or scores of the
images that the model was trained on. Source: protocols.md, "Metrics" and "Splits".
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from dinomaly_hd.errors import DataError
from dinomaly_hd.evaluation.metrics import NAN, check_finite, f1_max, operating_points

NORMAL_QUANTILE = 0.995


class Threshold(NamedTuple):
    """A decision value with where it came from; NaN where it cannot be had (one class only)."""

    name: str
    value: float
    optimistic: bool
    source: str


def youden(score: ArrayLike, label: ArrayLike) -> Threshold:
    """Maximise TPR - FPR on the test labels (the authors' rule); ties go to the higher threshold."""
    points = operating_points(score, label)
    value = NAN
    if points.good_count and points.fault_count:
        # Integers, so that ties are exact: J times both counts.
        gain_K = points.true_positives_K * points.good_count - points.false_positives_K * points.fault_count
        value = float(points.threshold_K[gain_K.argmax()])
    return Threshold("youden", value, True, "test labels")


def f1(score: ArrayLike, label: ArrayLike) -> Threshold:
    """Maximise F1 on the test labels; ties go to the higher threshold."""
    return Threshold("f1", f1_max(score, label).threshold, True, "test labels")


def normal_quantile(score: ArrayLike, *, held_out: bool, quantile: float = NORMAL_QUANTILE) -> Threshold:
    """Lie just above the ``quantile`` (linear interpolation) of normal scores: the honest default.

    ``held_out=False`` says that the scores are those of training images, and marks the threshold optimistic.
    "Just above" is the next float64: a score equal to the quantile is no fault, not even if all are equal.

    Raises:
        DataError: There is no score.
        NonFiniteError: A score is NaN or infinite.
    """
    scores = np.asarray(score, dtype=np.float64)
    source = "held-out normals" if held_out else "training normals"
    if scores.size == 0:
        raise DataError(f"threshold normal_quantile: no scores of {source}, expected at least 1")
    check_finite(scores)
    value = float(np.nextafter(np.quantile(scores, quantile), np.inf))
    return Threshold("normal_quantile", value, not held_out, source)
