"""What tests of several folders share: counts instead of seconds, waiting that ends early, servers."""

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

PATIENCE_S = 600.0
"""How long a test waits for what comes at once on a machine of its own."""
NOWHERE = "http://127.0.0.1:9"
"""A tracking server that is not there: the port of a service that nobody runs any more."""

Result = TypeVar("Result")


def made_up_scores(
    domains: Sequence[str], *, count: int, seed: int = 0, conditions: Sequence[str] = ("cold", "warm")
) -> pd.DataFrame:
    """Return scores of ``count`` good and as many fault images, by 1 higher, in each domain and condition."""
    every = product(domains, conditions, enumerate(("good", "fault")), range(count))
    rows = [(f"{d}/test/{kind}/{c}{i}.tiff", d, label, c) for d, c, (label, kind), i in every]
    table = pd.DataFrame(rows, columns=["path", "domain", "label", "condition"])
    return table.assign(score=np.random.default_rng(seed).normal(size=len(table)) + table["label"])


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
def held_port() -> Iterator[int]:
    """Yield a port that the system gives to nobody else; servers that reuse addresses can take it."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


@contextlib.contextmanager
def mlflow_server(*words: str, answers: str, log: Path, **environment: str) -> Iterator[int]:
    """Run a server of MLflow's; yield its port once a path of it answers."""
    with (
        held_port() as port,
        mlflow_process(*words, port=port, answers=answers, log=log, **environment),
    ):
        yield port


@contextlib.contextmanager
def mlflow_process(
    *words: str, port: int, answers: str, log: Path, **environment: str
) -> "Iterator[subprocess.Popen[bytes]]":
    """Run a server of MLflow's at a port, its lines to ``log``, until the block ends or it is killed."""
    command = [sys.executable, "-m", "mlflow", *words, "--host", "127.0.0.1", "--port", str(port)]
    with log.open("ab") as stream:
        told: Any = {"stdout": stream, "stderr": stream, "env": {**os.environ, **environment}}
        process = subprocess.Popen(command, start_new_session=True, **told)

    def up() -> bool:
        assert process.poll() is None, f"it ended: {log.read_text()[-2000:]}"
        with contextlib.suppress(OSError, http.client.HTTPException):
            urllib.request.urlopen(f"http://127.0.0.1:{port}{answers}", timeout=60).close()
            return True
        return False

    try:
        wait_for(up)
        yield process
    finally:
        kill(process)


def kill(process: "subprocess.Popen[bytes]") -> None:
    """Send SIGKILL to a process and all that it started: they are a process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
