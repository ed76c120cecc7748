"""Standard output and error whose reader may go: that ends no run. A full disk is said."""

import errno
import io
import os
import sys

from dinomaly_hd.errors import OutputError

READER_GONE = (errno.EPIPE, errno.EIO)
"""What a write to a closed pipe and to a closed terminal gives."""


class _Outlet(io.FileIO):
    """A descriptor that becomes the null device as soon as nobody reads it, or no disk takes it, any more."""

    def write(self, data: "bytes | memoryview", /) -> int:  # type: ignore[override]
        try:
            return super().write(data)
        except OSError as error:
            lost = error
        # The descriptor itself, so that child processes and C libraries are silent too.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.fileno())
        os.close(null)
        if lost.errno not in READER_GONE and self.fileno() != 2:  # of lost errors nobody can be told
            raise OutputError(f"standard output: cannot write it: {lost.strerror}") from lost
        return len(data)


def outlive_readers() -> None:
    """Let every later print and log record of this process go nowhere once its reader is gone."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        # None where it was closed from the start; another one where a test or a notebook collects the output.
        if stream is None or stream is not getattr(sys, f"__{name}__"):
            continue
        outlet = _Outlet(stream.fileno(), "w", closefd=False)
        unbuffered = isinstance(stream.buffer, io.RawIOBase)  # python -u
        new = io.TextIOWrapper(
            outlet if unbuffered else io.BufferedWriter(outlet),  # type: ignore[type-var]
            encoding=stream.encoding,
            errors=stream.errors,
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        setattr(sys, name, new)
