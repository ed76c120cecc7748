"""How vibration becomes maps: what the flags of ``hdmap`` say of a gearbox, and what a map is made of."""

from fractions import Fraction
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from dinomaly_hd.config.base import Frozen, Line, Positive, PositiveCount, doc
from dinomaly_hd.config.resolve import OrAuto

LARGEST_WHEEL = 2000


def teeth_of(text: str) -> tuple[int, int]:
    """Return the two tooth counts of "31,95"."""
    parts = text.split(",")
    if len(parts) != 2 or not all(p.strip().isdecimal() and 2 <= int(p) <= LARGEST_WHEEL for p in parts):
        raise ValueError(f"{text!r}: write two tooth counts from 2 to {LARGEST_WHEEL} such as 31,95")
    return int(parts[0]), int(parts[1])


def ratio_of(text: str) -> Fraction:
    """Return the number of "1", "0.5" or "32/96"."""
    try:
        ratio = Fraction(text)
    except (ValueError, ZeroDivisionError):
        ratio = Fraction(0)
    if ratio <= 0:
        raise ValueError(f"{text!r}: write a ratio above 0 such as 1 or 32/96")
    return ratio


def _said(text: str) -> str:
    ratio_of(text)
    return text


def _two(text: str) -> str:
    return ",".join(map(str, teeth_of(text)))


class MapSettings(Frozen):
    """What all maps of a domain have in common."""

    teeth: Annotated[str, AfterValidator(_two)] = Field(
        description="N1,N2: teeth of wheel 1 (the map's rows) and of wheel 2 (its columns), such as 31,95"
    )
    fold: bool = doc(
        False, "tooth counts with a common factor g: a map of N1 x N2/g cells instead of a refusal"
    )
    signal: Literal["residual", "difference", "none"] = doc(
        "residual", "taken out of the average: mesh and shaft harmonics, their side bands too, or nothing"
    )
    statistic: Literal["rms", "peak", "kurtosis"] = doc("rms", "the number of each mesh")
    periods: PositiveCount = doc(4, "hunting-tooth periods, of lcm(N1,N2) meshes each, averaged into one map")


class RecordSettings(MapSettings):
    """What is known of a record beside it."""

    vibration: Line = doc("vibration", "channel of the vibration; NAME:3 is column 3 of a table")
    tachometer: Line = doc(
        "tachometer", "channel in which pulses are found, or one that lists pulse times in seconds"
    )
    tachometer_level: OrAuto[float] = doc(None, "what a pulse rises through; auto: half way up")
    pulses_per_turn: PositiveCount = doc(1, "of the tachometer")
    tachometer_shaft: Annotated[str, AfterValidator(_said)] = doc(
        "1", "turns of wheel 1 per turn of the tachometer's shaft, such as 32/96"
    )
    rate: OrAuto[Positive] = doc(None, "samples a second; auto: as the file says")
    speed: OrAuto[Positive] = doc(
        None, "steady turns of wheel 1 a second, known instead of a tachometer; auto: from the tachometer"
    )
