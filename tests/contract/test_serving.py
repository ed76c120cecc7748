"""What the logged MLflow model promises: the run's own scores, of arrays or files, decisions by domain."""

import base64
import io
import json
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from dinomaly_hd.data.images import read_image
from dinomaly_hd.errors import ConfigError, ImageError
from dinomaly_hd.experiments.exported import load_model
from dinomaly_hd.serving import ScoringModel, input_example, log_model, read_input
from dinomaly_hd.tracking.store import client_for

if TYPE_CHECKING:
    from conftest import TinyRun

DOMAIN = "domain_C"


@pytest.fixture(scope="module")
def loaded(tiny_run: "TinyRun") -> Any:
    """The model as a user gets it from MLflow."""
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(tiny_run.uri)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(mlflow|pydantic|sqlalchemy)\.")
        model = mlflow.pyfunc.load_model(f"runs:/{tiny_run.run_id}/model")
    mlflow.set_tracking_uri(before)
    return model


@pytest.fixture(scope="module")
def scorer(tiny_run: "TinyRun") -> ScoringModel:
    return ScoringModel(load_model(tiny_run.folder / "model"))


@pytest.fixture(scope="module")
def own(tiny_run: "TinyRun") -> pd.DataFrame:
    """The run's scores of one domain."""
    return pd.read_csv(tiny_run.folder / "scores" / f"{DOMAIN}.csv")


@pytest.fixture(scope="module")
def images_BHW(tiny_run: "TinyRun", own: pd.DataFrame) -> np.ndarray:
    return np.stack([read_image(tiny_run.data / path) for path in own["path"]])


def encoded(*files: bytes) -> pd.DataFrame:
    return pd.DataFrame({"image": [base64.b64encode(file).decode() for file in files]})


# ---- through MLflow ----


def test_arrays_and_files_get_the_runs_own_scores_and_decisions(
    tiny_run: "TinyRun", loaded: Any, own: pd.DataFrame, images_BHW: np.ndarray
) -> None:
    threshold = json.loads((tiny_run.folder / "model" / "model.json").read_text())["thresholds"][DOMAIN]
    files = encoded(*((tiny_run.data / path).read_bytes() for path in own["path"]))
    for given in (images_BHW, images_BHW.tolist(), files):
        answer = loaded.predict(given, params={"domain": "C"})
        np.testing.assert_allclose(answer["score"], own["score"], rtol=0, atol=1e-6)
        assert (answer["threshold"] == threshold).all()
        assert list(answer["fault"]) == list(answer["score"] >= threshold)
        assert list(answer.columns) == ["score", "threshold", "fault"]


def test_maps_come_at_the_inputs_pixels_when_asked_for(loaded: Any, images_BHW: np.ndarray) -> None:
    answer = loaded.predict(images_BHW[:2], params={"return_map": True})
    map_BHW = np.array(answer["map"].tolist(), dtype=float)
    assert map_BHW.shape == (2, *images_BHW.shape[1:])
    assert (map_BHW >= 0).all()
    assert map_BHW[0].std() > 0


def test_the_logged_model_says_what_it_takes_gives_and_needs(tiny_run: "TinyRun", loaded: Any) -> None:
    signature = loaded.metadata.signature
    assert signature.outputs.input_names() == ["score", "threshold", "fault", "map"]
    assert [param.name for param in signature.params] == ["domain", "return_map"]
    client = client_for(tiny_run.uri)
    (output,) = client.get_run(tiny_run.run_id).outputs.model_outputs
    model = client.get_logged_model(output.model_id)
    assert (model.name, str(model.status), model.source_run_id) == ("model", "READY", tiny_run.run_id)
    files = Path(model.artifact_location.removeprefix("file://"))
    needs = (files / "requirements.txt").read_text().splitlines()
    assert any(line.startswith("dinomaly-hd==") for line in needs)
    assert any(line.startswith("torch==") and "+" not in line for line in needs)
    example = json.loads((files / "input_example.json").read_text())
    assert len(loaded.predict(example)) == 1


def test_logging_it_again_makes_no_second_model(tiny_run: "TinyRun") -> None:
    client = client_for(tiny_run.uri)
    log_model(client, tiny_run.run_id, folder=tiny_run.folder / "model")
    assert len(client.get_run(tiny_run.run_id).outputs.model_outputs) == 1


