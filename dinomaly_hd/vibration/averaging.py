"""Synchronous averages over hunting-tooth periods, what is left without the regular mesh, a number a mesh.

Shapes: P periods, L meshes a period, S samples a mesh, T = L S samples of a period at equal angles.

Sources: McFadden 1987, "A revised model for the extraction of periodic waveforms by time domain averaging";
McFadden 1989, "Interpolation techniques for time domain averaging of gear vibration"; Lebold et al. 2000,
"Review of vibration analysis methods for gearbox diagnostics and prognostics" (what is taken out).
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from dinomaly_hd.errors import DataError
from dinomaly_hd.vibration.angle import Clock
from dinomaly_hd.vibration.teeth import Pair

Floats = NDArray[np.float64]
Signal = Literal["residual", "difference", "none"]
Statistic = Literal["rms", "peak", "kurtosis"]

ORDER: Final = 5  # of the interpolating spline
MARGIN = 16  # samples around a period that it needs
SHAFT_ORDERS = 2  # turns and half turns: imbalance and misalignment, no matter of teeth
FEWEST_SAMPLES = 8.0  # a mesh: below, less than the mesh and three of its harmonics are heard


class Average(NamedTuple):
    """One map's worth: the synchronous average, and of its raw samples what a mean does not keep."""

    mean_T: Floats
    noise: float  # standard deviation of a sample about the average, NaN of one period
    powers: tuple[float, float, float, float]  # means of x, x^2, x^3, x^4
    peak: float
    start_s: float
    speed: float  # turns of wheel 1 a second


def samples_a_mesh(clock: Clock, *, rate: float) -> int:
    """Return how many samples at equal angles lose nothing: as many as the slowest mesh has."""
    mesh = np.linspace(0, clock.meshes, max(2, min(clock.meshes, 10_000)))
    seconds = np.diff(clock.time_of(mesh)) / np.diff(mesh)
    fewest = float(seconds.min()) * rate
    if fewest < FEWEST_SAMPLES:
        raise DataError(
            f"rate={rate:g}: {fewest:.1f} samples a mesh at {1 / seconds.min():.0f} meshes a second, "
            f"expected {FEWEST_SAMPLES:g} or more; sample faster or run slower"
        )
    return math.ceil(float(seconds.max()) * rate)


def windows(blocks: Iterable[Floats], spans: Iterable[tuple[int, int]]) -> Iterator[Floats]:
    """Yield samples first to last of each span, both ascending, holding little more than one span."""
    held, begin, stream = np.empty(0), 0, iter(blocks)
    for first, last in spans:
        parts, end = [held], begin + len(held)
        while end < last and (block := next(stream, None)) is not None:
            parts.append(block)
            end += len(block)
        held = np.concatenate(parts)[first - begin :]
        begin = first
        yield held[: last - first]


def periods_of(
    blocks: Iterable[Floats], clock: Clock, *, rate: float, meshes: int, samples: int, count: int
) -> Iterator[tuple[float, float, Floats]]:
    """Yield start and end in seconds, and the signal (T,) at equal angles, of each whole period."""
    angle_T = (np.arange(meshes * samples) + 0.5) / samples

    def position(mesh: Floats) -> Floats:
        return clock.time_of(mesh) * rate

    ends = position(np.arange(count + 1.0) * meshes)
    firsts = np.maximum(ends[:-1].astype(np.intp) - MARGIN, 0)
    spans = zip(firsts.tolist(), (ends[1:].astype(np.intp) + MARGIN).tolist(), strict=True)
    for number, window in enumerate(windows(blocks, spans)):
        where_T = position(angle_T + number * meshes) - firsts[number]
        yield (
            float(ends[number] / rate),
            float(ends[number + 1] / rate),
            ndimage.map_coordinates(window, where_T[None], order=ORDER, mode="mirror"),
        )


def averages(
    periods: Iterable[tuple[float, float, Floats]], *, each: int, turns: int, tick: Callable[[], None]
) -> Iterator[Average]:
    """Yield the average of every ``each`` periods of ``turns`` turns of wheel 1; the rest is left out."""
    total_T, powers, peak, began, number = np.zeros(0), np.zeros(4), 0.0, 0.0, 0
    for start_s, end_s, signal_T in periods:
        if number == 0:
            total_T, powers, peak, began = np.zeros_like(signal_T), np.zeros(4), 0.0, start_s
        total_T += signal_T
        square_T = signal_T * signal_T
        powers += [signal_T.mean(), square_T.mean(), (square_T * signal_T).mean(), (square_T**2).mean()]
        peak, number = max(peak, float(np.abs(signal_T).max())), number + 1
        tick()
        if number == each:
            mean_T, (first, second, third, fourth) = total_T / each, (powers / each).tolist()
            # The mean of P periods has a P-th of the noise in it.
            spread = max(0.0, second - float(np.square(mean_T).mean()))
            noise = math.sqrt(spread * each / (each - 1)) if each > 1 else math.nan
            speed = each * turns / (end_s - began)
            yield Average(mean_T, noise, (first, second, third, fourth), peak, began, speed)
            number = 0


def without_mesh(mean_T: Floats, pair: Pair, *, signal: Signal) -> Floats:
    """Return the residual signal of an average over one period, or the difference signal.

    Of a whole period each line is one bin. Residual: without the mean, the mesh and its harmonics, and the
    first orders of both shafts; difference: without the harmonics' first side bands of both wheels too.
    """
    if signal == "none":
        return mean_T
    spectrum = fft.rfft(mean_T)
    mesh = np.arange(0, len(spectrum), pair.period)  # the bins of the mesh's harmonics, and 0
    shafts = np.outer(pair.turns, np.arange(1, SHAFT_ORDERS + 1)).ravel()
    lines = [mesh, shafts]
    if signal == "difference":
        lines += [mesh + side * turns for turns in pair.turns for side in (1, -1)]
    bins = np.concatenate(lines)
    spectrum[bins[(bins >= 0) & (bins < len(spectrum))]] = 0
    return np.asarray(fft.irfft(spectrum, len(mean_T)))


def mesh_statistic(signal_T: Floats, *, samples: int, statistic: Statistic) -> Floats:
    """Return one number (L,) of each mesh's samples."""
    signal_LS = signal_T.reshape(-1, samples)
    if statistic == "rms":
        return np.asarray(np.sqrt(np.square(signal_LS).mean(axis=1)))
    if statistic == "peak":
        return np.asarray(np.abs(signal_LS).max(axis=1))
    square_LS = np.square(signal_LS - signal_LS.mean(axis=1, keepdims=True))
    power_L = square_LS.mean(axis=1)
    fourth_L = np.square(square_LS).mean(axis=1)
    return np.asarray(np.divide(fourth_L, power_L**2, out=np.zeros_like(power_L), where=power_L > 0))
