"""A real `mlflow models serve`: started, asked, stopped; a registered model; requests to be refused."""

import base64
import contextlib
import http.client
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.files import bare_tiff, png, tiff
from tests.work import PATIENCE_S, mlflow_server

HOST = "127.0.0.1"
JSON = "application/json"


class Request(NamedTuple):
    """The body of a request to /invocations and its content type."""

    body: bytes
    content_type: str = JSON


class Answer(NamedTuple):
    """What came back."""

    status: int
    body: str

    def rows(self) -> list[dict[str, Any]]:
        """Return one row an image: score, threshold, fault, and map where asked for."""
        assert self.status == 200, self.body
        rows: list[dict[str, Any]] = json.loads(self.body)["predictions"]
        return rows

    def message(self) -> str:
        """Return what was wrong, as the server says it."""
        try:
            return str(json.loads(self.body)["message"])
        except (ValueError, LookupError):
            return self.body


class Refused(NamedTuple):
    """A request, the status that it deserves, and what its message must name (a regular expression)."""

    request: Request
    names: str
    status: int = 400


class Client:
    """One connection to a server; not to be shared by threads."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection(HOST, port, timeout=PATIENCE_S)

    def close(self) -> None:
        """End the connection; for ``contextlib.closing``."""
        self.connection.close()

    def ask(self, request: Request) -> Answer:
        """Send a request and wait for its answer."""
        self.connection.request(
            "POST", "/invocations", body=request.body, headers={"Content-Type": request.content_type}
        )
        response = self.connection.getresponse()
        return Answer(response.status, response.read().decode())


def serving(model_uri: str, *, tracking_uri: str, log: Path) -> contextlib.AbstractContextManager[int]:
    """Serve a model for as long as needed and yield the port; the server's lines go to ``log``."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    words = ("models", "serve", "-m", model_uri, "--env-manager", "local")
    return mlflow_server(*words, answers="/ping", log=log, MLFLOW_TRACKING_URI=tracking_uri, PATH=path)


@contextlib.contextmanager
def global_store(uri: str) -> Iterator[None]:
    """Point MLflow's global store there; afterwards the environment decides again, for later tests."""
    import mlflow

    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)


def register(uri: str, run_id: str, *, name: str, alias: str) -> str:
    """Register a run's model as the next version of ``name``, give it an alias, and return the version."""
    import mlflow

    with global_store(uri):  # MLflow looks the source of a version up there
        client = mlflow.MlflowClient()
        outputs = client.get_run(run_id).outputs
        assert outputs is not None, "a finished run has a model"
        (model,) = outputs.model_outputs
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        source = f"models:/{model.model_id}"
        version = str(client.create_model_version(name, source, run_id, model_id=model.model_id).version)
        client.set_registered_model_alias(name, alias, version)
        return version


# ---- requests ----


def as_json(content: Any, **params: Any) -> Request:
    """Return a JSON request, with params if there are any."""
    return Request(json.dumps({**content, **({"params": params} if params else {})}).encode())


def as_files(*files: bytes, **params: Any) -> Request:
    """Return a request with image files as base64 text."""
    return as_json({"inputs": {"image": [base64.b64encode(file).decode() for file in files]}}, **params)


def huge_tiff(side: int = 60_000) -> bytes:
    """Return a small TIFF whose header promises side x side pixels (14 GB at the default)."""
    sides = ((256, 1, side), (257, 1, side), (258, 1, 32), (259, 1, 1), (262, 1, 1))
    return bare_tiff(*sides, (273, 1, 8), (278, 1, side), (279, 1, 4 * side), (339, 1, 3))


def malformed(shape: tuple[int, int]) -> dict[str, Refused]:
    """Return by name what a server of a float32 model must refuse, whatever it was trained on."""
    height, width = shape
    good = np.full((1, height, width), 0.25, np.float32)
    image, maps, column = good[0], good.tolist(), "expected one column 'image'"

    def arrays(images: Any, **params: Any) -> Request:
        return as_json({"inputs": images}, **params)

    def holding(value: Any) -> Request:
        changed = good.astype(object)
        changed[0, 1, 2] = value
        return arrays(changed.tolist())

    requests: dict[str, tuple[Request, str]] = {
        "no JSON": (Request(b"score this"), "valid JSON"),
        "empty body": (Request(b""), "valid JSON"),
        "a list": (Request(b"[1, 2]"), "Received a list"),
        "wrong key": (as_json({"pictures": maps}), "exactly one of the input fields"),
        "wrong column": (arrays({"picture": ["AAAA"]}), f"columns picture: {column}"),
        "domain as a column": (
            as_json({"dataframe_records": [{"image": "AAAA", "domain": "C"}]}),
            f"columns image, domain: {column}",
        ),
        "wrong shape": (
            arrays(good[:, :, :-5].tolist()),
            rf"shape \(1, {height}, {width - 5}\), expected \(images, {height}, {width}\)",
        ),
        "one map without its axis": (
            as_json({"instances": image.tolist()}),
            rf"shape \({height}, {width}\), expected",
        ),
        "rows of different lengths": (arrays([[[1.0, 2.0], [3.0]]]), "inhomogeneous|lengths"),
        "no images": (arrays([]), r"shape \(0,\), expected"),
        "no files": (as_files(), "column 'image': no images"),
        "NaN": (holding(float("nan")), "image 0 holds NaN or infinite"),
        "beyond float32": (holding(1e39), "image 0 holds NaN or infinite"),
        "null": (holding(None), "holds null"),
        "text": (holding("warm"), "holds text, expected numbers"),
        "broken base64": (arrays({"image": ["not base64!"]}), "image 0: not base64"),
        "number for a file": (arrays({"image": [3]}), "image 0: not base64"),
        "path for a file": (arrays({"image": ["/etc/hosts"]}), "image 0: not base64"),
        "no image file": (as_files(b"GIF89a"), "image 0.tiff: not a TIFF"),
        "truncated TIFF": (as_files(tiff(image)[:-100]), r"image 0\.tiff: "),
        "other shape": (as_files(tiff(image[:, :-5])), f"{height} x {width - 5} float32 TIFF, but"),
        "other number type": (as_files(tiff(image.astype(np.float64))), "float64 TIFF, but"),
        "other file type": (as_files(png(np.ones(shape, np.uint8))), "8-bit PNG or TIFF, but"),
        "huge header": (as_files(huge_tiff()), "60000 x 60000 pixels, expected"),
        "second of two is bad": (as_files(tiff(image), b""), r"image 1\.tiff: "),
        "unknown domain": (arrays(maps, domain="Z"), "domain='Z': the model has"),
        "domain is a number": (arrays(maps, domain=3), "domain"),
        "params is a list": (Request(b'{"inputs": [[[0.5]]], "params": [1]}'), "must be a dictionary"),
    }
    refused = {name: Refused(request, names) for name, (request, names) in requests.items()}
    return refused | {"wrong content type": Refused(Request(tiff(image), "image/tiff"), "image/tiff", 415)}
