"""One run from config to finished folder: check, train, evaluate."""

import hashlib
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dinomaly_hd import provenance
from dinomaly_hd.config import RunConfig, TrainingConfig
from dinomaly_hd.data.features import FeatureMemory
from dinomaly_hd.errors import DinomalyHDError, Interrupted, Pruned
from dinomaly_hd.experiments.context import Context
from dinomaly_hd.experiments.evaluation_run import evaluate_run
from dinomaly_hd.experiments.exported import read_weights
from dinomaly_hd.experiments.learning import batches, learn
from dinomaly_hd.experiments.ready import Ready, check
from dinomaly_hd.experiments.run_folder import (
    CHECKPOINTS,
    all_runs,
    finished_results,
    open_run,
    read_state,
)
from dinomaly_hd.experiments.run_record import complete_in_mlflow
from dinomaly_hd.experiments.session import Session
from dinomaly_hd.models.build import build_detector
from dinomaly_hd.models.detector import Detector
from dinomaly_hd.training import checkpoint as checkpoints
from dinomaly_hd.training.fit import encoder_state, load_trained_state


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
        wait_s=context.lock_wait_s,
        tick=context.guard.check,
    ) as folder:
        if folder.finished:
            done = _finished(ready, context)
            if done is not None:
                return done
            folder.set_state(status="RUNNING")  # other code finished it
        session = Session(ready, context, folder)
        try:
            session.open()
            results = _train_and_evaluate(session)
        except Interrupted:
            session.close("KILLED")
            raise
        except Pruned:
            session.tracker.tags({"pruned": "true"})
            session.close("KILLED")
            raise
        except BaseException as error:
            session.close("FAILED", error=str(error) if isinstance(error, DinomalyHDError) else repr(error))
            raise
        session.close("FINISHED")
        return Outcome(folder.path, results, session.tracker.run_id)


def _finished(ready: Ready, context: Context) -> Outcome | None:
    """Return a finished run of this configuration and code, the comparison's own first.

    Its own is completed in MLflow, in case the process that finished it was killed before that was done.
    """
    identity = {"config_hash": ready.config_hash, "code": provenance.code_digest()}
    assert context.folder is not None
    for folder in (context.folder, *all_runs(context.result_dir)):
        results = finished_results(folder, **identity)
        if results is not None:
            if folder == context.folder:
                complete_in_mlflow(folder, context)
            return Outcome(folder, results, read_state(folder).get("mlflow_run_id"))
    return None


def _train_and_evaluate(session: Session) -> dict[str, Any]:
    torch.backends.cudnn.deterministic = True
    began = time.monotonic()
    textures = session.ready.textures
    detector = build_detector(
        session.run,
        weights=session.ready.weights,
        textures_KHW=None if textures is None else textures.textures_KHW,
    ).to(session.device)
    memory = session.context.features or FeatureMemory()
    if session.checkpoint is None:
        _fit(session, detector, memory)
    else:
        session.context.say(f"going on at step {session.checkpoint.step}")
        load_trained_state(detector, session.checkpoint.weights)
        if session.donated:
            checkpoints.save(session.folder.path / CHECKPOINTS, session.checkpoint)
    memory.use(_encoder_key(session, detector))
    fitted_s = time.monotonic() - began
    trained, encode_s = learn(session, detector, memory)
    timing = {"encode_s": fitted_s + encode_s, "train_s": trained.seconds}
    if isinstance(session.run.training, TrainingConfig) and trained.steps:
        timing["train_images_per_s"] = session.run.training.batch_size * trained.steps / trained.seconds
    return evaluate_run(session, detector.to(session.device), memory, trained=trained, timing=timing)


def _fit(session: Session, detector: Detector, memory: FeatureMemory) -> None:
    """Give a fresh detector what it takes from training images, or the weights it starts from."""
    start, positions = session.ready.start, session.split.train
    if start is not None:
        session.context.say(f"starting from {start.folder.parent}")
        load_trained_state(detector, read_weights(start.folder))
    else:
        config = f"{session.run.model.model_type} {session.run.encoder.model_dump_json()}"
        source = (
            f"{config} {session.ready.weights.digest} {session.manifest.digest} {positions.tobytes().hex()}"
        )
        statistics = memory.statistics.get(source)
        if statistics is None:
            if encoder_state(detector):
                session.context.say(f"encoder: statistics of {len(positions)} training images")
            detector.fit_encoder(batches(session, positions))
            memory.statistics[source] = encoder_state(detector)
        else:
            detector.load_state_dict(statistics, strict=False)
    detector.fit_loss(batches(session, positions))


def _encoder_key(session: Session, detector: Detector) -> str:
    """Return what decides the encoder's output for an image: settings, weights and statistics."""
    total = hashlib.sha256(
        f"{session.run.model.model_type} {session.run.model.encoding} "
        f"{session.run.encoder.model_dump_json()} {session.ready.weights.digest} "
        f"{session.device.type}".encode()
    )
    for name, value in sorted(encoder_state(detector).items()):
        total.update(name.encode() + value.numpy().tobytes())
    return total.hexdigest()
