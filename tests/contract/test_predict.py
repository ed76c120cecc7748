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
from dinomaly_hd.experiments.predict import predict
from dinomaly_hd.experiments.score import Scorer
from dinomaly_hd.runs.store import client_for
from dinomaly_hd.serving.exported import Model
from dinomaly_hd.training import checkpoint as checkpoints
from entry_points.common import exit_code
from entry_points.predict import main

from .scoring_server import register

if TYPE_CHECKING:
    from conftest import TinyRun

FIRST = "domain_A/test/good/000000.tiff"
LAST = "step_00000002.pt"


def predicted(run: "TinyRun", output: Path | None, /, name: str | Path = "", **changes: Any) -> pd.DataFrame:
    """Score domain C's test images unless told otherwise, and return the table that was written."""
    settings: dict[str, Any] = {
        "images": run.data / "domain_C" / "test",
        "domain": None,
        "maps": 0,
        "gpu": "cpu",
        "result_dir": run.result_dir,
        "root": run.root,
        "say": lambda _: None,
        "tick": lambda: None,
    }
    folder = predict(str(name or run.folder), output=output, **(settings | changes))
    assert output in (None, folder)
    return pd.read_csv(folder / "scores.csv", keep_default_na=False)


def refused(run: "TinyRun", error: type[Exception], line: str, **changes: Any) -> None:
    """Check that nothing is scored and one line says why."""
    with pytest.raises(error, match=line) as raised:
        predicted(run, changes.pop("output", None), **changes)
    assert "\n" not in str(raised.value)


@pytest.fixture
def never_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(Model, "load", fail)


# ---- scores and decisions ----


def test_a_runs_own_test_images_get_its_own_scores_and_thresholds(
    tiny_run: "TinyRun", tmp_path: Path
) -> None:
    written = predicted(tiny_run, tmp_path / "out", images=tiny_run.data).set_index("path")
    thresholds = json.loads((tiny_run.folder / "model" / "model.json").read_text())["thresholds"]
    assert len(written) == 64  # no ground-truth mask among them
    for domain, threshold in thresholds.items():
        own = pd.read_csv(tiny_run.folder / "scores" / f"{domain}.csv").set_index("path")
        rows = written.loc[own.index]
        np.testing.assert_allclose(rows["score"], own["score"], rtol=0, atol=1e-6)
        assert (rows["domain"] == domain).all()
        np.testing.assert_allclose(rows["threshold"].astype(float), threshold, rtol=1e-15)
        assert list(rows["decision"]) == [
            "fault" if score >= threshold else "good" for score in rows["score"]
        ]


def test_rows_are_in_the_order_of_their_paths_and_folders_are_searched(
    tiny_run: "TinyRun", tmp_path: Path
) -> None:
    for name in ("b/2.tiff", "a.tif", "b/10.TIFF", ".hidden.tiff", "notes.txt"):
        (tmp_path / "maps" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tiny_run.data / FIRST, tmp_path / "maps" / name)
    table = predicted(tiny_run, tmp_path / "out", images=tmp_path / "maps")
    assert list(table["path"]) == ["a.tif", "b/10.TIFF", "b/2.tiff"]
    assert table["score"].nunique() == 1


def test_the_domain_asked_for_or_the_only_one_decides_for_every_image(
    tiny_run: "TinyRun", copy: Path, tmp_path: Path
) -> None:
    table = predicted(tiny_run, tmp_path / "asked", domain="B")
    assert set(table["domain"]) == {"domain_B"}
    assert set(table["decision"]) <= {"fault", "good"}
    change_card(copy, lambda card: card.update(thresholds={"domain_A": 0.0}))
    table = predicted(tiny_run, tmp_path / "only", copy)
    assert set(table["domain"]) == {"domain_A"}
    assert set(table["decision"]) == {"fault"}


