"""What `report` promises: any set of runs, found wherever they lie; what is wrong or missing is named."""

import contextlib
import re
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest

from dinomaly_hd.errors import ConfigError, DataError, OutputError, SignalGuard, TrackingError
from dinomaly_hd.evaluation.results import evaluate
from dinomaly_hd.experiments import reporting
from dinomaly_hd.experiments.find import Asked
from dinomaly_hd.experiments.reporting import Report
from dinomaly_hd.files import publish_json, read_json
from dinomaly_hd.runs.folder import Context, read_state
from dinomaly_hd.runs.journal import FOLDER_TAG, Outbox
from dinomaly_hd.runs.store import client_for, prepare_store
from entry_points.common import launch
from entry_points.report import main
from tests.work import NOWHERE, made_up_scores

EXPERIMENT = "contract"
DOMAINS = ("domain_A", "domain_C")
DRAWN = reporting.comparison_pictures


class Project(NamedTuple):
    """Fake finished runs, here and in MLflow; ``ids`` are MLflow's by folder name.

    ``ablation`` is a comparison: A0 with seeds 42 and 43, F with 42 (43 was killed); K100 with seed 42 was
    taken from another comparison.
    """

    root: Path
    ablation: Path
    ids: dict[str, str]

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.root / 'mlflow.db'}"

    @property
    def results(self) -> Path:
        return self.root / "results"


def write_run(
    folder: Path,
    *,
    seed: int,
    label: str = "A0",
    variant: str = "baseline",
    effect: float = 0.0,
    digest: str = "d" * 64,
    encoder: str = "small",
    status: str = "FINISHED",
    run_id: str | None = None,
) -> Path:
    """Write what a run leaves behind; one that is not finished has no results."""
    config = {
        "seed": seed,
        "model": {"variant": variant, **({"q_percent": 100.0} if label == "K100" else {})},
        "encoder": {"encoder": encoder},
        "data": {"domains": ",".join(DOMAINS), "train_domains": "all"},
    }
    publish_json(folder / "run.json", {"status": status, **({"mlflow_run_id": run_id} if run_id else {})})
    publish_json(folder / "experiment_settings.json", {"config": config})
    track(folder, {"kind": "train", "variant": variant, "config": label})
    if status != "FINISHED":
        return folder
    table = made_up_scores(DOMAINS, count=6, seed=seed + int(10 * effect))
    table["score"] += effect * table["label"]
    head = {"variant": variant, "label": label, "seed": seed, "config": config, "data_digest": digest}
    head |= {"domains": list(DOMAINS)} | evaluate(table, normal_thresholds={}, seed=0, draws=2)
    publish_json(folder / "results.json", head)
    (folder / "scores").mkdir()
    for number, name in enumerate(("max", "mean", "std", "contrast")):
        table[f"trivial/{name}"] = [float(len(path) + number) for path in table["path"]]
    for domain, own in table.groupby("domain", sort=False):
        file = folder / "scores" / f"{domain}.csv"
        own.drop(columns="domain").to_csv(file, index=False, float_format="%.17g")
    return folder


