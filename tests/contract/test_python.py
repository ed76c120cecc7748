"""`import dinomaly_hd as dhd`: its names, and that they say what the entry points write."""

import io
import re
import subprocess
import sys
import warnings
from base64 import b64decode
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.utils import estimator_checks

import dinomaly_hd as dhd
from dinomaly_hd.errors import ConfigError, ImageError

NAMES = ["Maps", "Report", "RowEvidence", "Run", "Scan", "compare", "load", "read", "simulate", "train"]
TINY = {"preset": "quick", "simulate_size": "tiny", "domains": "A,C"}


def test_the_surface_is_these_names_and_importing_it_loads_nothing_heavy() -> None:
    assert sorted(dhd.__all__) == NAMES
    assert all(getattr(dhd, name).__doc__ for name in NAMES)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = dhd.trian
    heavy = "{'torch', 'mlflow', 'sklearn', 'pandas', 'numpy'}"
    code = f"import sys, dinomaly_hd; assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("python")


@pytest.fixture(scope="module")
def runs(place: Path) -> list[dhd.Run]:
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of MLflow, about its own types
        patch.chdir(place)
        patch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
        return [
            dhd.train(model, result_dir=place / "results", seed=seed, **TINY)
            for model in ("row_evidence", "trivial")
            for seed in (1, 2)
        ]


