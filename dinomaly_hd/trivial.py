"""Scores that need no model: every report prints them beside the detector's.

Legend: N images, H rows (driving teeth), W columns (driven teeth), any float type; scores are float64 (N,),
higher = more anomalous. Source: models.md, "Trivial scores".
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dinomaly_hd.errors import DataError

FloatArray = NDArray[np.float64]
Images = NDArray[np.floating]

PREFIX = "trivial/"  # of the scores' columns in a score table
ROW_FILTER, SCAN, ROW_EVIDENCE = (PREFIX + name for name in ("row_filter", "scan", "row_evidence"))
INDICATORS = "indicators.csv"  # of a data root that hdmap made
GEAR_INDICATORS = ("rms", "kurtosis", "crest_factor", "fm0", "fm4", "na4", "m6a", "sideband_level")
BATCH = 256  # images filtered at once
LENGTHS = (8, 12, 16, 24, 32, 48, 64)  # columns of scanned intervals
LEAST = 1e-3  # what is below counts as that before its logarithm
DARK_SHARE = 0.01  # of pixels at or below 0: where there are more, detectors take no logarithm


def maximum(images_NHW: Images) -> FloatArray:
    """Largest pixel of each image."""
    return np.asarray(images_NHW.max(axis=(1, 2)), dtype=np.float64)


def mean(images_NHW: Images) -> FloatArray:
    """Mean pixel of each image."""
    return np.asarray(images_NHW.mean(axis=(1, 2), dtype=np.float64))


def standard_deviation(images_NHW: Images) -> FloatArray:
    """Standard deviation of each image's pixels (population form)."""
    return np.asarray(images_NHW.std(axis=(1, 2), dtype=np.float64))


def contrast(images_NHW: Images) -> FloatArray:
    """(maximum - mean) / standard deviation of each image; 0 for a flat image, which has no contrast."""
    height_N, std_N = maximum(images_NHW) - mean(images_NHW), standard_deviation(images_NHW)
    return np.divide(height_N, std_N, out=np.zeros_like(std_N), where=std_N > 0)


TRIVIAL: dict[str, Callable[[Images], FloatArray]] = {
    "max": maximum,
    "mean": mean,
    "std": standard_deviation,
    "contrast": contrast,
}


def trivial_scores(images_NHW: Images) -> dict[str, FloatArray]:
    """All trivial scores under the names of their score-table columns (``trivial/max``, ...)."""
    return {PREFIX + name: score(images_NHW) for name, score in TRIVIAL.items()}


