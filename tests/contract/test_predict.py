"""What `predict` promises: the run's own scores, decisions by a named threshold, one line for a mistake."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from dinomaly_hd import errors
from dinomaly_hd.errors import CheckpointError, ConfigError, ImageError, OutputError, TrackingError
from dinomaly_hd.experiments.predict import predict
from dinomaly_hd.experiments.score import Scorer
from dinomaly_hd.runs.store import client_for
from dinomaly_hd.serving.exported import Model
from dinomaly_hd.training import checkpoint as checkpoints
from entry_points.common import launch
from entry_points.predict import main

from .conftest import TinyRun
from .scoring_server import register

WHERE = ["tooth", "first_column", "last_column", "normal_percentile"]
FIRST = "domain_A/test/good/000000.tiff"
LAST = "step_00000002.pt"


def predicted(run: TinyRun, output: Path | None, /, name: str | Path = "", **changes: Any) -> pd.DataFrame:
    """Score domain C's test images unless told otherwise, and return the table that was written."""
    settings = {"domain": None, "maps": 0, "gpu": "cpu", "say": lambda _: None, "tick": lambda: None}
    own = {"images": run.data / "domain_C" / "test", "result_dir": run.result_dir, "root": run.root}
    folder = predict(str(name or run.folder), output=output, **{**settings, **own, **changes})
    assert output in (None, folder)
    return pd.read_csv(folder / "scores.csv", keep_default_na=False)


def refused(run: TinyRun, error: type[Exception], line: str, **changes: Any) -> None:
    """Check that nothing is scored and one line says why."""
    with pytest.raises(error, match=line) as raised:
        predicted(run, changes.pop("output", None), **changes)
    assert "\n" not in str(raised.value)


@pytest.fixture
def never_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(Model, "load", fail)


@pytest.fixture
def copy(tiny_run: TinyRun, tmp_path: Path) -> Path:
    """Return a copy of the run that a test may change."""
    return Path(shutil.copytree(tiny_run.folder, tmp_path / "copy"))


@pytest.fixture
def unfinished(copy: Path) -> Path:
    """Return the folder as a killed run leaves it."""
    shutil.rmtree(copy / "model")
    (copy / "results.json").unlink()
    return copy


