"""One run from config to finished folder: data, model, training, evaluation, tracking."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from dinomaly_hd import provenance
from dinomaly_hd.config import SIMULATED, RunConfig, flatten
from dinomaly_hd.data.features import MapDataset, encode_all, fits_in_memory, image_batches
from dinomaly_hd.data.hdmap import Manifest, load_manifest
from dinomaly_hd.data.order import batch_at
from dinomaly_hd.data.splits import Split, hold_out
from dinomaly_hd.data.store import ImageStore
from dinomaly_hd.errors import CheckpointError, DinomalyHDError, Interrupted
from dinomaly_hd.evaluation.pictures import map_limit
from dinomaly_hd.evaluation.results import evaluate
from dinomaly_hd.evaluation.summary import flat_metrics, summary_lines
from dinomaly_hd.evaluation.thresholds import f1, normal_quantile, youden
from dinomaly_hd.experiments import examine, exported, gallery
from dinomaly_hd.experiments.data_root import resolve_root
from dinomaly_hd.experiments.run_folder import CHECKPOINTS, FINISHED, RunFolder, open_run
from dinomaly_hd.files import publish_json, publish_text
from dinomaly_hd.journal import Journal
from dinomaly_hd.models.build import build_detector, check_encoder, check_model, preprocessing_of
from dinomaly_hd.models.detector import Detector
from dinomaly_hd.models.weights import Weights, locate
from dinomaly_hd.randomness import derive
from dinomaly_hd.training import checkpoint as checkpoints
from dinomaly_hd.training.fit import Trained, TrainingData, load_trained_state, resolve_device, train
from dinomaly_hd.training.guards import SignalGuard

RESULTS_SCHEMA = 1
KEEP_IMAGES_BYTES = 2 * 1024**3
"""Run tracking is imported where it is used: MLflow takes seconds to import."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """What surrounds a run and changes none of its numbers."""

    root: Path
    result_dir: Path
    experiment: str
    guard: SignalGuard
    say: Callable[[str], None]
    command: str
    entry_point: str
    run_name: str | None = None
    resume: str = "auto"
    parent_run_id: str | None = None
    folder: Path | None = None
    tags: Mapping[str, str] | None = None


class Ready(NamedTuple):
    """A checked run before any model exists."""

    run: RunConfig
    weights: Weights
    manifest: Manifest
    split: Split
    config_hash: str


class Outcome(NamedTuple):
    """A finished run."""

    folder: Path
    results: dict[str, Any]
    mlflow_run_id: str | None


def check(run: RunConfig, context: Context) -> Ready:
    """Check everything that can be wrong with flags, weights and data, before a model is loaded.

    Raises:
        ConfigError, EncoderError, DataError: In this order; see their messages.
    """
    shape = check_encoder(run.encoder)
    check_model(run.model, grid=shape.grid, is_transformer=shape.is_transformer)
    resolve_device(run.training.gpu)
    weights = locate(run.encoder.encoder, run.encoder.encoder_weights)
    root = resolve_root(run.data, root=context.root, say=context.say, tick=context.guard.check)
    manifest = load_manifest(
        root, domains=run.data.domain_names, conditions=run.data.conditions, tick=context.guard.check
    )
    for warning in manifest.warnings:
        context.say(f"warning: {warning}")
    split = hold_out(manifest, ratio=run.data.val_split_ratio, seed=run.seed)
    config_hash = f"{run.digest()}-{manifest.digest[:8]}-{weights.digest[:8]}"
    return Ready(run, weights, manifest, split, config_hash)


def execute(run: RunConfig, context: Context) -> Outcome:
    """Train, evaluate and record one run; resumes an interrupted one of the same configuration.

    Raises:
        DinomalyHDError: Whatever ended the run; its folder and MLflow run say so.
    """
    ready = check(run, context)
    with open_run(
        context.result_dir,
        variant=run.model.variant,
        seed=run.seed,
        config_hash=ready.config_hash,
        resume=context.resume,
        folder=context.folder,
    ) as folder:
        return _RunInFolder(ready, context, folder).execute()


class _RunInFolder:
    """The steps of one run that share its folder, journal and tracker."""

    def __init__(self, ready: Ready, context: Context, folder: RunFolder) -> None:
        from dinomaly_hd.tracking import Tracker, default_uri

        self.ready, self.context, self.folder = ready, context, folder
        self.run, self.manifest, self.split = ready.run, ready.manifest, ready.split
        self.device = resolve_device(self.run.training.gpu)
        self.store = ImageStore(self.manifest, keep_bytes=KEEP_IMAGES_BYTES)
        self.journal = Journal(folder.path / "journal.jsonl")
        found = checkpoints.newest(folder.path / CHECKPOINTS)
        for line in found.unreadable:
            context.say(f"warning: {line}; using the one before")
        self.checkpoint = found.checkpoint
        if self.checkpoint is not None:
            checkpoints.check_belongs(
                self.checkpoint,
                config=self.run.to_json(),
                data_digest=self.manifest.digest,
                encoder_digest=ready.weights.digest,
            )
        elif folder.resumed and context.resume not in ("auto", "never"):
            raise CheckpointError(f"{folder.path}: no readable checkpoint to resume from")
        self.journal.truncate_after(self.checkpoint.step - 1 if self.checkpoint else -1)
        self.tracker = Tracker(
            self.journal,
            uri=default_uri(context.root),
            experiment=context.experiment,
            run_name=context.run_name or run_name(self.run),
            tags=self._tags(),
            root=context.root,
            parent_run_id=context.parent_run_id,
        )

    def execute(self) -> Outcome:
        self._record_settings()
        run_id = self.tracker.start(timeout_s=60)
        if run_id is not None:
            self.folder.set_state(mlflow_run_id=run_id)
        self._describe()
        try:
            results = self._work()
        except Interrupted:
            self._close("KILLED")
            raise
        except BaseException as error:
            if isinstance(error, DinomalyHDError):
                self.tracker.tags({"error": str(error)})
            self._close("FAILED")
            raise
        delivered = self._close(FINISHED)
        self._say_where(delivered)
        return Outcome(self.folder.path, results, self.tracker.run_id)

    def _work(self) -> dict[str, Any]:
        began = time.monotonic()
        torch.backends.cudnn.deterministic = True
        detector = build_detector(self.run, weights=self.ready.weights).to(self.device)
        if self.checkpoint is None:
            self.context.say("encoder: statistics of the training images")
            detector.fit_encoder(self._to_device(self._batches(self.split.train)))
        else:
            load_trained_state(detector, self.checkpoint.weights)
            self.context.say(f"resuming at step {self.checkpoint.step} in {self.folder.path}")
        data = self._training_data(detector)
        encoded_s = time.monotonic() - began
        trained = train(
            detector,
            run=self.run,
            data=data,
            resume=self.checkpoint,
            data_digest=self.manifest.digest,
            encoder_digest=self.ready.weights.digest,
            folder=self.folder.path / CHECKPOINTS,
            reporter=self.tracker,
            guard=self.context.guard,
            progress=Progress(self.context.say),
        )
        timing = {"encode_s": encoded_s, "train_s": trained.seconds}
        return self._evaluate(detector.to(self.device), trained, timing)

    def _batches(self, positions: examine.Positions) -> Any:
        return image_batches(
            self.store,
            positions,
            batch_size=self.run.evaluation.eval_batch_size,
            num_workers=self.run.data.num_workers,
            tick=self.context.guard.check,
        )

    def _to_device(self, batches: Any) -> Any:
        return (images.to(self.device) for images in batches)

    def _training_data(self, detector: Detector) -> TrainingData:
        """Encode the training images once where memory allows (``cache``), else leave it to each step."""
        positions, count = self.split.train, len(self.split.train)
        example = detector.encode(torch.from_numpy(self.store[int(positions[0])])[None].to(self.device))
        cache = self.run.training.cache
        encode = cache == "off" or (cache == "auto" and not fits_in_memory(example, count=count))
        dataset: Dataset[torch.Tensor] = MapDataset(self.store, positions)
        if not encode:
            self.context.say(f"encoder: {count} training images, once")
            batches = self._to_device(self._batches(positions))
            dataset = encode_all(batches, count=count, encode=lambda images: detector.encode(images).cpu())

        def name_files(step: int) -> str:
            batch = batch_at(step, count=count, batch_size=self.run.training.batch_size, seed=self.run.seed)
            return ", ".join(self.manifest.records[int(positions[i])].path for i in batch)

        return TrainingData(dataset, count, encode, name_files, self._validation(detector))

    def _validation(self, detector: Detector) -> Callable[[], float] | None:
        held_out = self.split.held_out
        if not len(held_out):
            return None

        def validate() -> float:
            total = 0.0
            for images in self._to_device(self._batches(held_out)):
                total += float(detector.validation_loss(detector.encode(images)).sum())
            return total / len(held_out)

        return validate

    def _evaluate(self, detector: Detector, trained: Trained, timing: dict[str, float]) -> dict[str, Any]:
        began = time.monotonic()
        box = preprocessing_of(self.run.encoder).visible(self.manifest.shape)
        examiner = examine.Examiner(
            detector,
            self.store,
            evaluation=self.run.evaluation,
            box=box,
            device=self.device,
            num_workers=self.run.data.num_workers,
            bf16=self.run.training.precision == "bf16",
            tick=self.context.guard.check,
        )
        test = self.manifest.indices(split="test")
        honest = bool(len(self.split.held_out))
        normal_positions = self.split.held_out if honest else self.split.train
        self.context.say(f"scoring {len(test)} test images and {len(normal_positions)} normals")
        normals, examined = examiner.examine(normal_positions), examiner.examine(test)
        scored_s = time.monotonic() - began
        table = examine.score_table(self.store, test, score_N=examined.score_N, train=self.split.train)
        domain_of = np.array([self.manifest.records[int(i)].domain for i in normal_positions])
        chosen = {
            domain: normal_quantile(normals.score_N[domain_of == domain], held_out=honest)
            for domain in self.manifest.domains
        }
        limits = {domain: map_limit(normals.map_Nhw[domain_of == domain]) for domain in self.manifest.domains}
        measured = evaluate(
            table,
            normal_thresholds=chosen,
            seed=derive(self.run.seed, "bootstrap"),
            pixel=examine.pixel_scores(self.manifest, test, map_Nhw=examined.map_Nhw, box=box),
        )
        images = (self.run.training.batch_size * trained.steps) / trained.seconds if trained.steps else 0.0
        timing |= {
            "score_s": scored_s,
            "train_images_per_s": images,
            "score_images_per_s": (len(test) + len(normal_positions)) / scored_s,
        }
        folder = self.folder.path
        values = {domain: threshold.value for domain, threshold in chosen.items()}
        exported.export_model(
            folder / "model",
            detector,
            run=self.run,
            shape=self.manifest.shape,
            dtype=self.manifest.dtype,
            thresholds=values,
            data_digest=self.manifest.digest,
            encoder_digest=self.ready.weights.digest,
        )
        normal_table = examine.score_table(
            self.store, normal_positions, score_N=normals.score_N, train=self.split.train
        )
        by_domain = {str(name): rows for name, rows in normal_table.groupby("domain", sort=False)}
        examine.write_scores(folder / "scores", table, normals=by_domain)
        self.context.say("drawing plots and anomaly maps")
        lines = {}
        for domain in self.manifest.domains:
            rows = table[table["domain"] == domain]
            score, label = rows["score"].to_numpy(np.float64), rows["label"].to_numpy(np.int64)
            lines[domain] = [chosen[domain], youden(score, label), f1(score, label)]
        history = {name: list(points) for name, points in self.journal.history().items()}
        gallery.draw_plots(folder / "plots", table, thresholds=lines, history=history)
        gallery.draw_maps(
            folder / "anomaly_maps",
            table,
            examiner=examiner,
            manifest=self.manifest,
            limits=limits,
            thresholds=values,
            count=self.run.evaluation.maps_per_group,
            tick=self.context.guard.check,
        )
        timing["evaluate_s"] = time.monotonic() - began
        results = {**self._result_head(timing), **measured, "training_history": _thinned(history)}
        publish_json(folder / "results.json", results)
        self._track_results(results, timing)
        for line in summary_lines(results):
            self.context.say(line)
        return results

    def _result_head(self, timing: dict[str, float]) -> dict[str, Any]:
        run = self.run
        return {
            "schema_version": RESULTS_SCHEMA,
            "experiment_type": self.context.entry_point,
            "variant": run.model.variant,
            "parameters": flatten(run.model),
            "domains": list(self.manifest.domains),
            "encoder": run.encoder.encoder,
            "encoder_digest": self.ready.weights.digest,
            "max_steps": run.training.max_steps,
            "batch_size": run.training.batch_size,
            "seed": run.seed,
            "config": json.loads(run.to_json()),
            "config_hash": self.ready.config_hash,
            "data_digest": self.manifest.digest,
            "condition_rule": self.manifest.condition_rule,
            "counts": self.manifest.counts(),
            "held_out": len(self.split.held_out),
            "timing": timing,
            "versions": provenance.package_versions(),
            "machine": provenance.machine_facts(),
        }

    def _track_results(self, results: dict[str, Any], timing: dict[str, float]) -> None:
        last = self.run.training.max_steps
        self.tracker.metrics(flat_metrics(results), step=last)
        self.tracker.metrics({f"time/{name}": value for name, value in timing.items()}, step=last)
        folder = self.folder.path
        self.tracker.artifact(folder / "results.json")
        for name in ("scores", "plots", "anomaly_maps", "model"):
            self.tracker.artifacts(folder / name, folder=name)
        newest = max((folder / CHECKPOINTS).glob("step_*.pt"))
        self.tracker.artifact(newest, folder=CHECKPOINTS)
        for domain in self.manifest.domains:
            for step, path in enumerate(sorted((folder / "anomaly_maps" / domain).glob("fault_highest_*.png"))):
                self.tracker.image(path, key=f"anomaly_maps/{domain}", step=step)

    def _record_settings(self) -> None:
        publish_json(
            self.folder.path / "experiment_settings.json",
            {
                "command": self.context.command,
                "entry_point": self.context.entry_point,
                "config": json.loads(self.run.to_json()),
                "config_hash": self.ready.config_hash,
                "data_root": str(self.manifest.root),
                "data_digest": self.manifest.digest,
                "condition_rule": self.manifest.condition_rule,
                "encoder_digest": self.ready.weights.digest,
            },
        )

    def _describe(self) -> None:
        """Tell MLflow what the run is: parameters, data, code, and the command that repeats it."""
        flat = flatten(self.run)
        self.tracker.params({**flat, **{f"cfg/{name}": value for name, value in flat.items()}})
        self.tracker.text(self.run.to_json(), file="config.json")
        self.tracker.artifact(self.folder.path / "experiment_settings.json")
        diff = provenance.git_diff(self.context.root)
        if diff:
            self.tracker.text(diff, file="uncommitted.diff")
        name = self.manifest.root.name
        for split, context in (("train", "training"), ("test", "evaluation")):
            count = len(self.manifest.indices(split=split))
            self.tracker.dataset(
                f"{name}-{split}", digest=self.manifest.digest, count=count, source=str(self.manifest.root), context=context
            )
        rule = self.manifest.condition_rule
        self.tracker.note(
            f"**{self.run.model.variant}**, {', '.join(self.manifest.domains)}, seed {self.run.seed}\n\n"
            f"Repeat: `{self.context.command}`\n\nRun folder: `{self.folder.path}`\n\nConditions: {rule}"
        )
        self.context.say(f"data: {self.manifest.root}, {len(self.manifest.records)} images; {rule}")
        self.context.say(f"run folder: {self.folder.path}")

    def _tags(self) -> dict[str, str]:
        run = self.run
        return {
            "variant": run.model.variant,
            "config": "-",
            "domains": "".join(domain.removeprefix("domain_") for domain in self.manifest.domains),
            "kind": "train",
            "sweep": "-",
            "config_hash": self.ready.config_hash,
            "manifest_digest": self.manifest.digest[:16],
            "encoder_digest": self.ready.weights.digest,
            "encoder_weights": self.ready.weights.source,
            "command": self.context.command,
            "run_folder": str(self.folder.path),
            **provenance.git_facts(self.context.root),
            **(self.context.tags or {}),
        }

    def _close(self, status: Any) -> bool:
        self.folder.set_state(status=status)
        self.journal.sync()
        return self.tracker.close(status, timeout_s=120)

    def _say_where(self, delivered: bool) -> None:
        if delivered:
            self.context.say(f"MLflow run: {self.tracker.url()}")
            self.context.say(f"compare runs: {self.tracker.experiment_url()}  (start the pages with `make ui`)")
        self.context.say(f"results: {self.folder.path}")


class Progress:
    """Says how far a training is, about ten times, with the time left."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say, self.began, self.first = say, time.monotonic(), -1

    def __call__(self, done: int, total: int) -> None:
        if self.first < 0:
            self.first, self.began = done - 1, time.monotonic()
        if done == total or done % max(1, total // 10) == 0:
            elapsed = time.monotonic() - self.began
            left = elapsed / max(1, done - self.first) * (total - done)
            self.say(f"step {done}/{total}, {left:.0f} s left")


def run_name(run: RunConfig) -> str:
    """Return ``{variant}-{domains}-s{seed}``."""
    domains = "".join(name.removeprefix("domain_") for name in run.data.domain_names)
    return f"{run.model.variant}-{domains}-s{run.seed}"


def _thinned(history: gallery.History, *, most: int = 1000) -> dict[str, Any]:
    """Return each series as {"step": [...], "value": [...]}, at most ``most`` evenly spread points."""
    thinned = {}
    for name, points in history.items():
        keep = points[:: max(1, -(-len(points) // most))]
        thinned[name] = {"step": [step for step, _ in keep], "value": [value for _, value in keep]}
    return thinned


def with_folder(context: Context, **changes: Any) -> Context:
    """Return a context for a member of a comparison."""
    return replace(context, **changes)


def is_simulated(run: RunConfig) -> bool:
    """Return whether the run uses the embedded data set."""
    return run.data.data_root == SIMULATED
