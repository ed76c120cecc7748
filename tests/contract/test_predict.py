"""What `predict` promises: the run's own scores, decisions by a named threshold, one line for a mistake."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from PIL import Image

from dinomaly_hd.errors import (
    CheckpointError,
    ConfigError,
    ImageError,
    OutOfMemory,
    OutputError,
    TrackingError,
)
from dinomaly_hd.experiments import model_source
from dinomaly_hd.experiments.score import Examiner
from dinomaly_hd.experiments.prediction import Request, predict
from dinomaly_hd.runs.store import client_for
from dinomaly_hd.training import checkpoint as checkpoints
from entry_points.common import launch
from entry_points.predict import main

from .scoring_server import register

if TYPE_CHECKING:
    from conftest import TinyRun


def request(run: "TinyRun", /, **changes: Any) -> Request:
    settings: dict[str, Any] = {
        "run": str(run.folder),
        "source": run.data / "domain_C" / "test",
        "domain": None,
        "output": None,
        "maps": 0,
        "gpu": "cpu",
        "result_dir": run.result_dir,
        "root": run.root,
        "say": lambda _: None,
        "tick": lambda: None,
    }
    return Request(**(settings | changes))


@pytest.fixture
def never_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(model_source, "load_model", fail)
    monkeypatch.setattr(model_source, "rebuild", fail)


# ---- scores and decisions ----


def test_a_runs_own_test_images_get_its_own_scores_and_thresholds(
    tiny_run: "TinyRun", tmp_path: Path
) -> None:
    done = predict(request(tiny_run, source=tiny_run.data, output=tmp_path / "out"))
    written = pd.read_csv(tmp_path / "out" / "scores.csv", keep_default_na=False).set_index("path")
    thresholds = json.loads((tiny_run.folder / "model" / "model.json").read_text())["thresholds"]
    assert len(written) == len(done.table) == 64  # no ground-truth mask among them
    for domain, threshold in thresholds.items():
        own = pd.read_csv(tiny_run.folder / "scores" / f"{domain}.csv").set_index("path")
        rows = written.loc[own.index]
        np.testing.assert_allclose(rows["score"], own["score"], rtol=0, atol=1e-6)
        assert (rows["domain"] == domain).all()
        np.testing.assert_allclose(rows["threshold"].astype(float), threshold, rtol=1e-15)
        fault = rows["score"].to_numpy() >= rows["threshold"].astype(float).to_numpy()
        assert list(rows["decision"]) == ["fault" if yes else "good" for yes in fault]


def test_rows_are_in_the_order_of_their_paths_and_folders_are_searched(
    tiny_run: "TinyRun", tmp_path: Path
) -> None:
    source = tmp_path / "maps"
    for name in ("b/2.tiff", "a.tif", "b/10.TIFF", ".hidden.tiff", "notes.txt"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tiny_run.data / "domain_A" / "test" / "good" / "000000.tiff", source / name)
    table = predict(request(tiny_run, source=source, output=tmp_path / "out")).table
    assert list(table["path"]) == ["a.tif", "b/10.TIFF", "b/2.tiff"]
    assert table["score"].nunique() == 1


def test_the_domain_asked_for_decides_for_every_image(tiny_run: "TinyRun", tmp_path: Path) -> None:
    table = predict(request(tiny_run, domain="B", output=tmp_path / "out")).table
    assert set(table["domain"]) == {"domain_B"}
    assert set(table["decision"]) <= {"fault", "good"}


def test_an_image_of_no_known_domain_is_scored_without_decision_and_one_line_says_why(
    tiny_run: "TinyRun", tmp_path: Path
) -> None:
    shutil.copy(tiny_run.data / "domain_A" / "test" / "good" / "000000.tiff", tmp_path / "map.tiff")
    lines: list[str] = []
    predict(request(tiny_run, source=tmp_path / "map.tiff", output=tmp_path / "out", say=lines.append))
    header, row = (tmp_path / "out" / "scores.csv").read_text().splitlines()
    assert header == "path,domain,score,threshold,decision"
    assert row.startswith("map.tiff,,")
    assert row.endswith(",,")
    assert sum(line.startswith("undecided: no domain given") for line in lines) == 1


def test_a_model_of_one_domain_decides_without_being_asked(tiny_run: "TinyRun", tmp_path: Path) -> None:
    shutil.copytree(tiny_run.folder / "model", tmp_path / "run" / "model")
    (tmp_path / "run" / "run.json").write_text("{}")
    card = json.loads((tmp_path / "run" / "model" / "model.json").read_text())
    card["thresholds"] = {"domain_A": 0.0}
    (tmp_path / "run" / "model" / "model.json").write_text(json.dumps(card))
    table = predict(request(tiny_run, run=str(tmp_path / "run"), output=tmp_path / "out")).table
    assert set(table["domain"]) == {"domain_A"}
    assert set(table["decision"]) == {"fault"}


def test_maps_are_drawn_of_the_highest_scores_in_order(tiny_run: "TinyRun", tmp_path: Path) -> None:
    table = predict(request(tiny_run, maps=2, output=tmp_path / "out")).table
    highest = table.sort_values("score", ascending=False)["path"].head(2)
    expected = [
        f"{rank:03d}_{path.removesuffix('.tiff').replace('/', '_')}.png"
        for rank, path in enumerate(highest, 1)
    ]
    written = sorted((tmp_path / "out" / "anomaly_maps").iterdir())
    assert [path.name for path in written] == expected
    with Image.open(written[0]) as picture:
        assert picture.size == (800, 760)


def test_the_default_output_is_a_new_dated_folder_each_time(tiny_run: "TinyRun", tmp_path: Path) -> None:
    folder = [
        predict(request(tiny_run, run=str(tiny_run.folder), result_dir=tmp_path)).output for _ in range(2)
    ]
    assert folder[0] != folder[1]
    assert {path.parent for path in folder} == {tmp_path / "predict"}
    assert all([item.name for item in path.iterdir()] == ["scores.csv"] for path in folder)


# ---- which run ----


def test_a_run_is_known_by_its_name_and_its_mlflow_id(tiny_run: "TinyRun", tmp_path: Path) -> None:
    by_name = predict(request(tiny_run, run=tiny_run.folder.name, output=tmp_path / "name")).table
    by_id = predict(request(tiny_run, run=tiny_run.run_id, output=tmp_path / "id")).table
    pd.testing.assert_frame_equal(by_name, by_id)


@pytest.fixture(scope="module")
def names(tiny_run: "TinyRun") -> dict[str, str]:
    """Return the names under which MLflow knows the run's model."""
    version = register(tiny_run.uri, tiny_run.run_id, name="gears", alias="champion")
    (model,) = client_for(tiny_run.uri).get_run(tiny_run.run_id).outputs.model_outputs
    return {
        "run id": tiny_run.run_id,
        "logged model": f"models:/{model.model_id}",
        "version": f"models:/gears/{version}",
        "alias": "models:/gears@champion",
    }


