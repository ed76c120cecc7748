"""Provenance must never stop a run: without git, without a commit, with a huge diff."""

import subprocess
from pathlib import Path

import pytest

from dinomaly_hd import provenance


def git(root: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(root), *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "--quiet")
    (tmp_path / "a.txt").write_text("one\n")
    git(tmp_path, "add", ".")
    return tmp_path


def test_outside_a_repository_and_without_git_there_is_nothing_to_say(
    repository: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = tmp_path_factory.mktemp("outside")
    assert (provenance.git_facts(outside), provenance.git_diff(outside)) == ({}, "")
    monkeypatch.setenv("PATH", "/nowhere")
    assert (provenance.git_facts(repository), provenance.git_diff(repository)) == ({}, "")


def test_a_repository_without_a_commit_is_dirty_and_shows_what_is_staged(repository: Path) -> None:
    assert provenance.git_facts(repository) == {"git_dirty": "true"}
    assert "+one" in provenance.git_diff(repository)


def test_clean_and_dirty_trees_are_told_apart(repository: Path) -> None:
    git(repository, "commit", "--quiet", "-m", "first")
    facts = provenance.git_facts(repository)
    assert len(facts["git_commit"]) == 40
    assert facts["git_dirty"] == "false"
    assert provenance.git_diff(repository) == ""
    (repository / "a.txt").write_text("two\n")
    (repository / "new.txt").write_text("new\n")
    assert provenance.git_facts(repository)["git_dirty"] == "true"
    diff = provenance.git_diff(repository)
    assert "?? new.txt" in diff
    assert "-one\n+two" in diff


def test_a_huge_diff_is_cut_and_says_so(repository: Path) -> None:
    git(repository, "commit", "--quiet", "-m", "first")
    (repository / "a.txt").write_text("é" * 1_500_000)
    diff = provenance.git_diff(repository)
    assert len(diff.encode()) <= provenance.DIFF_LIMIT_BYTES
    assert diff.endswith("[cut: longer than 1000000 bytes]\n")


def test_versions_and_machine_are_named() -> None:
    versions = provenance.package_versions()
    assert versions["mlflow"].startswith("3.")
    assert "ruff" not in versions
    machine = provenance.machine_facts()
    assert int(machine["cpu_cores"]) >= 1
    assert float(machine["memory_gib"]) > 0
