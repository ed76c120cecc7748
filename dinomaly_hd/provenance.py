"""Where a result comes from: commit and uncommitted changes, package versions, the machine."""

import hashlib
import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
from functools import cache
from pathlib import Path

import psutil
from packaging.requirements import Requirement

DISTRIBUTION = "dinomaly-hd"
PACKAGE = Path(__file__).parent
NUMBERS = (
    *("batch.py", "geometry.py", "randomness.py", "trivial.py", "config", "data", "models", "training"),
    *("experiments/prepare.py", "experiments/score.py"),
)
"""What decides a run's scores."""
DIFF_LIMIT_BYTES = 1_000_000
GIT_TIMEOUT_S = 20.0


def _git(root: Path, *arguments: str) -> str | None:
    """Return git's output, or None if it fails, hangs or is not there."""
    try:
        process = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(root), *arguments],
            capture_output=True,
            timeout=GIT_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return process.stdout.decode(errors="replace") if process.returncode == 0 else None


def git_facts(root: Path) -> dict[str, str]:
    """Return ``git_commit`` and ``git_dirty`` ("true"/"false"); empty outside a repository or without git."""
    commit = _git(root, "rev-parse", "--verify", "--quiet", "HEAD")
    status = _git(root, "status", "--porcelain")
    facts = {} if commit is None else {"git_commit": commit.strip()}
    return facts if status is None else facts | {"git_dirty": "true" if status else "false"}


def git_diff(root: Path) -> str:
    """Return ``git status`` and the difference to the last commit, cut at 1 MB; "" if there is no git.

    MLflow does not record a dirty work tree (spec/tracking.md, "mlflow run"), so this goes to the run.
    """
    status = _git(root, "status", "--porcelain")
    if not status:
        return ""
    plain = ("diff", "--no-ext-diff", "--no-textconv", "--no-color")
    diff = _git(root, *plain, "HEAD")
    if diff is None:  # a repository without a commit
        diff = _git(root, *plain, "--cached")
    text = f"{status}\n{diff or ''}".encode()
    if len(text) <= DIFF_LIMIT_BYTES:
        return text.decode()
    notice = f"\n[cut: longer than {DIFF_LIMIT_BYTES} bytes]\n"
    return text[: DIFF_LIMIT_BYTES - len(notice)].decode(errors="ignore") + notice


@cache
def code_digest() -> str:
    """Return 16 hex digits of the source that decides scores; a finished run of other code is run anew."""
    total = hashlib.sha256()
    for name in NUMBERS:
        place = PACKAGE / name
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            total.update(path.relative_to(PACKAGE).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()[:16]


def requirements() -> list[Requirement]:
    """Return what the installed distribution asks for here without extras; nothing if it is none."""
    try:
        asked = map(Requirement, importlib.metadata.requires(DISTRIBUTION) or ())
    except importlib.metadata.PackageNotFoundError:
        return []
    return [one for one in asked if one.marker is None or one.marker.evaluate({"extra": ""})]


def installed_version(name: str) -> str | None:
    """Return a distribution's version, None where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def package_versions() -> dict[str, str]:
    """Return the versions of Python, this distribution and what it directly requires, by name."""
    names = (DISTRIBUTION, *(one.name for one in requirements()))
    found = {name: version for name in names if (version := installed_version(name))}
    return {"python": platform.python_version(), **found}


def usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine_facts() -> dict[str, str]:
    """Return operating system, usable cores, memory in GiB, and the GPU's name if torch is in use."""
    facts = {
        "os": platform.platform(),
        "cpu_cores": str(usable_cores()),
        "memory_gib": f"{psutil.virtual_memory().total / 2**30:.1f}",
    }
    torch = sys.modules.get("torch")  # not imported for this: it takes seconds and may open the GPU
    if torch is not None and torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
        facts["gpu_count"] = str(torch.cuda.device_count())
    return facts


def peak_memory_mib() -> float:
    """Return the largest resident memory that this process has held so far, MiB."""
    # Linux hands the figure of getrusage on to a new program, so a child would show its parent's peak; the
    # kernel's own record of the process does not have that fault.
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024
    except (OSError, LookupError, ValueError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
