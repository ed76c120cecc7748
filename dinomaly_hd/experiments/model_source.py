"""Which model scores: a finished run's, one that lies in MLflow, or the weights of one checkpoint."""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dinomaly_hd.config import from_json
from dinomaly_hd.data.hdmap import load_manifest
from dinomaly_hd.errors import CheckpointError, ConfigError, DataError
from dinomaly_hd.experiments.exported import (
    CARD,
    Card,
    Exported,
    load_model,
    read_card,
    read_weights,
    rebuild,
)
from dinomaly_hd.runs.folder import MODEL, STATE, find_run, read_results
from dinomaly_hd.files import read_json
from dinomaly_hd.runs.search import RUN_ID
from dinomaly_hd.runs.store import default_uri
from dinomaly_hd.runs.models import REGISTERED, download_model
from dinomaly_hd.training.checkpoint import Checkpoint, check_belongs, load

CHECKPOINT = ".pt"
SHOWN = 4
Say = Callable[[str], None]
Tick = Callable[[], None]


class Source(NamedTuple):
    """A model found but not loaded.

    Attributes:
        card: What it says of itself; without thresholds where ``undecided`` says why.
        load: Builds the detector.
        undecided: Why there are no thresholds, "" where there are.
    """

    card: Card
    load: Callable[[], Exported]
    undecided: str


@contextmanager
def open_source(run: str, *, result_dir: Path, root: Path, say: Say, tick: Tick) -> Iterator[Source]:
    """Yield the model that ``run`` names; one that lies in MLflow only is copied for as long as needed.

    Args:
        run: Run folder, its name, its MLflow run id, ``models:/...``, or a run's checkpoint file.
        result_dir: Parent of the run folders.
        root: The project, for MLflow's database.
        say: Prints a line.
        tick: Called for each image, where a data set must be read.

    Raises:
        ConfigError: No such run.
        CheckpointError: The run did not finish, or the checkpoint cannot be used.
        TrackingError: The run is not here and MLflow does not have it either.
    """
    registered = run.startswith(REGISTERED)
    if not registered and (Path(run).suffix == CHECKPOINT or os.path.isfile(run)):
        yield _of_checkpoint(Path(run), say=say, tick=tick)
        return
    folder = None if registered else _folder(result_dir, run)
    if folder is not None:
        if not (folder / MODEL / CARD).is_file():
            raise CheckpointError(
                f"{folder}: holds no {MODEL}/{CARD}; give one of its runs where it is a comparison's folder, "
                "one of its checkpoints where it is a run that did not finish"
            )
        yield _of_folder(folder / MODEL)
        return
    with tempfile.TemporaryDirectory(prefix="dinomaly-hd-") as temporary:
        uri = default_uri(root)
        say(f"{run} is not under {result_dir}; copying its model from {uri}")
        yield _of_folder(download_model(run, uri=uri, target=Path(temporary)))


def _folder(result_dir: Path, run: str) -> Path | None:
    """Return the run's folder, None for an MLflow run id that is not here."""
    try:
        return find_run(result_dir, run)
    except ConfigError:
        if RUN_ID.fullmatch(run) is None:
            raise
        return None


def _of_folder(folder: Path) -> Source:
    return Source(read_card(folder), partial(load_model, folder), "")


def _of_checkpoint(path: Path, *, say: Say, tick: Tick) -> Source:
    """Return the detector of one step; its run's folder says what images it takes and how it decides."""
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
    return Source(card, partial(rebuild, card, checkpoint.weights, place=path), undecided)


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
    if _equal(checkpoint.weights, read_weights(folder / MODEL)):
        return card, ""
    tested = (read_results(folder) or {}).get("tested_step", "unknown")
    return card._replace(thresholds={}), f"the run's thresholds are those of its step {tested}"


def _from_data(path: Path, checkpoint: Checkpoint, folder: Path, *, tick: Tick) -> Card:
    """Return the card of a run without a model: its data, if unchanged, say what images it takes.

    Raises:
        CheckpointError: The data are not there any more, or others.
    """
    try:
        run = from_json(checkpoint.config)
        data_root = read_json(folder / "experiment_settings.json").get("data_root", "")
        manifest = load_manifest(
            Path(data_root), domains=run.data.domain_names, conditions=run.data.conditions, tick=tick
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
    return Card(
        run=run,
        shape=manifest.shape,
        dtype=manifest.dtype,
        thresholds={},
        data_digest=checkpoint.data_digest,
        encoder_digest=checkpoint.encoder_digest,
    )


def _equal(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
