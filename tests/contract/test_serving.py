"""What the logged MLflow model promises: the run's own scores, of arrays or files, decisions by domain."""

import base64
import io
import json
import re
import shutil
import warnings
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dinomaly_hd.config.resolve import resolve_model
from dinomaly_hd.data.images import read_image
from dinomaly_hd.errors import ConfigError, ImageError
from dinomaly_hd.runs.context import Context
from dinomaly_hd.experiments.evaluate import gallery
from dinomaly_hd.experiments.exported import load_model
from dinomaly_hd.experiments.prediction import Request, predict
from dinomaly_hd.experiments.request_images import input_example, read_input
from dinomaly_hd.experiments.run import execute
from dinomaly_hd.serving import ScoringModel, ServedModel, log_model
from dinomaly_hd.runs.store import client_for

from .light_runs import SMALL
from .scoring_server import Answer, Client, as_files, as_json, malformed, register, serving, tiff

if TYPE_CHECKING:
    from conftest import TinyRun

DOMAIN = "domain_C"


@pytest.fixture(scope="module")
def loaded(tiny_run: "TinyRun") -> Any:
    """The model as a user gets it from MLflow."""
    return load_from_mlflow(tiny_run.run_id, tiny_run.uri)


def load_from_mlflow(run_id: str, uri: str) -> Any:
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(mlflow|pydantic|sqlalchemy)\.")
            return mlflow.pyfunc.load_model(f"runs:/{run_id}/model")
    finally:
        mlflow.set_tracking_uri(before)


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


@pytest.mark.parametrize("family", [name for name in SMALL if name != "dinomaly"])
def test_a_finished_run_of_every_family_is_a_model_that_scores_and_decides_as_the_run(
    family: str, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery, "draw_plots", lambda *_, **__: None)
    outcome = execute(resolve_model(family, SMALL[family]), context)
    own = pd.read_csv(outcome.folder / "scores" / "domain_B.csv")
    data = context.root / "data" / "simulated_tiny_seed0"
    images_BHW = np.stack([read_image(data / path) for path in own["path"]])
    assert outcome.mlflow_run_id is not None
    model = load_from_mlflow(outcome.mlflow_run_id, f"sqlite:///{context.root / 'mlflow.db'}")
    answer = model.predict(images_BHW, params={"domain": "B", "return_map": True})
    np.testing.assert_allclose(answer["score"], own["score"], rtol=0, atol=1e-6)
    assert list(answer["fault"]) == list(answer["score"] >= answer["threshold"])
    assert np.shape(answer["map"][0]) == images_BHW.shape[1:]
    (last,) = sorted((outcome.folder / "checkpoints").glob("*.pt"))[-1:]
    place = {"output": context.root / "out", "result_dir": context.result_dir, "root": context.root}
    settings = {"domain": None, "maps": 0, "gpu": "cpu", "say": context.say, "tick": lambda: None}
    table = predict(Request(run=str(last), source=data / "domain_B" / "test", **place, **settings)).table
    np.testing.assert_allclose(table["score"], own.sort_values("path")["score"], rtol=0, atol=1e-6)
    assert set(table["decision"]) <= {"fault", "good"}


# ---- a server ----


def test_a_registered_model_is_served_and_lives_on_through_malformed_requests(
    tiny_run: "TinyRun", own: pd.DataFrame, images_BHW: np.ndarray, tmp_path: Path
) -> None:
    register(tiny_run.uri, tiny_run.run_id, name="served", alias="champion")
    threshold = json.loads((tiny_run.folder / "model" / "model.json").read_text())["thresholds"][DOMAIN]
    shape = images_BHW.shape[1:]
    log = tmp_path / "server.log"
    with (
        serving("models:/served@champion", tracking_uri=tiny_run.uri, log=log) as port,
        closing(Client(port)) as client,
    ):

        def check_scores() -> None:
            for i, (path, score) in enumerate(zip(own["path"], own["score"], strict=True)):
                array = as_json({"inputs": images_BHW[i : i + 1].tolist()}, domain="C", return_map=True)
                file = as_files((tiny_run.data / path).read_bytes(), domain=DOMAIN)
                (row,) = client.ask(array if i % 2 else file).rows()
                assert abs(row["score"] - score) <= 1e-6
                assert (row["threshold"], row["fault"]) == (threshold, row["score"] >= threshold)
                assert not i % 2 or np.shape(row["map"]) == shape

        check_scores()
        answers = {name: client.ask(one.request) for name, one in malformed(shape).items()}
        check_scores()
    for name, refused in malformed(shape).items():
        assert_refused(name, answers[name], refused.names, status=refused.status)


