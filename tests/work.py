"""What tests of several folders share: counts instead of seconds, waiting that ends early, servers."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.common import answering, free_port

PATIENCE_S = 600.0
"""How long a test waits for what comes at once on a machine of its own."""
NOWHERE = "http://127.0.0.1:9"
"""A tracking server that is not there: the port of a service that nobody runs any more."""

Result = TypeVar("Result")


def functions_called(work: Callable[[], object]) -> int:
    """Return how many functions a call enters, Python's and C's."""
    count = 0

    def entered(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(entered)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


def returned(work: Callable[[], Result]) -> Result:
    """Return what a call returns, or fail where it waits for something that never comes."""
    results: list[Result] = []
    thread = threading.Thread(target=lambda: results.append(work()), daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert results, "it raised, or has not returned"
    return results[0]


def wait_for(happened: Callable[[], bool]) -> None:
    """Return as soon as something has happened."""
    deadline = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


@contextlib.contextmanager
def mlflow_server(*words: str, answers: str, log: Path, **environment: str) -> Iterator[int]:
    """Run a server of MLflow's, its lines going to ``log``; yield its port once a path of it answers."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", *words, "--host", "127.0.0.1", "--port", str(port)]
    url, env = f"http://127.0.0.1:{port}{answers}", {**os.environ, **environment}
    with answering(command, url=url, log=log, env=env):
        yield port
