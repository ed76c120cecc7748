"""Models as MLflow keeps them: the entry that a run's model goes to, and the way back to a folder."""

from pathlib import Path
from typing import TYPE_CHECKING

from dinomaly_hd.errors import TrackingError, reason_of
from dinomaly_hd.runs.store import client_for, load_mlflow, sqlite_file

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.tracking import MlflowClient

MODEL_NAME = "model"
REGISTERED = "models:/"


def logged_model(client: "MlflowClient", run_id: str) -> "LoggedModel":
    """Return the model entry of a run, made if it is not there yet: a call may be repeated without doubles.

    The entry holds the run's parameters, by which the page of all models can be sorted. Raises what MLflow
    raises.
    """
    from mlflow.entities import LoggedModelOutput

    run = client.get_run(run_id)
    outputs = run.outputs.model_outputs if run.outputs is not None else []
    for output in outputs:
        model = client.get_logged_model(output.model_id)
        if model.name == MODEL_NAME:
            return model
    made = client.create_logged_model(
        run.info.experiment_id, name=MODEL_NAME, source_run_id=run_id, params=run.data.params
    )
    client.log_outputs(run_id, models=[LoggedModelOutput(made.model_id, step=0)])
    return made


def download_model(reference: str, *, uri: str, target: Path) -> Path:
    """Copy a model out of MLflow and return the folder where its files lie, below ``target``.

    Args:
        reference: An MLflow run id, or ``models:/NAME/VERSION`` (also ``models:/NAME@ALIAS``).
        uri: Tracking address.
        target: Folder to copy to.

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
        found = download_artifacts(artifact_uri=place, dst_path=str(target), tracking_uri=uri)
    except Exception as error:
        raise TrackingError(f"{reference}: no model of this name at {uri}: {reason_of(error)}") from error
    return Path(found)


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