def track(folder: Path, tags: dict[str, str]) -> None:
    outbox = Outbox(folder)
    outbox.open_run(experiment=EXPERIMENT, run_name=folder.name, tags=tags, parent_run_id=None)
    outbox.close()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A comparison with its runs, in folders and in MLflow."""
    root = tmp_path_factory.mktemp("prepared")
    results = root / "results"
    ablation = results / "ablation" / "baseline" / "20260101_000000_seed42"
    other = results / "ablation" / "topk" / "20250101_000000_seed42"
    project = Project(root, ablation, {})
    experiment_id = prepare_store(project.uri, experiment=EXPERIMENT, root=root)
    client = client_for(project.uri)

    def new_run(name: str, tags: dict[str, str]) -> str:
        run_id = client.create_run(experiment_id, tags=tags, run_name=name).info.run_id
        return project.ids.setdefault(name, run_id)

    kind = {"kind": "ablation", "variant": "baseline"}
    parent = new_run("ablation", kind)
    publish_json(ablation / "run.json", {"status": "FAILED", "mlflow_run_id": parent})
    track(ablation, kind)
    for label, variant, seed, effect, encoder, within in (
        ("A0", "baseline", 42, 0.0, "small", ablation),
        ("F", "horizontal", 42, 1.0, "base", ablation),
        ("A0", "baseline", 43, 0.0, "small", ablation),
        ("F", "horizontal", 43, 1.0, "base", ablation),
        ("K100", "topk", 42, 0.5, "small", other),
    ):
        folder = within / f"{label}_seed{seed}"
        status = "KILLED" if (label, seed) == ("F", 43) else "FINISHED"
        above = {"mlflow.parentRunId": parent} if within == ablation else {}
        tags = {"kind": "train", "variant": variant, "config": label, FOLDER_TAG: str(folder)}
        run_id = new_run(folder.name, tags | above)
        client.log_param(run_id, "seed", str(seed))
        told: dict[str, Any] = {"variant": variant, "status": status, "effect": effect, "encoder": encoder}
        write_run(folder, seed=seed, label=label, run_id=run_id, **told)
        if status == "FINISHED":
            client.log_artifact(run_id, str(folder / "results.json"))
            client.log_artifacts(run_id, str(folder / "scores"), "scores")
        client.set_terminated(run_id, status)
    labels = ["A0", "F", "K100"]
    ids = project.ids
    summary = {
        "title": "Ablation of 3 configs",
        "question": "Which helps?",
        "compared": ["encoder"],
        "labels": labels,
        "reference": "A0",
        "data_digest": "d" * 64,
        "runs": [{"label": label, "seed": 42, "name": ids[f"{label}_seed42"]} for label in labels],
        "failed": {"F, seed 43": "loss is NaN at step 7"},
    }
    publish_json(ablation / "final_summary.json", summary)
    client.log_artifact(parent, str(ablation / "final_summary.json"))
    client.set_terminated(parent, "FAILED")
    shutil.copytree(root / "mlartifacts", root / "kept")
    with contextlib.closing(sqlite3.connect(root / "mlflow.db")) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return project


@pytest.fixture
def project(prepared: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A copy to change, without pictures, which take seconds."""
    monkeypatch.setattr(reporting, "comparison_pictures", lambda *_, **__: {})
    root = tmp_path / "project"
    shutil.copytree(prepared.root, root, ignore=shutil.ignore_patterns("mlartifacts", "*-wal", "*-shm"))
    shutil.rmtree(prepared.root / "mlartifacts")  # MLflow remembers by run id where artifacts lie
    shutil.copytree(prepared.root / "kept", prepared.root / "mlartifacts")
    own = Project(root, root / prepared.ablation.relative_to(prepared.root), prepared.ids)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", own.uri)
    return own


def report(
    project: Project,
    *runs: str | Path,
    query: str = "",
    label_by: str = "config",
    experiment: str = EXPERIMENT,
    say: Callable[[str], None] = lambda _: None,
    **asked: Any,
) -> tuple[Path, Report]:
    context = Context(
        root=project.root,
        result_dir=project.results,
        experiment=experiment,
        guard=SignalGuard(),
        say=say,
        command="python -m entry_points.report --runs=...",
        entry_point="report",
    )
    return reporting.report(Asked(tuple(map(str, runs)), query, label_by, **asked), context)


def logged(project: Project, run_id: str, folder: str | None = None) -> set[str]:
    return {item.path for item in client_for(project.uri).list_artifacts(run_id, folder)}


def report_runs(project: Project) -> list[Any]:
    client = client_for(project.uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], "tags.kind = 'report'"))


# ---- which runs, and where they lie ----


