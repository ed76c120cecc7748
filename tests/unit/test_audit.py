"""The audit of the packages finds what it says it finds, and never calls clean what it could not look up."""

import pytest

from benchmarks.audit import LOCK, ROOT, environment_faults, lock_faults, read_answer, read_lock

HASH = f"--hash=sha256:{'0' * 64}"


def test_the_lock_has_no_faults_and_ci_runs_the_audit() -> None:
    text = LOCK.read_text()
    assert "://" not in text, "it names no host"
    pins = read_lock(text)
    assert len(pins) > 100
    assert not list(lock_faults(pins))
    assert "\nmake audit\n" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (f"numpy>=2 {HASH}", "not pinned to one version"),
        (f"numpy==2.* {HASH}", "not pinned to one version"),
        (f"numpy {HASH}", "not pinned to one version"),
        ("numpy==2.0", "has no SHA-256 hash"),
        (f"numpy==2.0 {HASH[:-1]}", "has no SHA-256 hash"),
        ("numpy==2.0 --hash=md5:00", "has no SHA-256 hash"),
        (f"numpy @ git+ssh://example.invalid/numpy {HASH}", "comes from git+ssh, not from the registry"),
        (f"numpy @ file:///numpy.whl {HASH}", "comes from file, not from the registry"),
        ("--extra-index-url file:///wheels", "not a name with a version"),
        ("-e .", "not a name with a version"),
        (f"Lightning==2.6.3 {HASH}", "a compromised release"),
        ("# nothing", "holds no packages"),
    ],
)
def test_a_fault_of_the_lock_is_named(line: str, fault: str) -> None:
    assert fault in "; ".join(lock_faults(read_lock(f"# made by hand\n{line}\n    # via us\n")))


def test_an_environment_that_is_not_the_lock_s_is_named() -> None:
    pins = read_lock(f"a==1 \\\n    {HASH}\nb==1 {HASH}\nc==1 ; sys_platform == 'none' {HASH}\n")
    assert not list(lock_faults(pins))
    assert not list(environment_faults(pins, {"a": "1", "b": "1", "dinomaly-hd": "0"}))
    found = "; ".join(environment_faults(pins, {"a": "2", "d": "1", "lightning": "2.6.2"}))
    told = ("a: 2 is installed", "b 1 is in requirements.lock, but", "d 1 is installed, but", "at once")
    assert all(fault in found for fault in told)


def test_what_was_not_looked_up_is_not_called_clean() -> None:
    weakness = {"id": "X-1", "fix_versions": ["2"], "aliases": []}
    looked = {"name": "a", "version": "1", "vulns": [weakness]}
    skipped = {"name": "b", "version": "1", "skip_reason": "not found"}
    known = read_answer({"dependencies": [looked, skipped]})
    assert known == (1, ["a 1: X-1, mended in 2"], "1 packages are not known to it")
    assert read_answer({"dependencies": [skipped]}).looked_up == 0