def test_an_image_of_no_known_domain_is_scored_without_decision_and_one_line_says_why(
    tiny_run: "TinyRun", tmp_path: Path
) -> None:
    shutil.copy(tiny_run.data / FIRST, tmp_path / "map.tiff")
    lines: list[str] = []
    predicted(tiny_run, tmp_path / "out", images=tmp_path / "map.tiff", say=lines.append)
    header, row = (tmp_path / "out" / "scores.csv").read_text().splitlines()
    assert header == "path,domain,score,threshold,decision"
    assert row.startswith("map.tiff,,")
    assert row.endswith(",,")
    assert sum(line.startswith("undecided: no domain given") for line in lines) == 1


def test_maps_are_drawn_of_the_highest_scores_in_order(tiny_run: "TinyRun", tmp_path: Path) -> None:
    table = predicted(tiny_run, tmp_path / "out", maps=2)
    highest = [path.removesuffix(".tiff") for path in table.sort_values("score")["path"].tail(2)]
    first, second = sorted((tmp_path / "out" / "anomaly_maps").iterdir())
    assert first.name == f"001_{highest[1].replace('/', '_')}.png"
    assert second.name == f"002_{highest[0].replace('/', '_')}.png"
    with Image.open(first) as picture:
        assert picture.size == (800, 760)


def test_the_default_output_is_a_new_dated_folder_each_time(tiny_run: "TinyRun", tmp_path: Path) -> None:
    for _ in range(2):
        predicted(tiny_run, None, result_dir=tmp_path)
    folders = list((tmp_path / "predict").iterdir())
    assert len(folders) == 2
    assert all([item.name for item in folder.iterdir()] == ["scores.csv"] for folder in folders)


# ---- which run ----


def test_a_run_is_known_by_its_name_and_its_mlflow_id(tiny_run: "TinyRun", tmp_path: Path) -> None:
    by_name = predicted(tiny_run, tmp_path / "name", tiny_run.folder.name)
    pd.testing.assert_frame_equal(by_name, predicted(tiny_run, tmp_path / "id", tiny_run.run_id))


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
    table = predicted(tiny_run, tmp_path / "out", names[kind], result_dir=tmp_path / "empty")
    own = pd.read_csv(tiny_run.folder / "scores" / "domain_C.csv").sort_values("path")
    np.testing.assert_allclose(table["score"], own["score"], rtol=0, atol=1e-6)
    assert set(table["decision"]) <= {"fault", "good"}


@pytest.mark.usefixtures("names", "never_loaded")
@pytest.mark.parametrize(
    ("name", "error", "line"),
    [
        *((f"models:/{one}", TrackingError, f"^models:/{one}: no model of this name at sqlite") for one in
          ("gears@nobody", "gears/99", "wheels/1", "m-0")),
        ("0" * 32, TrackingError, "no model of this name"),
        ("yesterday", ConfigError, "no run folder and no MLflow run id"),
    ],
)  # fmt: skip
def test_a_run_that_is_nowhere_is_one_line(
    tiny_run: "TinyRun", name: str, error: type[Exception], line: str
) -> None:
    refused(tiny_run, error, line, name=name)


@pytest.mark.usefixtures("never_loaded")
def test_a_store_that_is_not_there_and_a_run_without_a_model_are_one_line(
    tiny_run: "TinyRun", tmp_path: Path
) -> None:
    refused(tiny_run, TrackingError, r"mlflow\.db does not exist", name="0" * 32, root=tmp_path)
    (tmp_path / "run.json").write_text("{}")
    refused(tiny_run, CheckpointError, "a run that did not finish", name=tmp_path)


# ---- a checkpoint ----


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