def test_runs_are_reported_in_a_new_folder_and_logged(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporting, "comparison_pictures", DRAWN)
    lines: list[str] = []
    folder, written = report(
        project, project.ablation / "A0_seed42", "K100_seed42", say=lines.append, title="Two"
    )
    assert folder.parent == project.results / "report"
    assert written.comparison.labels == ("cfg-A0", "cfg-K100")
    names = {path.relative_to(folder).as_posix() for path in written.files}
    assert names >= {"report.html", "report.md", "final_summary.json", "tables/means.csv"}
    assert names >= {"tables/values.csv", "tables/differences.csv", "tables/delong.csv"}
    assert any(name.startswith("plots/forest_domain_C_cold") for name in names)
    assert all((folder / name).stat().st_size for name in names)
    text = (folder / "report.md").read_text()
    assert text.startswith("# Two\n")
    assert "Nothing can be concluded about cfg-K100 (1): fewer than 3 seeds" in text
    assert lines[-1] == f"report: {folder / 'report.html'}"
    assert set(text.splitlines()) <= set(lines)

    (run,) = report_runs(project)
    state = {"status": "FINISHED", "mlflow_run_id": run.info.run_id, "in_mlflow": True}
    assert read_state(folder) == state
    assert run.info.status == "FINISHED"
    assert run.data.params["runs"] == f"{project.ablation / 'A0_seed42'},K100_seed42"
    assert "domain_C/cold/auroc_mean.cfg-K100" in run.data.metrics
    assert logged(project, run.info.run_id) >= {"report.html", "report.md", "tables", "plots"}
    assert "tables/delong.csv" in logged(project, run.info.run_id, "tables")

    page = (folder / "report.html").read_text()
    references = re.findall(r"(?:src|href)\s*=\s*[\"']?([^\"'\s>]*)", page)
    assert len(references) >= 4
    assert all(reference.startswith("data:image/png;base64,") for reference in references), "from elsewhere"
    assert "<script" not in page


def test_a_comparison_stands_for_its_members_and_names_what_is_missing(project: Project) -> None:
    folder, written = report(project, project.ablation)
    assert folder == project.ablation
    assert written.comparison.labels == ("cfg-A0", "cfg-F", "cfg-K100"), "K100 was run in another comparison"
    assert written.comparison.seeds == {"cfg-A0": (42, 43), "cfg-F": (42,), "cfg-K100": (42,)}
    for name in ("report.md", "report.html"):
        text = (folder / name).read_text()
        assert "Ablation of 3 configs" in text
        assert "F, seed 43 (status KILLED" in text, name
        assert "cfg-F has no seed 43, cfg-K100 has no seed 43" in text, name
    summary = read_json(folder / "final_summary.json")
    assert (summary["reference"], summary["compared"]) == ("cfg-A0", ["encoder"])
    parent = project.ids["ablation"]
    run = client_for(project.uri).get_run(parent)
    assert run.info.status == "FAILED", "a report changes no run's state"
    results = [read_json(project.ablation / f"A0_seed{seed}" / "results.json") for seed in (42, 43)]
    mean = np.mean([result["per_domain_metrics"]["domain_C"]["auroc"] for result in results])
    assert run.data.metrics["domain_C/auroc_mean.cfg-A0"] == pytest.approx(mean, abs=1e-4)
    assert logged(project, parent) >= {"report.html", "report.md", "tables"}
    assert report_runs(project) == []
    again, second = report(project, parent)
    assert (again, second.comparison.labels) == (folder, written.comparison.labels)
    assert second.markdown == written.markdown


def test_what_failed_is_named_until_an_attempt_finishes_or_did_not_end(project: Project) -> None:
    def markdown() -> str:
        return report(project, project.ablation)[1].markdown

    shutil.rmtree(project.ablation / "F_seed43")
    assert "F, seed 43 (loss is NaN at step 7)" in markdown()
    write_run(project.ablation / "F_seed43", seed=43, label="F", variant="horizontal", encoder="base")
    assert "Failed" not in markdown()
    assert "F has no seed 43" not in markdown()
    (project.ablation / "final_summary.json").unlink()
    unended = markdown()
    assert unended.startswith(f"# Ablation {project.ablation.name}\n")
    assert f"comparison {project.ids['ablation']} (status FAILED: it has not come to" in unended


