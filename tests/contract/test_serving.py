"""What the logged MLflow model promises: the run's own scores, of arrays or files, decisions by domain."""

import base64
import json
import re
import shutil
import warnings
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException

from dinomaly_hd.data.images import read_image
from dinomaly_hd.errors import ImageError
from dinomaly_hd.runs.store import client_for
from dinomaly_hd.serving import _load_pyfunc
from dinomaly_hd.serving.exported import read_card
from dinomaly_hd.serving.images import encode_files, input_example, read_input
from dinomaly_hd.serving.served import ServedModel, log_model

from .conftest import TinyRun
from .scoring_server import (
    Client,
    Request,
    as_files,
    as_json,
    global_store,
    malformed,
    png,
    register,
    serving,
)

WHERE = ["tooth", "first_column", "last_column", "normal_percentile"]
DOMAIN = "domain_C"


@pytest.fixture(scope="module")
def loaded(tiny_run: TinyRun) -> Any:
    """The model as a user gets it from MLflow."""
    import mlflow

    with global_store(tiny_run.uri), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(mlflow|pydantic|sqlalchemy)\.")
        return mlflow.pyfunc.load_model(f"runs:/{tiny_run.run_id}/model")


@pytest.fixture(scope="module")
def own(tiny_run: TinyRun) -> pd.DataFrame:
    """The run's scores of one domain."""
    return pd.read_csv(tiny_run.folder / "scores" / f"{DOMAIN}.csv")


@pytest.fixture(scope="module")
def threshold(tiny_run: TinyRun) -> float:
    """The run's own, of this domain."""
    return read_card(tiny_run.folder / "model").thresholds[DOMAIN]


@pytest.fixture(scope="module")
def images_BHW(tiny_run: TinyRun, own: pd.DataFrame) -> np.ndarray:
    return np.stack([read_image(tiny_run.data / path) for path in own["path"]])


# ---- through MLflow ----


def test_arrays_and_files_get_the_runs_own_scores_and_decisions(
    tiny_run: TinyRun, loaded: Any, own: pd.DataFrame, threshold: float, images_BHW: np.ndarray
) -> None:
    files = encode_files([(tiny_run.data / path).read_bytes() for path in own["path"]])
    for given in (images_BHW, images_BHW.tolist(), files, pd.DataFrame(files)):
        answer = loaded.predict(given, params={"domain": "C"})
        np.testing.assert_allclose(answer["score"], own["score"], rtol=0, atol=1e-6)
        assert (answer["threshold"] == threshold).all()
        assert list(answer["fault"]) == list(answer["score"] >= threshold)
        assert list(answer.columns) == ["score", "threshold", "fault", *WHERE]
        assert list(answer["tooth"]) == list(own["tooth"])
        np.testing.assert_allclose(answer["normal_percentile"].astype(float), own["normal_percentile"])


def test_the_logged_model_says_what_it_takes_gives_and_needs(tiny_run: TinyRun, loaded: Any) -> None:
    signature = loaded.metadata.signature
    assert signature.outputs.input_names() == ["score", "threshold", "fault", *WHERE, "map"]
    assert [param.name for param in signature.params] == ["domain", "return_map"]
    assert loaded.metadata.flavors["python_function"]["loader_module"] == "dinomaly_hd.serving"
    client = client_for(tiny_run.uri)
    log_model(client, tiny_run.run_id, folder=tiny_run.folder / "model")  # again: no second one
    (output,) = client.get_run(tiny_run.run_id).outputs.model_outputs
    model = client.get_logged_model(output.model_id)
    assert (model.name, str(model.status), model.source_run_id) == ("model", "READY", tiny_run.run_id)
    files = Path(model.artifact_location.removeprefix("file://"))
    needs = (files / "requirements.txt").read_text().splitlines()
    assert any(line.startswith("dinomaly-hd==") for line in needs)
    assert any(line.startswith("torch==") and "+" not in line for line in needs)
    example = json.loads((files / "input_example.json").read_text())
    assert len(loaded.predict(example)) == 1


# ---- a server ----


def single_request(image_HW: np.ndarray, path: Path, number: int) -> Request:
    """Return a request with one image in one of the four forms that MLflow knows."""
    file = path.read_bytes()
    split = {"columns": ["image"], "data": [encode_files([file])["image"]]}
    forms = (
        as_files(file, domain=DOMAIN),
        as_json({"inputs": image_HW[None].tolist()}, domain="C", return_map=True),
        as_json({"dataframe_split": split}, domain=DOMAIN, return_map=True),
        as_json({"instances": image_HW[None].tolist()}, domain="C"),
    )
    return forms[number % 4]


def test_a_registered_model_is_served_and_lives_on_through_malformed_requests(
    tiny_run: TinyRun, own: pd.DataFrame, threshold: float, images_BHW: np.ndarray, tmp_path: Path
) -> None:
    register(tiny_run.uri, tiny_run.run_id, name="served", alias="champion")
    shape, log = images_BHW.shape[1:], tmp_path / "server.log"
    with (
        serving("models:/served@champion", tracking_uri=tiny_run.uri, log=log) as port,
        closing(Client(port)) as client,
    ):

        def check_scores() -> None:
            for i, (path, score) in enumerate(zip(own["path"], own["score"], strict=True)):
                (row,) = client.ask(single_request(images_BHW[i], tiny_run.data / path, i)).rows()
                assert abs(row["score"] - score) <= 1e-6
                assert (row["threshold"], row["fault"]) == (threshold, row["score"] >= threshold)
                assert "map" not in row or np.shape(row["map"]) == shape

        check_scores()
        answers = {name: client.ask(one.request) for name, one in malformed(shape).items()}
        check_scores()
    for name, refused in malformed(shape).items():
        answer = answers[name]
        assert answer.status == refused.status, f"{name}: {answer.body}"
        assert re.search(refused.names, answer.message()), f"{name}: {answer.body}"
        assert "Traceback" not in answer.body, name


