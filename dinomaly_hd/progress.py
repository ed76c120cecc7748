"""How far long work is: a live bar on a terminal and in a notebook, plain lines in a file or pipe."""

import os
import sys
import time
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

LONG_S = 0.5  # work that takes less shows no bar
REDRAWN_S = 0.2
LOOK = "{desc} {percentage:3.0f} %|{bar}| {n_fmt}/{total_fmt}, {rate_noinv_fmt}, {remaining} left{postfix}"
LINES = 10
_shown: list[Any] = []  # the bars on the screen, outermost first


def say(line: str = "") -> None:
    """Print a line, above the bars."""
    for bar in _shown:
        bar.clear()
    print(line, flush=True)
    for bar in _shown:
        bar.refresh()


def _in_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return "IPKernelApp" in getattr(shell, "config", {})


def _on_terminal(stream: Any) -> bool:
    # One that says it has no columns, as some containers' do, would show nothing.
    return stream is not None and stream.isatty() and os.get_terminal_size(stream.fileno()).columns > 0


class Progress:
    """Shows in a ``with`` block how many of ``total`` units are done, at which rate, and the time left.

    With ``say`` the work is long: its bar is there from the start, and where none is seen about ten lines say
    the same. ``tell`` gets every count with the total and the seconds left.
    """

    def __init__(
        self,
        stage: str,
        total: int,
        *,
        unit: str,
        done: int = 0,
        say: Callable[[str], None] | None = None,
        tell: Callable[[int, int, float], None] | None = None,
    ) -> None:
        self.done, self.total, self._first, self._began = done, total, done, time.monotonic()
        self._stage, self._unit, self._tell = stage, unit, tell
        self._bar: Any = None
        notebook = _in_notebook()
        self._live = notebook or _on_terminal(sys.stderr)
        self._say = None if self._live and (notebook or _on_terminal(sys.stdout)) else say
        self._long = say is not None
        if self._long:
            self._show()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
            _shown.remove(self._bar)

    def __call__(self, count: int = 1, **figures: float) -> None:
        """Count what was done since the last call; ``figures`` stand behind the bar."""
        self.done += count
        seconds = time.monotonic() - self._began
        left = seconds / (self.done - self._first) * (self.total - self.done)
        if self._tell is not None:
            self._tell(self.done, self.total, left)
        if self._say and (self.done == self.total or self.done % max(1, self.total // LINES) == 0):
            self._say(f"{self._unit} {self.done}/{self.total}, {left:.0f} s left")
        if self._bar is None and seconds > LONG_S:
            self._show()
        if self._bar is not None:
            if figures:
                text = ", ".join(f"{name} {value:#.3g}" for name, value in figures.items())
                self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(self.done - self._bar.n)

    def _show(self) -> None:
        if not self._live:
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a notebook without ipywidgets gets a bar of text
            from tqdm.auto import tqdm
        tqdm.monitor_interval = 0  # no thread: each call looks at the clock
        self._bar = tqdm(
            desc=self._stage,
            total=self.total,
            initial=self._first,
            unit=f" {self._unit}s",
            bar_format=LOOK,
            mininterval=REDRAWN_S,
            miniters=1,
            smoothing=0,  # the time left is by the mean rate, as validations come now and then
            dynamic_ncols=True,
            leave=self._long,
        )
        self._bar.start_t -= time.monotonic() - self._began
        self._bar.last_print_t = self._bar.start_t  # so the next count is drawn at once
        _shown.append(self._bar)
