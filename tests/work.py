"""How much a call does, counted: what a clock would say depends on what else the machine does."""

import sys
import threading
from collections.abc import Callable
from typing import Any, TypeVar

PATIENCE_S = 600.0
"""How long a test waits for what comes at once on a machine of its own."""

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
