"""A model in MLflow: how a run's gets there, and what a server calls: images in, scores and maps out."""

# B batch, H W pixels of the input

import json
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from mlflow.entities import LoggedModel, LoggedModelOutput
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.protos.databricks_pb2 import BAD_REQUEST, INTERNAL_ERROR
from mlflow.tracking import MlflowClient
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import AnyType

from dinomaly_hd import provenance
from dinomaly_hd.errors import ConfigError, DataError, NonFiniteError
from dinomaly_hd.evaluation.pointing import FIRST, LAST, PERCENTILE, TOOTH
from dinomaly_hd.experiments.score import Examined, decided, predict, sample_at_pixels, visible_pixels
from dinomaly_hd.models.networks import visible_box
from dinomaly_hd.serving.exported import read_card, read_model
from dinomaly_hd.serving.images import Images, input_example, read_input
from dinomaly_hd.training.loop import resolve_device

SIGNATURE = ModelSignature(  # inputs stay open: no MLflow schema can say "array or table"
    outputs=Schema(
        [
            ColSpec(DataType.double, "score"),
            ColSpec(DataType.double, "threshold", required=False),
            ColSpec(DataType.boolean, "fault", required=False),
            ColSpec(DataType.long, TOOTH, required=False),
            ColSpec(DataType.long, FIRST, required=False),
            ColSpec(DataType.long, LAST, required=False),
            ColSpec(DataType.double, PERCENTILE, required=False),
            ColSpec(AnyType(), "map", required=False),  # type: ignore[no-untyped-call]
        ]
    ),
    params=ParamSchema(
        [ParamSpec("domain", DataType.string, ""), ParamSpec("return_map", DataType.boolean, False)]
    ),
)
WHERE = [TOOTH, FIRST, LAST, PERCENTILE]
MODEL_NAME, LOADER = "model", "dinomaly_hd.serving"
_TALKATIVE = ("mlflow.pyfunc", "mlflow.utils.environment")  # say that an example is valid, that pip is absent
_logger = logging.getLogger(__name__)


class Refusal(MlflowException):
    """One line and nothing else: the server would put the whole request before it, and a traceback behind."""

    def __init__(self, line: str, *, error_code: int = BAD_REQUEST) -> None:
        super().__init__(line, error_code=error_code)
        self.line = line

    def serialize_as_json(self) -> str:
        """Return the answer's body; the name is MLflow's."""
        return json.dumps({"error_code": self.error_code, "message": self.line})


class ServedModel:
    """Scores as the run's own evaluation did, on a GPU where there is one."""

    def __init__(self, folder: Path) -> None:
        model = read_model(folder)
        self.card, self.device = model.card, resolve_device("auto")
        self.detector = model.load().to(self.device)
        self.box = visible_box(self.card.run.encoder, shape=self.card.shape)

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Return an image's score, threshold, fault (score >= threshold), named tooth, percentile, map.

        Args:
            model_input: Array or nested list (B, H, W) in the reader's units (TIFF values as they are, PNG
                0..1), or a table or a mapping of columns, whose column ``image``
                holds TIFF or PNG files as base64 text.
            params: ``domain``: whose threshold decides, "" for a model that knows one; without, threshold,
                fault and percentile are empty. ``return_map``: the map read at the input's pixels, None where
                a crop hid the pixel.

        Raises:
            Refusal: With status 400, the input cannot be scored; with status 500 and a traceback in this
                process's log, scoring failed.
        """
        params = params or {}
        try:
            domain, known = str(params.get("domain") or ""), tuple(self.card.thresholds)
            chosen = self.card.domain(domain) if domain else known[0] if len(known) == 1 else ""
            images_BHW = read_input(
                model_input,
                shape=self.card.shape,
                dtype=self.card.dtype,
                grey=self.card.run.data.grey,
            )
            examined = self._score(images_BHW)
        except (ConfigError, DataError, NonFiniteError) as error:
            raise Refusal(str(error)) from error
        except Exception as error:
            _logger.exception("scoring failed")
            line = f"scoring failed ({type(error).__name__}); the server's log says more"
            raise Refusal(line, error_code=INTERNAL_ERROR) from error
        table = decided(examined, [chosen] * len(images_BHW), self.card)
        told = table[WHERE].astype(object)
        table[WHERE] = told.where(told.notna(), None)  # JSON has no NA
        if params.get("return_map"):
            map_BHW = np.full(images_BHW.shape, np.nan, np.float32)  # NaN where a crop hides the pixel
            map_BHW[:, *visible_pixels(self.box, shape=self.card.shape)] = examined.map_Nhw
            cells_BHW = map_BHW.astype(object)
            cells_BHW[np.isnan(map_BHW)] = None  # JSON has no NaN
            table["map"] = pd.Series(cells_BHW.tolist())
        return table

    def _score(self, images_BHW: Images) -> Examined:
        size, parts = self.card.run.evaluation.eval_batch_size, []
        for start in range(0, len(images_BHW), size):
            images = torch.from_numpy(images_BHW[start : start + size])
            prediction = predict(self.detector, images, device=self.device, bf16=self.card.run.bf16)
            seen = sample_at_pixels(prediction.map_BHW, box=self.box, shape=self.card.shape)
            parts.append((prediction.score_B.numpy(), seen.numpy()))
        score_B, map_Bhw = (np.concatenate(part) for part in zip(*parts, strict=True))
        if not np.isfinite(score_B).all():
            number = int(np.argmin(np.isfinite(score_B)))
            raise NonFiniteError(f"image {number}: the score is NaN or infinite")
        return Examined(score_B, map_Bhw)


def log_model(client: MlflowClient, run_id: str, *, folder: Path) -> None:
    """Log an exported model under its run as the MLflow model ``model``; repeated, it adds no second one.

    Requirements are the installed versions, dinomaly_hd among them, so no code is copied into the model and
    MLflow need not load it to find out. MLflow's global state stays untouched. Raises what MLflow raises.
    """
    import mlflow.pyfunc  # warns of its own types

    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    card, entry = read_card(folder), _entry(client, run_id)
    needed = {name: version.partition("+")[0] for name, version in provenance.package_versions().items()}
    with tempfile.TemporaryDirectory(prefix="dinomaly-hd-") as temporary:
        mlflow.pyfunc.save_model(
            path=temporary,
            loader_module=LOADER,
            mlflow_model=Model(
                artifact_path=entry.artifact_location,
                run_id=run_id,
                model_uuid=entry.model_id,
                model_id=entry.model_id,
            ),
            signature=SIGNATURE,
            input_example=input_example(shape=card.shape, dtype=card.dtype),
            pip_requirements=[f"{name}=={needed[name]}" for name in needed if name != "python"],
        )
        client.log_model_artifacts(entry.model_id, temporary)
    # Beside MLflow's files, not below: without ``data_path`` the loader is given the model's own folder.
    client.log_model_artifacts(entry.model_id, str(folder))
    client.finalize_logged_model(entry.model_id, "READY")


def _entry(client: MlflowClient, run_id: str) -> LoggedModel:
    """Return the model entry of a run, made where there is none.

    It holds the run's parameters, by which the page of all models can be sorted.
    """
    run = client.get_run(run_id)
    for output in run.outputs.model_outputs if run.outputs is not None else ():
        model = client.get_logged_model(output.model_id)
        if model.name == MODEL_NAME:
            return model
    made = client.create_logged_model(
        run.info.experiment_id, name=MODEL_NAME, source_run_id=run_id, params=run.data.params
    )
    client.log_outputs(run_id, models=[LoggedModelOutput(made.model_id, step=0)])
    return made
