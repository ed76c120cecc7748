"""What a run is: checked before a model is loaded, then at work with its folder, images and MLflow run."""

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from dinomaly_hd.config.base import flatten, with_values
from dinomaly_hd.config.families import RowEvidenceConfig, SourceFaults
from dinomaly_hd.config.run import (
    AFTER_TRAINING,
    ALL_DOMAINS,
    FOUND_DOMAINS,
    HELD_OUT,
    NO_ENCODER,
    NO_START,
    SIMULATED,
    SOURCE_TEST,
    DataConfig,
    EncoderConfig,
    ImageInput,
    RunConfig,
    TrainingConfig,
)
from dinomaly_hd.data.feature_files import FeaturePlace
from dinomaly_hd.data.features import ImageStore
from dinomaly_hd.data.folder import TextureStack, read_textures
from dinomaly_hd.data.hdmap import Indices, Manifest, Split, hold_out, load_manifest, with_labelled_faults
from dinomaly_hd.data.images import printable
from dinomaly_hd.data.simulator import simulate
from dinomaly_hd.data.tree import PREFIX as DOMAIN_PREFIX
from dinomaly_hd.data.tree import found_domains, layout_of
from dinomaly_hd.errors import CheckpointError, ConfigError, LayoutError
from dinomaly_hd.experiments.score import recorded_indicators
from dinomaly_hd.files import file_digest
from dinomaly_hd.models.build import check_model, texture_folder
from dinomaly_hd.models.fast import kernels
from dinomaly_hd.models.networks import check_weights, preprocessing_of
from dinomaly_hd.models.row_evidence import check_form
from dinomaly_hd.models.weights import Weights, locate
from dinomaly_hd.names import as_markdown
from dinomaly_hd.runs.folder import MODEL, Context, find_run
from dinomaly_hd.runs.tracker import Tracker
from dinomaly_hd.serving.exported import WEIGHTS, read_card
from dinomaly_hd.training.checkpoint import Checkpoint
from dinomaly_hd.training.loop import resolve_device

# What a model and the one it starts from must have in common.
SHAPES = (
    "model_type", "bottleneck", "attention", "loss", "distance", "auxiliary", "class_token", "decoder_depth",
    "scaling", "scale_weights", "target_layers", "encoder", "image_size", "crop", "width",
    "severity_head_mode", "severity_head_pooling_type", "severity_head_hidden_dim",
    "severity_head_spatial_size", "severity_head_use_spatial_attention",
)  # fmt: skip
FILES = (".safetensors", ".pth", ".pt", ".ckpt")  # of weights that are no run's
CHOSEN_BY_TEST = f"**validate_on={SOURCE_TEST}: test labels choose, figures are optimistic.**\n\n"


