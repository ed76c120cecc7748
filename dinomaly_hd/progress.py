"""How far long work is: a live bar on a terminal and in a notebook, plain lines in a file or pipe."""

import os
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

LONG_S = 0.5  # work that takes less shows no bar
LINES = 10
LOOK = "{desc} {percentage:3.0f} %|{bar}| {n_fmt}/{total_fmt}, {rate_noinv_fmt}, {remaining} left{postfix}"
STYLE: dict[str, Any] = {
    "bar_format": LOOK,
    "mininterval": 0.2,
    "miniters": 1,
    "dynamic_ncols": True,
    "smoothing": 0,  # the time left is by the mean rate, as validations come now and then
}
_shown: list["Progress"] = []  # whose bars are on the screen, outermost first


def say(line: str = "") -> None:
    """Print a line, above the bars."""
    for one in _shown:
        one.bar.clear()
    print(line, flush=True)
    for one in _shown:
        one.bar.refresh()


def _live(stream: Any) -> bool:
    """Tell whether a stream is seen on a terminal or in a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if "IPKernelApp" in getattr(shell, "config", {}):
        return True
    with suppress(OSError):  # the terminal may go at any time
        # One that says it has no columns, as some containers' do, would show nothing.
        return stream is not None and stream.isatty() and os.get_terminal_size(stream.fileno()).columns > 0
    return False


@dataclass(eq=False)
class Progress:
    """Shows in a ``with`` block how many of ``total`` units are done, at which rate, and the time left.

    With ``say`` the work is long: its bar is there from the start, and where none is seen about ten lines say
    the same. ``tell`` gets every count with the total and the seconds left.
    """

    stage: str
    total: int
    unit: str = field(kw_only=True)
    done: int = 0
    say: Callable[[str], None] | None = None
    tell: Callable[[int, int, float], None] | None = None
    bar: Any = field(default=None, init=False)

    def __enter__(self) -> Self:
        self.first, self.began, self.long = self.done, time.monotonic(), self.say is not None
        self.live = _live(sys.stderr)
        if self.live and _live(sys.stdout):
            self.say = None
        if self.long:
            self._show()
        return self

    def __exit__(self, *_: object) -> None:
        if self in _shown:
            _shown.remove(self)
            self.bar.close()

    def __call__(self, count: int = 1, **figures: float) -> None:
        """Count what was done since the last call; ``figures`` stand behind the bar."""
        self.done += count
        seconds = time.monotonic() - self.began
        left = seconds / (self.done - self.first) * (self.total - self.done)
        if self.tell is not None:
            self.tell(self.done, self.total, left)
        if self.say and (self.done == self.total or self.done % max(1, self.total // LINES) == 0):
            self.say(f"{self.unit} {self.done}/{self.total}, {left:.0f} s left")
        if self.bar is None and seconds > LONG_S:
            self._show()
        if self.bar is not None:
            text = ", ".join(f"{name} {value:#.3g}" for name, value in figures.items())
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(self.done - self.bar.n)

    def _show(self) -> None:
        if not self.live:
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a notebook without ipywidgets gets a bar of text
            from tqdm.auto import tqdm
        tqdm.monitor_interval = 0  # no thread: each call looks at the clock
        words = {"desc": self.stage, "unit": f" {self.unit}s", "leave": self.long}
        self.bar = tqdm(total=self.total, initial=self.first, **words, **STYLE)
        self.bar.start_t -= time.monotonic() - self.began
        self.bar.last_print_t = self.bar.start_t  # so the next count is drawn at once
        _shown.append(self)