def test_what_lies_only_in_mlflow_is_found_there_also_by_a_query(project: Project) -> None:
    here = report(project, "A0_seed42", output=project.root / "here")[1].comparison
    (run,) = report_runs(project)
    client_for(project.uri).delete_run(run.info.run_id)
    shutil.rmtree(project.ablation)
    folder, written = report(project, project.ids["ablation"])
    assert folder.parent == project.results / "report"
    assert written.comparison.seeds == {"cfg-A0": (42, 43), "cfg-F": (42,), "cfg-K100": (42,)}
    assert "F, seed 43 (status KILLED" in written.markdown
    assert "report.html" in logged(project, project.ids["ablation"])
    assert report_runs(project) == []

    lines: list[str] = []
    _, written = report(project, query="tags.variant = 'baseline'", say=lines.append)
    assert written.comparison.seeds == {"cfg-A0": (42, 43)}
    assert "query: 1 matches that are no training runs are left out (ablation)" in lines
    assert report_runs(project)[0].data.params["query"] == "tags.variant = 'baseline'"
    _, written = report(project, "K100_seed42", query="tags.kind='train' and params.seed = '42'")
    assert sorted(written.comparison.seeds) == ["cfg-A0", "cfg-F", "cfg-K100"]
    assert len(written.comparison.runs) == 3, "a run that is named and matches counts once"
    there = report(project, project.ids["A0_seed42"])[1].comparison
    pd.testing.assert_frame_equal(here.values, there.values)


# ---- what it is called ----


def test_a_report_can_be_reported_on_again_and_is_kept_beside_another_view(project: Project) -> None:
    first, written = report(project, "A0_seed42", "F_seed42")
    again, second = report(project, first.name)
    assert again == first
    assert second.comparison.labels == written.comparison.labels
    assert len(report_runs(project)) == 1
    before = (first / "report.md").read_text()
    other, second = report(project, first.name, reference="F")
    assert other != first
    assert second.comparison.reference == "cfg-F"
    assert (first / "report.md").read_text() == before
    assert len(report_runs(project)) == 2

    folder, written = report(project, project.ablation, label_by="variant")
    assert written.comparison.labels == ("baseline", "horizontal", "topk")
    assert folder != project.ablation, "the comparison keeps its own labels"
    runs = (project.ablation / "A0_seed42", project.ablation / "F_seed42")
    _, written = report(project, *runs, label_by="encoder", reference="encoder=base")
    assert written.comparison.labels == ("encoder=small", "encoder=base")
    assert written.comparison.reference == "encoder=base"
    assert not written.comparison.settings.notes
    _, written = report(project, "A0_seed42", "K100_seed42", label_by="q_percent")
    assert written.comparison.labels == ("no q_percent", "q_percent=100")


# ---- what is refused ----


