"""Row evidence: how much likelier each row of a map is with a band than without (spec/row_evidence.md).

Learned on training normals alone, with bands written onto them. Rows and columns are circular: both gears
turn. All is float64 and computed element by element or row by row, so that no bit of a score depends on what
a map is scored with; products of matrices, whose bits do, stand in the fit only, and have one thread there.
"""

# N maps, R rows (driving teeth), C columns (driven teeth), F features of a row, K neighbours

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp
from threadpoolctl import threadpool_limits
from torch import Tensor

from dinomaly_hd.config.families import RowEvidenceConfig
from dinomaly_hd.errors import DataError
from dinomaly_hd.models.detector import Detector, Prediction, resized
from dinomaly_hd.models.draem.faults import horizontal_bands
from dinomaly_hd.randomness import derive
from dinomaly_hd.trivial import has_logarithm, level

Floats = NDArray[np.float64]

FEWEST_MAPS, MOST_MAPS, MOST_PIXELS, SMALLEST = 10, 10_000, 2**25, (7, 47)
CLIP, TO_SIGMA = 4.0, 1.4826  # the latter makes a normal distribution's median deviation its standard one
NEIGHBOURS = [(row, column) for row in (-3, -2, -1, 1, 2, 3) for column in range(-3, 4)]
RIDGE = 1e-3  # of the mean diagonal
LONG, DIPS = (5, 9, 17, 31, 47), (9, 17)  # columns of the windows
FAR, NEAR = (-3, -2, 2, 3), (-1, 1)  # rows
LAGS, QUANTILES, SMOOTH = (1, 2, 4), (0.1, 0.25, 0.75, 0.9), 7
REACH = 6  # rows, to either side, on which a row's features depend
SHORTEST, GAPS, GAP_COLUMNS = 20, 3, (3, 15)
SEVERITY, ROUGHNESS, LEAK = (0.08, 1.5), 0.2, 0.6
STANDARD = (-6.0, 8.0)  # what standardised features are clipped to
MAP_WIDTH, LEAST_MEAN = 9, 1e-3  # the latter keeps the share of a row without any rise finite
ALIKE, CHUNK = 1e-9, 32  # difference of logarithms that rounding may make; maps worked on at once


class Bands(NamedTuple):
    maps_NRC: Floats
    place_P2: NDArray[np.int64]  # map and row of each banded row


def windowed(values: Floats, width: int) -> Floats:
    """Return the circular mean over ``width`` columns, an odd number, around each (..., C)."""
    half = width // 2
    sums = np.cumsum(np.concatenate([values[..., -half - 1 :], values, values[..., :half]], axis=-1), axis=-1)
    means: Floats = (sums[..., width:] - sums[..., :-width]) / width
    return means


def row_features(values_NRC: Floats) -> Floats:
    """Return what describes each row of a residual (N, R, F)."""
    mean_NR = values_NRC.mean(axis=2)
    levels = [mean_NR, np.median(values_NRC, axis=2), np.tanh(values_NRC).mean(axis=2)]
    smooth = {width: windowed(values_NRC, width) for width in LONG}
    centred, seven = values_NRC - mean_NR[..., None], windowed(values_NRC, SMOOTH)
    columns = [
        *levels,
        *(np.sqrt(width) * smooth[width].max(axis=2) for width in LONG),
        *(np.sqrt(width) * smooth[width].min(axis=2) for width in DIPS),
        (values_NRC > 1).mean(axis=2),
        *(np.mean([np.roll(level, -row, axis=1) for row in FAR], axis=0) for level in levels),
        *(np.roll(level, -row, axis=1) for row in NEAR for level in levels),
        *((centred * np.roll(centred, -lag, axis=2)).mean(axis=2) for lag in LAGS),
        seven.std(axis=2),
        *np.quantile(seven, QUANTILES, axis=2),
    ]
    return np.stack(columns, axis=2)


