"""A finished model on disk: weights as safetensors beside one JSON that says what they are."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import safetensors
from safetensors.torch import load_file, save
from torch import Tensor

from dinomaly_hd.config.run import RunConfig, from_json
from dinomaly_hd.errors import CheckpointError, ConfigError, nearest
from dinomaly_hd.files import publish, publish_json
from dinomaly_hd.models.build import build_detector
from dinomaly_hd.models.detector import Detector
from dinomaly_hd.models.weights import locate
from dinomaly_hd.training.checkpoint import load_trained_state, trained_state

WEIGHTS, CARD = "weights.safetensors", "model.json"
SCHEMA_VERSION = 1
SCORES_KEPT = 1000  # of a domain's normals


class Card(NamedTuple):
    """What a model says of itself: config, input shape (rows, columns), number type, by domain the threshold
    and the normals' scores, ascending, and the means of the rows of their maps.
    """

    run: RunConfig
    shape: tuple[int, int]
    dtype: str
    thresholds: dict[str, float]
    data_digest: str
    encoder_digest: str
    normal_scores: Mapping[str, Sequence[float] | npt.NDArray[np.float64]] = {}
    normal_rows: Sequence[float] = (0.0,)

    def domain(self, asked: str) -> str:
        """Return the domain for "domain_C" or "C"; one without a threshold is a ConfigError."""
        for name in (asked, f"domain_{asked}"):
            if name in self.thresholds:
                return name
        known = nearest(asked, self.thresholds)
        raise ConfigError(f"domain={asked!r}: the model has no threshold for it.{known}")


class Model(NamedTuple):
    """A model on disk that is not loaded yet.

    ``read_weights`` returns its trained tensors, ``place`` is named in errors, and ``undecided`` says why the
    card has no thresholds, "" where it has.
    """

    card: Card
    read_weights: Callable[[], dict[str, Tensor]]
    place: Path
    undecided: str = ""

    def load(self) -> Detector:
        """Build the detector; a CheckpointError if tensors do not fit or the encoder's weights are others."""
        weights, config = self.read_weights(), self.card.run.encoder
        located = locate(config.encoder, config.encoder_weights)
        if located.digest != self.card.encoder_digest:
            differ = f"trained on encoder weights {self.card.encoder_digest}, found {located.digest} here"
            raise CheckpointError(f"{self.place}: {differ}; give the same encoder_weights")
        detector = build_detector(self.card.run, weights=located)
        try:
            load_trained_state(detector, weights)
        except CheckpointError as error:  # a tensor of another shape
            raise CheckpointError(f"{self.place}: {error}") from error
        return detector.eval()


def export_model(folder: Path, detector: Detector, card: Card) -> None:
    """Write the model's two files; the encoder's own weights stay where they came from."""
    publish(folder / WEIGHTS, lambda stream: stream.write(save(trained_state(detector))))
    said = card._asdict()
    config = json.loads(said.pop("run").to_json())
    said["normal_scores"] = {
        domain: np.quantile(own, np.linspace(0, 1, min(np.size(own), SCORES_KEPT))).tolist()
        for domain, own in card.normal_scores.items()
    }
    publish_json(folder / CARD, {"schema": SCHEMA_VERSION, "config": config, **said})


def read_model(folder: Path) -> Model:
    """Return what ``export_model`` wrote; its weights are read when it is loaded."""
    return Model(read_card(folder), partial(read_weights, folder), folder)


def read_card(folder: Path) -> Card:
    """Read what a model says of itself; nothing heavy is loaded. Raises CheckpointError."""
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
            normal_scores=dict(card.get("normal_scores", {})),  # older models have none
            normal_rows=list(card.get("normal_rows", [0.0])),
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ConfigError) as error:
        raise _unreadable(folder, error) from error


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return a model's trained tensors, or raise CheckpointError where they are missing or damaged."""
    try:
        return load_file(folder / WEIGHTS)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise _unreadable(folder, error) from error


def _unreadable(folder: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{folder}: no readable model here ({type(error).__name__}: {error})")
