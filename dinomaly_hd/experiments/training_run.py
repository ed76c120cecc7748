"""One run from config to finished folder: check, train, evaluate."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from dinomaly_hd.config import RunConfig
from dinomaly_hd.data.features import MapDataset, encode_all, fits_in_memory, image_batches
from dinomaly_hd.data.order import batch_at
from dinomaly_hd.errors import DinomalyHDError, Interrupted
from dinomaly_hd.experiments.context import Context, Progress
from dinomaly_hd.experiments.evaluation_run import evaluate_run
from dinomaly_hd.experiments.examine import Positions
from dinomaly_hd.experiments.ready import check
from dinomaly_hd.experiments.run_folder import CHECKPOINTS, finished_results, open_run
from dinomaly_hd.experiments.session import Session
from dinomaly_hd.models.build import build_detector
from dinomaly_hd.models.detector import Detector
from dinomaly_hd.training.fit import Trained, TrainingData, load_trained_state, train


class Outcome(NamedTuple):
    """A finished run: its folder, its ``results.json`` as data, and its MLflow run if there is one."""

    folder: Path
    results: dict[str, Any]
    mlflow_run_id: str | None


def execute(run: RunConfig, context: Context) -> Outcome:
    """Train, evaluate and record one run; goes on with an interrupted one of the same configuration.

    Raises:
        DinomalyHDError: Whatever ended the run; its folder and its MLflow run say so.
    """
    ready = check(run, context)
    if context.folder is not None:  # a member of a comparison that is gone on with
        done = finished_results(context.folder, config_hash=ready.config_hash)
        if done is not None:
            context.say(f"already finished: {context.folder}")
            return Outcome(context.folder, done, None)
    with open_run(
        context.result_dir,
        variant=run.model.variant,
        seed=run.seed,
        config_hash=ready.config_hash,
        resume=context.resume,
        folder=context.folder,
    ) as folder:
        session = Session(ready, context, folder)
        try:
            session.open()
            results = _train_and_evaluate(session)
        except Interrupted:
            session.close("KILLED")
            raise
        except BaseException as error:
            session.close("FAILED", error=str(error) if isinstance(error, DinomalyHDError) else repr(error))
            raise
        session.close("FINISHED")
        return Outcome(folder.path, results, session.tracker.run_id)


def _train_and_evaluate(session: Session) -> dict[str, Any]:
    torch.backends.cudnn.deterministic = True
    began = time.monotonic()
    detector = build_detector(session.run, weights=session.ready.weights).to(session.device)
    if session.checkpoint is None:
        session.context.say(f"encoder: statistics of {len(session.split.train)} training images")
        detector.fit_encoder(_batches(session, session.split.train))
    else:
        session.context.say(f"going on at step {session.checkpoint.step}")
        load_trained_state(detector, session.checkpoint.weights)
    data = _training_data(session, detector)
    encoded_s = time.monotonic() - began
    trained: Trained = train(
        detector,
        run=session.run,
        data=data,
        resume=session.checkpoint,
        data_digest=session.manifest.digest,
        encoder_digest=session.ready.weights.digest,
        folder=session.folder.path / CHECKPOINTS,
        reporter=session,
        guard=session.context.guard,
        progress=Progress(session.context.say),
    )
    timing = {"encode_s": encoded_s, "train_s": trained.seconds}
    if trained.steps:
        timing["train_images_per_s"] = session.run.training.batch_size * trained.steps / trained.seconds
    return evaluate_run(session, detector.to(session.device), timing=timing)


def _batches(session: Session, positions: Positions) -> Iterator[Tensor]:
    """Yield maps on the run's device."""
    batches = image_batches(
        session.store,
        positions,
        batch_size=session.run.evaluation.eval_batch_size,
        num_workers=session.run.data.num_workers,
        tick=session.context.guard.check,
    )
    return (images_BHW.to(session.device) for images_BHW in batches)


def _training_data(session: Session, detector: Detector) -> TrainingData:
    """Encode the training images once where memory allows (``cache``), else leave it to each step."""
    positions, count, batch_size = (
        session.split.train,
        len(session.split.train),
        session.run.training.batch_size,
    )
    example = detector.encode(torch.from_numpy(session.store[int(positions[0])])[None].to(session.device))
    cache = session.run.training.cache
    on_the_fly = cache == "off" or (cache == "auto" and not fits_in_memory(example, count=count))
    dataset: Dataset[Tensor] = MapDataset(session.store, positions)
    if not on_the_fly:
        session.context.say(f"encoder: {count} training images, once for all steps")
        batches = _batches(session, positions)
        dataset = encode_all(batches, count=count, encode=lambda images: detector.encode(images).cpu())

    def name_files(step: int) -> str:
        batch = batch_at(step, count=count, batch_size=batch_size, seed=session.run.seed)
        return ", ".join(session.manifest.records[int(positions[i])].path for i in batch)

    return TrainingData(dataset, count, on_the_fly, name_files, _validation(session, detector))


def _validation(session: Session, detector: Detector) -> Callable[[], float] | None:
    """Return what gives the mean validation loss over the held-out normals, None where there are none."""
    held_out = session.split.held_out
    if not len(held_out):
        return None

    def validate() -> float:
        losses = [detector.validation_loss(detector.encode(images)) for images in _batches(session, held_out)]
        return float(torch.cat(losses).mean())

    return validate