def test_what_cannot_be_reported_is_one_line_and_leaves_nothing(project: Project, tmp_path: Path) -> None:
    def refusal(error: type[Exception], *runs: str | Path, **changes: Any) -> str:
        with pytest.raises(error) as caught:
            report(project, *runs, **changes)
        assert "\n" not in str(caught.value)
        assert not list((project.results / "report").glob("*"))
        return str(caught.value)

    both = ("A0_seed42", "K100_seed42")
    other = write_run(project.results / "a" / "other_seed42", seed=42, label="other", digest="e" * 64)
    refused: list[tuple[type[Exception], tuple[str | Path, ...], dict[str, Any], str]] = [
        (ConfigError, both, {"label_by": "encodr"}, "label_by='encodr'.*Did you mean 'encoder'"),
        (ConfigError, both, {"reference": "K10"}, "reference 'K10' is not a label.*Did you mean 'cfg-K100'"),
        (ConfigError, both, {"label_by": "encoder"}, "label 'encoder=small' has seed 42 twice"),
        (ConfigError, ("F_seed43",), {}, r"no finished run among .*: cfg-F, seed 43: status KILLED"),
        (ConfigError, (), {}, "at least one"),
        (OutputError, ("A0_seed42",), {"output": project.ablation}, "already there"),
        (
            DataError,
            ("A0_seed42", other),
            {},
            rf"cfg-A0, seed 42 \(.*other, seed 42 \({other}\).*different data",
        ),
        (ConfigError, (), {"query": "tags.variant is x"}, r"^query='tags.variant is x': MLflow cannot read"),
        (ConfigError, (), {"query": "tags.variant = 'none'"}, "no training run of experiment 'contract'$"),
        (
            ConfigError,
            (),
            {"query": "tags.kind = 'ablation'"},
            r"but 1 of other kinds \(ablation\); name comp",
        ),
        (
            ConfigError,
            (),
            {"query": "tags.kind = 'a'", "experiment": "contrct"},
            ".* Did you mean 'contract'",
        ),
    ]
    for error, runs, changes, line in refused:
        assert re.search(line, refusal(error, *runs, **changes)), line

    (tmp_path / "empty").mkdir()
    write_run(project.results / "topk" / "A0_seed42", seed=1)
    names = ("yesterday", project.ablation, "0" * 32, tmp_path / "empty", "A0_seed42")
    line = refusal(ConfigError, *names)
    assert line.startswith("runs: 4 of 5 not found: 'yesterday' is no run folder")
    assert f"'{'0' * 32}' is not under {project.results} and not in MLflow" in line
    assert f"'{tmp_path / 'empty'}' holds no run" in line
    assert "'A0_seed42' is the name of 2 runs" in line
    (project.root / "mlflow.db").unlink()
    line = refusal(TrackingError, "yesterday", "0" * 32)
    assert re.search(r"^runs: 2 of 2 .*'yesterday'.*'0{32}'.*mlflow\.db does not exist", line)


# ---- MLflow ----


def test_without_mlflow_or_scores_a_line_warns(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOWHERE)
    lines: list[str] = []
    _, written = report(project, "A0_seed42", "F_seed42", say=lines.append)
    assert all(path.is_file() for path in written.files)
    (warning,) = [line for line in lines if line.startswith("warning: ")]
    assert f"MLflow at {NOWHERE} does not answer" in warning
    with pytest.raises(TrackingError, match="does not answer"):
        report(project, "0" * 32)
    (project.ablation / "F_seed42" / "scores" / "domain_C.csv").unlink()
    markdown = report(project, "A0_seed42", "F_seed42")[1].markdown
    assert "domain_C.csv cannot be read" in markdown


def test_a_run_of_mlflow_run_holds_the_report(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    client = client_for(project.uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    for runs in ((project.ablation,), ("A0_seed42", "F_seed42")):
        begun = client.create_run(experiment.experiment_id, run_name="chosen").info.run_id
        client.log_param(begun, "runs", "'as mlflow run quotes it'")
        monkeypatch.setenv("MLFLOW_RUN_ID", begun)
        report(project, *runs)
        assert client.get_run(begun).data.tags["kind"] == "report"
        assert "report.html" in logged(project, begun)
    assert "report.html" in logged(project, project.ids["ablation"])


def test_flags_are_checked_and_errors_have_their_exit_codes(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*argv: str) -> tuple[int, str]:
        code = launch(main, ["--result_dir", str(project.results), "--experiment", EXPERIMENT, *argv])
        return code, capsys.readouterr().err

    output = tmp_path / "out"
    assert run("--runs", "A0_seed42, F_seed42", "--output", str(output)) == (0, "")
    text = (output / "report.md").read_text()
    command = next(
        line for line in text.splitlines() if line.startswith("    python -m entry_points.report ")
    )
    assert command.endswith(f"--experiment={EXPERIMENT} '--runs=A0_seed42, F_seed42' --output={output}")
    assert run("--query", "tags.variant = 'topk'")[0] == 0
    assert run() == (64, "ConfigError: runs and query: at least one of them is needed\n")
