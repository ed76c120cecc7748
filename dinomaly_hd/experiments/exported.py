"""A finished model on disk: weights as safetensors beside one JSON that says what they are."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import safetensors
from safetensors.torch import load_file, save
from torch import Tensor

from dinomaly_hd.config import RunConfig, from_json
from dinomaly_hd.errors import CheckpointError, ConfigError
from dinomaly_hd.files import publish, publish_json
from dinomaly_hd.models.build import build_detector
from dinomaly_hd.models.detector import Detector
from dinomaly_hd.models.weights import locate
from dinomaly_hd.training.loop import load_trained_state, trained_state

WEIGHTS, CARD = "weights.safetensors", "model.json"
SCHEMA_VERSION = 1


class Card(NamedTuple):
    """What a model says of itself: config, input shape (rows, columns), number type, thresholds by domain."""

    run: RunConfig
    shape: tuple[int, int]
    dtype: str
    thresholds: dict[str, float]
    data_digest: str
    encoder_digest: str


class Exported(NamedTuple):
    """A model ready to score, and its card."""

    detector: Detector
    card: Card


def export_model(
    folder: Path,
    detector: Detector,
    *,
    run: RunConfig,
    shape: tuple[int, int],
    dtype: str,
    thresholds: dict[str, float],
    data_digest: str,
    encoder_digest: str,
) -> None:
    """Write the model's two files; the encoder's own weights stay where they came from."""
    publish(folder / WEIGHTS, lambda stream: stream.write(save(trained_state(detector))))
    card = {
        "schema": SCHEMA_VERSION,
        "config": json.loads(run.to_json()),
        "shape": list(shape),
        "dtype": dtype,
        "thresholds": thresholds,
        "data_digest": data_digest,
        "encoder_digest": encoder_digest,
    }
    publish_json(folder / CARD, card)


def read_card(folder: Path) -> Card:
    """Read what a model says of itself; nothing heavy is loaded.

    Raises:
        CheckpointError: No card, a damaged one, or one of another version.
    """
    try:
        card = json.loads((folder / CARD).read_text())
        if not isinstance(card, dict) or card.get("schema") != SCHEMA_VERSION:
            raise CheckpointError(f"{folder / CARD}: not a model of this version of Dinomaly-HD")
        return Card(
            run=from_json(json.dumps(card["config"])),
            shape=(int(card["shape"][0]), int(card["shape"][1])),
            dtype=str(card["dtype"]),
            thresholds={str(name): float(value) for name, value in card["thresholds"].items()},
            data_digest=str(card["data_digest"]),
            encoder_digest=str(card["encoder_digest"]),
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ConfigError) as error:
        raise _unreadable(folder, error) from error


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return a model's trained tensors.

    Raises:
        CheckpointError: Missing or damaged.
    """
    try:
        return load_file(folder / WEIGHTS)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise _unreadable(folder, error) from error


def load_model(folder: Path) -> Exported:
    """Rebuild a detector from what ``export_model`` wrote.

    Raises:
        CheckpointError: Files missing or damaged, or the encoder's weights here are others.
        EncoderError: The encoder's weights cannot be had.
    """
    return rebuild(read_card(folder), read_weights(folder), place=folder)


def rebuild(card: Card, weights: Mapping[str, Tensor], *, place: Path) -> Exported:
    """Return the detector that a card describes, with trained tensors; ``place`` is named in errors.

    Raises:
        CheckpointError: The tensors do not fit the model, or the encoder's weights here are others.
        EncoderError: The encoder's weights cannot be had.
    """
    located = locate(card.run.encoder.encoder, card.run.encoder.encoder_weights)
    if located.digest != card.encoder_digest:
        raise CheckpointError(
            f"{place}: trained on encoder weights {card.encoder_digest}, found {located.digest} here; "
            "give the same encoder_weights"
        )
    detector = build_detector(card.run, weights=located)
    try:
        load_trained_state(detector, dict(weights))
    except CheckpointError as error:  # a tensor of another shape
        raise CheckpointError(f"{place}: {error}") from error
    return Exported(detector.eval(), card)


def _unreadable(folder: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{folder}: no readable model here ({type(error).__name__}: {error})")