def factor_bands(maps_NRC: Floats, *, seed: int, copy: int, positive: bool) -> Bands:
    """Write one band onto each map, a function of (seed, copy, place of the map)."""
    count, rows, columns = maps_NRC.shape
    banded_NRC, row_N, place_C = maps_NRC.copy(), np.empty(count, np.int64), np.arange(columns)
    for n in range(count):
        draw = np.random.default_rng(derive(seed, "row bands", copy, n))
        row_N[n] = row = int(draw.integers(rows))
        # 20..C columns long, with 0 to 3 gaps of 3 to 15 columns.
        length, start = draw.integers(SHORTEST, columns + 1), draw.integers(columns)
        inside_C = place_C < length  # counted from the band's own first column
        for _ in range(draw.integers(GAPS + 1)):
            first, gap = draw.integers(length), draw.integers(GAP_COLUMNS[0], GAP_COLUMNS[1] + 1)
            inside_C &= (place_C < first) | (place_C >= first + gap)
        # Raised by the factor 1 + a, a = severity * exp(N(0, .2)), severity log-uniform in .08..1.5; one of
        # the next rows gets a share of it, U(0, .6), shifted by at most one column.
        severity = np.exp(draw.uniform(*np.log(SEVERITY)))
        rise_C = np.roll(inside_C * severity * np.exp(draw.normal(0, ROUGHNESS, columns)), start)
        leak_C = draw.uniform(0, LEAK) * np.roll(rise_C, draw.integers(-1, 2))
        # Where maps are not positive a factor would raise nothing: a deviations of the map are added.
        for at, share_C in ((row, rise_C), ((row + draw.choice((-1, 1))) % rows, leak_C)):
            banded_NRC[n, at] += share_C * (maps_NRC[n, at] if positive else maps_NRC[n].std())
    return Bands(banded_NRC, np.stack([np.arange(count), row_N], axis=1))


def additive_bands(maps_NRC: Floats, *, seed: int, copy: int, **_: bool) -> Bands:
    """Write this project's own additive bands, 1 to 3 rows high, onto maps (``horizontal_bands``)."""
    faulty = horizontal_bands(torch.from_numpy(maps_NRC), seed=seed, position=copy)
    return Bands(faulty.images_BHW.numpy(), faulty.mask_BHW.any(dim=2).nonzero().numpy())


BANDS = {"factor": (factor_bands,), "additive": (additive_bands,), "both": (factor_bands, additive_bands)}


@dataclass(frozen=True)
class Evidence:
    """What was learned from training normals; ``of`` gives the evidence of rows."""

    logarithm: Floats  # (): 1 or 0
    normal_RC: Floats  # mean level of each position, the tooth pairs' own signature
    neighbour_K: Floats
    remainder: Floats  # (): standard deviation of what the neighbours cannot explain
    usual_RF: Floats  # mean features of each row, the tooth's own
    scale_F: Floats
    weight_F: Floats
    bias: Floats  # ()

    def of(self, maps_NRC: Floats) -> tuple[Floats, Floats]:
        """Return each row's evidence (N, R), the log of the ratio of odds, and the residual (N, R, C)."""
        residual_NRC = residual(level(maps_NRC, logarithm=bool(self.logarithm)), self.normal_RC)
        features_NRF = both_features(residual_NRC, self.neighbour_K, self.remainder) - self.usual_RF
        standard_NRF = np.clip(features_NRF / self.scale_F, *STANDARD)
        return (standard_NRF * self.weight_F).sum(axis=2) + self.bias, residual_NRC


def image_scores(evidence_NR: Floats) -> Floats:
    """Return the log of the rows' mean ratio (N,)."""
    return np.asarray(logsumexp(evidence_NR, axis=1) - np.log(evidence_NR.shape[1]))


def residual(level_NRC: Floats, normal_RC: Floats) -> Floats:
    """Return how far levels are from the normals', in the map's own deviations: cold and warm differ."""
    left_NRC = level_NRC - normal_RC
    spread_N11 = TO_SIGMA * np.median(np.abs(left_NRC), axis=(1, 2), keepdims=True)
    quotient = np.divide(left_NRC, spread_N11, out=np.zeros_like(left_NRC), where=spread_N11 != 0)
    return np.clip(quotient, -CLIP, CLIP)


