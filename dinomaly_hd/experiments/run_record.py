"""What a finished evaluation leaves beside its figures: the head of results.json, the page, MLflow's copy."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dinomaly_hd import provenance
from dinomaly_hd.config import ALL_DOMAINS, flatten
from dinomaly_hd.errors import TrackingError
from dinomaly_hd.evaluation.report import Picture, report_html, results_markdown
from dinomaly_hd.evaluation.summary import flat_metrics
from dinomaly_hd.evaluation.synthetic import flat_synthetic, synthetic_lines
from dinomaly_hd.evaluation.transfer import flat_transfer, transfer_lines
from dinomaly_hd.experiments import gallery
from dinomaly_hd.runs.context import Context
from dinomaly_hd.runs.folder import CHECKPOINTS, IN_MLFLOW, read_state
from dinomaly_hd.experiments.session import NO_LABEL, Session, run_name, trained_domains
from dinomaly_hd.runs.sync import complete
from dinomaly_hd.files import publish_text
from dinomaly_hd.names import as_markdown
from dinomaly_hd.serving import log_model
from dinomaly_hd.runs.pages import artifact_picture
from dinomaly_hd.training.loop import Trained

RESULTS_SCHEMA = 1
LONGEST_HISTORY = 1000
MAPS_IN_REPORT = 3
FIGURES_STEP = 0  # MLflow draws bars, run beside run, of metrics at step 0, and a dot over the step of others


def head(session: Session, trained: Trained, timing: dict[str, float]) -> dict[str, Any]:
    """Return what ``results.json`` says of the run beside its figures."""
    run, manifest = session.run, session.manifest
    return {
        "schema_version": RESULTS_SCHEMA,
        "experiment_type": session.context.entry_point,
        "variant": run.model.variant,
        "parameters": flatten(run.model),
        "domains": list(manifest.domains),
        "model_type": run.model.model_type,
        "encoder": run.encoder.encoder,
        "encoder_digest": session.ready.weights.digest,
        "max_steps": run.training.max_steps,
        "steps": trained.last_step,
        "tested_step": trained.tested_step,
        "best_val": trained.best_value,
        "batch_size": flatten(run.training).get("batch_size"),
        "seed": run.seed,
        "config": json.loads(run.to_json()),
        "config_hash": session.ready.config_hash,
        "data_digest": manifest.digest,
        "condition_rule": manifest.condition_rule,
        "counts": manifest.counts(),
        "held_out": len(session.split.held_out),
        "timing": timing,
        "peak_memory_mib": provenance.peak_memory_mib(),
        "label": session.context.tags.get("config", run.model.variant),
        "code_digest": provenance.code_digest(),
        **provenance.git_facts(session.context.root),
        "versions": provenance.package_versions(),
        "machine": provenance.machine_facts(),
    }


def write_page(session: Session, results: dict[str, Any]) -> None:
    """Write ``report.html``: tables, ROC curves, histograms, training, and each domain's highest faults."""
    folder, run = session.folder.path, session.run
    pictures = [Picture(path.stem, path.read_bytes()) for path in sorted((folder / "plots").glob("*.png"))]
    for domain in session.manifest.domains:
        shown = _faults_to_browse(session, domain)[:MAPS_IN_REPORT]
        pictures += [Picture(f"{domain}: {path.stem}", path.read_bytes()) for path in shown]
    facts = {
        "command": session.context.command,
        "variant": run.model.variant,
        "seed": str(run.seed),
        "preset": run.preset,
        "encoder": run.encoder.encoder,
        "steps": str(results["steps"]),
        "data": f"{session.manifest.root}, digest {session.manifest.digest[:16]}",
        "conditions": session.manifest.condition_rule,
        "config hash": session.ready.config_hash,
    }
    if "transfer" in results:
        facts["transfer"] = "; ".join(line.strip() for line in transfer_lines(results["transfer"]))
    if "synthetic" in results:
        facts["synthetic"] = "; ".join(line.strip() for line in synthetic_lines(results["synthetic"]))
    title = run_name(run, label=session.context.tags.get("config", NO_LABEL))
    page = report_html(title, facts=facts, result=results, pictures=pictures)
    publish_text(folder / "report.html", page)


def thinned(history: gallery.History) -> dict[str, Any]:
    """Return each series as steps and values, at most ``LONGEST_HISTORY`` evenly spread points."""
    thinned: dict[str, Any] = {}
    for name, points in history.items():
        kept = points[:: max(1, -(-len(points) // LONGEST_HISTORY))]
        thinned[name] = {"step": [step for step, _ in kept], "value": [value for _, value in kept]}
    return thinned


def track(session: Session, results: dict[str, Any], timing: dict[str, float]) -> None:
    """Give MLflow its copy: figures, files, the model, and the pictures to browse."""
    tracker, folder, last = session.tracker, session.folder.path, results["steps"]
    tracker.metrics(flat_metrics(results), step=FIGURES_STEP)
    if "transfer" in results:
        tracker.metrics(flat_transfer(results["transfer"]), step=FIGURES_STEP)
    if "synthetic" in results:
        tracker.metrics(flat_synthetic(results["synthetic"]), step=last)
    tracker.metrics({f"time/{name}": value for name, value in timing.items()}, step=FIGURES_STEP)
    for name in ("results.json", "report.html"):
        tracker.artifact(folder / name)
    for name in ("scores", "plots", "anomaly_maps", "model"):
        if (folder / name).is_dir():
            tracker.artifacts(folder / name, folder=name)
    tracker.call(partial(log_model, folder=folder / "model"))
    tracker.artifact(max((folder / CHECKPOINTS).glob("step_*.pt")), folder=CHECKPOINTS)
    for domain in session.manifest.domains:
        for step, path in enumerate(_faults_to_browse(session, domain)):
            tracker.image(path, key=f"maps/{domain}", step=step)
    session.describe(f"{results_markdown(results)}\n{_picture(session, results)}")


def complete_in_mlflow(folder: Path, context: Context) -> None:
    """Give MLflow what it lacks of a finished run whose process was killed before all was sent.

    A store that does not answer is named and left for the next time: the folder is the truth.
    """
    if read_state(folder).get(IN_MLFLOW, True):
        return
    try:
        complete(folder, root=context.root)
    except TrackingError as error:
        context.say(f"warning: {folder}: {error}")
        return
    context.say(f"completed in MLflow: {folder}")


def _picture(session: Session, results: dict[str, Any]) -> str:
    """Return the Markdown of the highest fault where AUROC is lowest.

    MLflow's image grid shows it too, but below all parameters and 256 pixels wide.
    """
    run_id, domains = session.tracker.run_id, results["per_domain_metrics"]
    shown = [(domain, path) for domain in domains for path in _faults_to_browse(session, domain)[:1]]
    if run_id is None or not shown:
        return ""
    _, hardest = min(shown, key=lambda pair: np.nan_to_num(domains[pair[0]]["auroc"], nan=1.0))
    path = hardest.relative_to(session.folder.path).as_posix()
    return f"{artifact_picture(run_id, path, text=as_markdown(path))}\n\n"


def maps_folder(session: Session, domain: str) -> Path:
    """Return where a domain's anomaly maps lie; in a transfer, the source's apart from the targets'."""
    folder = session.folder.path / "anomaly_maps"
    if session.run.data.train_domains != ALL_DOMAINS:
        folder /= "source" if domain in trained_domains(session) else "targets"
    return folder / domain


def _faults_to_browse(session: Session, domain: str) -> list[Path]:
    return sorted(maps_folder(session, domain).glob("fault_highest_*.png"))