@pytest.mark.parametrize("kind", ["run id", "logged model", "version", "alias"])
def test_a_model_that_lies_only_in_mlflow_is_copied_from_there(
    tiny_run: "TinyRun", tmp_path: Path, kind: str, names: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tiny_run.uri)
    done = predict(request(tiny_run, run=names[kind], result_dir=tmp_path / "empty", output=tmp_path / "out"))
    own = pd.read_csv(tiny_run.folder / "scores" / "domain_C.csv").sort_values("path")
    np.testing.assert_allclose(done.table["score"], own["score"], rtol=0, atol=1e-6)
    assert set(done.table["decision"]) <= {"fault", "good"}


@pytest.mark.parametrize(
    "name", ["models:/gears@nobody", "models:/gears/99", "models:/wheels/1", "models:/m-0"]
)
def test_a_model_that_is_not_registered_is_one_line(
    tiny_run: "TinyRun", names: dict[str, str], name: str
) -> None:
    assert names
    with pytest.raises(TrackingError, match=f"^{name}: no model of this name at sqlite.*") as refused:
        predict(request(tiny_run, run=name))
    assert "\n" not in str(refused.value)


def test_a_run_that_is_nowhere_is_one_line(tiny_run: "TinyRun", tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run folder and no MLflow run id"):
        predict(request(tiny_run, run="yesterday"))
    with pytest.raises(TrackingError, match="no model of this name"):
        predict(request(tiny_run, run="0" * 32))
    with pytest.raises(TrackingError, match=r"mlflow\.db does not exist"):
        predict(request(tiny_run, run="0" * 32, root=tmp_path))


def test_an_unfinished_run_is_one_line(tiny_run: "TinyRun", tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(CheckpointError, match="a run that did not finish"):
        predict(request(tiny_run, run=str(tmp_path)))


# ---- a checkpoint ----

LAST = "step_00000002.pt"


@pytest.fixture
def copy(tiny_run: "TinyRun", tmp_path: Path) -> Path:
    """Return a copy of the run that a test may change."""
    return Path(shutil.copytree(tiny_run.folder, tmp_path / "copy"))


@pytest.fixture
def unfinished(copy: Path) -> Path:
    """Return the folder as a killed run leaves it."""
    shutil.rmtree(copy / "model")
    (copy / "results.json").unlink()
    return copy


def scored(run: "TinyRun", checkpoint: Path, output: Path) -> tuple[pd.DataFrame, list[str]]:
    lines: list[str] = []
    done = predict(request(run, run=str(checkpoint), output=output, say=lines.append))
    return done.table, [line for line in lines if line.startswith("undecided: ")]


def test_the_checkpoint_a_run_finished_with_scores_and_decides_as_the_run(
    tiny_run: "TinyRun", tmp_path: Path
) -> None:
    own = predict(request(tiny_run, output=tmp_path / "own")).table
    table, undecided = scored(tiny_run, tiny_run.folder / "checkpoints" / LAST, tmp_path / "out")
    pd.testing.assert_frame_equal(table, own)
    assert set(table["decision"]) <= {"fault", "good"}
    assert not undecided


def test_the_checkpoint_of_an_earlier_step_scores_without_decisions_and_one_line_says_why(
    tiny_run: "TinyRun", copy: Path, tmp_path: Path
) -> None:
    last = checkpoints.load(copy / "checkpoints" / LAST)
    weights = {name: value * 0.9 for name, value in last.weights.items()}
    earlier = checkpoints.save(copy / "checkpoints", last._replace(step=1, weights=weights))
    table, undecided = scored(tiny_run, earlier, tmp_path / "out")
    own = predict(request(tiny_run, output=tmp_path / "own")).table
    assert not np.allclose(table["score"], own["score"], rtol=1e-6)
    assert set(table["decision"]) == {""}
    assert undecided == ["undecided: the run's thresholds are those of its step 2"]
    with pytest.raises(ConfigError, match=r"domain='C': no threshold to decide by: .* step 2; leave domain"):
        predict(request(tiny_run, run=str(earlier), domain="C"))


def test_the_checkpoint_of_a_run_that_was_killed_scores_without_decisions(
    tiny_run: "TinyRun", unfinished: Path, tmp_path: Path
) -> None:
    table, undecided = scored(tiny_run, unfinished / "checkpoints" / LAST, tmp_path / "out")
    own = predict(request(tiny_run, output=tmp_path / "own")).table
    pd.testing.assert_series_equal(table["score"], own["score"])
    assert set(table["decision"]) == {""}
    assert undecided == ["undecided: the run did not finish"]


def _move_data(folder: Path) -> str:
    settings = json.loads((folder / "experiment_settings.json").read_text())
    (folder / "experiment_settings.json").write_text(json.dumps(settings | {"data_root": "moved"}))
    return "its data do not say what images it takes: .*moved"


def _change_data(folder: Path) -> str:
    settings = json.loads((folder / "experiment_settings.json").read_text())
    data = shutil.copytree(settings["data_root"], folder / "data")
    image = data / "domain_A" / "train" / "good" / "000000.tiff"
    tifffile.imwrite(image, tifffile.imread(image) + np.float32(0.01))
    (folder / "experiment_settings.json").write_text(json.dumps(settings | {"data_root": str(data)}))
    return "are not those it was trained on"


@pytest.mark.usefixtures("never_loaded")
@pytest.mark.parametrize("spoil", [_move_data, _change_data])
def test_without_its_data_the_form_of_a_killed_runs_images_is_unknown(
    tiny_run: "TinyRun", unfinished: Path, spoil: Callable[[Path], str]
) -> None:
    line = spoil(unfinished)
    with pytest.raises(CheckpointError, match=line) as refused:
        predict(request(tiny_run, run=str(unfinished / "checkpoints" / LAST)))
    assert "\n" not in str(refused.value)


def _alone(folder: Path) -> tuple[Path, str]:
    return shutil.copy(folder / "checkpoints" / LAST, folder.parent), "lies in no run folder"


def _missing(folder: Path) -> tuple[Path, str]:
    return folder / "checkpoints" / "step_00000007.pt", f"no such checkpoint; .* holds {LAST}$"


def _no_checkpoint(folder: Path) -> tuple[Path, str]:
    return folder / "results.json", "not a checkpoint"


def _torn(folder: Path) -> tuple[Path, str]:
    path = folder / "checkpoints" / LAST
    path.write_bytes(path.read_bytes()[:-1000])
    return path, "not a checkpoint, or cut off"


def _of_another_run(folder: Path) -> tuple[Path, str]:
    card = json.loads((folder / "model" / "model.json").read_text())
    card["config"]["seed"] = 43
    (folder / "model" / "model.json").write_text(json.dumps(card))
    return folder / "checkpoints" / LAST, "belongs to another run; what differs: seed 42 -> 43"


class Poison:
    """What unpickles to a call."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("poisoned"),))


def _poisoned(folder: Path) -> tuple[Path, str]:
    path = folder / "checkpoints" / LAST
    torch.save({"schema": checkpoints.SCHEMA_VERSION, "weights": Poison()}, path)
    return path, "cannot be read: "


@pytest.mark.usefixtures("never_loaded")
@pytest.mark.parametrize(
    "spoil",
    [_alone, _missing, _no_checkpoint, _torn, _of_another_run, _poisoned],
    ids=lambda one: one.__name__,
)
def test_a_checkpoint_that_cannot_be_used_is_one_line(
    tiny_run: "TinyRun",
    copy: Path,
    spoil: Callable[[Path], tuple[Path, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(copy)
    path, line = spoil(copy)
    with pytest.raises(CheckpointError, match=line) as refused:
        predict(request(tiny_run, run=str(path)))
    assert "\n" not in str(refused.value)
    assert not Path("poisoned").exists()


def test_a_checkpoint_whose_tensors_do_not_fit_is_one_line(
    tiny_run: "TinyRun", unfinished: Path, tmp_path: Path
) -> None:
    path = unfinished / "checkpoints" / LAST
    last = checkpoints.load(path)
    weights = {name: value.flatten()[:1] for name, value in last.weights.items()}
    checkpoints.save(path.parent, last._replace(weights=weights))
    with pytest.raises(CheckpointError, match=r"step_00000002\.pt: .*size mismatch") as refused:
        predict(request(tiny_run, run=str(path), output=tmp_path / "out"))
    assert "\n" not in str(refused.value)


# ---- what is refused, before the model is loaded ----


@pytest.mark.usefixtures("never_loaded")
def test_an_image_of_another_form_is_named(tiny_run: "TinyRun", tmp_path: Path) -> None:
    source = tmp_path / "maps"
    shutil.copytree(tiny_run.data / "domain_A" / "test" / "good", source)
    tifffile.imwrite(source / "000001.tiff", np.ones((31, 90), np.float32))
    with pytest.raises(
        ImageError, match=r"^000001\.tiff: 31 x 90 float32 TIFF, .* trained on 31 x 95 float32"
    ):
        predict(request(tiny_run, source=source))
    (source / "000001.tiff").unlink()
    Image.fromarray(np.ones((31, 95), np.uint8)).save(source / "000001.png")
    with pytest.raises(ImageError, match=r"^000001\.png: 31 x 95 8-bit PNG, but the model"):
        predict(request(tiny_run, source=source))


@pytest.mark.usefixtures("never_loaded")
@pytest.mark.parametrize(
    ("changes", "error", "line"),
    [
        ({"source": Path("nowhere")}, ImageError, "nowhere: cannot be read"),
        ({"domain": "E"}, ConfigError, "domain='E': the model has no threshold"),
        ({"gpu": "first"}, ConfigError, "gpu='first'"),
        ({"maps": -1}, ConfigError, "maps=-1"),
    ],
)
def test_what_the_user_got_wrong_is_one_line(
    tiny_run: "TinyRun", changes: dict[str, Any], error: type[Exception], line: str
) -> None:
    with pytest.raises(error, match=line):
        predict(request(tiny_run, **changes))


@pytest.mark.usefixtures("never_loaded")
def test_a_folder_without_images_and_an_output_with_files_are_refused(
    tiny_run: "TinyRun", tmp_path: Path
) -> None:
    with pytest.raises(ImageError, match=r"holds no images \(\.tif"):
        predict(request(tiny_run, source=tmp_path))
    (tmp_path / "scores.csv").touch()
    with pytest.raises(OutputError, match="already there"):
        predict(request(tiny_run, output=tmp_path))


def test_memory_that_runs_out_is_one_line(
    tiny_run: "TinyRun", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def examine(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Examiner, "examine", examine)
    with pytest.raises(OutOfMemory, match=r"out of memory on cpu: .*; score fewer images at a time"):
        predict(request(tiny_run, output=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


# ---- the entry point ----


def test_flags_are_checked_and_errors_have_their_exit_codes(
    tiny_run: "TinyRun", tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*argv: str) -> tuple[int, str]:
        code = launch(main, argv)
        return code, capsys.readouterr().err

    given = ["--run", str(tiny_run.folder), "--input", str(tiny_run.data / "domain_A" / "test" / "good")]
    assert run(*given, "--output", str(tmp_path / "out"), "--maps", "0", "--gpu", "cpu") == (0, "")
    assert (tmp_path / "out" / "scores.csv").is_file()
    assert run(*given, "--outptu", "x") == (
        64,
        "ConfigError: unknown flag --outptu. Did you mean 'output'?\n",
    )
    assert run(*given, "--maps", "many")[0] == 64
    assert run("--input", "x")[1].startswith("ConfigError: --run is needed")
    assert run(*given[:2], "--input", str(tmp_path / "nowhere"))[0] == 65
    assert run(*given, "--output", str(tmp_path / "out"))[0] == 74