def test_the_answer_of_a_server_is_json(loaded: Any, images_BHW: np.ndarray) -> None:
    from mlflow.pyfunc.scoring_server import invocations

    request = {
        "dataframe_split": {"columns": ["image"], "data": encoded(tiff(images_BHW[0])).to_numpy().tolist()},
        "params": {"domain": DOMAIN, "return_map": True},
    }
    answer = invocations(json.dumps(request), "application/json", loaded, None)
    assert answer.status == 200
    (row,) = json.loads(answer.response)["predictions"]
    assert isinstance(row["fault"], bool)
    assert len(row["map"]) == 31
    both = encoded(tiff(images_BHW[0]), tiff(images_BHW[1])).to_dict("list")
    for given in ({"instances": images_BHW[:2].tolist()}, {"inputs": both}):
        answer = invocations(json.dumps(given), "application/json", loaded, None)
        scores = [row["score"] for row in json.loads(answer.response)["predictions"]]
        np.testing.assert_allclose(scores, loaded.predict(images_BHW[:2])["score"], rtol=0, atol=1e-6)


def tiff(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, image)
    return stream.getvalue()


# ---- decisions and refusals ----


def test_without_a_domain_several_thresholds_decide_nothing(
    scorer: ScoringModel, images_BHW: np.ndarray
) -> None:
    answer = scorer.predict(images_BHW[:1])
    assert np.isfinite(answer["score"]).all()
    assert answer[["threshold", "fault"]].isna().all(axis=None)
    with pytest.raises(ConfigError, match="domain='E'"):
        scorer.predict(images_BHW[:1], params={"domain": "E"})


def test_a_crop_leaves_the_hidden_pixels_of_a_map_empty(tiny_run: "TinyRun", images_BHW: np.ndarray) -> None:
    exported = load_model(tiny_run.folder / "model")
    model = ScoringModel(exported)
    whole = np.array(model.predict(images_BHW[:1], params={"return_map": True})["map"][0], dtype=float)
    assert not np.isnan(whole).any()
    model.box = model.box._replace(top=5.0, bottom=26.0)
    cut = np.array(model.predict(images_BHW[:1], params={"return_map": True})["map"][0], dtype=float)
    assert np.isnan(cut[:5]).all()
    assert np.isnan(cut[26:]).all()
    assert not np.isnan(cut[5:26]).any()


def test_random_encoder_weights_come_back_by_their_seed(
    tiny_run: "TinyRun", tmp_path: Path, images_BHW: np.ndarray
) -> None:
    shutil.copytree(tiny_run.folder / "model", tmp_path / "model")
    card = json.loads((tmp_path / "model" / "model.json").read_text())
    card["config"]["encoder"]["encoder_weights"] = card["encoder_digest"] = "random"
    (tmp_path / "model" / "model.json").write_text(json.dumps(card))
    first, second = (ScoringModel(load_model(tmp_path / "model")).predict(images_BHW[:2]) for _ in range(2))
    np.testing.assert_array_equal(first["score"], second["score"])


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (np.zeros((2, 31, 90)), r"shape \(2, 31, 90\), expected \(images, 31, 95\)"),
        (np.zeros((31, 95)), "shape"),
        (np.zeros((0, 31, 95)), "shape"),
        (np.full((1, 31, 95), np.nan), "image 0 holds NaN"),
        ([["a", "b"]], "not an array of numbers"),
        (pd.DataFrame({"picture": ["x"]}), "columns picture: expected a column 'image'"),
        (pd.DataFrame({"image": ["not base64!"]}), "image 0: not base64"),
        (pd.DataFrame({"image": [3]}), "image 0: not base64"),
        (encoded(b"GIF89a"), "image 0.tiff: not a classic TIFF"),
        (encoded(tiff(np.zeros((31, 90), np.float32))), "31 x 90 float32 TIFF, but the model was trained on"),
    ],
)
def test_an_input_that_cannot_be_scored_is_one_line(given: Any, line: str) -> None:
    with pytest.raises(ImageError, match=line):
        read_input(given, shape=(31, 95), dtype="float32")


@pytest.mark.parametrize("dtype", ["float32", "uint8", "uint16"])
def test_the_example_is_an_image_the_model_takes(dtype: str) -> None:
    example = input_example(shape=(31, 95), dtype=dtype)
    image = read_input(example, shape=(31, 95), dtype=dtype)
    assert image.shape == (1, 31, 95)
    assert image.dtype == np.float32


def test_a_png_file_is_scaled_as_the_reader_does() -> None:
    stream = io.BytesIO()
    Image.fromarray(np.full((31, 95), 51, np.uint8)).save(stream, format="PNG")
    image = read_input(encoded(stream.getvalue()), shape=(31, 95), dtype="uint8")
    np.testing.assert_allclose(image, 0.2, rtol=1e-6)
