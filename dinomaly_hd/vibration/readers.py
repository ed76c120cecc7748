"""Records of common formats as named channels, read by libraries, in blocks where the format allows it."""

import importlib
import mmap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dinomaly_hd.errors import ConfigError, DataError, nearest, reason_of

Floats = NDArray[np.float64]

BLOCK = 2**18  # samples
RATES = ("rate", "fs", "sampling_rate", "sample_rate", "sampling_frequency")  # what files call it, any case
HEAD_LINES, HEAD_BYTES = 50, 2**16
EXTRA = "pip install 'dinomaly-hd[vibration]'"


class Record(NamedTuple):
    """A file's channels by name, each cut like an array, and its sampling rate if it says one."""

    path: Path
    channels: Mapping[str, Any]
    rate: float | None

    def channel(self, name: str) -> Any:
        """Return one channel; ``NAME:3`` is column 3, from 0, of one with several."""
        key, _, column = name.partition(":")
        found = self.channels.get(name)
        table = self.channels.get(key)
        if found is None and column.isdecimal() and table is not None and np.ndim(table) == 2:
            found = table[:, int(column)] if int(column) < table.shape[1] else None
        if found is None:
            raise DataError(f"{self.path}: no channel {name!r}.{nearest(name, self.channels)}")
        if np.ndim(found) > 1:
            if 1 not in np.shape(found):
                shape = " x ".join(map(str, np.shape(found)))
                raise DataError(f"{self.path}: channel {name!r} is {shape}; name a column, as {name}:0")
            found = np.ravel(found)
        return found

    def blocks(self, name: str) -> Iterator[Floats]:
        """Yield a channel's samples in order; NaN and infinities are refused where they stand."""
        channel = self.channel(name)
        for start in range(0, len(channel), BLOCK):
            block = np.array(channel[start : start + BLOCK], np.float64)
            if mapped := getattr(channel, "_mmap", None):
                mapped.madvise(mmap.MADV_DONTNEED)  # what was read would stay in this process's memory
            bad = np.flatnonzero(~np.isfinite(block))
            if len(bad):
                raise DataError(
                    f"{self.path}: sample {start + bad[0]} of channel {name!r} is not a finite number "
                    f"({len(bad)} of {len(block)} around it); cut the record there"
                )
            yield block


def open_record(path: Path) -> Record:
    """Return a record; wav and npy stay on disk until they are cut, other formats are read whole.

    Raises:
        DataError: It is missing, damaged, or of no known format.
        ConfigError: The library that reads it is not installed.
    """
    read = READERS.get(path.suffix.lower())
    if read is None:
        raise DataError(f"{path}: format {path.suffix!r} is not read; expected one of {', '.join(READERS)}")
    try:
        channels, rate = read(path)
    except (ConfigError, MemoryError):
        raise
    except Exception as error:  # every library has its own errors for damaged files
        raise DataError(f"{path}: cannot be read: {reason_of(error)}") from error
    said = {name.lower(): value for name, value in channels.items() if np.size(value) == 1}
    named = next((float(np.ravel(said[name])[0]) for name in RATES if name in said), None)
    return Record(
        path, {name: value for name, value in channels.items() if np.size(value) > 1}, rate or named
    )


Content = tuple[dict[str, Any], float | None]


def _npz(path: Path) -> Content:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}, None


def _npy(path: Path) -> Content:
    return _columns(np.load(path, mmap_mode="r", allow_pickle=False)), None


def _mat(path: Path) -> Content:
    from scipy.io import loadmat

    try:
        content = loadmat(path)
    except NotImplementedError:
        raise DataError("MATLAB's version 7.3; save it with -v7") from None
    arrays = {name: value for name, value in content.items() if isinstance(value, np.ndarray)}
    return {name: value for name, value in arrays.items() if value.dtype.kind in "iuf"}, None


def _wav(path: Path) -> Content:
    from scipy.io import wavfile

    rate, samples = wavfile.read(path, mmap=True)
    return _columns(samples), float(rate)


def _tdms(path: Path) -> Content:
    file = library("nptdms").TdmsFile.read(path)
    channels = [channel for group in file.groups() for channel in group.channels()]
    steps = [step for channel in channels if (step := channel.properties.get("wf_increment"))]
    return {channel.name: channel[:] for channel in channels}, 1 / steps[0] if steps else None


def _parquet(path: Path) -> Content:
    table = library("pyarrow.parquet").read_table(path)
    return {name: table[name].to_numpy() for name in table.column_names}, None


def _csv(path: Path) -> Content:
    """Read a table of numbers: commas, semicolons, tabs or blanks, with or without lines of text above it.

    Columns without names are 0, 1, 2...
    """
    import pandas as pd

    with path.open(encoding="utf-8-sig", errors="replace") as stream:
        lines = stream.read(HEAD_BYTES).splitlines()[:HEAD_LINES]
    separators = {sign: sign for sign in ",;\t"}
    for number, line in enumerate(lines):
        sign = next((separators[sign] for sign in separators if sign in line), None)
        fields = [field.strip() for field in (line.split(sign) if sign else line.split()) if field.strip()]
        if fields and all(map(_is_number, fields)):
            above = lines[number - 1] if number else ""
            titles = [title.strip() for title in (above.split(sign) if sign else above.split())]
            names = titles if len(titles) == len(fields) else list(map(str, range(len(fields))))
            table = pd.read_csv(
                path,
                sep=sign or r"\s+",
                skiprows=number,
                header=None,
                dtype=np.float32,
                engine="c",
                usecols=range(len(fields)),
            )
            return {name: table[column].to_numpy() for column, name in enumerate(names)}, None
    raise DataError("no line of numbers")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _columns(samples: NDArray[Any]) -> dict[str, Any]:
    """Return the columns of an array as channels 0, 1, 2..., without reading it."""
    if samples.ndim == 1:
        return {"0": samples}
    return {str(column): samples[:, column] for column in range(samples.shape[1])}


def library(name: str) -> Any:
    """Import what only some users need, or say how it is installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ConfigError(f"{name.partition('.')[0]} is not installed; {EXTRA}") from error


READERS: dict[str, Callable[[Path], Content]] = {
    ".npz": _npz,
    ".npy": _npy,
    ".mat": _mat,
    ".tdms": _tdms,
    ".csv": _csv,
    ".txt": _csv,
    ".wav": _wav,
    ".parquet": _parquet,
}
