"""The exported model as an MLflow pyfunc model: images in, scores, decisions and anomaly maps out.

MLflow loads it through this module (`_load_pyfunc`), so nothing is pickled, and dinomaly_hd must be installed
where the model is loaded: `mlflow models serve -m models:/NAME/1 --env-manager local`. The encoder's weights
come from where the run had them: the installed package, the hub, or the path in its config.
"""

# B batch, H W pixels of the input

import base64
import binascii
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from dinomaly_hd import provenance
from dinomaly_hd.data.folder import check_form
from dinomaly_hd.data.images import decode_image
from dinomaly_hd.errors import ImageError, NonFiniteError
from dinomaly_hd.experiments.examine import predict, sample_at_pixels, visible_pixels
from dinomaly_hd.experiments.exported import Exported, load_model, read_card
from dinomaly_hd.experiments.prediction import known_domain
from dinomaly_hd.models.build_encoder import visible_box
from dinomaly_hd.tracking.models import logged_model
from dinomaly_hd.training.fit import resolve_device

if TYPE_CHECKING:
    from mlflow.models import ModelSignature
    from mlflow.tracking import MlflowClient

IMAGE_COLUMN = "image"
PNG_START = b"\x89PNG"
_TALKATIVE = ("mlflow.pyfunc", "mlflow.utils.environment")  # say that an example is valid, that pip is absent
Images = npt.NDArray[np.float32]


class ScoringModel:
    """What MLflow calls; scores as the run's own evaluation did, on a GPU where there is one."""

    def __init__(self, exported: Exported) -> None:
        self.card = exported.card
        self.device = resolve_device("auto")
        self.detector = exported.detector.to(self.device).eval()
        self.box = visible_box(exported.card.run.encoder, shape=exported.card.shape)

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Return score, threshold, fault (score >= threshold) and map for each image.

        Args:
            model_input: Array or nested list (B, H, W) in the reader's units (TIFF values as they are, PNG
                0..1), or a table or a mapping of columns, whose column ``image``
                holds TIFF or PNG files as base64 text.
            params: ``domain``: whose threshold decides, "" for a model that knows one; without any, threshold
                and fault are empty. ``return_map``: the map read at the input's pixels, None where a crop hid
                the pixel.

        Raises:
            ImageError: An image is damaged or of another form than the training images.
            ConfigError: Unknown domain.
        """
        params = params or {}
        threshold = self._threshold(str(params.get("domain") or ""))
        images_BHW = read_input(model_input, shape=self.card.shape, dtype=self.card.dtype)
        size = self.card.run.evaluation.eval_batch_size
        parts = [self._score(images_BHW[i : i + size]) for i in range(0, len(images_BHW), size)]
        score_B = np.concatenate([score for score, _ in parts])
        if not np.isfinite(score_B).all():
            raise NonFiniteError(
                f"image {int(np.argmin(np.isfinite(score_B)))}: the score is NaN or infinite"
            )
        table = pd.DataFrame({"score": score_B})
        table["threshold"] = np.nan if threshold is None else threshold
        table["fault"] = None if threshold is None else score_B >= threshold
        if params.get("return_map"):
            table["map"] = pd.Series([_nested(map_HW) for _, map_BHW in parts for map_HW in map_BHW])
        return table

    def _threshold(self, domain: str) -> float | None:
        thresholds = self.card.thresholds
        if domain:
            return thresholds[known_domain(domain, thresholds)]
        return next(iter(thresholds.values())) if len(thresholds) == 1 else None

    def _score(self, images_BHW: Images) -> tuple[npt.NDArray[np.float64], Images]:
        """Return scores and maps at the input's pixels, NaN where the model does not see."""
        bf16 = self.card.run.training.precision == "bf16"
        images = torch.from_numpy(images_BHW)
        prediction = predict(self.detector, images, device=self.device, bf16=bf16)
        shape = self.card.shape
        map_BHW = np.full(images_BHW.shape, np.nan, np.float32)
        seen = sample_at_pixels(prediction.map_BHW, box=self.box, shape=shape)
        map_BHW[:, *visible_pixels(self.box, shape=shape)] = seen.numpy()
        return prediction.score_B.numpy(), map_BHW


def read_input(model_input: Any, *, shape: tuple[int, int], dtype: str) -> Images:
    """Return images (B, H, W) from whatever MLflow hands on: array, nested list or table.

    Raises:
        ImageError: Not one of them, or not the model's shape, number type or finite.
    """
    if isinstance(model_input, Mapping):
        model_input = pd.DataFrame(model_input)
    if isinstance(model_input, pd.DataFrame):
        if IMAGE_COLUMN not in model_input:
            raise ImageError(
                f"columns {', '.join(map(str, model_input.columns))}: expected a column {IMAGE_COLUMN!r}"
            )
        encoded = enumerate(model_input[IMAGE_COLUMN])
        images = [_decode(text, name=f"image {i}", shape=shape, dtype=dtype) for i, text in encoded]
        return np.stack(images) if images else _array([], shape=shape)
    return _array(model_input, shape=shape)


