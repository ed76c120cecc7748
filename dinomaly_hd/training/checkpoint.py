"""Checkpoints: never torn, never executable, and refused where they belong to another run."""

import re
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple, get_origin, get_type_hints

import torch
from torch import Tensor

from dinomaly_hd.config.base import flatten
from dinomaly_hd.config.run import WITHOUT_EFFECT, from_json
from dinomaly_hd.errors import LONGEST_REASON, CheckpointError, ConfigError, NonFiniteError, reason_of
from dinomaly_hd.files import publish, sweep
from dinomaly_hd.models.detector import Detector

SCHEMA_VERSION = 3
KEPT = 2
ENCODER, FROZEN = ("encoder.", "scaling."), "encoder.model."
NAME = re.compile(r"step_(\d{8})\.pt")


class Checkpoint(NamedTuple):
    """The state of a training after ``step`` optimizer steps; everything else is a function of it."""

    step: int
    config: str  # the run's JSON
    data_digest: str
    encoder_digest: str
    nonfinite: int  # skipped steps
    weights: dict[str, Tensor]  # of the trained part, with the encoder's statistics
    optimizer: dict[str, Any]
    patience: dict[str, Any]  # what early stopping remembers


KINDS = {name: get_origin(kind) or kind for name, kind in get_type_hints(Checkpoint).items()}
FIELDS = {"schema", *KINDS}


class Newest(NamedTuple):
    checkpoint: Checkpoint | None  # the newest that can be read
    unreadable: list[str]  # a line for each newer one


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write ``step_XXXXXXXX.pt`` at once or not at all, and remove all but the newest two.

    Where a weight is not finite (NonFiniteError) or nothing can be written (OutputError) the older ones stay.
    """
    wrong = [name for name, weight in checkpoint.weights.items() if not bool(torch.isfinite(weight).all())]
    if wrong:
        raise NonFiniteError(
            f"step {checkpoint.step - 1}: its gradient was finite, but {', '.join(wrong[:3])} became NaN or "
            "infinite; the checkpoint before it stays; lower learning_rate"
        )
    path = folder / f"step_{checkpoint.step:08d}.pt"
    content = {"schema": SCHEMA_VERSION, **checkpoint._asdict()}
    publish(path, lambda stream: torch.save(content, stream))
    for old in _numbered(folder)[:-KEPT]:
        old.unlink(missing_ok=True)
    return path


def load(path: Path) -> Checkpoint:
    """Read a checkpoint with ``weights_only``: no code in it can run.

    One that is missing, damaged, foreign, or of another schema is a CheckpointError.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path}: not a checkpoint, or cut off while it was copied")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged or poisoned files raise almost anything
        raise CheckpointError(f"{path}: cannot be read: {reason_of(error)}") from error
    if not isinstance(content, dict) or set(content) != FIELDS:
        raise CheckpointError(f"{path}: not a Dinomaly-HD checkpoint")
    if content.pop("schema") != SCHEMA_VERSION:
        raise CheckpointError(
            f"{path}: written by another version of Dinomaly-HD; this one reads {SCHEMA_VERSION}"
        )
    wrong = [name for name, kind in KINDS.items() if not isinstance(content[name], kind)]
    if wrong or not all(isinstance(weight, Tensor) for weight in content["weights"].values()):
        raise CheckpointError(
            f"{path}: not a Dinomaly-HD checkpoint: {', '.join(wrong) or 'weights'} malformed"
        )
    return Checkpoint(**content)


def newest(folder: Path) -> Newest:
    """Return the newest readable checkpoint of a folder, sweeping what a killed writer left."""
    sweep(folder)
    unreadable: list[str] = []
    for path in reversed(_numbered(folder)):
        try:
            return Newest(load(path), unreadable)
        except CheckpointError as error:
            unreadable.append(str(error))
    return Newest(None, unreadable)


def check_belongs(
    checkpoint: Checkpoint,
    *,
    config: str,
    data_digest: str,
    encoder_digest: str,
    may_differ: Collection[str] = WITHOUT_EFFECT,
) -> None:
    """Refuse a checkpoint of another configuration (but for ``may_differ``), data set or encoder by name."""
    try:
        theirs = flatten(from_json(checkpoint.config))
    except ConfigError as error:
        raise CheckpointError(f"the checkpoint's configuration is not readable here: {error}") from error
    ours = flatten(from_json(config))
    changes = [
        f"{name} {theirs.get(name)!r} -> {ours.get(name)!r}"
        for name in sorted(set(theirs) | set(ours))
        if theirs.get(name) != ours.get(name) and name not in may_differ
    ]
    if checkpoint.data_digest != data_digest:
        changes.append("the data set's files")
    if checkpoint.encoder_digest != encoder_digest:
        changes.append("the encoder's weights")
    if changes:
        raise CheckpointError(f"the checkpoint belongs to another run; what differs: {'; '.join(changes)}")


def _numbered(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step_*.pt") if NAME.fullmatch(path.name))


def trained_state(detector: Detector) -> dict[str, Tensor]:
    """Return copies of all tensors but the frozen network's own weights."""
    own = {name: value for name, value in detector.state_dict().items() if not name.startswith(FROZEN)}
    return {name: value.detach().cpu().clone() for name, value in own.items()}


def encoder_state(detector: Detector) -> dict[str, Tensor]:
    """Return copies of what the encoder took from training images."""
    return {name: value for name, value in trained_state(detector).items() if name.startswith(ENCODER)}


def load_trained_state(detector: Detector, weights: dict[str, Tensor]) -> None:
    """Put back what ``trained_state`` returned."""
    try:
        missing, unexpected = detector.load_state_dict(weights, strict=False)
    except RuntimeError as error:  # other shapes
        reason = " ".join(str(error).split())[:LONGEST_REASON]
        raise CheckpointError(f"the checkpoint does not fit the model: {reason}") from error
    wrong = [*unexpected, *(name for name in missing if not name.startswith(FROZEN))]
    if wrong:
        raise CheckpointError(f"the checkpoint does not fit the model: {', '.join(wrong[:5])}")