def explained(residual_NRC: Floats, neighbour_K: Floats) -> Floats:
    """Return what 3 rows above and below say of a residual: texture runs across rows, no band does."""
    total_NRC = np.zeros_like(residual_NRC)
    for weight, shift in zip(neighbour_K, NEIGHBOURS, strict=True):
        total_NRC += weight * np.roll(residual_NRC, shift, axis=(1, 2))
    return total_NRC


def both_features(residual_NRC: Floats, neighbour_K: Floats, remainder: Floats) -> Floats:
    """Return the features of the residual and of what the neighbours leave of it (N, R, F)."""
    left_NRC = np.clip((residual_NRC - explained(residual_NRC, neighbour_K)) / remainder, -CLIP, CLIP)
    return np.concatenate([row_features(residual_NRC), row_features(left_NRC)], axis=2)


def neighbour_weights(residual_NRC: Floats) -> Floats:
    """Return the ridge regression of each pixel on its neighbours, from the circular autocorrelation."""
    power = (np.abs(np.fft.rfft2(residual_NRC)) ** 2).sum(axis=0)
    correlation_RC = np.fft.irfft2(power, s=residual_NRC.shape[1:])
    rows, columns = np.array(NEIGHBOURS).T
    gram_KK = correlation_RC[rows[:, None] - rows, columns[:, None] - columns]
    ridge = RIDGE * np.trace(gram_KK) / len(NEIGHBOURS)
    solution: Floats = np.linalg.solve(gram_KK + ridge * np.eye(len(gram_KK)), correlation_RC[rows, columns])
    return solution


