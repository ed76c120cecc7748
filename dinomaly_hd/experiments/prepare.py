"""From a checked run to what is trained: the detector at its start, its images encoded, its validation."""

import hashlib
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dinomaly_hd import provenance
from dinomaly_hd.config.run import ALL_DOMAINS, NO_ENCODER, TrainingConfig
from dinomaly_hd.data.features import FeatureCache, TrainingSet, batch_at, digests
from dinomaly_hd.data.hdmap import Indices
from dinomaly_hd.errors import ConfigError
from dinomaly_hd.evaluation.metrics import auroc
from dinomaly_hd.evaluation.report import flat_synthetic
from dinomaly_hd.experiments.checks import Work
from dinomaly_hd.experiments.score import Scorer, SyntheticBands, stack
from dinomaly_hd.models.build import build_detector
from dinomaly_hd.models.convert import convert_state
from dinomaly_hd.models.detector import GROUP_SIZE, Detector
from dinomaly_hd.models.fast import kernels
from dinomaly_hd.models.weights import read_state
from dinomaly_hd.runs.folder import CHECKPOINTS
from dinomaly_hd.serving.exported import read_weights
from dinomaly_hd.training import checkpoint as checkpoints
from dinomaly_hd.training.checkpoint import Checkpoint, encoder_state, load_trained_state, trained_state
from dinomaly_hd.training.loop import Hooks, Trained, TrainingData, Validation
from dinomaly_hd.trivial import Scan


def prepare(work: Work) -> Scorer:
    """Return a run's detector where its training begins, or where the checkpoint left it, with its images."""
    began = time.monotonic()
    run, ready, checkpoint = work.run, work.ready, work.checkpoint
    textures = None if ready.textures is None else ready.textures.textures_KHW
    made_of = _signatures(work) if textures is None else textures
    detector = build_detector(run, weights=ready.weights, fault_KHW=made_of).to(work.device)
    features = work.context.features or FeatureCache()
    scorer = Scorer(
        detector,
        work.store,
        run=run,
        device=work.device,
        features=None if run.training.cache == "off" else features,
        tick=work.context.guard.check,
    )
    if checkpoint is not None:
        work.context.say(f"going on at step {checkpoint.step}")
        load_trained_state(detector, checkpoint.weights)
    elif ready.start is not None:
        _begin(work, scorer, features, ready.start)
    else:
        _fit_encoder(work, scorer, features)
    if checkpoint is None:
        images = scorer.images(ready.split.train, "statistics")
        detector.fit_loss(one.to(work.device) for one in images)
    features.use(_encoder_key(work, detector), place=work.feature_place, device=work.device)
    work.timing["encode_s"] = time.monotonic() - began
    return scorer


def _signatures(work: Work) -> Tensor | None:
    """Return what the labelled faults among the training images add to usual ones of their domain, if any."""
    ready, found = work.ready, []
    for domain in sorted(ready.trained_domains):
        faults = ready.manifest.indices(domain=domain, split="train", label=1)
        if len(faults):
            normals = ready.manifest.indices(domain=domain, split="train", label=0)
            scan = Scan.fit(stack(work.store, np.intersect1d(normals, ready.split.normals)))
            found.append(torch.from_numpy(scan.signatures(stack(work.store, faults))).float())
    return torch.cat(found) if found else None


def _begin(work: Work, scorer: Scorer, features: FeatureCache, start: Path) -> None:
    """Give a fresh detector a finished run's weights, or those of the original's or anomalib's file."""
    if start.is_file():
        _fit_encoder(work, scorer, features)
        theirs = read_state(start, flag="start_from")
        weights = {**encoder_state(scorer.detector), **convert_state(theirs)}
    else:
        weights = read_weights(start)
    work.context.say(f"starting from {start if start.is_file() else start.parent}")
    load_trained_state(scorer.detector, weights)


def _fit_encoder(work: Work, scorer: Scorer, features: FeatureCache) -> None:
    """Give a fresh detector's frozen half what it takes from training images, once for all runs alike."""
    detector, positions = scorer.detector, work.ready.split.train

    def take() -> dict[str, Tensor]:
        if encoder_state(detector):
            work.context.say(f"encoder: statistics of {len(positions)} training images")
        images = scorer.images(positions, "statistics", size=GROUP_SIZE)
        detector.fit_encoder(one.to(work.device) for one in images)
        return encoder_state(detector)

    source = f"{_encoding(work)} {digests(work.ready.manifest, positions)}"
    like, place = encoder_state(detector), work.feature_place
    detector.load_state_dict(features.statistics(source, take, like=like, place=place), strict=False)


def _encoding(work: Work) -> str:
    """Return what decides, beside statistics, every bit of the encoder's output for an image.

    Libraries round otherwise with other numbers of threads and on other processors.
    """
    run, weights, device = work.run, work.ready.weights, work.device
    unit = (
        f"{torch.get_num_threads()} threads {torch.backends.cpu.get_cpu_capability()}"
        if device.type == "cpu"
        else torch.cuda.get_device_name(device)
    )
    parts = (
        run.model.model_type,
        run.model.encoding,
        run.encoder.model_dump_json(),
        weights.digest,
        run.seed if weights.source == "random" else "",
        run.training.precision,
        kernels(device.type),
        device.type,
        unit,
        provenance.code_digest(),
        torch.__version__,
        version("timm"),
    )
    return " ".join(map(str, parts))


def _encoder_key(work: Work, detector: Detector) -> str:
    """Return what decides the encoder's output for an image: settings, weights and statistics."""
    total = hashlib.sha256(_encoding(work).encode())
    for name, value in sorted(encoder_state(detector).items()):
        total.update(name.encode() + value.numpy().tobytes())
    return total.hexdigest()