def test_a_failure_that_is_not_the_requests_is_500_with_the_traceback_in_the_log_only(
    loaded: Any, images_BHW: np.ndarray, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow.pyfunc.scoring_server import invocations

    def fail(*_: Any) -> None:
        raise RuntimeError("no memory left\nat all")

    monkeypatch.setattr(ServedModel, "_score", fail)
    request = as_json({"inputs": images_BHW[:1].tolist()})
    with pytest.raises(MlflowException) as failed:
        invocations(request.body, request.content_type, loaded, None)
    assert failed.value.get_http_status_code() == 500
    assert json.loads(failed.value.serialize_as_json()) == {
        "error_code": "INTERNAL_ERROR",
        "message": "scoring failed (RuntimeError); the server's log says more",
    }
    assert "no memory left" in caplog.text


# ---- decisions and refusals ----


@pytest.fixture
def served(tiny_run: TinyRun) -> ServedModel:
    """The model as MLflow loads it."""
    return _load_pyfunc(str(tiny_run.folder / "model"))


def test_what_cannot_be_answered_is_one_line(served: ServedModel, images_BHW: np.ndarray) -> None:
    answer = served.predict(images_BHW[:1])
    assert np.isfinite(answer["score"]).all()
    assert answer[["threshold", "fault"]].isna().all(axis=None)
    with pytest.raises(MlflowException) as refused:
        served.predict(images_BHW, {"domain": "E"})
    refused.value.message = "Failed to predict data ...: as MLflow's server puts it"
    told = json.loads(refused.value.serialize_as_json())
    assert told["error_code"] == "BAD_REQUEST"
    assert told["message"].startswith("domain='E': the model has no threshold for it.")
    with pytest.raises(MlflowException, match="image 1: the score is NaN or infinite"):
        served.predict(np.stack([images_BHW[0], np.full((31, 95), 3e38)]))


def test_a_map_has_the_inputs_pixels_but_cropped_ones(served: ServedModel, images_BHW: np.ndarray) -> None:
    def drawn() -> np.ndarray:
        return np.array(served.predict(images_BHW[:1], params={"return_map": True})["map"][0], dtype=float)

    map_HW = drawn()
    assert map_HW.shape == images_BHW.shape[1:]
    assert (map_HW >= 0).all()
    assert map_HW.std() > 0
    served.box = served.box._replace(top=5.0, bottom=26.0)
    served.card = served.card._replace(normal_rows=(0.0,))
    map_HW = drawn()
    assert list(np.isnan(map_HW).all(axis=1)) == [not 5 <= row < 26 for row in range(31)]
    assert not np.isnan(map_HW[5:26]).any()


def test_random_weights_come_back(tiny_run: TinyRun, tmp_path: Path, images_BHW: np.ndarray) -> None:
    shutil.copytree(tiny_run.folder / "model", tmp_path / "model")
    card = json.loads((tmp_path / "model" / "model.json").read_text())
    card["config"]["encoder"]["encoder_weights"] = card["encoder_digest"] = "random"
    (tmp_path / "model" / "model.json").write_text(json.dumps(card))
    first, second = (ServedModel(tmp_path / "model").predict(images_BHW[:2]) for _ in range(2))
    np.testing.assert_array_equal(first["score"], second["score"])


UNSCORABLE: list[tuple[Any, str]] = [  # beside what `malformed` tries over a connection
    (np.zeros((0, 31, 95)), "shape"),
    ([[True, False]], "holds bool, expected numbers"),
    ([[10**400]], "a number beyond 64 bits"),
    ("gear", "holds text"),
    (pd.DataFrame({"image": []}), "column 'image': no images"),
    ({}, "columns none: expected one column"),
    ({"image": [["AAAA"]]}, "image 0: not base64 text"),
    ({"image": base64.b64encode(b"/etc/passwd").decode()}, "image 0.tiff: not a TIFF"),
]


def test_an_input_is_an_image_of_the_models_form_or_one_line() -> None:
    for given, line in UNSCORABLE:
        with pytest.raises(ImageError, match=line):
            read_input(given, shape=(31, 95), dtype="float32")
    for value in (51, 1.001, -0.1):
        given = np.full((1, 31, 95), value)
        with pytest.raises(ImageError, match="expected 0 to 1: the model was trained on 8-bit PNG"):
            read_input(given, shape=(31, 95), dtype="uint8")
        assert read_input(given, shape=(31, 95), dtype="float32").shape == (1, 31, 95)
    for dtype in ("float32", "float64", "uint8", "uint16", "uint32"):
        image = read_input(input_example(shape=(31, 95), dtype=dtype), shape=(31, 95), dtype=dtype)
        assert (image.shape, image.dtype) == ((1, 31, 95), np.float32)
    file = encode_files([png(np.full((31, 95), 51, np.uint8))])
    np.testing.assert_allclose(read_input(file, shape=(31, 95), dtype="uint8"), 0.2, rtol=1e-6)