def change_card(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    card = json.loads((folder / "model" / "model.json").read_text())
    change(card)
    (folder / "model" / "model.json").write_text(json.dumps(card))


def undecided(run: "TinyRun", checkpoint: Path, output: Path) -> tuple[pd.Series, list[str]]:
    """Return scores, and why there are no decisions."""
    lines: list[str] = []
    table = predicted(run, output, checkpoint, say=lines.append)
    assert set(table["decision"]) == {""}
    return table["score"], [line for line in lines if line.startswith("undecided: ")]


def test_the_checkpoint_a_run_finished_with_scores_and_decides_as_the_run(
    tiny_run: "TinyRun", tmp_path: Path
) -> None:
    table = predicted(tiny_run, tmp_path / "out", tiny_run.folder / "checkpoints" / LAST)
    pd.testing.assert_frame_equal(table, predicted(tiny_run, tmp_path / "own"))
    assert set(table["decision"]) <= {"fault", "good"}


def test_the_checkpoint_of_an_earlier_step_scores_without_decisions_and_one_line_says_why(
    tiny_run: "TinyRun", copy: Path, tmp_path: Path
) -> None:
    last = checkpoints.load(copy / "checkpoints" / LAST)
    weights = {name: value * 0.9 for name, value in last.weights.items()}
    earlier = checkpoints.save(copy / "checkpoints", last._replace(step=1, weights=weights))
    scores, why = undecided(tiny_run, earlier, tmp_path / "out")
    assert not np.allclose(scores, predicted(tiny_run, tmp_path / "own")["score"], rtol=1e-6)
    assert why == ["undecided: the run's thresholds are those of its step 2"]
    line = r"domain='C': no threshold to decide by: .* step 2; leave domain"
    refused(tiny_run, ConfigError, line, name=earlier, domain="C")


def test_the_checkpoint_of_a_run_that_was_killed_scores_without_decisions(
    tiny_run: "TinyRun", unfinished: Path, tmp_path: Path
) -> None:
    scores, why = undecided(tiny_run, unfinished / "checkpoints" / LAST, tmp_path / "out")
    pd.testing.assert_series_equal(scores, predicted(tiny_run, tmp_path / "own")["score"])
    assert why == ["undecided: the run did not finish"]


@pytest.mark.usefixtures("never_loaded")
@pytest.mark.parametrize("changed", [False, True])
def test_without_its_data_the_form_of_a_killed_runs_images_is_unknown(
    tiny_run: "TinyRun", unfinished: Path, changed: bool
) -> None:
    path = unfinished / "experiment_settings.json"
    settings, data = json.loads(path.read_text()), unfinished / "data"
    if changed:
        shutil.copytree(settings["data_root"], data)
        tifffile.imwrite(data / FIRST, tifffile.imread(data / FIRST) + np.float32(0.01))
    path.write_text(json.dumps(settings | {"data_root": str(data)}))
    expected = (
        "are not those it was trained on" if changed else "data do not say what images it takes: .*data"
    )
    refused(tiny_run, CheckpointError, expected, name=unfinished / "checkpoints" / LAST)


class Poison:
    """What unpickles to a call."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("poisoned"),))


Spoil = tuple[str, Callable[[Path, Path], object], str]
SPOILT: dict[str, Spoil] = {
    "alone": (
        f"../{LAST}",
        lambda folder, path: shutil.copy(folder / "checkpoints" / LAST, path),
        "no run folder",
    ),
    "missing": ("checkpoints/step_00000007.pt", lambda *_: None, f"no such checkpoint; .* holds {LAST}$"),
    "no checkpoint": ("results.json", lambda *_: None, "not a checkpoint"),
    "torn": (
        f"checkpoints/{LAST}",
        lambda _, path: path.write_bytes(path.read_bytes()[:-1000]),
        "not a checkpoint, or cut off",
    ),
    "of another run": (
        f"checkpoints/{LAST}",
        lambda folder, _: change_card(folder, lambda card: card["config"].update(seed=43)),
        "belongs to another run; what differs: seed 42 -> 43",
    ),
    "poisoned": (
        f"checkpoints/{LAST}",
        lambda _, path: torch.save({"schema": checkpoints.SCHEMA_VERSION, "weights": Poison()}, path),
        "cannot be read: ",
    ),
}


@pytest.mark.usefixtures("never_loaded")
@pytest.mark.parametrize("case", SPOILT)
def test_a_checkpoint_that_cannot_be_used_is_one_line(
    tiny_run: "TinyRun", copy: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(copy)
    name, spoil, line = SPOILT[case]
    spoil(copy, copy / name)
    refused(tiny_run, CheckpointError, line, name=copy / name)
    assert not Path("poisoned").exists()


def test_a_checkpoint_whose_tensors_do_not_fit_is_one_line(tiny_run: "TinyRun", unfinished: Path) -> None:
    last = checkpoints.load(unfinished / "checkpoints" / LAST)
    weights = {name: value.flatten()[:1] for name, value in last.weights.items()}
    path = checkpoints.save(unfinished / "checkpoints", last._replace(weights=weights))
    refused(tiny_run, CheckpointError, r"step_00000002\.pt: .*size mismatch", name=path)


# ---- what is refused, before the model is loaded ----


@pytest.mark.usefixtures("never_loaded")
def test_an_image_of_another_form_is_named(tiny_run: "TinyRun", tmp_path: Path) -> None:
    shutil.copytree((tiny_run.data / FIRST).parent, tmp_path, dirs_exist_ok=True)
    tifffile.imwrite(tmp_path / "000001.tiff", np.ones((31, 90), np.float32))
    line = r"^000001\.tiff: 31 x 90 float32 TIFF, .* trained on 31 x 95 float32"
    refused(tiny_run, ImageError, line, images=tmp_path)
    (tmp_path / "000001.tiff").unlink()
    Image.fromarray(np.ones((31, 95), np.uint8)).save(tmp_path / "000001.png")
    refused(tiny_run, ImageError, r"^000001\.png: 31 x 95 8-bit PNG, but the model", images=tmp_path)


@pytest.mark.usefixtures("never_loaded")
def test_what_the_user_got_wrong_is_one_line(tiny_run: "TinyRun", tmp_path: Path) -> None:
    refused(tiny_run, ImageError, "nowhere: cannot be read", images=Path("nowhere"))
    refused(tiny_run, ImageError, r"holds no images \(\.tif", images=tmp_path)
    refused(tiny_run, ConfigError, "domain='E': the model has no threshold", domain="E")
    refused(tiny_run, ConfigError, "gpu='first'", gpu="first")
    refused(tiny_run, ConfigError, "maps=-1", maps=-1)
    (tmp_path / "scores.csv").touch()
    refused(tiny_run, OutputError, "already there", output=tmp_path)


def test_memory_that_runs_out_is_one_line(
    tiny_run: "TinyRun", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def examine(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Scorer, "examine", examine)
    line = r"out of memory on cpu: .*; score fewer images at a time"
    refused(tiny_run, OutOfMemory, line, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- the entry point ----


def test_flags_are_checked_and_errors_have_their_exit_codes(
    tiny_run: "TinyRun", tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*argv: str) -> tuple[int, str]:
        code = exit_code(main, argv)
        return code, capsys.readouterr().err

    output = ("--output", str(tmp_path / "out"))
    given = ("--run", str(tiny_run.folder), "--input", str((tiny_run.data / FIRST).parent))
    assert run(*given, *output, "--maps", "0", "--gpu", "cpu") == (0, "")
    assert (tmp_path / "out" / "scores.csv").is_file()
    assert run(*given, "--outptu", "x") == (
        64,
        "ConfigError: unknown flag --outptu. Did you mean 'output'?\n",
    )
    assert run(*given, "--maps", "many")[0] == 64
    assert run("--input", "x")[1].startswith("ConfigError: --run is needed")
    assert run(*given[:2], "--input", str(tmp_path / "nowhere"))[0] == 65
    assert run(*given, *output)[0] == 74
