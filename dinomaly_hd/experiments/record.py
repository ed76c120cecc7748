"""What a finished run leaves beside its scores: results.json, the page, and what MLflow is told of it."""

import json
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from dinomaly_hd import provenance
from dinomaly_hd.config.base import flatten
from dinomaly_hd.evaluation.report import (
    HEADLINES,
    data_figures,
    flat_metrics,
    flat_synthetic,
    render,
    results_markdown,
    summary_lines,
)
from dinomaly_hd.evaluation.run_page import run_page, verdict
from dinomaly_hd.experiments.checks import Work
from dinomaly_hd.files import publish_json, publish_text
from dinomaly_hd.models.fast import kernels
from dinomaly_hd.names import as_markdown
from dinomaly_hd.runs.folder import CHECKPOINTS, MODEL, RESULTS, SCORES
from dinomaly_hd.runs.pages import artifact_picture
from dinomaly_hd.runs.store import MOST_METRICS
from dinomaly_hd.training.loop import Trained

RESULTS_SCHEMA = 1
LONGEST_HISTORY = 1000
OF_MACHINE = 8  # metrics in MLflow: processor, memory and a card's five
TIMES = ("train_s", "score_images_per_s")
FIGURES_STEP = 0  # MLflow draws bars, run beside run, of metrics at step 0, and a dot over the step of others


def record(work: Work, trained: Trained, found: dict[str, Any]) -> dict[str, Any]:
    """Write ``results.json`` and ``report.html``, tell MLflow and the user, and return the results."""
    history = {"training_history": thinned(work.tracker.journal.history())}
    results = {**_head(work, trained), **found, **history}
    publish_json(work.folder / RESULTS, results)
    lines: dict[str, list[str]] = {
        name: render(f"{name}.txt", result=results).splitlines()
        for name in ("transfer", "synthetic")
        if name in results
    }
    _write_page(work, results, lines)
    _track(work, results)
    said = [summary_lines(results), *lines.values()]
    for line in (line for part in said for line in ["", *part]):
        work.context.say(line)
    work.context.say("")
    return results


def _head(work: Work, trained: Trained) -> dict[str, Any]:
    run, manifest = work.run, work.ready.manifest
    return {
        "schema_version": RESULTS_SCHEMA,
        "experiment_type": work.context.entry_point,
        "variant": run.model.variant,
        "parameters": flatten(run.model),
        "domains": list(manifest.domains),
        "model_type": run.model.model_type,
        "encoder": run.encoder.encoder,
        "encoder_digest": work.ready.weights.digest,
        "max_steps": run.training.max_steps,
        "steps": trained.last_step,
        "tested_step": trained.tested_step,
        "best_val": trained.best_value,
        "batch_size": flatten(run.training).get("batch_size"),
        "seed": run.seed,
        "config": json.loads(run.to_json()),
        "config_hash": work.ready.config_hash,
        "data_digest": manifest.digest,
        "condition_rule": manifest.condition_rule,
        "counts": manifest.counts(),
        "held_out": len(work.ready.split.held_out),
        "timing": work.timing,
        "peak_memory_mib": provenance.peak_memory_mib(),
        "label": work.context.tags.get("config", run.model.variant),
        "code_digest": provenance.code_digest(),
        **provenance.git_facts(work.context.root),
        "versions": provenance.package_versions(),
        "machine": provenance.machine_facts(),
        "kernels": kernels(work.device.type),
    }


def thinned(history: dict[str, list[tuple[int, float]]]) -> dict[str, Any]:
    """Return each series as steps and values, at most ``LONGEST_HISTORY`` evenly spread points."""
    thinned: dict[str, Any] = {}
    for name, points in history.items():
        kept = points[:: max(1, -(-len(points) // LONGEST_HISTORY))]
        thinned[name] = {"step": [step for step, _ in kept], "value": [value for _, value in kept]}
    return thinned


def _write_page(work: Work, results: dict[str, Any], lines: Mapping[str, list[str]]) -> None:
    """Write ``report.html``."""
    run, manifest = work.run, work.ready.manifest
    facts = {
        "command": work.context.command,
        "variant": run.model.variant,
        "seed": str(run.seed),
        "preset": run.preset,
        "encoder": run.encoder.encoder,
        "steps": str(results["steps"]),
        "data": f"{manifest.root}, digest {manifest.digest[:16]}",
        "conditions": manifest.condition_rule,
        "config hash": work.ready.config_hash,
        **{name: "; ".join(line.strip() for line in part) for name, part in lines.items()},
    }
    maps = {domain: work.maps_folder(domain) for domain in manifest.domains}
    page = run_page(results, title=work.name, facts=facts, plots=work.folder / "plots", maps=maps)
    publish_text(work.folder / "report.html", page)


def _track(work: Work, results: dict[str, Any]) -> None:
    """Give MLflow its copy: headlines, files, the model, and the pictures to browse."""
    tracker, folder = work.tracker, work.folder
    synthetic = flat_synthetic(results["synthetic"]) if "synthetic" in results else {}
    timing = {f"time/{name}": work.timing[name] for name in TIMES if name in work.timing}
    told = {*results["training_history"], *synthetic, *timing}
    room = max(len(HEADLINES), MOST_METRICS - OF_MACHINE - len(told))
    figures = islice(flat_metrics(results).items(), room)
    tracker.metrics({**dict(figures), **timing}, step=FIGURES_STEP)
    if synthetic:
        tracker.metrics(synthetic, step=results["steps"])
    work.dataset("test", use="evaluation", figures=data_figures(results))
    for name in (RESULTS, "report.html"):
        tracker.artifact(folder / name)
    for name in (SCORES, "plots", "anomaly_maps", MODEL):
        if (folder / name).is_dir():
            tracker.artifact(folder / name, folder=name)
    tracker.add("model", folder / MODEL)
    tracker.artifact(max((folder / CHECKPOINTS).glob("step_*.pt")), folder=CHECKPOINTS)
    for domain in work.ready.manifest.domains:
        for step, path in enumerate(_faults_to_browse(work, domain)):
            tracker.add("image", path, key=f"maps/{domain}", step=step)
    said = as_markdown(verdict(results))
    work.note(f"{said}\n\n{results_markdown(results)}\n{_picture(work, results)}")


def _picture(work: Work, results: dict[str, Any]) -> str:
    """Return the Markdown of the highest fault where AUROC is lowest, small: MLflow shows pictures as wide
    as they are.
    """
    run_id, domains = work.tracker.run_id, results["per_domain_metrics"]
    shown = [(domain, path) for domain in domains for path in _faults_to_browse(work, domain)[:1]]
    if run_id is None or not shown:
        return ""
    _, hardest = min(shown, key=lambda pair: np.nan_to_num(domains[pair[0]]["auroc"], nan=1.0))
    path = hardest.relative_to(work.folder)
    small = (path.parent / "small.png").as_posix()
    work.tracker.add("thumbnail", hardest, file=small)
    return f"{artifact_picture(run_id, small, text=as_markdown(path.as_posix()))}\n\n"


def _faults_to_browse(work: Work, domain: str) -> list[Path]:
    return sorted(work.maps_folder(domain).glob("fault_highest_*.png"))
