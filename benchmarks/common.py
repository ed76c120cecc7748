"""What benchmarks share: flags, records in benchmarks/results, entry points started as a user starts them."""

import json
import os
import sys
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from dinomaly_hd.files import publish_json

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"

Result = TypeVar("Result")


def flags(
    doc: str | None, *, first: str = "", among: Sequence[str] | None = None, **defaults: Any
) -> tuple[Namespace, list[str]]:
    """Return a benchmark's flags, each with a default of its type (False: a switch), and the other words.

    ``first`` names a positional word: one of those ``among``, or else any or none.
    """
    parser = ArgumentParser(description=doc, formatter_class=RawDescriptionHelpFormatter)
    if first:
        parser.add_argument(first, choices=among, nargs=None if among else "?")
    for name, default in defaults.items():
        if default is False:
            parser.add_argument(f"--{name}", action="store_true")
        else:
            parser.add_argument(f"--{name}", type=str if default is None else type(default), default=default)
    return parser.parse_known_args()


def given(doc: str | None, **options: Any) -> Namespace:
    """Return the flags; a word that is none of them ends the program."""
    told, rest = flags(doc, **options)
    if rest:
        sys.exit(f"unknown: {' '.join(rest)}; --help lists what there is")
    return told


def numbers(text: str | None) -> list[int]:
    return [int(number) for number in (text or "").split(",") if number]


def record(name: str, content: Mapping[str, Any], *, show: bool = True) -> None:
    """Write benchmarks/results/{name}.json, and print it."""
    RESULTS.mkdir(exist_ok=True)
    publish_json(RESULTS / f"{name}.json", content)
    if show:
        print(f"{json.dumps(content, indent=2)}\nwritten: {name}.json")


def entry_point(name: str, values: Mapping[str, object]) -> list[str]:
    words = [f"--{key}={value}" for key, value in values.items()]
    return [sys.executable, "-m", f"entry_points.{name}", *words]


def surroundings(folder: Path, **more: str) -> dict[str, str]:
    """Return the environment of a process whose MLflow store lies in ``folder``."""
    return {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}", **more}


def timed(work: Callable[[], Result]) -> tuple[float, Result]:
    """Return the wall time of a call in seconds, and what it returned."""
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result
