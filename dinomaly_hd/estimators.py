"""Detectors without a network as scikit-learn's: arrays of maps in, arrays out, get_params and clone."""

# N maps, H rows (driving teeth), W columns (driven teeth)

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils.validation import check_array, check_is_fitted

from dinomaly_hd import trivial
from dinomaly_hd.config.families import RowEvidenceConfig
from dinomaly_hd.models.row_evidence import Evidence, chunks, fit, image_scores

Floats = NDArray[np.float64]


class _MapDetector(OutlierMixin, BaseEstimator):  # type: ignore[misc]
    """What both share. As everywhere in scikit-learn, **lower** scores are the more anomalous ones."""

    contamination: float

    def fit(self, X: ArrayLike, y: object = None) -> Self:
        """Learn from maps of healthy gears (N, H, W); ``contamination`` of them are to count as outliers."""
        del y
        maps_NHW = self._checked(X)
        self._learn(maps_NHW)
        self.offset_ = float(np.quantile(self._anomaly(maps_NHW), 1 - self.contamination))
        return self

    def score_samples(self, X: ArrayLike) -> Floats:
        """Return (N,): minus the anomaly score that the run of this name gives."""
        check_is_fitted(self, "offset_")
        return -self._anomaly(self._checked(X))

    def decision_function(self, X: ArrayLike) -> Floats:
        """Return (N,): below 0 is an outlier."""
        return self.score_samples(X) + self.offset_

    def predict(self, X: ArrayLike) -> NDArray[np.int64]:
        """Return (N,): 1 for healthy maps, -1 for outliers."""
        return np.where(self.decision_function(X) >= 0, 1, -1).astype(np.int64)

    @staticmethod
    def _checked(X: ArrayLike) -> NDArray[Any]:
        maps: NDArray[Any] = check_array(X, allow_nd=True, ensure_2d=False, dtype=[np.float64, np.float32])
        if maps.ndim != 3:
            raise ValueError(f"maps of shape {maps.shape}: expected (maps, rows, columns)")
        return maps

    def _learn(self, maps_NHW: NDArray[Any]) -> None:
        raise NotImplementedError

    def _anomaly(self, maps_NHW: NDArray[Any]) -> Floats:
        raise NotImplementedError


class RowEvidence(_MapDetector):
    """How much likelier each row is with a band than without (spec/row_evidence.md); 10 maps or more.

    The parameters are those of ``dinomaly-hd row_evidence``; ``seed`` draws the bands that it learns from.
    """

    def __init__(
        self,
        *,
        evidence_bands: str = "factor",
        evidence_copies: int = 8,
        evidence_penalty: float = 1e-3,
        seed: int = 42,
        contamination: float = 0.01,
    ) -> None:
        self.evidence_bands, self.evidence_copies = evidence_bands, evidence_copies
        self.evidence_penalty, self.seed, self.contamination = evidence_penalty, seed, contamination

    def _learn(self, maps_NHW: NDArray[Any]) -> None:
        names = RowEvidenceConfig.model_fields.keys() & self.get_params().keys()
        config = RowEvidenceConfig(**{name: getattr(self, name) for name in names})
        self.evidence_: Evidence = fit(maps_NHW, config, seed=self.seed, tick=lambda: None)

    def row_evidence(self, X: ArrayLike) -> Floats:
        """Return the log of the odds of a band in each row (N, H); the largest is the tooth to blame."""
        check_is_fitted(self, "evidence_")
        parts = chunks(self._checked(X).astype(np.float64))
        return np.concatenate([self.evidence_.of(part)[0] for part in parts])

    def _anomaly(self, maps_NHW: NDArray[Any]) -> Floats:
        return image_scores(self.row_evidence(maps_NHW))


class Scan(_MapDetector):
    """The largest standardised sum over an interval of a row; for maps whose columns are tooth pairs."""

    def __init__(self, *, contamination: float = 0.01) -> None:
        self.contamination = contamination

    def _learn(self, maps_NHW: NDArray[Any]) -> None:
        self.scan_ = trivial.Scan.fit(maps_NHW)

    def _anomaly(self, maps_NHW: NDArray[Any]) -> Floats:
        return self.scan_.score(maps_NHW)
