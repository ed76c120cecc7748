"""Everything that can be wrong with flags, weights and data is found here, before a model is loaded."""

from pathlib import Path
from typing import NamedTuple

from dinomaly_hd.config import AFTER_TRAINING, ALL_DOMAINS, NO_START, DataConfig, RunConfig, flatten
from dinomaly_hd.data.hdmap import Manifest, load_manifest
from dinomaly_hd.data.splits import Split, hold_out
from dinomaly_hd.data.tree import PREFIX as DOMAIN_PREFIX
from dinomaly_hd.errors import CheckpointError
from dinomaly_hd.experiments.context import Context
from dinomaly_hd.experiments.data_root import resolve_root
from dinomaly_hd.experiments.exported import WEIGHTS, read_card
from dinomaly_hd.experiments.run_folder import MODEL, find_run
from dinomaly_hd.files import file_digest
from dinomaly_hd.models.build import check_model
from dinomaly_hd.models.build_encoder import check_encoder, check_weights
from dinomaly_hd.models.weights import Weights, locate
from dinomaly_hd.training.fit import resolve_device

SHAPES = (
    "bottleneck", "attention", "loss", "distance", "auxiliary", "class_token", "decoder_depth",
    "scale_weights", "encoder", "image_size", "crop",
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
    config_hash: str
    training_hash: str


def check(run: RunConfig, context: Context) -> Ready:
    """Check a run's settings against each other, find the encoder's weights, then read and check the data.

    Raises:
        ConfigError: Settings that do not fit together or the machine, or no run to start from.
        CheckpointError: The run to start from has another architecture or encoder.
        EncoderError: The weights cannot be had; no data were read.
        DataError: The data cannot be used.
    """
    shape = check_encoder(run.encoder)
    check_model(run.model, grid=shape.grid, is_transformer=shape.is_transformer)
    resolve_device(run.training.gpu)
    weights = locate(run.encoder.encoder, run.encoder.encoder_weights)
    check_weights(run.encoder, weights=weights)
    start = _start(run, context, encoder_digest=weights.digest)
    root = resolve_root(run.data, root=context.root, say=context.say, tick=context.guard.check)
    manifest = load_manifest(
        root, domains=run.data.domain_names, conditions=run.data.conditions, tick=context.guard.check
    )
    for warning in manifest.warnings:
        context.say(f"warning: {warning}")
    split = hold_out(
        manifest,
        ratio=run.data.val_split_ratio,
        seed=run.seed,
        train_domains=_folders(run.data, manifest),
    )
    inputs = [manifest.digest, weights.digest, *([start.digest] if start else [])]
    hashes = [
        "-".join([digest, *(text[:8] for text in inputs)])
        for digest in (run.digest(), run.digest(without=AFTER_TRAINING))
    ]
    return Ready(run, weights, manifest, split, start, *hashes)


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