def change_card(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    card = json.loads((folder / "model" / "model.json").read_text())
    change(card)
    (folder / "model" / "model.json").write_text(json.dumps(card))


# ---- scores and decisions ----


def test_a_runs_own_images_get_its_own_scores_and_pictures(tiny_run: TinyRun, tmp_path: Path) -> None:
    written = predicted(tiny_run, tmp_path / "out", images=tiny_run.data, maps=2)
    pictures = [Image.open(path) for path in sorted((tmp_path / "out" / "anomaly_maps").iterdir())]
    highest = written.sort_values("score", ascending=False)["path"].head(2)
    for number, (picture, path) in enumerate(zip(pictures, highest, strict=True), 1):
        name = path.removesuffix(".tiff").replace("/", "_")
        assert Path(str(picture.filename)).name == f"{number:03d}_{name}.png"
        assert picture.size == (800, 760)
        picture.close()
    written = written.set_index("path")
    thresholds = json.loads((tiny_run.folder / "model" / "model.json").read_text())["thresholds"]
    assert len(written) == 64  # no ground-truth mask among them
    for domain, threshold in thresholds.items():
        own = pd.read_csv(tiny_run.folder / "scores" / f"{domain}.csv").set_index("path")
        rows = written.loc[own.index]
        np.testing.assert_allclose(rows["score"], own["score"], rtol=0, atol=1e-6)
        assert (rows["domain"] == domain).all()
        np.testing.assert_allclose(rows["threshold"].astype(float), threshold, rtol=1e-15)
        decided = ["fault" if score >= threshold else "good" for score in rows["score"]]
        assert list(rows["decision"]) == decided


def test_folders_are_searched_in_order_into_a_new_dated_one(tiny_run: TinyRun, tmp_path: Path) -> None:
    for name in ("b/2.tiff", "a.tif", "b/10.TIFF", ".hidden.tiff", "notes.txt"):
        (tmp_path / "maps" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tiny_run.data / FIRST, tmp_path / "maps" / name)
    for _ in range(2):
        lines: list[str] = []
        own: dict[str, Any] = {"images": tmp_path / "maps", "result_dir": tmp_path, "say": lines.append}
        table = predicted(tiny_run, None, **own)
        assert list(table.columns) == ["path", "domain", "score", "threshold", "decision", *WHERE]
        assert list(table["path"]) == ["a.tif", "b/10.TIFF", "b/2.tiff"]
        assert table["score"].nunique() == 1
        assert (table[["domain", "threshold", "decision"]] == "").all(axis=None)
        assert sum(line.startswith("undecided: no domain given") for line in lines) == 1
    folders = list((tmp_path / "predict").iterdir())
    assert len(folders) == 2
    assert all([item.name for item in folder.iterdir()] == ["scores.csv"] for folder in folders)


def test_the_domain_asked_for_or_the_only_one_decides(tiny_run: TinyRun, copy: Path, tmp_path: Path) -> None:
    table = predicted(tiny_run, tmp_path / "asked", domain="B")
    assert set(table["domain"]) == {"domain_B"}
    assert set(table["decision"]) <= {"fault", "good"}
    change_card(copy, lambda card: card.update(thresholds={"domain_A": 0.0}))
    table = predicted(tiny_run, tmp_path / "only", copy)
    assert set(table["domain"]) == {"domain_A"}
    assert set(table["decision"]) == {"fault"}


# ---- which run ----


def test_a_run_is_known_by_its_names_also_where_its_model_lies_only_in_mlflow(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = register(tiny_run.uri, tiny_run.run_id, name="gears", alias="champion")
    (model,) = client_for(tiny_run.uri).get_run(tiny_run.run_id).outputs.model_outputs
    by_name = predicted(tiny_run, tmp_path / "name", tiny_run.folder.name)
    pd.testing.assert_frame_equal(by_name, predicted(tiny_run, tmp_path / "id", tiny_run.run_id))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tiny_run.uri)
    names = (model.model_id, f"gears/{version}", "gears@champion")
    for number, name in enumerate((tiny_run.run_id, *(f"models:/{name}" for name in names))):
        table = predicted(tiny_run, tmp_path / str(number), name, result_dir=tmp_path / "empty")
        np.testing.assert_allclose(table["score"], by_name["score"], rtol=0, atol=1e-6)
        assert set(table["decision"]) <= {"fault", "good"}

    for one in ("gears@nobody", "gears/99", "wheels/1", "m-0"):
        line = f"^models:/{one}: no model of this name at sqlite"
        refused(tiny_run, TrackingError, line, name=f"models:/{one}")
    refused(tiny_run, TrackingError, "no model of this name", name="0" * 32)
    refused(tiny_run, ConfigError, "no run folder and no MLflow run id", name="yesterday")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    refused(tiny_run, TrackingError, r"mlflow\.db does not exist", name="0" * 32, root=tmp_path)
    (tmp_path / "run.json").write_text("{}")
    refused(tiny_run, CheckpointError, "a run that did not finish", name=tmp_path)


# ---- a checkpoint ----


def undecided(run: TinyRun, checkpoint: Path, output: Path) -> tuple[pd.Series, list[str]]:
    """Return scores, and why there are no decisions."""
    lines: list[str] = []
    table = predicted(run, output, checkpoint, say=lines.append)
    assert set(table["decision"]) == {""}
    return table["score"], [line for line in lines if line.startswith("undecided: ")]


def test_only_a_runs_last_checkpoint_decides(tiny_run: TinyRun, copy: Path, tmp_path: Path) -> None:
    own = predicted(tiny_run, tmp_path / "own")
    table = predicted(tiny_run, tmp_path / "last", tiny_run.folder / "checkpoints" / LAST)
    pd.testing.assert_frame_equal(table, own)
    assert set(table["decision"]) <= {"fault", "good"}

    last = checkpoints.load(copy / "checkpoints" / LAST)
    weights = {name: value * 0.9 for name, value in last.weights.items()}
    earlier = checkpoints.save(copy / "checkpoints", last._replace(step=1, weights=weights))
    scores, why = undecided(tiny_run, earlier, tmp_path / "earlier")
    assert not np.allclose(scores, own["score"], rtol=1e-6)
    assert why == ["undecided: the run's thresholds are those of its step 2"]
    line = r"domain='C': no threshold to decide by: .* step 2; leave domain"
    refused(tiny_run, ConfigError, line, name=earlier, domain="C")


def test_the_checkpoint_of_a_run_that_was_killed_scores_where_its_data_are_those_of_then(
    tiny_run: TinyRun, unfinished: Path, tmp_path: Path
) -> None:
    checkpoint = unfinished / "checkpoints" / LAST
    scores, why = undecided(tiny_run, checkpoint, tmp_path / "out")
    pd.testing.assert_series_equal(scores, predicted(tiny_run, tmp_path / "own")["score"])
    assert why == ["undecided: the run did not finish"]

    last = checkpoints.load(checkpoint)
    weights = {name: value.flatten()[:1] for name, value in last.weights.items()}
    path = checkpoints.save(unfinished / "checkpoints", last._replace(weights=weights))
    refused(tiny_run, CheckpointError, r"step_00000002\.pt: .*size mismatch", name=path)

    file = unfinished / "experiment_settings.json"
    settings, data = json.loads(file.read_text()), unfinished / "data"
    file.write_text(json.dumps(settings | {"data_root": str(data)}))
    line = "data do not say what images it takes: .*data"
    refused(tiny_run, CheckpointError, line, name=checkpoint)
    shutil.copytree(settings["data_root"], data)
    tifffile.imwrite(data / FIRST, tifffile.imread(data / FIRST) + np.float32(0.01))
    refused(tiny_run, CheckpointError, "are not those it was trained on", name=checkpoint)


@pytest.mark.usefixtures("never_loaded")
def test_a_checkpoint_that_cannot_be_used_is_one_line(tiny_run: TinyRun, copy: Path) -> None:
    last = copy / "checkpoints" / LAST
    shutil.copy(last, copy.parent / LAST)
    for path, line in (
        (copy.parent / LAST, "no run folder"),
        (copy / "checkpoints" / "step_00000007.pt", f"no such checkpoint; .* holds {LAST}$"),
        (copy / "results.json", "not a checkpoint"),
    ):
        refused(tiny_run, CheckpointError, line, name=path)
    change_card(copy, lambda card: card["config"].update(seed=43))
    line = "belongs to another run; what differs: seed 42 -> 43"
    refused(tiny_run, CheckpointError, line, name=last)
    last.write_bytes(last.read_bytes()[:-1000])
    refused(tiny_run, CheckpointError, "not a checkpoint, or cut off", name=last)


# ---- what is refused, before the model is loaded ----


@pytest.mark.usefixtures("never_loaded")
def test_what_the_user_got_wrong_is_one_line(tiny_run: TinyRun, tmp_path: Path) -> None:
    refused(tiny_run, ImageError, "nowhere: cannot be read", images=Path("nowhere"))
    refused(tiny_run, ImageError, r"holds no images \(\.tif", images=tmp_path)
    refused(tiny_run, ConfigError, "domain='E': the model has no threshold", domain="E")
    refused(tiny_run, ConfigError, "gpu='first'", gpu="first")
    refused(tiny_run, ConfigError, "maps=-1", maps=-1)
    (tmp_path / "scores.csv").touch()
    refused(tiny_run, OutputError, "already there", output=tmp_path)

    other = tmp_path / "000001.tiff"
    tifffile.imwrite(other, np.ones((31, 90), np.float32))
    line = r"^000001\.tiff: 31 x 90 float32 TIFF, .* trained on 31 x 95 float32"
    refused(tiny_run, ImageError, line, images=tmp_path)
    other.unlink()
    Image.fromarray(np.ones((31, 95), np.uint8)).save(tmp_path / "000001.png")
    refused(tiny_run, ImageError, r"^000001\.png: 31 x 95 8-bit PNG or TIFF, but the model", images=tmp_path)


def test_memory_that_ran_out(tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def examine(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Scorer, "examine", examine)
    line = r"out of memory on cpu: .*; score fewer images at a time"
    refused(tiny_run, errors.OutOfMemory, line, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_errors_have_their_exit_codes(
    tiny_run: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, run = ("--output", str(tmp_path / "out")), ("--run", str(tiny_run.folder), "--input")
    given = (*run, str((tiny_run.data / FIRST).parent), *output, "--maps", "0", "--gpu", "cpu")
    assert (launch(main, given), capsys.readouterr().err) == (0, "")
    assert (tmp_path / "out" / "scores.csv").is_file()
    assert launch(main, ["--input", "x"]) == 64
    assert capsys.readouterr().err.startswith("ConfigError: --run is needed")
    assert launch(main, [*run, str(tmp_path / "nowhere")]) == 65
    assert launch(main, given) == 74