class Ready(NamedTuple):
    """A checked run before any model exists; its training begins with ``start``, an exported model, or a file
    of others' weights.

    ``config_hash`` names what decides the run's numbers: resolved config and seed, data, encoder weights, and
    the weights it starts from; ``training_hash`` leaves out what training does not see.
    """

    run: RunConfig
    weights: Weights
    manifest: Manifest
    split: Split
    start: Path | None
    textures: TextureStack | None
    config_hash: str
    training_hash: str

    @property
    def chooses_by_test(self) -> bool:
        """Whether test labels choose the weights, as only ``validate_on=source_test`` asks for."""
        training = self.run.training
        return isinstance(training, TrainingConfig) and training.validate_on == SOURCE_TEST

    @property
    def trained_domains(self) -> set[str]:
        """All domains, or the source of a transfer, also where healthy maps of its targets are trained on."""
        return set(_source_folders(self.run.data, self.manifest))

    def trained_on(self, positions: Indices) -> Indices:
        records, domains = self.manifest.records, self.trained_domains
        return np.array([i for i in positions if records[int(i)].domain in domains], dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class Work:
    """A checked run with its surroundings, its folder, what tells MLflow, and its images.

    ``checkpoint`` is where it goes on, None at a first start; ``timing`` fills up as it goes.
    """

    ready: Ready
    context: Context
    name: str
    folder: Path
    tracker: Tracker
    device: torch.device
    store: ImageStore
    checkpoint: Checkpoint | None
    timing: dict[str, float] = field(default_factory=dict)

    @property
    def run(self) -> RunConfig:
        return self.ready.run

    @property
    def feature_place(self) -> FeaturePlace | None:
        """Where encoder outputs are kept in files: on a GPU encoding anew is faster than reading."""
        cache = self.run.training.cache
        wanted = cache == "files" or (cache == "auto" and self.device.type == "cpu")
        encodes = self.run.encoder.encoder != NO_ENCODER
        return self.context.feature_place if wanted and encodes else None

    def maps_folder(self, domain: str) -> Path:
        """Return where a domain's anomaly maps lie; in a transfer, the source's apart from the targets'."""
        folder = self.folder / "anomaly_maps"
        if self.run.data.train_domains != ALL_DOMAINS:
            folder /= "source" if domain in self.ready.trained_domains else "targets"
        return folder / domain

    def dataset(self, split: str, *, use: str, figures: Mapping[str, str] | None = None) -> None:
        """Tell MLflow of images that are used, and what is known of them."""
        manifest = self.ready.manifest
        self.tracker.add(
            "dataset",
            name=f"{manifest.root.name}-{split}",
            digest=manifest.digest,
            count=len(manifest.indices(split=split)),
            source=str(manifest.root),
            context=use,
            figures=dict(figures or {}),
        )

    def note(self, results: str) -> None:
        """Set the description that the run's page shows; ``results`` is Markdown."""
        domains = as_markdown(", ".join(self.ready.manifest.domains))
        self.tracker.note(
            f"**{self.run.model.variant}** on {domains}, seed {self.run.seed}\n\n"
            f"{CHOSEN_BY_TEST if self.ready.chooses_by_test else ''}"
            f"{results}Repeat it: `{self.context.command}`\n\n"
            f"Run folder: `{self.folder}`\n\nConditions: {self.ready.manifest.condition_rule}"
        )


def check(run: RunConfig, context: Context) -> Ready:
    """Check a run's settings against each other, find the encoder's weights, then read and check the data.

    The run that is returned has its number of steps, also where epochs were given. What is wrong is a
    ConfigError, a CheckpointError (the run to start from), an EncoderError, and last a DataError.
    """
    check_model(run)
    kernels(resolve_device(run.training.gpu).type)  # a wrong switch in the environment is said now
    if run.training.cache == "files" and context.feature_place is None and run.encoder.encoder != NO_ENCODER:
        raise ConfigError("cache=files: feature_gb=0 keeps no files; give it room, or use cache=auto")
    weights = locate(run.encoder.encoder, run.encoder.encoder_weights)
    if isinstance(run.encoder, EncoderConfig):
        check_weights(run.encoder, weights=weights)
    start = _start(run, context, encoder_digest=weights.digest)
    run = with_found_domains(run)
    manifest = _manifest(run.data, context)
    recorded_indicators(manifest, [record.path for record in manifest.records])  # a damaged table is said now
    sources = _source_folders(run.data, manifest)
    split = hold_out(manifest, ratio=run.data.val_split_ratio, seed=run.seed, train_domains=sources)
    if isinstance(getattr(run.model, "faults", None), SourceFaults):
        split = split._replace(train=split.normals)
        for domain in sources:
            manifest = with_labelled_faults(manifest, domain=domain)
    if isinstance(run.model, RowEvidenceConfig):
        check_form(len(split.train), manifest.shape)
    copies = run.evaluation.synthetic_copies
    needs = {f"synthetic_copies={copies}": copies}
    if isinstance(run.training, TrainingConfig) and run.training.validate_on == HELD_OUT:
        needs["early_stopping_patience"] = run.training.early_stopping_patience
    for name, value in needs.items():
        if value and not len(split.held_out):
            raise ConfigError(
                f"{name} needs held-out normals, and val_split_ratio=0 holds out none; "
                f"give val_split_ratio=.1, or {name.partition('=')[0]}=0"
            )
    run = _with_steps(run, split)
    folder, textures = texture_folder(run), None
    if folder is not None and isinstance(run.encoder, ImageInput):
        size = preprocessing_of(run.encoder).input_size
        textures = read_textures(folder, size=size, grey=run.data.grey, tick=context.guard.check)
    inputs = [manifest.digest, weights.digest]
    inputs += [file_digest(start if start.is_file() else start / WEIGHTS)] if start else []
    inputs += [textures.digest] if textures else []
    hashes = [
        "-".join([digest, *(text[:8] for text in inputs)])
        for digest in (run.digest(), run.digest(without=AFTER_TRAINING))
    ]
    ready = Ready(run, weights, manifest, split, start, textures, *hashes)
    labels = {manifest.records[int(i)].label for i in ready.trained_on(manifest.indices(split="test"))}
    if ready.chooses_by_test and len(labels) < 2:
        raise ConfigError(f"validate_on={SOURCE_TEST} needs good and faulty test images; leave it out")
    return ready


def _source_folders(data: DataConfig, manifest: Manifest) -> list[str]:
    names, known = data.train_domain_names, manifest.domains
    return [name if name in known else f"{DOMAIN_PREFIX}{name}" for name in names]


def _manifest(data: DataConfig, context: Context) -> Manifest:
    """Read and check all images of the data set that the settings name, and say what is odd about it."""
    kept = {} if context.manifests is None else context.manifests
    names = ("data_root", "simulate_size", "simulate_seed", "conditions", "domains", "grey")
    shown = " ".join(str(getattr(data, name)) for name in names)
    if shown not in kept:
        kept[shown] = load_manifest(
            data_folder(data, root=context.root, say=context.say, tick=context.guard.check),
            domains=data.domain_names,
            conditions=data.conditions,
            grey=data.grey,
            tick=context.guard.check,
        )
        for warning in kept[shown].warnings:
            context.say(f"warning: {warning}")
    return kept[shown]


def simulated_root(data: DataConfig, *, root: Path) -> Path:
    """Return where a simulation lies: ``data/simulated_{size}_seed{n}`` in the project."""
    return root / "data" / f"simulated_{data.simulate_size}_seed{data.simulate_seed}"


def data_folder(
    data: DataConfig, *, root: Path, say: Callable[[str], None], tick: Callable[[], None]
) -> Path:
    """Return the data root; ``data_root=simulated`` is written where it is not there yet."""
    if data.data_root == SIMULATED:
        target = simulated_root(data, root=root)
        say(f"simulated data: {target}")
        return simulate(target, size=data.simulate_size, seed=data.simulate_seed, tick=tick)
    return given_root(data)


def given_root(data: DataConfig) -> Path:
    given = Path(data.data_root).expanduser()
    if not os.path.isdir(given) and layout_of(given) != "table":  # False too for what is too long for a path
        what = "not a folder" if os.path.exists(given) else "no such folder"
        raise LayoutError(
            f"data_root={printable(data.data_root)}: {what}; give the one that holds the domain folders "
            f"(domain_A/train/good ...), or a CSV file of images, or {SIMULATED}"
        )
    return given


def with_found_domains(run: RunConfig) -> RunConfig:
    """Return the run with its domains by name where none was named: the usual four, else all there are."""
    if run.data.domains != FOUND_DOMAINS:
        return run
    chosen = found_domains(given_root(run.data), usual=DataConfig().domain_names)
    return with_values(run, {"domains": ",".join(chosen)}) if chosen else run


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
    if training.validate_on == SOURCE_TEST and not training.early_stopping_patience:
        raise ConfigError(
            f"validate_on={SOURCE_TEST} chooses nothing while early_stopping_patience=0; give a patience"
        )
    return with_values(run, values) if values else run


def _start(run: RunConfig, context: Context, *, encoder_digest: str) -> Path | None:
    """Return what ``start_from`` names: a file of others, or an exported model once it is known to fit."""
    if run.training.start_from == NO_START:
        return None
    file = Path(run.training.start_from).expanduser()
    if file.suffix in FILES and os.path.isfile(file):  # which says itself what does not fit
        return file
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
    return folder
