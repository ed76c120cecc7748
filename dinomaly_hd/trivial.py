"""Scores that need no model: every report prints them beside the detector's.

Legend: N images, H rows (driving teeth), W columns (driven teeth), any float type; scores are float64 (N,),
higher = more anomalous. Source: models.md, "Trivial scores".
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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
DARK_SHARE = 0.01  # of pixels at or below 0


def contrast(images_NHW: Images) -> FloatArray:
    """(maximum - mean) / standard deviation of each image; 0 for a flat image, which has no contrast."""
    max_N, mean_N, std_N = (TRIVIAL[name](images_NHW) for name in ("max", "mean", "std"))
    height_N = max_N - mean_N
    return np.divide(height_N, std_N, out=np.zeros_like(std_N), where=std_N > 0)


TRIVIAL: dict[str, Callable[[Images], FloatArray]] = {
    "max": lambda images_NHW: images_NHW.max(axis=(1, 2)).astype(np.float64),
    "mean": lambda images_NHW: images_NHW.mean(axis=(1, 2), dtype=np.float64),
    "std": lambda images_NHW: images_NHW.std(axis=(1, 2), dtype=np.float64),
    "contrast": contrast,
}


def trivial_scores(images_NHW: Images) -> dict[str, FloatArray]:
    """All trivial scores under the names of their score-table columns (``trivial/max``, ...)."""
    return {PREFIX + name: score(images_NHW) for name, score in TRIVIAL.items()}


@dataclass(frozen=True, kw_only=True)
class RowFilter:
    """Largest row contrast after a 1 x ``width`` mean, standardised per row on one domain's train normals.

    It knows the defect's shape, so it is a reference for what the physics gives away, not a trivial score.
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
    """Largest smoothed value of each row (N, H) over the mean of rows 2 and 3 above and below, less 1."""
    # A ratio: cold and warm images differ by a factor. Not of the next rows: a fault leaks into them. Both
    # gears turn, so rows and columns are circular.
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
        parts = [images_NHW[start : start + BATCH] for start in range(0, len(images_NHW), BATCH)]
        best = [
            np.max([of.max(axis=(1, 2)) for of in self._intervals(part).values()], axis=0) for part in parts
        ]
        return np.concatenate(best) if best else np.empty(0)

    def signatures(self, images_NHW: Images) -> FloatArray:
        """How much each image's most unusual interval exceeds the normals there: x = usual (1 + signature).

        (N, H, W), 0 outside the interval. Levels are compared, so that a louder map has no other signature.
        """
        excess_NHW = np.exp(log_level(images_NHW) - self.mean_HW) - 1
        signature_NHW, columns = np.zeros_like(excess_NHW), images_NHW.shape[2]
        for n, image_HW in enumerate(images_NHW):
            found = {length: of[0] for length, of in self._intervals(image_HW[None]).items()}
            length = max(found, key=lambda length: found[length].max())
            row, first = np.unravel_index(found[length].argmax(), found[length].shape)
            place = row, (first + np.arange(length)) % columns
            signature_NHW[n][place] = excess_NHW[n][place]
        return signature_NHW

    def _intervals(self, images_NHW: Images) -> dict[int, FloatArray]:
        """Standardised sums (N, H, first column) of all intervals, by their length."""
        z_NHW = (log_level(images_NHW) - self.mean_HW) / self.std_HW
        # Twice round the gear: an interval may run over the end of its row.
        sums_NHW = np.cumsum(np.concatenate([np.zeros_like(z_NHW[..., :1]), z_NHW, z_NHW], axis=2), axis=2)
        columns = images_NHW.shape[2]
        lengths = [length for length in LENGTHS if length < columns] + [columns]
        return {n: (sums_NHW[..., n:] - sums_NHW[..., :-n]) / np.sqrt(n) for n in lengths}


def _usual(values_N: FloatArray, *, name: str) -> tuple[FloatArray, FloatArray]:
    """Mean and standard deviation over train normals (N, ...), the latter 1 where nothing varies."""
    if len(values_N) < 2:
        raise DataError(f"{name}: {len(values_N)} train normals, expected at least 2")
    std = values_N.std(axis=0)
    return values_N.mean(axis=0), np.where(std > 0, std, 1.0)


def has_logarithm(normals_NHW: Images) -> bool:
    """Return whether a detector takes logarithms: at most 1 % of the pixels are at or below 0."""
    return bool((normals_NHW <= 0).mean() <= DARK_SHARE)


def level(images_NHW: Images, *, logarithm: bool, centre: Callable[..., Any] = np.median) -> FloatArray:
    """Return images or their logarithms (values below .001 count as that) less each image's own median."""
    values_NHW = images_NHW.astype(np.float64, copy=False)
    values_NHW = np.log(np.maximum(values_NHW, LEAST)) if logarithm else values_NHW
    return np.asarray(values_NHW - centre(values_NHW, axis=(1, 2), keepdims=True))


def log_level(images_NHW: Images) -> FloatArray:
    """Return logarithms less each image's own mean."""
    return level(images_NHW, logarithm=True, centre=np.mean)


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