def test_a_run_gives_its_figures_and_scores_its_own_maps_again_to_the_last_bit(
    place: Path, runs: list[dhd.Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    maps = dhd.read(place / "data/simulated_tiny_seed0", domains=("C", "A")).of(split="test")
    assert len(maps) == len(runs[0].scores)
    assert set(maps.table["domain"]) == {"domain_A", "domain_C"}
    found = runs[0].score(maps)
    own = runs[0].scores.set_index("path").loc[found.table["path"]]
    np.testing.assert_allclose(found.table["score"], own["score"], rtol=1e-12)
    assert found.table["tooth"].equals(own["tooth"].reset_index(drop=True))
    assert found.maps.shape == maps.images.shape
    by_hand = runs[0].score(maps.of(domain="domain_C").images, domain="C")
    assert by_hand.table["score"].tolist() == found.table.query("domain == 'domain_C'")["score"].tolist()
    results = runs[0].results
    assert results.index.tolist() == ["domain_A", "domain_C", "mean", "pooled"]
    assert results["auroc"]["mean"] == pytest.approx(results["auroc"][["domain_A", "domain_C"]].mean())
    again = dhd.load(runs[0].folder)
    pd.testing.assert_frame_equal(again.results, results)
    assert "domain_C" in again._repr_html_()
    assert "<td>" in maps._repr_html_()
    assert [_pictures(one) for one in (again, maps, found)] == [2, 4, 4]
    faults = found.table[found.table["fault"].eq(True)]
    assert f"{len(faults)} called faults: tooth " in found._repr_html_()
    named = re.findall(r"tooth (\d+) in (\d+)", found._repr_html_())
    assert named
    assert all(faults["tooth"].eq(int(tooth)).sum() == int(count) for tooth, count in named)


def _pictures(shown: Any) -> int:
    """Count the pictures of what a notebook shows; each is in the page itself, and whole."""
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', shown._repr_html_())
    for picture in found:
        Image.open(io.BytesIO(b64decode(picture))).load()
    return len(found)


def test_what_is_wrong_is_said_as_elsewhere(place: Path, runs: list[dhd.Run]) -> None:
    maps = np.ones((2, 31, 95), np.float32)
    with pytest.raises(ConfigError, match="domain='E': the model has no threshold for it"):
        runs[0].score(maps, domain="E")
    with pytest.raises(ImageError, match=r"shape \(2, 30, 95\), expected \(images, 31, 95\)"):
        runs[0].score(maps[:, :30])
    with pytest.raises(ConfigError, match="maps have path, domain, split, label, condition"):
        dhd.read(place / "data/simulated_tiny_seed0", domains=("A",)).of(split="test", defect="pit")
    with pytest.raises(ConfigError, match="no run folder and no MLflow run id of the 4 runs"):
        dhd.load("missing", result_dir=place / "results")
    with pytest.raises(ConfigError, match="lerning_rate: unknown"):
        dhd.train("baseline", lerning_rate=1)


def test_a_model_comes_back_from_mlflow_by_its_run_id(
    place: Path, runs: list[dhd.Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    import mlflow

    (run_id,) = mlflow.search_runs(
        experiment_names=["dinomaly-hd"], filter_string="params.seed = '1' and tags.variant = 'row_evidence'"
    )["run_id"]
    here, there = dhd.load(f"runs:/{run_id}"), dhd.load(run_id, result_dir=place / "elsewhere")
    maps = dhd.read(place / "data/simulated_tiny_seed0", domains=("A",)).of(label=1)
    assert here.score(maps).table.equals(there.score(maps).table)
    assert here.folder != there.folder
    assert here.score(maps).table["score"].tolist() == runs[0].score(maps).table["score"].tolist()


def test_a_refused_comparison_leaves_no_folder(
    place: Path, runs: list[dhd.Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    with pytest.raises(ConfigError, match="seed 1 twice"):
        dhd.compare([runs[0], runs[0]])
    assert not list(place.glob("results/report/*"))


def test_runs_are_compared_with_the_first_label(place: Path, runs: list[dhd.Run]) -> None:
    report = dhd.compare(runs, output=place / "report")
    assert (report.folder / "report.html").is_file()
    assert set(report.means["label"]) == {"row_evidence", "trivial"}
    assert report.differences["label"].unique().tolist() == ["trivial"]
    rows = report.means.query(
        "label == 'trivial' and metric == 'auroc' and domain == 'mean' and condition == 'all'"
    )
    expected = np.mean([run.results["auroc"]["mean"] for run in runs[2:]])
    assert rows["mean"].item() == pytest.approx(expected)
    assert "row_evidence" in report._repr_html_()


CHECKS = (
    "check_estimator_cloneable",
    "check_estimator_repr",
    "check_get_params_invariance",
    "check_mixin_order",
    "check_no_attributes_set_in_init",
    "check_parameters_default_constructible",
    "check_set_params",
    "check_valid_tag_types",
    "check_estimator_tags_renamed",
)


@pytest.mark.parametrize("estimator", [dhd.RowEvidence, dhd.Scan])
@pytest.mark.parametrize("check", CHECKS)
def test_estimators_pass_the_checks_that_need_no_table_of_numbers(estimator: type, check: str) -> None:
    getattr(estimator_checks, check)(estimator.__name__, estimator())


@pytest.mark.parametrize("estimator", [dhd.RowEvidence(evidence_copies=2), dhd.Scan()])
def test_estimators_tell_faults_by_lower_scores(estimator: Any, tmp_path: Path) -> None:
    maps = dhd.read(dhd.simulate(tmp_path / "maps", size="tiny"))
    train, test = maps.of(split="train").images, maps.of(split="test", domain="domain_A")
    fitted = clone(estimator).fit(train)
    scores = fitted.score_samples(test.images)
    assert scores[test.table["label"] == 0].min() > scores[test.table["label"] == 1].max()
    assert set(fitted.predict(train)) == {1, -1}
    assert (fitted.predict(test.images) == -1).tolist() == (
        fitted.decision_function(test.images) < 0
    ).tolist()
    assert (fitted.predict(train) == -1).sum() == 1, "one hundredth of 32 maps, and the last of them"
    with pytest.raises(ValueError, match=r"maps of shape \(31, 95\): expected \(maps, rows, columns\)"):
        fitted.predict(train[0])
    if isinstance(fitted, dhd.RowEvidence):
        teeth = fitted.row_evidence(test.images).argmax(axis=1)
        np.testing.assert_allclose(fitted.row_evidence(test.images).shape, (len(test), 31))
        assert len(set(teeth.tolist())) > 1
