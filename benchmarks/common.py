"""What benchmarks share: flags, records in benchmarks/results, entry points started as a user starts them."""

import json
import os
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from dinomaly_hd.files import publish_json

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(os.environ.get("BENCHMARK_RESULTS", ROOT / "benchmarks" / "results"))
LONGEST_S = 900.0

Result = TypeVar("Result")


def flags(
    doc: str | None, *, first: str = "", among: Sequence[str] | None = None, **defaults: Any
) -> tuple[Namespace, dict[str, str]]:
    """Return a benchmark's flags, each with a default of its type (False: a switch), and others' values.

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
    told, rest = parser.parse_known_args()
    if strange := [word for word in rest if not word.startswith("--") or "=" not in word]:
        parser.error(f"unknown: {' '.join(strange)}; further flags are --name=value")
    return told, dict(word.removeprefix("--").split("=", 1) for word in rest)


def given(doc: str | None, **options: Any) -> Namespace:
    """Return the flags; a word that is none of them ends the program."""
    told, others = flags(doc, **options)
    if others:
        sys.exit(f"unknown: {' '.join(others)}; --help lists what there is")
    return told


def numbers(text: str | None) -> list[int]:
    return [int(number) for number in (text or "").split(",") if number]


def record(name: str, content: Mapping[str, Any], *, show: bool = True) -> None:
    """Write {name}.json where results belong (BENCHMARK_RESULTS, else benchmarks/results), and print it."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    publish_json(RESULTS / f"{name}.json", content)
    if show:
        print(f"{json.dumps(content, indent=2)}\nwritten: {name}.json")


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Return rows of the same keys as a table of Markdown."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)] if rows else []
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def entry_point(name: str, values: Mapping[str, object]) -> list[str]:
    words = [f"--{key}={value}" for key, value in values.items()]
    return [sys.executable, "-m", f"entry_points.{name}", *words]


def run(name: str, values: Mapping[str, object], *, folder: Path | None = None) -> None:
    """Let an entry point come to its end, with ``folder`` quietly and with an MLflow store there."""
    quiet: dict[str, Any] = {"env": surroundings(folder), "stdout": subprocess.DEVNULL} if folder else {}
    subprocess.run(entry_point(name, values), cwd=ROOT, check=True, **quiet)


def ended(
    command: Sequence[str], folder: Path, *, cwd: Path = ROOT, **more: str
) -> subprocess.CompletedProcess[str]:
    """Let a process come to its end, in its environment an MLflow store in ``folder`` and ``more``."""
    around = {**surroundings(folder), **more}
    return subprocess.run(
        command, cwd=cwd, env=around, capture_output=True, text=True, timeout=LONGEST_S, check=False
    )


def surroundings(folder: Path) -> dict[str, str]:
    """Return the environment of a process whose MLflow store lies in ``folder``."""
    own = {key: value for key, value in os.environ.items() if key != "MLFLOW_RUN_ID"}
    return {**own, "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}"}


def newest(folder: Path, pattern: str) -> Path:
    return max(folder.glob(pattern), key=lambda path: path.stat().st_mtime)


def timed(work: Callable[[], Result]) -> tuple[float, Result]:
    """Return the wall time of a call in seconds, and what it returned."""
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result
