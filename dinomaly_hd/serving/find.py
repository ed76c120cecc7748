"""Which model scores: a finished run's, one that lies in MLflow, or the weights of one checkpoint."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dinomaly_hd.config.run import from_json
from dinomaly_hd.data.hdmap import load_manifest
from dinomaly_hd.data.tree import layout_of
from dinomaly_hd.errors import CheckpointError, ConfigError, DataError, without_passwords
from dinomaly_hd.files import read_json
from dinomaly_hd.runs.folder import MODEL, STATE, find_run, read_results
from dinomaly_hd.runs.store import RUN_ID, client_of_existing, default_uri, in_one_line
from dinomaly_hd.serving.exported import CARD, Card, Model, read_card, read_model, read_weights
from dinomaly_hd.training.checkpoint import Checkpoint, check_belongs, load

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

CHECKPOINT, REGISTERED, OF_RUN = ".pt", "models:/", "runs:/"
SHOWN = 4


@contextmanager
def open_model(
    name: str, *, result_dir: Path, root: Path, say: Callable[[str], None], tick: Callable[[], None]
) -> Iterator[Model]:
    """Yield the model that ``name`` names; one that lies in MLflow only is copied for as long as needed.

    ``name`` is a run folder, its name, its MLflow run id, ``runs:/ID``, ``models:/NAME/VERSION``,
    ``models:/NAME@ALIAS``, or a run's checkpoint file; ``tick`` is called for each image, where a data set
    must be read. What is not there is a ConfigError, or a TrackingError where MLflow was asked; what cannot
    score, a CheckpointError.
    """
    name = bare(name)
    if not name.startswith(REGISTERED) and (Path(name).suffix == CHECKPOINT or os.path.isfile(name)):
        yield _of_checkpoint(Path(name), say=say, tick=tick)
        return
    folder = run_here(name, result_dir)
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="dinomaly-hd-") as temporary:
            uri = default_uri(root)
            say(f"{name} is not under {result_dir}; copying its model from {without_passwords(uri)}")
            yield read_model(download_model(name, uri=uri, target=Path(temporary)))
    elif (folder / MODEL / CARD).is_file():
        yield read_model(folder / MODEL)
    else:
        raise CheckpointError(
            f"{folder}: holds no {MODEL}/{CARD}; give one of its runs where it is a comparison's folder, "
            "one of its checkpoints where it is a run that did not finish"
        )


def bare(name: str) -> str:
    """Return the id in ``runs:/ID`` or ``runs:/ID/model``, any other name as it is."""
    return name.removeprefix(OF_RUN).partition("/")[0] if name.startswith(OF_RUN) else name


def run_here(name: str, result_dir: Path) -> Path | None:
    """Return a run's folder, None where only MLflow may have it: a registered model, an id not known here."""
    if name.startswith(REGISTERED):
        return None
    try:
        return find_run(result_dir, name)
    except ConfigError:
        if RUN_ID.fullmatch(name) is None:
            raise
        return None


def _of_checkpoint(path: Path, *, say: Callable[[str], None], tick: Callable[[], None]) -> Model:
    """Return the model of one step; its run's folder says what images it takes and how it decides."""
    if not os.path.isfile(path):
        there = sorted(found.name for found in path.parent.glob(f"*{CHECKPOINT}"))
        raise CheckpointError(
            f"{path}: no such checkpoint; {path.parent} holds {', '.join(there[-SHOWN:]) or 'none'}"
        )
    checkpoint = load(path)
    folder = path.resolve().parent.parent
    if not (folder / STATE).is_file():
        raise CheckpointError(
            f"{path}: lies in no run folder, without which the shape and number type of its training images "
            f"are unknown; put it back to RUN/checkpoints/{path.name}"
        )
    say(f"step {checkpoint.step} of {folder}")
    if (folder / MODEL / CARD).is_file():
        card, undecided = _beside_model(path, checkpoint, folder)
    else:
        card, undecided = _from_data(path, checkpoint, folder, tick=tick), "the run did not finish"
    return Model(card, lambda: checkpoint.weights, path, undecided)


def _beside_model(path: Path, checkpoint: Checkpoint, folder: Path) -> tuple[Card, str]:
    """Return the card of a finished run, with its thresholds if they were set on these very weights."""
    card = read_card(folder / MODEL)
    try:
        check_belongs(
            checkpoint,
            config=card.run.to_json(),
            data_digest=card.data_digest,
            encoder_digest=card.encoder_digest,
        )
    except CheckpointError as error:
        raise CheckpointError(f"{path}, {folder / MODEL}: {error}") from error
    ours, finished = checkpoint.weights, read_weights(folder / MODEL)
    if ours.keys() == finished.keys() and all(torch.equal(ours[name], finished[name]) for name in ours):
        return card, ""
    tested = (read_results(folder) or {}).get("tested_step", "unknown")
    undecided = card._replace(thresholds={}, normal_scores={}, normal_rows=(0.0,))
    return undecided, f"the run's thresholds are those of its step {tested}"


def _from_data(path: Path, checkpoint: Checkpoint, folder: Path, *, tick: Callable[[], None]) -> Card:
    """Return the card of a run without a model: its data, if unchanged, say what images it takes."""
    try:
        run = from_json(checkpoint.config)
        data_root = Path(read_json(folder / "experiment_settings.json").get("data_root", ""))
        given = Path(run.data.data_root)
        if layout_of(data_root / given.name) == "table":  # a table of images, which lies in the root
            data_root /= given.name
        manifest = load_manifest(
            data_root,
            domains=run.data.domain_names,
            conditions=run.data.conditions,
            grey=run.data.grey,
            tick=tick,
        )
    except (ConfigError, DataError) as error:
        raise CheckpointError(
            f"{path}: the run did not finish, and its data do not say what images it takes: {error}"
        ) from error
    if manifest.digest != checkpoint.data_digest:
        raise CheckpointError(
            f"{path}: the run did not finish, and the files in {data_root} are not those it was trained on, "
            "so what images it takes is unknown"
        )
    return Card(run, manifest.shape, manifest.dtype, {}, checkpoint.data_digest, checkpoint.encoder_digest)


def download_model(reference: str, *, uri: str, target: Path) -> Path:
    """Copy a model out of MLflow to a folder below ``target`` and return it; a TrackingError without one.

    ``reference`` is an MLflow run id, ``models:/NAME/VERSION`` or ``models:/NAME@ALIAS``.
    """
    with in_one_line(f"{reference}: no model of this name at {uri}"):
        client = client_of_existing(uri)
        from mlflow.artifacts import download_artifacts

        place = _place(client, reference)
        return Path(download_artifacts(artifact_uri=place, dst_path=str(target), tracking_uri=uri))


def _place(client: "MlflowClient", reference: str) -> str:
    """Return where a model's files lie. MLflow itself would look ``models:/`` up in its global store."""
    if "/" not in reference:
        return f"runs:/{reference}/model"
    if not reference.startswith(REGISTERED):  # what a registered version was made from
        return reference
    name = reference.removeprefix(REGISTERED)
    if "@" in name:
        return _place(client, str(client.get_model_version_by_alias(*name.rsplit("@", 1)).source))
    if "/" in name:
        return _place(client, str(client.get_model_version(*name.rsplit("/", 1)).source))
    return str(client.get_logged_model(name).artifact_location)
