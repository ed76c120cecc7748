"""Evaluate a trained detector on a run's test images: results, scores, pictures, exported model."""

import json
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from dinomaly_hd import provenance
from dinomaly_hd.config import flatten
from dinomaly_hd.evaluation.pictures import map_limit
from dinomaly_hd.evaluation.report import Picture, report_html
from dinomaly_hd.evaluation.results import evaluate
from dinomaly_hd.evaluation.summary import flat_metrics, summary_lines
from dinomaly_hd.evaluation.thresholds import Threshold, f1, normal_quantile, youden
from dinomaly_hd.experiments import gallery
from dinomaly_hd.experiments.examine import (
    Examined,
    Examiner,
    Positions,
    pixel_scores,
    score_table,
    stack,
    write_scores,
)
from dinomaly_hd.experiments.exported import export_model
from dinomaly_hd.experiments.run_folder import CHECKPOINTS
from dinomaly_hd.experiments.session import Session, run_name
from dinomaly_hd.files import publish_json, publish_text
from dinomaly_hd.models.build_encoder import preprocessing_of
from dinomaly_hd.models.detector import Detector
from dinomaly_hd.randomness import derive
from dinomaly_hd.serving import log_model

RESULTS_SCHEMA = 1
LONGEST_HISTORY = 1000
MAPS_IN_REPORT = 3


class Normals(NamedTuple):
    """Normal images that set thresholds and colour scales; held out, unless the run held none out."""

    positions: Positions
    held_out: bool
    examined: Examined
    domain_N: np.ndarray[Any, np.dtype[np.str_]]

    def thresholds(self) -> dict[str, Threshold]:
        """Return each domain's 99.5 % quantile of normal scores."""
        return {
            domain: normal_quantile(self.examined.score_N[self.domain_N == domain], held_out=self.held_out)
            for domain in dict.fromkeys(self.domain_N.tolist())
        }

    def map_limits(self) -> dict[str, float]:
        """Return the upper end of each domain's colour scale."""
        return {
            domain: map_limit(self.examined.map_Nhw[self.domain_N == domain])
            for domain in dict.fromkeys(self.domain_N.tolist())
        }


def evaluate_run(session: Session, detector: Detector, *, timing: dict[str, float]) -> dict[str, Any]:
    """Score every test image once, write everything the run folder holds, and return ``results.json``."""
    began = time.monotonic()
    run, manifest, folder = session.run, session.manifest, session.folder.path
    box = preprocessing_of(run.encoder).visible(manifest.shape)
    examiner = Examiner(
        detector,
        session.store,
        evaluation=run.evaluation,
        box=box,
        device=session.device,
        num_workers=run.data.num_workers,
        bf16=run.training.precision == "bf16",
        tick=session.context.guard.check,
        memory=None if run.training.cache == "off" else session.context.features,
    )
    test = manifest.indices(split="test")
    normals = _examine_normals(session, examiner)
    session.context.say(f"scoring {len(test)} test images")
    examined = examiner.examine(test)
    scored_s = time.monotonic() - began
    table = score_table(session.store, test, score_N=examined.score_N, train=session.split.normals)
    thresholds = normals.thresholds()
    measured = evaluate(
        table,
        normal_thresholds=thresholds,
        seed=derive(run.seed, "bootstrap"),
        pixel=pixel_scores(manifest, test, map_Nhw=examined.map_Nhw, box=box),
    )
    export_model(
        folder / "model",
        detector,
        run=run,
        shape=manifest.shape,
        dtype=manifest.dtype,
        thresholds={domain: threshold.value for domain, threshold in thresholds.items()},
        data_digest=manifest.digest,
        encoder_digest=session.ready.weights.digest,
    )
    _write_scores(session, normals, table)
    session.context.say("drawing plots and anomaly maps")
    history = session.journal.history()
    _draw(session, examiner, normals, table, history)
    timing |= {
        "score_s": scored_s,
        "score_images_per_s": (len(test) + len(normals.positions)) / scored_s,
        "evaluate_s": time.monotonic() - began,
    }
    results = {**_head(session, timing), **measured, "training_history": _thinned(history)}
    publish_json(folder / "results.json", results)
    _write_report(session, results)
    _track(session, results, timing)
    for line in ["", *summary_lines(results), ""]:
        session.context.say(line)
    return results


def _examine_normals(session: Session, examiner: Examiner) -> Normals:
    held_out = bool(len(session.split.held_out))
    positions = session.split.held_out if held_out else session.split.normals
    session.context.say(f"scoring {len(positions)} {'held-out' if held_out else 'training'} normals")
    domains = np.array([session.manifest.records[int(i)].domain for i in positions])
    return Normals(positions, held_out, examiner.examine(positions), domains)


def _write_scores(session: Session, normals: Normals, table: pd.DataFrame) -> None:
    rows = score_table(
        session.store, normals.positions, score_N=normals.examined.score_N, train=session.split.normals
    )
    by_domain = {
        str(domain): own.drop(columns="domain") for domain, own in rows.groupby("domain", sort=False)
    }
    write_scores(session.folder.path / "scores", table, normals=by_domain)


