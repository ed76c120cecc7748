"""One run from config to finished folder: check, train, evaluate."""

import hashlib
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dinomaly_hd import provenance
from dinomaly_hd.config import NO_ENCODER, RunConfig, TrainingConfig
from dinomaly_hd.data.feature_files import FeaturePlace
from dinomaly_hd.data.features import FeatureCache, digests
from dinomaly_hd.errors import ConfigError, DinomalyHDError, Interrupted, Pruned
from dinomaly_hd.runs.context import Context
from dinomaly_hd.experiments.evaluate import evaluate_run
from dinomaly_hd.experiments.exported import read_weights
from dinomaly_hd.experiments.learning import batches, learn
from dinomaly_hd.experiments.checks import Ready, check
from dinomaly_hd.runs.folder import (
    CHECKPOINTS,
    all_runs,
    finished_results,
    open_run,
    read_state,
)
from dinomaly_hd.experiments.record import complete_in_mlflow
from dinomaly_hd.experiments.session import Session
from dinomaly_hd.models.build import build_detector
from dinomaly_hd.models.detector import GROUP_SIZE, Detector
from dinomaly_hd.training import checkpoint as checkpoints
from dinomaly_hd.training.loop import encoder_state, load_trained_state
from dinomaly_hd.training.memory import named_when_exhausted, way_out


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
            batch_size = run.training.batch_size if isinstance(run.training, TrainingConfig) else None
            results = named_when_exhausted(
                partial(_train_and_evaluate, session), device=session.device, hint=way_out(batch_size)
            )
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
    features, place = session.context.features or FeatureCache(), feature_place(session)
    if session.checkpoint is None:
        _fit(session, detector, features, place)
    else:
        session.context.say(f"going on at step {session.checkpoint.step}")
        load_trained_state(detector, session.checkpoint.weights)
        if session.donated:
            checkpoints.save(session.folder.path / CHECKPOINTS, session.checkpoint)
    features.use(_encoder_key(session, detector), place=place, device=session.device)
    fitted_s = time.monotonic() - began
    trained, encode_s = learn(session, detector, features)
    timing = {"encode_s": fitted_s + encode_s, "train_s": trained.seconds}
    if isinstance(session.run.training, TrainingConfig) and trained.steps:
        timing["train_images_per_s"] = session.run.training.batch_size * trained.steps / trained.seconds
    return evaluate_run(session, detector.to(session.device), features, trained=trained, timing=timing)


def _fit(session: Session, detector: Detector, features: FeatureCache, place: FeaturePlace | None) -> None:
    """Give a fresh detector what it takes from training images, or the weights it starts from."""
    start, positions = session.ready.start, session.split.train
    if start is not None:
        session.context.say(f"starting from {start.folder.parent}")
        load_trained_state(detector, read_weights(start.folder))
    else:
        source = f"{_encoding(session)} {digests(session.manifest, positions)}"

        def take() -> dict[str, Tensor]:
            if encoder_state(detector):
                session.context.say(f"encoder: statistics of {len(positions)} training images")
            detector.fit_encoder(batches(session, positions, size=GROUP_SIZE))
            return encoder_state(detector)

        statistics = features.statistics(source, take, like=encoder_state(detector), place=place)
        detector.load_state_dict(statistics, strict=False)
    detector.fit_loss(batches(session, positions))


def feature_place(session: Session) -> FeaturePlace | None:
    """Return where this run keeps encoder outputs in files: on a GPU encoding anew is faster than reading.

    Raises:
        ConfigError: ``cache=files``, but no files are to be kept.
    """
    cache, place = session.run.training.cache, session.context.feature_place
    if session.run.encoder.encoder == NO_ENCODER:
        return None
    if cache == "files" and place is None:
        raise ConfigError("cache=files: feature_gb=0 keeps no files; give it room, or use cache=auto")
    return place if cache == "files" or (cache == "auto" and session.device.type == "cpu") else None


def _encoding(session: Session) -> str:
    """Return what decides, beside statistics, every bit of the encoder's output for an image.

    Libraries round otherwise with other numbers of threads and on other processors.
    """
    run, weights, device = session.run, session.ready.weights, session.device
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
        device.type,
        unit,
        provenance.code_digest(),
        torch.__version__,
        version("timm"),
    )
    return " ".join(map(str, parts))


def _encoder_key(session: Session, detector: Detector) -> str:
    """Return what decides the encoder's output for an image: settings, weights and statistics."""
    total = hashlib.sha256(_encoding(session).encode())
    for name, value in sorted(encoder_state(detector).items()):
        total.update(name.encode() + value.numpy().tobytes())
    return total.hexdigest()
