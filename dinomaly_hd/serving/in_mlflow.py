"""Models as MLflow keeps them: how a run's model gets there, and the way back to a folder."""

import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from dinomaly_hd import provenance
from dinomaly_hd.errors import TrackingError, reason_of
from dinomaly_hd.runs.store import client_for, load_mlflow, sqlite_file
from dinomaly_hd.serving.exported import read_card
from dinomaly_hd.serving.images import input_example

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.tracking import MlflowClient

MODEL_NAME = "model"
REGISTERED = "models:/"
LOADER = "dinomaly_hd.serving"
_TALKATIVE = ("mlflow.pyfunc", "mlflow.utils.environment")  # say that an example is valid, that pip is absent


def log_model(client: "MlflowClient", run_id: str, *, folder: Path) -> None:
    """Log an exported model under its run as the MLflow model ``model``; repeated, it adds no second one.

    Requirements are the installed versions, dinomaly_hd among them, so no code is copied into the model and
    MLflow need not load it to find out. MLflow's global state stays untouched. Raises what MLflow raises.
    """
    import mlflow.pyfunc
    from mlflow.models import Model

    from dinomaly_hd.serving.served import SIGNATURE

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


def _entry(client: "MlflowClient", run_id: str) -> "LoggedModel":
    """Return the model entry of a run, made where there is none.

    It holds the run's parameters, by which the page of all models can be sorted.
    """
    from mlflow.entities import LoggedModelOutput

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


def download_model(reference: str, *, uri: str, target: Path) -> Path:
    """Copy a model out of MLflow to a folder below ``target`` and return it.

    ``reference`` is an MLflow run id, ``models:/NAME/VERSION`` or ``models:/NAME@ALIAS``.

    Raises:
        TrackingError: The store does not answer or has no such run or model.
    """
    database = sqlite_file(uri)
    if database is not None and not database.is_file():
        raise TrackingError(f"{reference}: MLflow's database {database} does not exist")
    load_mlflow(uri)
    from mlflow.artifacts import download_artifacts

    try:
        place = _place(client_for(uri), reference)
        return Path(download_artifacts(artifact_uri=place, dst_path=str(target), tracking_uri=uri))
    except Exception as error:
        raise TrackingError(f"{reference}: no model of this name at {uri}: {reason_of(error)}") from error


def _place(client: "MlflowClient", reference: str) -> str:
    """Return where a model's files lie. MLflow itself would look ``models:/`` up in its global store."""
    if "/" not in reference:
        return f"runs:/{reference}/{MODEL_NAME}"
    if not reference.startswith(REGISTERED):  # what a registered version was made from
        return reference
    name = reference.removeprefix(REGISTERED)
    if "@" in name:
        return _place(client, str(client.get_model_version_by_alias(*name.rsplit("@", 1)).source))
    if "/" in name:
        return _place(client, str(client.get_model_version(*name.rsplit("/", 1)).source))
    return str(client.get_logged_model(name).artifact_location)
