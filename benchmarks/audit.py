"""Audit of the packages: what requirements.lock and this environment say, and a service of known weaknesses.

    make audit

What can be checked here decides (exit code 1): every package pinned to one version with SHA-256 hashes, none
from an address or a repository, none of the versions that are refused below, and this environment is what the
lock says. Known weaknesses are looked up with pip-audit, and fail it too unless they are accepted below;
where no service answers for a package, that is said, and does not count as a clean bill.
"""

import importlib.metadata
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"
AUDITOR = "pip-audit==2.10.1"
TIMEOUT_S = 300
OWN = frozenset({"dinomaly-hd", "pip"})
"""This project, and what makes the environment."""
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")
REFUSED = {("lightning", version): "a compromised release" for version in ("2.6.2", "2.6.3")}
"""Package and version -> why it must never be installed."""
ACCEPTED: Mapping[str, str] = {}
"""Identifier of a known weakness -> why it does not concern this project, or until when it is borne."""


class Pin(NamedTuple):
    """One package of the lock; ``faults`` is what is wrong about how it is pinned."""

    name: str
    version: str
    applies: bool
    faults: tuple[str, ...]


def read_lock(text: str) -> list[Pin]:
    """Return the packages of a lock file; a line that is no pin is one with faults."""
    whole = re.sub(r"\s*\\\n\s*", " ", re.sub(r"(?m)^\s*#.*\n?", "", text))
    return [_pin(line.strip()) for line in whole.splitlines() if line.strip()]


def _pin(line: str) -> Pin:
    words, *hashes = re.split(r"\s+(?=--hash=)", line)
    try:
        wanted = Requirement(words)
    except InvalidRequirement:
        return Pin(words, "", True, ("not a name with a version",))
    name, pins = canonicalize_name(wanted.name), list(wanted.specifier)
    faults = []
    if wanted.url:
        faults.append(f"comes from {wanted.url.partition(':')[0]}, not from the registry")
    if len(pins) != 1 or pins[0].operator != "==" or "*" in pins[0].version:
        faults.append("not pinned to one version")
    if not hashes or not all(HASH.fullmatch(word) for word in hashes):
        faults.append("has no SHA-256 hash, or something else in its place")
    version = pins[0].version if pins else ""
    faults += [REFUSED[name, version]] if (name, version) in REFUSED else []
    return Pin(name, version, wanted.marker is None or wanted.marker.evaluate(), tuple(faults))


def lock_faults(pins: Sequence[Pin]) -> Iterator[str]:
    for pin in pins:
        for fault in pin.faults:
            yield f"requirements.lock: {pin.name} {pin.version}: {fault}"
    if not pins:
        yield "requirements.lock: holds no packages; make it with `make lock`"


def environment_faults(pins: Sequence[Pin], installed: Mapping[str, str]) -> Iterator[str]:
    """Yield what differs between the lock and the packages installed (name -> version)."""
    wanted = {pin.name: pin.version for pin in pins if pin.applies}
    for name in sorted({*wanted, *installed} - OWN):
        ours, theirs = installed.get(name), wanted.get(name)
        if theirs is None:
            yield f"{name} {ours} is installed, but not in requirements.lock; run `make setup`"
        elif ours is None:
            yield f"{name} {theirs} is in requirements.lock, but not installed; run `make setup`"
        elif ours != theirs:
            yield f"{name}: {ours} is installed, requirements.lock says {theirs}; run `make setup`"
    for name, version in sorted(REFUSED.keys() & installed.items()):
        yield f"{name} {version} is installed: {REFUSED[name, version]}; remove it at once"


class Known(NamedTuple):
    """What the service of known weaknesses said: of how many packages, weaknesses, and why not of others."""

    looked_up: int
    weaknesses: list[str]
    reason: str


def look_up(lock: Path) -> Known:
    """Ask pip-audit for known weaknesses of a lock's packages; nothing of ours is installed by it."""
    command = [str(Path(sys.executable).with_name("uv")), "tool", "run", "--quiet", AUDITOR]
    command += ["--requirement", str(lock), "--require-hashes", "--disable-pip"]
    command += ["--progress-spinner", "off", "--format", "json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Known(0, [], type(error).__name__)
    try:
        return read_answer(json.loads(done.stdout))
    except ValueError:
        lines = done.stderr.strip().splitlines()
        return Known(0, [], re.sub(r"\w+://\S+", "(an address)", lines[-1])[:200] if lines else "no answer")


def read_answer(answer: Mapping[str, Any]) -> Known:
    """Return what pip-audit's JSON says. It calls a lock clean of which it could look up nothing."""
    packages = answer["dependencies"]
    looked_up = [package for package in packages if "skip_reason" not in package]
    weaknesses = [
        f"{package['name']} {package['version']}: {weakness['id']}, mended in "
        f"{', '.join(weakness.get('fix_versions', ())) or 'no version yet'}"
        for package in looked_up
        for weakness in package["vulns"]
        if not {weakness["id"], *weakness.get("aliases", ())} & ACCEPTED.keys()
    ]
    skipped = len(packages) - len(looked_up)
    return Known(len(looked_up), weaknesses, f"{skipped} packages are not known to it" if skipped else "")


def main() -> None:
    pins = read_lock(LOCK.read_text())
    installed = {canonicalize_name(one.name): one.version for one in importlib.metadata.distributions()}
    faults = [*lock_faults(pins), *environment_faults(pins, installed)]
    print(f"{len(pins)} packages in requirements.lock: pins, hashes, sources, refused versions, environment:")
    print("\n".join(f"  {fault}" for fault in faults) or "  nothing wrong")
    known = look_up(LOCK)
    if known.looked_up:
        print(f"known weaknesses, looked up for {known.looked_up} packages:")
        print("\n".join(f"  {weakness}" for weakness in known.weaknesses) or "  none")
    if not known.looked_up or known.reason:
        what = "NOT LOOKED UP" if not known.looked_up else "not looked up for all"
        print(f"known weaknesses {what}: {known.reason}; run `make audit` where a service can be reached")
    sys.exit(1 if faults or known.weaknesses else 0)


if __name__ == "__main__":
    main()
