"""Everything that can be wrong with flags, weights and data is found here, before a model is loaded."""

import math
from pathlib import Path
from typing import NamedTuple

from dinomaly_hd.config import (
    AFTER_TRAINING,
    ALL_DOMAINS,
    HELD_OUT,
    NO_START,
    SOURCE_TEST,
    DataConfig,
    EncoderConfig,
    ImageInput,
    RunConfig,
    TrainingConfig,
    flatten,
    with_values,
)
from dinomaly_hd.data.hdmap import Manifest
from dinomaly_hd.data.splits import Split, hold_out
from dinomaly_hd.data.texture_folder import TextureStack, read_textures
from dinomaly_hd.data.tree import PREFIX as DOMAIN_PREFIX
from dinomaly_hd.errors import CheckpointError, ConfigError
from dinomaly_hd.runs.context import Context
from dinomaly_hd.experiments.checks import ManifestMemory, read_manifest
from dinomaly_hd.experiments.exported import WEIGHTS, read_card
from dinomaly_hd.runs.folder import MODEL, find_run
from dinomaly_hd.files import file_digest
from dinomaly_hd.models.build import check_model
from dinomaly_hd.models.networks import check_weights
from dinomaly_hd.models.preprocessing import preprocessing_of
from dinomaly_hd.models.build import texture_folder
from dinomaly_hd.models.weights import Weights, locate
from dinomaly_hd.training.loop import resolve_device

SHAPES = (
    "model_type", "bottleneck", "attention", "loss", "distance", "auxiliary", "class_token", "decoder_depth",
    "scale_weights", "target_layers", "encoder", "image_size", "crop", "width", "severity_head_mode",
    "severity_head_pooling_type", "severity_head_hidden_dim", "severity_head_spatial_size",
    "severity_head_use_spatial_attention",
)  # fmt: skip
"""What a model and the one it starts from must have in common."""


class Start(NamedTuple):
    """Weights that a training begins with: the model's folder and the digest of its weights."""

    folder: Path
    digest: str


class Ready(NamedTuple):
    """A checked run before any model exists.

    ``config_hash`` names what decides the run's numbers: resolved config and seed, data, encoder weights, and
    the weights it starts from; ``training_hash`` leaves out what training does not see.
    """

    run: RunConfig
    weights: Weights
    manifest: Manifest
    split: Split
    start: Start | None
    textures: TextureStack | None
    config_hash: str
    training_hash: str


def check(run: RunConfig, context: Context) -> Ready:
    """Check a run's settings against each other, find the encoder's weights, then read and check the data.

    The run that is returned has its number of steps, also where epochs were given.

    Raises:
        ConfigError: Settings that do not fit together or the machine, or no run to start from.
        CheckpointError: The run to start from has another architecture or encoder.
        EncoderError: The weights cannot be had; no data were read.
        DataError: The data cannot be used.
    """
    check_model(run)
    resolve_device(run.training.gpu)
    weights = locate(run.encoder.encoder, run.encoder.encoder_weights)
    if isinstance(run.encoder, EncoderConfig):
        check_weights(run.encoder, weights=weights)
    start = _start(run, context, encoder_digest=weights.digest)
    manifest = (context.manifests or ManifestMemory()).get(
        run.data,
        lambda: read_manifest(run.data, root=context.root, say=context.say, tick=context.guard.check),
    )
    split = hold_out(
        manifest,
        ratio=run.data.val_split_ratio,
        seed=run.seed,
        train_domains=_folders(run.data, manifest),
    )
    _check_synthetic(run, split)
    run = _with_steps(run, split)
    textures = _textures(run, context)
    inputs = [manifest.digest, weights.digest]
    inputs += [one.digest for one in (start, textures) if one is not None]
    hashes = [
        "-".join([digest, *(text[:8] for text in inputs)])
        for digest in (run.digest(), run.digest(without=AFTER_TRAINING))
    ]
    return Ready(run, weights, manifest, split, start, textures, *hashes)


def _textures(run: RunConfig, context: Context) -> TextureStack | None:
    """Return the user's textures for synthetic faults, where the run names a folder of them."""
    folder = texture_folder(run)
    if folder is None:
        return None
    assert isinstance(run.encoder, ImageInput)
    return read_textures(folder, size=preprocessing_of(run.encoder).input_size, tick=context.guard.check)


def _with_steps(run: RunConfig, split: Split) -> RunConfig:
    """Return the run with what it leaves to the number of training images: steps and validations.

    Images are drawn without a break between epochs, so the last step of an epoch may hold some of the next.
    """
    training = run.training
    if not isinstance(training, TrainingConfig):
        return run
    epoch_steps = len(split.train) / training.batch_size
    values: dict[str, int] = {}
    if training.max_epochs:
        values["max_steps"] = math.ceil(training.max_epochs * epoch_steps)
    if training.early_stopping_patience and not training.val_check_interval:
        values["val_check_interval"] = math.ceil(epoch_steps)
    if training.early_stopping_patience and training.validate_on == HELD_OUT and not len(split.held_out):
        raise ConfigError(
            "early_stopping_patience needs held-out normals, and val_split_ratio=0 holds out none; "
            "give val_split_ratio=.1, or early_stopping_patience=0"
        )
    if training.validate_on == SOURCE_TEST and not training.early_stopping_patience:
        raise ConfigError(
            f"validate_on={SOURCE_TEST} chooses nothing while early_stopping_patience=0; give a patience"
        )
    return with_values(run, values)


def _check_synthetic(run: RunConfig, split: Split) -> None:
    if run.evaluation.synthetic_copies and not len(split.held_out):
        raise ConfigError(
            f"synthetic_copies={run.evaluation.synthetic_copies} needs held-out normals, and "
            "val_split_ratio=0 holds out none; give val_split_ratio=.1, or synthetic_copies=0"
        )


def _folders(data: DataConfig, manifest: Manifest) -> list[str] | None:
    """Return the folders of the domains to train on, None for all."""
    if data.train_domains == ALL_DOMAINS:
        return None
    names = data.train_domain_names
    return [name if name in manifest.domains else f"{DOMAIN_PREFIX}{name}" for name in names]


def _start(run: RunConfig, context: Context, *, encoder_digest: str) -> Start | None:
    """Return the weights that ``start_from`` names, once they are known to fit."""
    if run.training.start_from == NO_START:
        return None
    folder = find_run(context.result_dir, run.training.start_from) / MODEL
    card = read_card(folder)
    theirs, ours = flatten(card.run), flatten(run)
    changes = [name for name in SHAPES if theirs.get(name) != ours.get(name)]
    if card.encoder_digest != encoder_digest:
        changes.append("the encoder's weights")
    if changes:
        raise CheckpointError(
            f"start_from={run.training.start_from}: that model differs in {', '.join(changes)}; "
            "give the same settings"
        )
    return Start(folder, file_digest(folder / WEIGHTS))
