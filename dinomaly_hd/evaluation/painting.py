"""Pictures drawn in processes of their own, beside what the run does meanwhile."""

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

TICK_S = 0.2


class Painters:
    """Calls functions of modules in ``count`` other processes, which end with the block; with none, here.

    A process of which the system takes the memory or the life leaves its work to this one.
    """

    def __init__(self, count: int) -> None:
        self._processes = [_started() for _ in range(count)]
        self._free: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
        for process in self._processes:
            self._free.put(process)
        self._pool = ThreadPoolExecutor(count or 1, thread_name_prefix="painters")
        self._asked: list[Future[None]] = []
        self._here, self._over = threading.Lock(), False

    def __enter__(self) -> "Painters":
        return self

    def draw(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call ``function``: here at once, or in another process, whose error `finish` raises."""
        if self._processes:
            self._asked.append(self._pool.submit(self._ask, function, arguments))
        else:
            function(*arguments)

    def finish(self, *, tick: Callable[[], None]) -> None:
        """Return when all is drawn; ``tick`` is called meanwhile and may raise."""
        for one in self._asked:
            while not wait([one], timeout=TICK_S).done:
                tick()
            one.result()

    def __exit__(self, *_: object) -> None:
        self._over = True
        for process in self._processes:
            process.kill()
        self._pool.shutdown(cancel_futures=True)
        for process in self._processes:
            with suppress(BrokenPipeError), process:
                pass

    def _ask(self, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        process = self._free.get()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            pickle.dump((function, arguments), process.stdin)
            process.stdin.flush()
            error = pickle.load(process.stdout)  # noqa: S301 - it runs this very module
        except (OSError, EOFError, pickle.UnpicklingError):
            with self._here:
                if not self._over:
                    function(*arguments)
            return
        finally:
            self._free.put(process)
        if error is not None:
            raise error


def _started() -> "subprocess.Popen[bytes]":
    """Start a process that answers until its standard input ends, as it does when this process dies."""
    return subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        start_new_session=True,  # a terminal's Ctrl-C is for the run, which ends this
    )


def _answer() -> None:
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr
    with suppress(EOFError, pickle.UnpicklingError, BrokenPipeError):
        while True:
            function, arguments = pickle.load(requests)  # noqa: S301 - of `Painters`
            error: Exception | None = None
            try:
                function(*arguments)
            except Exception as caught:
                error = caught
            pickle.dump(error, answers)
            answers.flush()


if __name__ == "__main__":
    _answer()
