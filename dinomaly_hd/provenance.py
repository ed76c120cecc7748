"""Where a result comes from: commit and uncommitted changes, package versions, the machine."""

import hashlib
import importlib.metadata
import os
import platform
import re
import resource
import subprocess
import sys
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent
NUMBERS = (
    *("batch.py", "geometry.py", "randomness.py", "trivial.py", "config", "data", "models", "training"),
    *("experiments/prepare.py", "experiments/score.py", "experiments/synthetic.py"),
)
"""What decides a run's scores."""
DIFF_LIMIT_BYTES = 1_000_000
GIT_TIMEOUT_S = 20.0


def git_facts(root: Path) -> dict[str, str]:
    """Return ``git_commit`` and ``git_dirty`` ("true"/"false"); empty outside a repository or without git."""
    if _git(root, "rev-parse", "--is-inside-work-tree") is None:
        return {}
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
    diff = _git(root, "diff", "--no-ext-diff", "--no-textconv", "--no-color", "HEAD")
    if diff is None:  # a repository without a commit
        diff = _git(root, "diff", "--no-ext-diff", "--no-textconv", "--no-color", "--cached")
    text = f"{status}\n{diff or ''}".encode()
    if len(text) <= DIFF_LIMIT_BYTES:
        return text.decode()
    notice = f"\n[cut: longer than {DIFF_LIMIT_BYTES} bytes]\n"
    return text[: DIFF_LIMIT_BYTES - len(notice)].decode(errors="ignore") + notice


@cache
def code_digest() -> str:
    """Return 16 hex digits of the source that decides a run's scores: config, data, models and training.

    A finished run is used again only where this is the same.
    """
    total = hashlib.sha256()
    for name in NUMBERS:
        place = PACKAGE / name
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            total.update(path.relative_to(PACKAGE).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()[:16]


def package_versions(distribution: str = "dinomaly-hd") -> dict[str, str]:
    """Return installed versions of Python, a distribution and what it directly requires, by name."""
    versions = {"python": platform.python_version()}
    try:
        requirements = importlib.metadata.requires(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        requirements = []
    names = [
        re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0] for line in requirements if "extra ==" not in line
    ]
    for name in [distribution, *names]:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def machine_facts() -> dict[str, str]:
    """Return operating system, usable cores, memory in GiB, and the GPU's name if torch is in use."""
    facts = {"os": platform.platform(), "cpu_cores": str(_usable_cores())}
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        facts["memory_gib"] = f"{memory / 2**30:.1f}"
    torch = sys.modules.get("torch")  # not imported for this: it takes seconds and may open the GPU
    if torch is not None and torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
        facts["gpu_count"] = str(torch.cuda.device_count())
    return facts


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _git(root: Path, *arguments: str) -> str | None:
    """Return git's output, or None if it fails, hangs or is not there."""
    command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
    try:
        process = subprocess.run(command, capture_output=True, timeout=GIT_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return process.stdout.decode(errors="replace") if process.returncode == 0 else None


def peak_memory_mib() -> float:
    """Return the largest resident memory that this process has held so far, MiB.

    Linux hands the figure of ``getrusage`` on to a new program, so a child would show its parent's peak; the
    kernel's own record of the process does not have that fault.
    """
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024
    except (OSError, LookupError, ValueError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
