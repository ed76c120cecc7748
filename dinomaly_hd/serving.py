"""The exported model as an MLflow pyfunc model: images in, scores, decisions and anomaly maps out.

    mlflow models serve -m runs:/ID/model --env-manager local

MLflow loads it through this module (`_load_pyfunc`), so nothing is pickled, and dinomaly_hd must be installed
where the model is loaded. The encoder's weights come from where the run had them: the installed package, the
hub, or the path in its config.
"""

# B batch, H W pixels of the input

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
from dinomaly_hd.errors import ConfigError, DataError, NonFiniteError, TrackingError, reason_of
from dinomaly_hd.experiments.score import predict, sample_at_pixels, visible_pixels
from dinomaly_hd.experiments.exported import Exported, load_model, read_card
from dinomaly_hd.experiments.prediction import known_domain
from dinomaly_hd.experiments.request_images import Images, input_example, read_input
from dinomaly_hd.models.preprocessing import visible_box
from dinomaly_hd.runs.models import logged_model
from dinomaly_hd.runs.store import client_for
from dinomaly_hd.training.loop import resolve_device

if TYPE_CHECKING:
    from mlflow.models import ModelSignature
    from mlflow.tracking import MlflowClient

_TALKATIVE = ("mlflow.pyfunc", "mlflow.utils.environment")  # say that an example is valid, that pip is absent
_logger = logging.getLogger(__name__)


class ScoringModel:
    """Scores as the run's own evaluation did, on a GPU where there is one."""

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
            NonFiniteError: An image's values are so extreme that its score is not a number.
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
        images = torch.from_numpy(images_BHW)
        prediction = predict(self.detector, images, device=self.device, bf16=self.card.run.bf16)
        shape = self.card.shape
        map_BHW = np.full(images_BHW.shape, np.nan, np.float32)
        seen = sample_at_pixels(prediction.map_BHW, box=self.box, shape=shape)
        map_BHW[:, *visible_pixels(self.box, shape=shape)] = seen.numpy()
        return prediction.score_B.numpy(), map_BHW


def _nested(map_HW: Images) -> list[list[float | None]]:
    return [[None if value != value else value for value in row] for row in map_HW.tolist()]


class ServedModel:
    """What MLflow calls: a refusal is one line, which a server answers with status 400."""

    def __init__(self, model: ScoringModel) -> None:
        self.model = model

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Return what ``ScoringModel.predict`` does.

        Raises:
            Refusal: The input cannot be scored; or, with status 500 and a traceback in this process's log,
                scoring failed.
        """
        from dinomaly_hd.runs.refusals import Refusal

        try:
            return self.model.predict(model_input, params)
        except (ConfigError, DataError, NonFiniteError) as error:
            raise Refusal(str(error)) from error
        except Exception as error:
            _logger.exception("scoring failed")
            line = f"scoring failed ({type(error).__name__}); the server's log says more"
            raise Refusal(line, fault_is_ours=True) from error


def _load_pyfunc(path: str) -> ServedModel:
    """Load the model; the name is MLflow's."""
    return ServedModel(ScoringModel(load_model(Path(path))))


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


def send_model(run_id: str, *, uri: str, folder: Path) -> None:
    """Log an exported model under a run that is over already.

    Raises:
        TrackingError: The store does not answer or refuses it.
    """
    try:
        log_model(client_for(uri), run_id, folder=folder)
    except Exception as error:
        raise TrackingError(f"MLflow at {uri}: the model was not logged: {reason_of(error)}") from error


def _requirements() -> list[str]:
    versions = provenance.package_versions()
    del versions["python"]
    return [f"{name}=={version.partition('+')[0]}" for name, version in versions.items()]
