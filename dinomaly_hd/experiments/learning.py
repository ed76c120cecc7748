"""How a run's detector learns: by optimizer steps with validation, or at once from a memory bank."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dinomaly_hd.config import ALL_DOMAINS, NO_ENCODER, TrainingConfig
from dinomaly_hd.data.features import FeatureCache, TrainingSet, digests, image_batches
from dinomaly_hd.data.order import batch_at
from dinomaly_hd.errors import ConfigError
from dinomaly_hd.evaluation.metrics import auroc
from dinomaly_hd.evaluation.synthetic import flat_synthetic
from dinomaly_hd.runs.context import Progress
from dinomaly_hd.experiments.score import Positions, encode, score
from dinomaly_hd.runs.folder import CHECKPOINTS
from dinomaly_hd.experiments.session import Session, trained_on
from dinomaly_hd.experiments.synthetic import SyntheticBands
from dinomaly_hd.models.detector import Detector
from dinomaly_hd.training import checkpoint as checkpoints
from dinomaly_hd.training.checkpoint import Checkpoint
from dinomaly_hd.training.loop import Trained, TrainingData, Validation, train, trained_state


class Learned(NamedTuple):
    """What came of it, and the seconds that encoding the training images took before."""

    trained: Trained
    encode_s: float


def learn(session: Session, detector: Detector, features: FeatureCache) -> Learned:
    """Bring a detector from where the session's checkpoint left it to the end of its training.

    Raises:
        DinomalyHDError: As ``training.fit.train``; or the images do not fit where ``cache`` wants them.
    """
    began = time.monotonic()
    kept = _encode_once(session, detector, features)
    encode_s = time.monotonic() - began
    training = session.run.training
    if not isinstance(training, TrainingConfig):
        return Learned(_fill_bank(session, detector, features), encode_s)
    trained = train(
        detector,
        run=session.run,
        data=_training_data(session, detector, training, features=features, kept=kept),
        resume=session.checkpoint,
        data_digest=session.manifest.digest,
        encoder_digest=session.ready.weights.digest,
        folder=session.folder.path / CHECKPOINTS,
        reporter=session,
        guard=session.context.guard,
        progress=Progress(session.context),
    )
    return Learned(trained, encode_s)


def batches(session: Session, positions: Positions, *, size: int | None = None) -> Iterator[Tensor]:
    """Yield maps on the run's device, ``size`` at once, by default as many as in the evaluation."""
    images = image_batches(
        session.store,
        positions,
        batch_size=size or session.run.evaluation.eval_batch_size,
        num_workers=session.run.data.num_workers,
        tick=session.context.guard.check,
    )
    return (images_BHW.to(session.device) for images_BHW in images)


def _fill_bank(session: Session, detector: Detector, features: FeatureCache) -> Trained:
    began = time.monotonic()
    if session.checkpoint is None:
        encoded = _encoded(session, detector, session.split.train, features=features)
        detector.fit_bank(encoded, tick=session.context.guard.check)
        state = Checkpoint(
            step=0,
            config=session.run.to_json(),
            data_digest=session.manifest.digest,
            encoder_digest=session.ready.weights.digest,
            nonfinite=0,
            weights=trained_state(detector),
            optimizer={},
            patience={},
        )
        checkpoints.save(session.folder.path / CHECKPOINTS, state)
    return Trained(0, time.monotonic() - began, 0, 0, None)


def _encoded(
    session: Session,
    detector: Detector,
    positions: Positions,
    *,
    features: FeatureCache,
    size: int | None = None,
) -> Iterator[Tensor]:
    """Yield images' encoder outputs, ``size`` at once: kept ones, else new ones, which are kept then."""
    size = size or session.run.evaluation.eval_batch_size
    for number, images_BHW in enumerate(batches(session, positions, size=size)):
        yield encode(
            detector,
            images_BHW,
            names=digests(session.manifest, positions[number * size : (number + 1) * size]),
            device=session.device,
            features=None if session.run.training.cache == "off" else features,
            tick=session.context.guard.check,
        )