@dataclass(frozen=True, kw_only=True)
class RowFilter:
    """Largest row contrast after a 1 x ``width`` mean, standardised per row on one domain's train normals.

    It knows the defect's shape, so it is a reference for what the physics gives away, not a trivial score.
    Both gears turn, so rows and columns are circular. A row's contrast is its smoothed value over the mean of
    the rows 2 and 3 above and below (a fault leaks into the next row), less 1: a ratio, because cold and warm
    images differ by a factor.
    """

    width: int
    mean_H: FloatArray
    std_H: FloatArray

    @classmethod
    def fit(cls, normals_NHW: Images) -> "RowFilter":
        """Learn each row's usual contrast from train normals (N >= 2)."""
        # A quarter of the columns, made odd (23 of 95): short enough to fit a piece of a broken band, long
        # enough to average the texture away. No test data went into this choice.
        width = max(1, (normals_NHW.shape[2] // 4 - 1) | 1)
        mean_H, std_H = _usual(_row_contrast(normals_NHW, width), name="row filter")
        return cls(width=width, mean_H=mean_H, std_H=std_H)

    def score(self, images_NHW: Images) -> FloatArray:
        """How many standard deviations each image's most unusual row lies above that row's mean."""
        score_N: FloatArray = ((_row_contrast(images_NHW, self.width) - self.mean_H) / self.std_H).max(axis=1)
        return score_N


def _row_contrast(images_NHW: Images, width: int) -> FloatArray:
    """Largest contrast of each row (N, H)."""
    contrast_NH = np.empty(images_NHW.shape[:2])
    for start in range(0, len(images_NHW), BATCH):
        batch = slice(start, start + BATCH)
        smooth_NHW = ndimage.uniform_filter1d(
            images_NHW[batch].astype(np.float64), width, axis=2, mode="wrap"
        )
        around_NHW = sum(np.roll(smooth_NHW, shift, axis=1) for shift in (-3, -2, 2, 3)) / 4
        # Where the surroundings are 0 (a dark image) there is no ratio, hence no contrast.
        ratio_NHW = np.divide(smooth_NHW, around_NHW, out=np.ones_like(smooth_NHW), where=around_NHW > 0)
        contrast_NH[batch] = ratio_NHW.max(axis=2) - 1.0
    return contrast_NH


@dataclass(frozen=True, kw_only=True)
class Scan:
    """Largest standardised sum over an interval of a row: the model-free cousin of row evidence.

    z = (log x less the image's mean) standardised at each position on one domain's train normals; the score
    is the largest sum z / sqrt(length) over rows and circular intervals of 8 columns up to whole rows. It
    needs columns that are registered tooth pairs, and faults that add energy (spec/row_evidence.md, Scan).
    """

    mean_HW: FloatArray
    std_HW: FloatArray

    @classmethod
    def fit(cls, normals_NHW: Images) -> "Scan":
        """Learn each position's usual level and spread from train normals (N >= 2)."""
        mean_HW, std_HW = _usual(log_level(normals_NHW), name="scan")
        return cls(mean_HW=mean_HW, std_HW=std_HW)

    def score(self, images_NHW: Images) -> FloatArray:
        """How far each image's most unusual interval lies above the normals, in standard deviations."""
        columns, score_N = images_NHW.shape[2], np.empty(len(images_NHW))
        for start in range(0, len(images_NHW), BATCH):
            batch = slice(start, start + BATCH)
            z_NHW = (log_level(images_NHW[batch]) - self.mean_HW) / self.std_HW
            sums_NHW = np.cumsum(
                np.concatenate([np.zeros_like(z_NHW[..., :1]), z_NHW, z_NHW], axis=2), axis=2
            )
            lengths = [length for length in LENGTHS if length < columns] + [columns]
            best = [(sums_NHW[..., n:] - sums_NHW[..., :-n]).max(axis=(1, 2)) / np.sqrt(n) for n in lengths]
            score_N[batch] = np.max(best, axis=0)
        return score_N


def _usual(values_N: FloatArray, *, name: str) -> tuple[FloatArray, FloatArray]:
    """Mean and standard deviation over train normals (N, ...), the latter 1 where nothing varies."""
    if len(values_N) < 2:
        raise DataError(f"{name}: {len(values_N)} train normals, expected at least 2")
    std = values_N.std(axis=0)
    return values_N.mean(axis=0), np.where(std > 0, std, 1.0)


def log_level(images_NHW: Images) -> FloatArray:
    """Return logarithms less each image's own mean; values below .001 count as that."""
    log_NHW = np.log(np.maximum(images_NHW.astype(np.float64), LEAST))
    return np.asarray(log_NHW - log_NHW.mean(axis=(1, 2), keepdims=True))


def signature_share(normals_NHW: Images) -> float:
    """Return how much of maps' variance is the same at each position in all of them, 0..1.

    What a mean over N maps has of the maps' own variance is taken off; of one map nothing is known: 0.
    """
    if len(normals_NHW) < 2:
        return 0.0
    level_NHW = log_level(normals_NHW)
    within = level_NHW.var(axis=0, ddof=1).mean()
    fixed = max(0.0, float(level_NHW.mean(axis=0).var() - within / len(level_NHW)))
    return fixed / (fixed + float(within)) if fixed + within > 0 else 0.0


Fitted = dict[str, RowFilter | Scan]


def fit_references(normals_NHW: Images) -> Fitted:
    """What knows the defect's shape, by its score's column, fitted on one domain's train normals (N >= 2)."""
    return {ROW_FILTER: RowFilter.fit(normals_NHW), SCAN: Scan.fit(normals_NHW)}
