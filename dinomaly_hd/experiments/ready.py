"""Everything that can be wrong with flags, weights and data is found here, before a model is loaded."""

from typing import NamedTuple

from dinomaly_hd.config import RunConfig
from dinomaly_hd.data.hdmap import Manifest, load_manifest
from dinomaly_hd.data.splits import Split, hold_out
from dinomaly_hd.experiments.context import Context
from dinomaly_hd.experiments.data_root import resolve_root
from dinomaly_hd.models.build import check_encoder, check_model, check_weights
from dinomaly_hd.models.weights import Weights, locate
from dinomaly_hd.training.fit import resolve_device


class Ready(NamedTuple):
    """A checked run before any model exists.

    ``config_hash`` names what decides the run's numbers: resolved config and seed, data, encoder weights.
    """

    run: RunConfig
    weights: Weights
    manifest: Manifest
    split: Split
    config_hash: str


def check(run: RunConfig, context: Context) -> Ready:
    """Check a run's settings against each other, find the encoder's weights, then read and check the data.

    Raises:
        ConfigError: Settings that do not fit together or the machine.
        EncoderError: The weights cannot be had; no data were read.
        DataError: The data cannot be used.
    """
    shape = check_encoder(run.encoder)
    check_model(run.model, grid=shape.grid, is_transformer=shape.is_transformer)
    resolve_device(run.training.gpu)
    weights = locate(run.encoder.encoder, run.encoder.encoder_weights)
    check_weights(run.encoder, weights=weights)
    root = resolve_root(run.data, root=context.root, say=context.say, tick=context.guard.check)
    manifest = load_manifest(
        root, domains=run.data.domain_names, conditions=run.data.conditions, tick=context.guard.check
    )
    for warning in manifest.warnings:
        context.say(f"warning: {warning}")
    split = hold_out(manifest, ratio=run.data.val_split_ratio, seed=run.seed)
    config_hash = f"{run.digest()}-{manifest.digest[:8]}-{weights.digest[:8]}"
    return Ready(run, weights, manifest, split, config_hash)