def _encode_once(session: Session, detector: Detector, features: FeatureCache) -> bool:
    """Encode the training images before the first step and keep that; return whether it was done."""
    positions, cache = session.split.train, session.run.training.cache
    if cache == "off" or detector.alters_images:
        return False
    names = digests(session.manifest, positions)
    if features.in_memory(names):
        return True
    example = detector.encode(torch.from_numpy(session.store[int(positions[0])])[None].to(session.device))
    if cache == "files" and session.run.encoder.encoder == NO_ENCODER:
        cache = "auto"  # nothing is encoded
    fits = features.has_room(example, names, where=cache)
    if not fits and cache == "auto":
        return False
    if not fits:
        size_gb = example.nelement() * example.element_size() * len(positions) / 1024**3
        raise ConfigError(
            f"cache={cache}: {len(positions)} encoded images of {size_gb:.1f} GiB do not fit; use cache=auto"
        )
    session.context.say(f"preparing {len(positions)} training images, once for all steps")
    for _ in _encoded(session, detector, positions, features=features):
        pass
    return True


def _training_data(
    session: Session, detector: Detector, training: TrainingConfig, *, features: FeatureCache, kept: bool
) -> TrainingData:
    positions, count = session.split.train, len(session.split.train)
    dataset = TrainingSet(session.store, positions, cache=features if kept else None)

    def name_files(step: int) -> str:
        batch = batch_at(step, count=count, batch_size=training.batch_size, seed=session.run.seed)
        return ", ".join(session.manifest.records[int(positions[i])].path for i in batch)

    workers = 0 if kept else session.run.data.num_workers
    validate = _validation(session, detector, training, features=features)
    return TrainingData(dataset, count, workers, name_files, validate)


def _validation(
    session: Session, detector: Detector, training: TrainingConfig, *, features: FeatureCache
) -> Callable[[], Validation] | None:
    """Return what examines a detector on the held-out normals of the domains trained on.

    Where other domains are tested too, it also reports the AUROC on the test images of those trained on;
    with ``validate_on=held_out`` no choice depends on it. With ``synthetic_copies`` it reports how well bands
    on the held-out normals are told from them.
    """
    held_out = trained_on(session, session.split.held_out)
    test = trained_on(session, session.manifest.indices(split="test"))
    watches_test = session.chooses_by_test
    reports_test = watches_test or session.run.data.train_domains != ALL_DOMAINS
    if not training.val_check_interval or not (len(held_out) or watches_test):
        return None
    bands = SyntheticBands(session, features=features) if session.run.evaluation.synthetic_copies else None

    encoded = partial(_encoded, session, detector, features=features)

    def validate() -> Validation:
        metrics: dict[str, float] = {}
        with _evaluating(detector):
            if len(held_out):
                metrics["val/loss"] = _loss(encoded(held_out, size=training.batch_size), detector)
            if reports_test:
                metrics["val_image_AUROC"] = _test_auroc(session, detector, test, encoded=encoded(test))
            if bands is not None:
                metrics |= flat_synthetic(bands.examine(detector))
        return Validation(1 - metrics["val_image_AUROC"] if watches_test else metrics["val/loss"], metrics)

    return validate


def _loss(encoded: Iterator[Tensor], detector: Detector) -> float:
    losses = [detector.validation_loss(one, position=number) for number, one in enumerate(encoded)]
    return float(torch.cat(losses).mean())


def _test_auroc(
    session: Session, detector: Detector, positions: Positions, *, encoded: Iterator[Tensor]
) -> float:
    """Return the AUROC, NaN where a score is not finite: a test image must not end a training."""
    bf16 = session.run.bf16
    score_N = torch.cat([score(detector, one, bf16=bf16).score_B for one in encoded]).numpy()
    labels = [session.manifest.records[int(i)].label for i in positions]
    return auroc(score_N, labels) if np.isfinite(score_N).all() else float("nan")


@contextmanager
def _evaluating(detector: Detector) -> Iterator[None]:
    """Put a detector into evaluation mode and back: batch-norm statistics see training images only."""
    was_training = detector.training
    detector.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        detector.train(was_training)