def _array(values: Any, *, shape: tuple[int, int]) -> Images:
    try:
        images = np.ascontiguousarray(values, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ImageError(f"input: not an array of numbers ({error})") from error
    if images.ndim != 3 or images.shape[1:] != shape or not len(images):
        raise ImageError(f"input: shape {images.shape}, expected (images, {shape[0]}, {shape[1]})")
    if not np.isfinite(images).all():
        bad = int(np.argmin(np.isfinite(images).all(axis=(1, 2))))
        raise ImageError(f"input: image {bad} holds NaN or infinite values")
    return images


def _decode(encoded: Any, *, name: str, shape: tuple[int, int], dtype: str) -> Images:
    try:
        data = encoded if isinstance(encoded, bytes) else base64.b64decode(encoded, validate=True)
    except (TypeError, ValueError, binascii.Error) as error:
        raise ImageError(f"{name}: not base64 ({error}); encode the bytes of a TIFF or PNG file") from error
    name += ".png" if data.startswith(PNG_START) else ".tiff"
    decoded = decode_image(data, name=name)
    check_form(decoded.header, name=name, shape=shape, dtype=dtype)
    return decoded.image


def _nested(map_HW: Images) -> list[list[float | None]]:
    return [[None if value != value else value for value in row] for row in map_HW.tolist()]


def _load_pyfunc(path: str) -> ScoringModel:
    """Load the model; the name is MLflow's."""
    return ScoringModel(load_model(Path(path)))


def signature() -> "ModelSignature":
    """Return outputs and parameters; inputs stay open: no MLflow schema can say "array or table"."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
    from mlflow.types.schema import AnyType

    outputs: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.double, "score"),
        ColSpec(DataType.double, "threshold", required=False),
        ColSpec(DataType.boolean, "fault", required=False),
        ColSpec(AnyType(), "map", required=False),  # type: ignore[no-untyped-call]
    ]
    params = [
        ParamSpec("domain", DataType.string, ""),
        ParamSpec("return_map", DataType.boolean, False),
    ]
    return ModelSignature(outputs=Schema(outputs), params=ParamSchema(params))


def input_example(*, shape: tuple[int, int], dtype: str) -> dict[str, list[str]]:
    """Return a table with one even image in the form that the model takes, as columns."""
    from io import BytesIO

    stream = BytesIO()
    if dtype == "float32":
        import tifffile

        tifffile.imwrite(stream, np.full(shape, 0.25, np.float32))
    else:
        import PIL.Image

        PIL.Image.fromarray(np.full(shape, 64, dtype)).save(stream, format="PNG")
    return {IMAGE_COLUMN: [base64.b64encode(stream.getvalue()).decode()]}


def log_model(client: "MlflowClient", run_id: str, *, folder: Path) -> None:
    """Log an exported model under its run as the MLflow model ``model``; repeated, it adds no second one.

    Requirements are the installed versions, dinomaly_hd among them, so no code is copied into the model and
    MLflow need not load it to find out. Raises what MLflow raises.

    Args:
        client: Of the run's store; MLflow's global state stays untouched.
        run_id: The run.
        folder: What ``export_model`` wrote.
    """
    import mlflow.pyfunc
    from mlflow.models import Model

    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    card = read_card(folder)
    entry = logged_model(client, run_id)
    with tempfile.TemporaryDirectory(prefix="dinomaly-hd-") as temporary:
        mlflow.pyfunc.save_model(
            path=temporary,
            loader_module=__name__,
            mlflow_model=Model(
                artifact_path=entry.artifact_location,
                run_id=run_id,
                model_uuid=entry.model_id,
                model_id=entry.model_id,
            ),
            signature=signature(),
            input_example=input_example(shape=card.shape, dtype=card.dtype),
            pip_requirements=_requirements(),
        )
        client.log_model_artifacts(entry.model_id, temporary)
    # Beside MLflow's files, not below: without ``data_path`` the loader is given the model's own folder.
    client.log_model_artifacts(entry.model_id, str(folder))
    client.finalize_logged_model(entry.model_id, "READY")


def _requirements() -> list[str]:
    versions = provenance.package_versions()
    del versions["python"]
    return [f"{name}=={version.partition('+')[0]}" for name, version in versions.items()]