def _draw(
    session: Session, examiner: Examiner, normals: Normals, table: pd.DataFrame, history: gallery.History
) -> None:
    folder, thresholds = session.folder.path, normals.thresholds()
    lines: dict[str, list[Threshold]] = {}
    for domain, own in table.groupby("domain", sort=False):
        score, label = own["score"].to_numpy(np.float64), own["label"].to_numpy(np.int64)
        lines[str(domain)] = [thresholds[str(domain)], youden(score, label), f1(score, label)]
    gallery.draw_plots(folder / "plots", table, thresholds=lines, history=history)
    images = stack(session.store, normals.positions)
    gallery.draw_maps(
        folder / "anomaly_maps",
        table,
        examiner=examiner,
        manifest=session.manifest,
        limits=normals.map_limits(),
        input_limits={domain: map_limit(images[normals.domain_N == domain]) for domain in thresholds},
        thresholds={domain: threshold.value for domain, threshold in thresholds.items()},
        count=session.run.evaluation.maps_per_group,
        tick=session.context.guard.check,
    )


def _head(session: Session, timing: dict[str, float]) -> dict[str, Any]:
    run, manifest = session.run, session.manifest
    return {
        "schema_version": RESULTS_SCHEMA,
        "experiment_type": session.context.entry_point,
        "variant": run.model.variant,
        "parameters": flatten(run.model),
        "domains": list(manifest.domains),
        "encoder": run.encoder.encoder,
        "encoder_digest": session.ready.weights.digest,
        "max_steps": run.training.max_steps,
        "steps": run.training.last_step,
        "batch_size": run.training.batch_size,
        "seed": run.seed,
        "config": json.loads(run.to_json()),
        "config_hash": session.ready.config_hash,
        "data_digest": manifest.digest,
        "condition_rule": manifest.condition_rule,
        "counts": manifest.counts(),
        "held_out": len(session.split.held_out),
        "timing": timing,
        "label": session.context.tags.get("config", run.model.variant),
        "code_digest": provenance.code_digest(),
        **provenance.git_facts(session.context.root),
        "versions": provenance.package_versions(),
        "machine": provenance.machine_facts(),
    }


def _write_report(session: Session, results: dict[str, Any]) -> None:
    """Write ``report.html``: tables, ROC curves, histograms, training, and each domain's highest faults."""
    folder, run = session.folder.path, session.run
    pictures = [Picture(path.stem, path.read_bytes()) for path in sorted((folder / "plots").glob("*.png"))]
    for domain in session.manifest.domains:
        shown = _faults_to_browse(folder, domain)[:MAPS_IN_REPORT]
        pictures += [Picture(f"{domain}: {path.stem}", path.read_bytes()) for path in shown]
    facts = {
        "command": session.context.command,
        "variant": run.model.variant,
        "seed": str(run.seed),
        "preset": run.preset,
        "encoder": run.encoder.encoder,
        "steps": str(run.training.last_step),
        "data": f"{session.manifest.root}, digest {session.manifest.digest[:16]}",
        "conditions": session.manifest.condition_rule,
        "config hash": session.ready.config_hash,
    }
    page = report_html(run_name(run), facts=facts, result=results, pictures=pictures)
    publish_text(folder / "report.html", page)


def _thinned(history: gallery.History) -> dict[str, Any]:
    """Return each series as steps and values, at most ``LONGEST_HISTORY`` evenly spread points."""
    thinned: dict[str, Any] = {}
    for name, points in history.items():
        kept = points[:: max(1, -(-len(points) // LONGEST_HISTORY))]
        thinned[name] = {"step": [step for step, _ in kept], "value": [value for _, value in kept]}
    return thinned


def _track(session: Session, results: dict[str, Any], timing: dict[str, float]) -> None:
    tracker, folder, last = session.tracker, session.folder.path, session.run.training.last_step
    tracker.metrics(flat_metrics(results), step=last)
    tracker.metrics({f"time/{name}": value for name, value in timing.items()}, step=last)
    for name in ("results.json", "report.html"):
        tracker.artifact(folder / name)
    for name in ("scores", "plots", "anomaly_maps", "model"):
        if (folder / name).is_dir():
            tracker.artifacts(folder / name, folder=name)
    tracker.call(partial(log_model, folder=folder / "model"))
    tracker.artifact(max((folder / CHECKPOINTS).glob("step_*.pt")), folder=CHECKPOINTS)
    for domain in session.manifest.domains:
        for step, path in enumerate(_faults_to_browse(folder, domain)):
            tracker.image(path, key=f"anomaly_maps/{domain}", step=step)


def _faults_to_browse(folder: Path, domain: str) -> list[Path]:
    return sorted((folder / "anomaly_maps" / domain).glob("fault_highest_*.png"))