def fit(maps: NDArray[Any], config: RowEvidenceConfig, *, seed: int, tick: Callable[[], None]) -> Evidence:
    """Learn from training normals, of more than 10,000 from as many, evenly chosen."""
    check(maps)
    most = min(MOST_MAPS, MOST_PIXELS // maps[0].size)
    maps_NRC = maps[:: -(-len(maps) // most)].astype(np.float64)
    positive = has_logarithm(maps_NRC)
    level_NRC = level(maps_NRC, logarithm=positive)
    normal_RC = level_NRC.mean(axis=0)
    residual_NRC = residual(level_NRC, normal_RC)
    if np.abs(level_NRC - normal_RC).max() < ALIKE or not residual_NRC.any():
        raise DataError("row_evidence: training maps are alike but for a factor, or in most of their pixels")
    with threadpool_limits(1):
        neighbour_K = neighbour_weights(residual_NRC)
    # A constant has no remainder; 1 then leaves it as it is.
    remainder = np.asarray(np.std(residual_NRC - explained(residual_NRC, neighbour_K)) or 1.0)
    parts = []
    for chunk in chunks(residual_NRC):
        tick()
        parts.append(both_features(chunk, neighbour_K, remainder))
    features_NRF = np.concatenate(parts)
    usual_RF = features_NRF.mean(axis=0)
    features_NRF -= usual_RF
    scale_F = features_NRF.std(axis=(0, 1))
    scale_F[scale_F == 0] = 1.0
    unweighted = np.zeros_like(scale_F), np.zeros(())  # until the regression
    learned = Evidence(
        np.asarray(float(positive)), normal_RC, neighbour_K, remainder, usual_RF, scale_F, *unweighted
    )
    kinds = BANDS[config.evidence_bands]
    banded = []
    for copy in range(config.evidence_copies):
        bands = kinds[copy % len(kinds)](maps_NRC, seed=seed, copy=copy, positive=positive)
        for place_P2 in chunks(bands.place_P2):
            tick()
            banded.append(banded_features(bands.maps_NRC[place_P2[:, 0]], place_P2[:, 1], learned))
    normal_MF = (features_NRF / scale_F).reshape(-1, len(scale_F))
    weight_F, bias = regression(normal_MF, np.concatenate(banded), penalty=config.evidence_penalty)
    return replace(learned, weight_F=weight_F, bias=bias)


def banded_features(maps_PRC: Floats, row_P: NDArray[np.int64], learned: Evidence) -> Floats:
    """Return the standardised features (P, F) of one row of each map, from the rows that they depend on."""
    rest_PRC = residual(level(maps_PRC, logarithm=bool(learned.logarithm)), learned.normal_RC)
    rows_PS = (row_P[:, None] + np.arange(-REACH, REACH + 1)) % rest_PRC.shape[1]
    around_PSC = rest_PRC[np.arange(len(row_P))[:, None], rows_PS]
    features_PSF = both_features(around_PSC, learned.neighbour_K, learned.remainder)
    return (features_PSF[:, REACH] - learned.usual_RF[row_P]) / learned.scale_F


def regression(normal_MF: Floats, banded_PF: Floats, *, penalty: float) -> tuple[Floats, Floats]:
    """Return weights (F,) and bias of the log of the odds of a band, both classes weighing the same."""
    from sklearn.linear_model import LogisticRegression  # seconds, which only fitting needs

    rows_MF = np.clip(np.concatenate([normal_MF, banded_PF]), *STANDARD)
    model = LogisticRegression(  # converges where L-BFGS stops early, to the last digits
        C=1 / (penalty * len(rows_MF)), class_weight="balanced", solver="newton-cholesky", tol=1e-9
    )
    with threadpool_limits(1):
        model.fit(rows_MF, np.arange(len(rows_MF)) >= len(normal_MF))
    return model.coef_[0], np.asarray(model.intercept_[0])


def chunks(values: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Yield parts of an array; its temporary results stay small."""
    for first in range(0, len(values), CHUNK):
        yield values[first : first + CHUNK]


def check_form(count: int, shape: tuple[int, ...]) -> None:
    if count < FEWEST_MAPS:
        raise DataError(
            f"row_evidence: {count} training maps; it needs at least {FEWEST_MAPS} beside those that a run "
            "holds out (val_split_ratio)"
        )
    if shape[0] < SMALLEST[0] or shape[1] < SMALLEST[1]:
        raise DataError(f"row_evidence: maps of {shape[0]}x{shape[1]}; it needs at least 7x47")


def check(maps: NDArray[Any]) -> None:
    check_form(len(maps), maps.shape[1:])
    flat = int((np.ptp(maps, axis=(1, 2)) == 0).sum())
    if flat:
        raise DataError(f"row_evidence: {flat} of {len(maps)} training maps are constant; take them out")


class RowEvidence(Detector):
    """``encode`` gives maps as they are, ``fit_bank`` learns; an ``Evidence`` lies in buffers of its names.

    A map spreads each row's evidence, from 0 on, along the row in proportion to the positive part of the
    residual's mean over 9 columns.
    """

    def __init__(self, config: RowEvidenceConfig, *, map_size: tuple[int, int], seed: int) -> None:
        super().__init__()
        self.config, self.map_size, self.seed = config, map_size, seed
        for field in fields(Evidence):
            self.register_buffer(field.name, torch.empty(0, dtype=torch.float64))

    def encode(self, images_BHW: Tensor) -> Tensor:
        return images_BHW

    def fit_bank(self, batches: Iterable[Tensor], *, tick: Callable[[], None] = lambda: None) -> None:
        """Learn from training maps (B, R, C)."""
        maps_NRC = torch.cat([batch.cpu() for batch in batches]).numpy()
        found = fit(maps_NRC, self.config, seed=self.seed, tick=tick)
        for field in fields(Evidence):
            setattr(self, field.name, torch.as_tensor(getattr(found, field.name)))

    @torch.no_grad()
    def score(self, encoded: Tensor) -> Prediction:
        learned = Evidence(**{one.name: getattr(self, one.name).cpu().numpy() for one in fields(Evidence)})
        evidence_NR, residual_NRC = learned.of(encoded.double().cpu().numpy())
        raised_NRC = np.maximum(windowed(residual_NRC, MAP_WIDTH), 0)
        share_NRC = raised_NRC / np.maximum(raised_NRC.mean(axis=2, keepdims=True), LEAST_MEAN)
        map_NRC = torch.from_numpy(np.maximum(evidence_NR, 0)[..., None] * share_NRC)
        map_NHW = resized(map_NRC, self.map_size, antialias=True)
        score_N = torch.from_numpy(image_scores(evidence_NR))
        return Prediction(map_NHW.to(encoded.device), score_N.to(encoded.device))
