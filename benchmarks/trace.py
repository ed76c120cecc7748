"""How far a reader must go: what `horizontal` enters of our own code before its first loss is there.

    python -m benchmarks.trace

Follows `python -m entry_points.horizontal` on tiny simulated data, without MLflow's thread, until
`training_loss` returns. Prints the files in the order in which a function of theirs is first entered, with
how many of each; how often execution enters a function of another file than the last one's; and our own
frames over the loss, from the process's start. What imports run does not count. Ends with 1 beyond limits.
"""

import contextlib
import inspect
import runpy
import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

from tests.contract.conftest import SETTINGS

ROOT = Path(__file__).resolve().parent.parent
OWN = ("dinomaly_hd", "entry_points")
MOST_FILES, MOST_FRAMES = 30, 6
TASK, LOSSES = "training_loss", "losses.py"


class Reached(BaseException):
    """The loss is computed; no handler of exceptions may stop this."""


class Trace:
    def __init__(self) -> None:
        self.files: dict[str, int] = {}  # own file -> functions of it that were entered first here
        self.functions: set[Any] = set()
        self.changes = 0
        self.over_loss: list[str] = []
        self._last = ""

    def __call__(self, frame: FrameType, event: str, _argument: Any) -> None:
        place = own_file(frame)
        if place is None or not frame.f_code.co_flags & inspect.CO_OPTIMIZED:  # module or class body
            return
        above = stack(frame.f_back)
        if event == "return" and frame.f_code.co_name == TASK:
            raise Reached
        if not self.over_loss and Path(place).name == LOSSES and TASK in {o.f_code.co_name for o in above}:
            self.over_loss = [f"{own_file(one)}:{one.f_code.co_qualname}" for one in above]
        if event == "call" and not any(one.f_code.co_name == "<module>" for one in above[1:]):
            if frame.f_code not in self.functions and not frame.f_code.co_name.startswith("<"):
                self.functions.add(frame.f_code)
                self.files[place] = self.files.get(place, 0) + 1
            self.changes += place != self._last
            self._last = place


def own_file(frame: FrameType) -> str | None:
    """Return a frame's file below the project's folder, None where it is not ours."""
    name = frame.f_code.co_filename.removeprefix(f"{ROOT}/")
    return name if name.startswith(OWN) else None


def stack(frame: FrameType | None) -> list[FrameType]:
    """Return our own frames, from the outermost to this one."""
    found = []
    while frame is not None:
        if own_file(frame):
            found.append(frame)
        frame = frame.f_back
    return found[::-1]


def traced() -> Trace:
    from dinomaly_hd.data.simulator import simulate

    trace = Trace()
    with tempfile.TemporaryDirectory() as folder:
        data = simulate(Path(folder) / "data", size=SETTINGS["simulate_size"], seed=0)
        flags = {**SETTINGS, "data_root": str(data), "result_dir": f"{folder}/results", "feature_gb": "0"}
        surroundings = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
        words = ["horizontal", *(f"--{name}={value}" for name, value in flags.items())]
        own = mock.patch("entry_points.common.ROOT", Path(folder))  # where MLflow keeps artifacts
        with mock.patch.dict("os.environ", surroundings), mock.patch("sys.argv", words), own:
            sys.setprofile(trace)
            with contextlib.suppress(Reached):
                runpy.run_module("entry_points.horizontal", run_name="__main__")
            sys.setprofile(None)
    return trace


def main() -> None:
    trace = traced()
    for number, (name, functions) in enumerate(trace.files.items(), start=1):
        print(f"{number:3} {name} ({functions})")
    print("\nover the loss:", *trace.over_loss, sep="\n    ")
    lines = sum((ROOT / name).read_text().count("\n") for name in trace.files)
    files, frames = len(trace.files), len(trace.over_loss)
    print(f"\n{files} files ({lines} lines; at most {MOST_FILES}), {len(trace.functions)} functions,")
    print(f"{trace.changes} changes of file, {frames} frames over the loss (at most {MOST_FRAMES})")
    sys.exit(1 if files > MOST_FILES or frames > MOST_FRAMES else 0)


if __name__ == "__main__":
    main()