def assert_refused(name: str, answer: Answer, names: str, *, status: int) -> None:
    assert answer.status == status, f"{name}: {answer.body}"
    assert re.search(names, answer.message()), f"{name}: {answer.body}"
    assert "Traceback" not in answer.body, name


def test_a_failure_that_is_not_the_requests_is_500_with_the_traceback_in_the_log_only(
    loaded: Any, images_BHW: np.ndarray, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.pyfunc.scoring_server import invocations

    def fail(*_: Any) -> None:
        raise RuntimeError("no memory left\nat all")

    monkeypatch.setattr(ScoringModel, "_score", fail)
    request = as_json({"inputs": images_BHW[:1].tolist()})
    with pytest.raises(MlflowException) as failed:
        invocations(request.body, request.content_type, loaded, None)
    assert failed.value.get_http_status_code() == 500
    assert json.loads(failed.value.serialize_as_json()) == {
        "error_code": "INTERNAL_ERROR",
        "message": "scoring failed (RuntimeError); the server's log says more",
    }
    assert "no memory left" in caplog.text


def test_a_refusal_names_one_line_and_not_the_whole_request(
    scorer: ScoringModel, images_BHW: np.ndarray
) -> None:
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException) as refused:
        ServedModel(scorer).predict(images_BHW, {"domain": "E"})
    refused.value.message = "Failed to predict data ...: as MLflow's server puts it"
    answer = json.loads(refused.value.serialize_as_json())
    assert answer["error_code"] == "BAD_REQUEST"
    assert answer["message"].startswith("domain='E': the model has no threshold for it.")


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
        (np.full((1, 31, 95), 1e39), "image 0 holds NaN or infinite"),
        ([["a", "b"]], "holds text, expected numbers"),
        ([[True, False]], "holds bool, expected numbers"),
        ([[1.0, None]], "holds null"),
        ([[10**400]], "a number beyond 64 bits"),
        ([[1.0, 2.0], [3.0]], r"different lengths, expected \(images, 31, 95\)"),
        ("gear", "holds text"),
        ([], "shape"),
        (pd.DataFrame({"picture": ["x"]}), "columns picture: expected one column 'image'"),
        ([{"image": "AAAA", "domain": "C"}], "columns image, domain: expected one column"),
        (pd.DataFrame({"image": []}), "column 'image': no images"),
        ({}, "columns none: expected one column"),
        ({"image": [["AAAA"]]}, "image 0: not base64 text"),
        (pd.DataFrame({"image": ["not base64!"]}), "image 0: not base64"),
        (pd.DataFrame({"image": [3]}), "image 0: not base64"),
        (encoded(b"GIF89a"), "image 0.tiff: not a classic TIFF"),
        (encoded(tiff(np.zeros((31, 90), np.float32))), "31 x 90 float32 TIFF, but the model was trained on"),
    ],
)
def test_an_input_that_cannot_be_scored_is_one_line(given: Any, line: str) -> None:
    with pytest.raises(ImageError, match=line):
        read_input(given, shape=(31, 95), dtype="float32")


@pytest.mark.parametrize("value", [51, 1.001, -0.1])
def test_numbers_beyond_what_a_png_can_hold_are_refused(value: float) -> None:
    with pytest.raises(ImageError, match="expected 0 to 1: the model was trained on 8-bit PNG"):
        read_input(np.full((1, 31, 95), value), shape=(31, 95), dtype="uint8")
    assert read_input(np.full((1, 31, 95), value), shape=(31, 95), dtype="float32").shape == (1, 31, 95)


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
