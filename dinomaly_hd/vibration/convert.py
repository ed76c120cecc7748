"""From one record to its maps: pulses, angle, averages, what remains of them, and the usual indicators."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dinomaly_hd.config.vibration import RecordSettings, ratio_of, teeth_of
from dinomaly_hd.errors import ConfigError, DataError
from dinomaly_hd.progress import Progress
from dinomaly_hd.vibration.angle import Clock, check_pulses, clock_of_pulses, clock_of_speed, pulse_times
from dinomaly_hd.vibration.averaging import (
    averages,
    mesh_statistic,
    periods_of,
    samples_a_mesh,
    without_mesh,
)
from dinomaly_hd.vibration.indicators import indicators, row_contrast
from dinomaly_hd.vibration.mesh_order import MOST_TURNS, check_mesh_order
from dinomaly_hd.vibration.readers import Record, open_record
from dinomaly_hd.vibration.teeth import Pair

FEWEST_TURNS = 10  # below, lines of neighbouring orders run into one another


class Made(NamedTuple):
    """One map: cells not divided by anything, when its first mesh began, turns of wheel 1 a second."""

    map_RC: NDArray[np.float32]
    start_s: float
    speed: float
    noise: float  # standard deviation of a sample about the average, NaN where periods=1
    indicators: dict[str, float]


class Converted(NamedTuple):
    """A record's maps in order of time, how long it is, and its sampling rate."""

    maps: list[Made]
    seconds: float
    rate: float


def maps_of(
    path: Path, settings: RecordSettings, *, powers: list[float], tick: Callable[[], None]
) -> Converted:
    """Return the maps of one record; ``powers`` are those of earlier ones, see ``indicators``.

    Raises:
        ConfigError: Tooth counts that have to be folded, no sampling rate.
        DataError: No map can be made: pulses, samples, length or tooth counts are wrong; one line says what.
    """
    pair = Pair(*teeth_of(settings.teeth))
    pair.check(fold=settings.fold)
    record = open_record(path)
    rate = settings.rate or record.rate
    if rate is None:
        raise ConfigError(f"rate: {path} does not say its sampling rate; give rate in Hz")
    seconds = len(record.channel(settings.vibration)) / rate
    try:
        clock = _clock(record, settings, pair.first, rate=rate, seconds=seconds)
        samples = samples_a_mesh(clock, rate=rate)
        turns = min(clock.meshes // pair.first, MOST_TURNS)
        if turns >= FEWEST_TURNS:
            blocks, meshes = record.blocks(settings.vibration), turns * pair.first
            whole = periods_of(blocks, clock, rate=rate, meshes=meshes, samples=samples, count=1)
            check_mesh_order(next(whole)[2], turns=turns, teeth=pair.first)
        _check_length(clock.meshes, pair, periods=settings.periods, seconds=seconds)
    except DataError as error:
        named = str(error).startswith(str(path))
        raise error if named else DataError(f"{path}: {error}") from error
    count = clock.meshes // pair.period // settings.periods * settings.periods
    blocks = record.blocks(settings.vibration)
    periods = periods_of(blocks, clock, rate=rate, meshes=pair.period, samples=samples, count=count)
    made = []
    with Progress("averaging", count, unit="period", tell=lambda *_: tick()) as each_period:
        for average in averages(periods, each=settings.periods, turns=pair.turns[0], tick=each_period):
            own = indicators(average, pair, powers=powers)
            signal_T = without_mesh(average.mean_T, pair, signal=settings.signal)
            map_RC = pair.lay_out(mesh_statistic(signal_T, samples=samples, statistic=settings.statistic))
            own["row_contrast"] = float(row_contrast(map_RC).max())
            made.append(Made(map_RC, average.start_s, average.speed, average.noise, own))
    return Converted(made, seconds, rate)


def _clock(record: Record, settings: RecordSettings, teeth: int, *, rate: float, seconds: float) -> Clock:
    """Return the clock of wheel 1, as far as the vibration goes."""
    if settings.speed is not None:
        return clock_of_speed(settings.speed, seconds=seconds, teeth=teeth)
    name = settings.tachometer
    if len(record.channel(name)) == len(record.channel(settings.vibration)):
        times = pulse_times(record.blocks(name), rate=rate, level=settings.tachometer_level)
    else:  # a list of pulse times
        times = np.concatenate(list(record.blocks(name)))
        times = times[(times >= 0) & (times <= seconds)]
    check_pulses(times, name=f"channel {name!r}")
    shaft = ratio_of(settings.tachometer_shaft)
    return clock_of_pulses(times, pulses_per_turn=settings.pulses_per_turn, shaft=shaft, teeth=teeth)


def _check_length(meshes: int, pair: Pair, *, periods: int, seconds: float) -> None:
    whole, wanted = meshes // pair.period, periods * pair.period
    if whole < periods:
        least = f"periods={periods}" if whole else "one hunting-tooth period"
        hint = f"record longer or give periods={whole}" if whole else "record longer"
        raise DataError(
            f"{meshes} meshes in {seconds:.2f} s, fewer than {least} needs: {wanted} meshes, "
            f"{wanted / max(meshes, 1) * seconds:.1f} s or more at this speed; {hint}"
        )
