"""One run from config to finished folder: check, train, evaluate."""

import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dinomaly_hd import provenance
from dinomaly_hd.config import RunConfig
from dinomaly_hd.data.features import FeatureMemory, TrainingSet, digests, image_batches
from dinomaly_hd.data.order import batch_at
from dinomaly_hd.errors import ConfigError, DinomalyHDError, Interrupted
from dinomaly_hd.experiments.context import Context, Progress
from dinomaly_hd.experiments.evaluation_run import evaluate_run
from dinomaly_hd.experiments.examine import Positions
from dinomaly_hd.experiments.exported import read_weights
from dinomaly_hd.experiments.ready import Ready, check
from dinomaly_hd.experiments.run_folder import (
    CHECKPOINTS,
    all_runs,
    finished_results,
    open_run,
    read_state,
)
from dinomaly_hd.experiments.session import Session
from dinomaly_hd.models.build import build_detector
from dinomaly_hd.models.detector import Detector
from dinomaly_hd.training import checkpoint as checkpoints
from dinomaly_hd.training.fit import Trained, TrainingData, encoder_state, load_trained_state, train


class Outcome(NamedTuple):
    """A finished run: its folder, its ``results.json`` as data, and its MLflow run if there is one."""

    folder: Path
    results: dict[str, Any]
    mlflow_run_id: str | None


def execute(run: RunConfig, context: Context) -> Outcome:
    """Train, evaluate and record one run; goes on with an interrupted one of the same configuration.

    A comparison's member (``context.folder``) that any run here has finished already, with the same
    configuration, data, weights and code, is not run again.

    Raises:
        DinomalyHDError: Whatever ended the run; its folder and its MLflow run say so.
    """
    ready = check(run, context)
    if context.folder is not None and context.resume != "never":
        done = _finished(ready, context)
        if done is not None:
            context.say(f"already finished: {done.folder}")
            return done
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


def _finished(ready: Ready, context: Context) -> Outcome | None:
    """Return a finished run of this configuration and code, the comparison's own first."""
    identity = {"config_hash": ready.config_hash, "code": provenance.code_digest()}
    assert context.folder is not None
    for folder in (context.folder, *all_runs(context.result_dir)):
        results = finished_results(folder, **identity)
        if results is not None:
            return Outcome(folder, results, read_state(folder).get("mlflow_run_id"))
    return None


def _train_and_evaluate(session: Session) -> dict[str, Any]:
    torch.backends.cudnn.deterministic = True
    began = time.monotonic()
    detector = build_detector(session.run, weights=session.ready.weights).to(session.device)
    memory = session.context.features or FeatureMemory()
    if session.checkpoint is None:
        _fit(session, detector, memory)
    else:
        session.context.say(f"going on at step {session.checkpoint.step}")
        load_trained_state(detector, session.checkpoint.weights)
        if session.donated:
            checkpoints.save(session.folder.path / CHECKPOINTS, session.checkpoint)
    memory.use(_encoder_key(session, detector))
    data = _training_data(session, detector, memory)
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


def _fit(session: Session, detector: Detector, memory: FeatureMemory) -> None:
    """Give a fresh detector what it takes from training images, or the weights it starts from."""
    start, positions = session.ready.start, session.split.train
    if start is not None:
        session.context.say(f"starting from {start.folder.parent}")
        load_trained_state(detector, read_weights(start.folder))
    else:
        config = session.run.encoder.model_dump_json()
        source = (
            f"{config} {session.ready.weights.digest} {session.manifest.digest} {positions.tobytes().hex()}"
        )
        statistics = memory.statistics.get(source)
        if statistics is None:
            session.context.say(f"encoder: statistics of {len(positions)} training images")
            detector.fit_encoder(_batches(session, positions))
            memory.statistics[source] = encoder_state(detector)
        else:
            detector.load_state_dict(statistics, strict=False)
    detector.fit_loss(_batches(session, positions))


def _encoder_key(session: Session, detector: Detector) -> str:
    """Return what decides the encoder's output for an image: settings, weights and statistics."""
    total = hashlib.sha256(
        f"{session.run.encoder.model_dump_json()} {session.run.model.class_token} "
        f"{session.ready.weights.digest} {session.device.type}".encode()
    )
    for name, value in sorted(encoder_state(detector).items()):
        total.update(name.encode() + value.numpy().tobytes())
    return total.hexdigest()


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


def _training_data(session: Session, detector: Detector, memory: FeatureMemory) -> TrainingData:
    """Encode the training images once where memory allows (``cache``), else leave it to each step."""
    positions, count = session.split.train, len(session.split.train)
    in_memory = _encode_once(session, detector, memory)
    dataset = TrainingSet(session.store, positions, memory=memory if in_memory else None)

    def name_files(step: int) -> str:
        batch = batch_at(step, count=count, batch_size=session.run.training.batch_size, seed=session.run.seed)
        return ", ".join(session.manifest.records[int(positions[i])].path for i in batch)

    workers = 0 if in_memory else session.run.data.num_workers
    return TrainingData(dataset, count, workers, name_files, _validation(session, detector))


def _encode_once(session: Session, detector: Detector, memory: FeatureMemory) -> bool:
    """Fill the memory with the training images' encoder outputs; return whether it was done."""
    positions, cache = session.split.train, session.run.training.cache
    if cache == "off" or detector.alters_images:
        return False
    names = digests(session.manifest, positions)
    if memory.holds(names):
        return True
    example = detector.encode(torch.from_numpy(session.store[int(positions[0])])[None].to(session.device))
    if not memory.has_room(example, count=len(positions)):
        if cache == "memory":
            raise ConfigError(
                f"cache=memory: {len(positions)} encoded images do not fit into memory; use cache=auto"
            )
        return False
    session.context.say(f"encoder: {len(positions)} training images, once for all steps")
    done = 0
    for images_BHW in _batches(session, positions):
        memory.add(names[done : done + len(images_BHW)], detector.encode(images_BHW))
        done += len(images_BHW)
    return True


def _validation(session: Session, detector: Detector) -> Callable[[], float] | None:
    """Return what gives the mean validation loss over the held-out normals of the domains trained on."""
    records = session.manifest.records
    trained = {records[int(i)].domain for i in session.split.train}
    own = [i for i in session.split.held_out if records[int(i)].domain in trained]
    held_out = np.array(own, dtype=np.int64)
    if not len(held_out):
        return None

    def validate() -> float:
        losses = [detector.validation_loss(detector.encode(images)) for images in _batches(session, held_out)]
        return float(torch.cat(losses).mean())

    return validate