def fill_bank(work: Work, scorer: Scorer) -> Trained:
    """Let a detector without gradients learn from all training images at once."""
    encode_once(work, scorer)
    began, ready = time.monotonic(), work.ready
    if work.checkpoint is None:
        scorer.detector.fit_bank(scorer.encoded(ready.split.train), tick=scorer.tick)
        state = Checkpoint(
            step=0,
            config=work.run.to_json(),
            data_digest=ready.manifest.digest,
            encoder_digest=ready.weights.digest,
            nonfinite=0,
            weights=trained_state(scorer.detector),
            optimizer={},
            patience={},
        )
        checkpoints.save(work.folder / CHECKPOINTS, state)
    return Trained(0, time.monotonic() - began, 0, 0, None)


def training_data(work: Work, scorer: Scorer) -> TrainingData:
    """Return what a training reads: images, encoded once where there is room, and validation."""
    positions, records = work.ready.split.train, work.ready.manifest.records
    training = work.run.training
    assert isinstance(training, TrainingConfig)
    kept = encode_once(work, scorer)

    def name_files(step: int) -> str:
        batch = batch_at(step, count=len(positions), batch_size=training.batch_size, seed=work.run.seed)
        return ", ".join(records[int(positions[i])].path for i in batch)

    return TrainingData(
        dataset=TrainingSet(work.store, positions, cache=scorer.features if kept else None),
        size=len(positions),
        num_workers=0 if kept else work.run.data.num_workers,
        data_digest=work.ready.manifest.digest,
        encoder_digest=work.ready.weights.digest,
        name_files=name_files,
        validate=_validation(work, scorer),
    )


def hooks(work: Work) -> Hooks:
    """Return who is told during a training: the journal, which MLflow follows, and the checkpoints."""
    tracker, context = work.tracker, work.context

    def log(values: Mapping[str, float], step: int) -> None:
        tracker.metrics(values, step=step)
        if context.observe is not None:
            context.observe(values, step)

    def save(checkpoint: Checkpoint) -> None:
        tracker.journal.sync()  # a checkpoint relies on what was logged before it
        checkpoints.save(work.folder / CHECKPOINTS, checkpoint)

    return Hooks(log, save, context.guard, context.say, context.on_progress)


def encode_once(work: Work, scorer: Scorer) -> bool:
    """Encode the training images before the first step and keep that; return whether it was done.

    That they do not fit where ``cache`` wants them is a ConfigError.
    """
    began = time.monotonic()
    positions, cache, features = work.ready.split.train, work.run.training.cache, scorer.features
    if features is None or scorer.detector.alters_images:
        return False
    names = digests(work.ready.manifest, positions)
    if features.in_memory(names):
        return True
    example_HW = torch.from_numpy(work.store[int(positions[0])])
    example = scorer.detector.encode(example_HW[None].to(work.device))
    if cache == "files" and work.run.encoder.encoder == NO_ENCODER:
        cache = "auto"  # nothing is encoded
    if not features.has_room(example, names, where=cache):
        if cache == "auto":
            return False
        size_gb = example.nelement() * example.element_size() * len(positions) / 1024**3
        raise ConfigError(
            f"cache={cache}: {len(positions)} encoded images of {size_gb:.1f} GiB do not fit; use cache=auto"
        )
    work.context.say(f"preparing {len(positions)} training images, once for all steps")
    for _ in scorer.encoded(positions):
        pass
    work.timing["encode_s"] += time.monotonic() - began
    return True


def _validation(work: Work, scorer: Scorer) -> Callable[[], Validation] | None:
    """Return what examines a detector on the held-out normals of the domains trained on.

    Where other domains are tested too, it also reports the AUROC on the test images of those trained on;
    with ``validate_on=held_out`` no choice depends on it. With ``synthetic_copies`` it reports how well bands
    on the held-out normals are told from them.
    """
    ready, detector, watches_test = work.ready, scorer.detector, work.ready.chooses_by_test
    training = work.run.training
    assert isinstance(training, TrainingConfig)
    held_out = ready.trained_on(ready.split.held_out)
    test = ready.trained_on(ready.manifest.indices(split="test"))
    if not training.val_check_interval or not (len(held_out) or watches_test):
        return None
    bands = SyntheticBands(scorer, held_out) if work.run.evaluation.synthetic_copies else None

    @torch.no_grad()
    def validate() -> Validation:
        was_training, metrics = detector.training, dict[str, float]()
        detector.eval()  # batch-norm statistics see training images only
        try:
            if len(held_out):
                metrics["val/loss"] = held_out_loss(scorer, held_out, size=training.batch_size)
            if watches_test or work.run.data.train_domains != ALL_DOMAINS:
                metrics["val_image_AUROC"] = image_auroc(scorer, test)
            metrics |= {} if bands is None else flat_synthetic(bands.examine())
        finally:
            detector.train(was_training)
        return Validation(1 - metrics["val_image_AUROC"] if watches_test else metrics["val/loss"], metrics)

    return validate


def held_out_loss(scorer: Scorer, positions: Indices, *, size: int) -> float:
    parts = enumerate(scorer.encoded(positions, size=size))
    losses = [scorer.detector.validation_loss(one, position=number) for number, one in parts]
    return float(torch.cat(losses).mean())


def image_auroc(scorer: Scorer, positions: Indices) -> float:
    """Return the AUROC, NaN where a score is not finite or a class missing: tests must not end a training."""
    if not len(positions):
        return float("nan")
    score_N = torch.cat([prediction.score_B for _, _, prediction in scorer.batches(positions)]).numpy()
    labels = [scorer.store.manifest.records[int(i)].label for i in positions]
    return auroc(score_N, labels) if np.isfinite(score_N).all() else float("nan")
