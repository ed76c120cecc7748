"""Evaluate a trained detector on a run's test images: results, scores, pictures, exported model."""

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from dinomaly_hd.config import ALL_DOMAINS
from dinomaly_hd.data.features import FeatureCache
from dinomaly_hd.errors import NonFiniteError
from dinomaly_hd.evaluation.pictures import map_limit
from dinomaly_hd.evaluation.results import evaluate
from dinomaly_hd.evaluation.summary import summary_lines
from dinomaly_hd.evaluation.synthetic import synthetic_lines
from dinomaly_hd.evaluation.thresholds import Threshold, f1, normal_quantile, youden
from dinomaly_hd.evaluation.transfer import SOURCE_FPR, transfer_lines, transfer_of
from dinomaly_hd.experiments import gallery
from dinomaly_hd.experiments.score import (
    Examined,
    Examiner,
    Positions,
    pixel_scores,
    score_table,
    stack,
    write_scores,
)
from dinomaly_hd.experiments.exported import export_model
from dinomaly_hd.experiments.record import head, maps_folder, thinned, track, write_page
from dinomaly_hd.experiments.session import Session, trained_domains
from dinomaly_hd.experiments.synthetic import SyntheticBands
from dinomaly_hd.files import publish_json
from dinomaly_hd.models.preprocessing import visible_box
from dinomaly_hd.models.detector import Detector
from dinomaly_hd.randomness import derive
from dinomaly_hd.training.loop import Trained


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


class Scored(NamedTuple):
    """Images with their scores, and the domains that could not be scored, with why."""

    positions: Positions
    examined: Examined
    failed: dict[str, str]


def evaluate_run(
    session: Session,
    detector: Detector,
    features: FeatureCache,
    *,
    trained: Trained,
    timing: dict[str, float],
) -> dict[str, Any]:
    """Score every test image once, write everything the run folder holds, and return ``results.json``."""
    began = time.monotonic()
    run, manifest, folder = session.run, session.manifest, session.folder.path
    box = visible_box(run.encoder, shape=manifest.shape)
    examiner = Examiner(
        detector,
        session.store,
        evaluation=run.evaluation,
        box=box,
        device=session.device,
        num_workers=run.data.num_workers,
        bf16=run.bf16,
        tick=session.context.guard.check,
        features=_kept_features(session, features),
    )
    test = manifest.indices(split="test")
    normals, failed = _examine_normals(session, examiner)
    session.context.say(f"scoring {len(test)} test images")
    test, examined, failed = _examine_domains(session, examiner, test, failed=failed)
    scored_s = time.monotonic() - began
    table = score_table(session.store, test, score_N=examined.score_N, train=session.split.normals)
    thresholds = normals.thresholds()
    measured = evaluate(
        table,
        normal_thresholds={name: own for name, own in thresholds.items() if name not in failed},
        seed=derive(run.seed, "bootstrap"),
        pixel=pixel_scores(manifest, test, map_Nhw=examined.map_Nhw, box=box),
    )
    if session.run.data.train_domains != ALL_DOMAINS:
        measured |= _transfer(session, normals, table, measured["per_domain_metrics"], failed=failed)
    if run.evaluation.synthetic_copies:
        measured["synthetic"] = SyntheticBands(session, features=features).examine(detector)
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
    session.context.guard.check()
    session.context.say("drawing plots and anomaly maps")
    history = session.journal.history()
    _draw(session, examiner, normals, table, history)
    session.context.guard.check()  # what follows is short, and ends with the whole record
    timing |= {
        "score_s": scored_s,
        "score_images_per_s": (len(test) + len(normals.positions)) / scored_s,
        "evaluate_s": time.monotonic() - began,
    }
    results = {**head(session, trained, timing), **measured, "training_history": thinned(history)}
    publish_json(folder / "results.json", results)
    write_page(session, results)
    track(session, results, timing)
    lines = summary_lines(results)
    lines += ["", *transfer_lines(results["transfer"])] if "transfer" in results else []
    lines += ["", *synthetic_lines(results["synthetic"])] if "synthetic" in results else []
    for line in ["", *lines, ""]:
        session.context.say(line)
    return results


def _examine_domains(
    session: Session, examiner: Examiner, positions: Positions, *, failed: Mapping[str, str]
) -> Scored:
    """Score images; a domain that was not trained on may fail without taking the others along.

    Domains in ``failed`` are left out from the start.
    """
    trained, records = trained_domains(session), session.manifest.records
    domains = np.array([records[int(i)].domain for i in positions])
    if set(domains.tolist()) <= trained:
        return Scored(positions, examiner.examine(positions), {})
    kept, parts, why = [], [], dict(failed)
    for domain in dict.fromkeys(domains.tolist()):
        if domain in why:
            continue
        own = positions[domains == domain]
        try:
            parts.append(examiner.examine(own))
            kept.append(own)
        except NonFiniteError as error:
            if domain in trained:
                raise
            why[domain] = str(error)
            session.context.say(f"{domain} is left out: {error}")
    scores, maps = zip(*parts, strict=True)
    return Scored(np.concatenate(kept), Examined(np.concatenate(scores), np.concatenate(maps)), why)


def _transfer(
    session: Session,
    normals: Normals,
    table: pd.DataFrame,
    per_domain: Mapping[str, Any],
    *,
    failed: Mapping[str, str],
) -> dict[str, Any]:
    sources = trained_domains(session)
    own = np.isin(normals.domain_N, list(sources))
    threshold = normal_quantile(
        normals.examined.score_N[own], held_out=normals.held_out, quantile=1 - SOURCE_FPR
    )
    return transfer_of(per_domain, table, sources=sorted(sources), threshold=threshold, failed=failed)


def _kept_features(session: Session, features: FeatureCache) -> FeatureCache | None:
    """Return what keeps the outputs of test images: memory only where a comparison's next member reads it."""
    if session.run.training.cache == "off":
        return None
    return features if session.context.features is features else features.files_only()


def _examine_normals(session: Session, examiner: Examiner) -> tuple[Normals, dict[str, str]]:
    """Return the normals, and the domains that could not be scored."""
    held_out = bool(len(session.split.held_out))
    positions = session.split.held_out if held_out else session.split.normals
    session.context.say(f"scoring {len(positions)} {'held-out' if held_out else 'training'} normals")
    positions, examined, failed = _examine_domains(session, examiner, positions, failed={})
    domains = np.array([session.manifest.records[int(i)].domain for i in positions])
    return Normals(positions, held_out, examined, domains), failed


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
    images = stack(session.store, normals.positions)
    with gallery.pictures_saved() as save:
        gallery.draw_plots(folder / "plots", table, thresholds=lines, history=history, save=save)
        gallery.draw_maps(
            {domain: maps_folder(session, domain) for domain in lines},
            table,
            examiner=examiner,
            manifest=session.manifest,
            limits=normals.map_limits(),
            input_limits={domain: map_limit(images[normals.domain_N == domain]) for domain in thresholds},
            thresholds={domain: threshold.value for domain, threshold in thresholds.items()},
            count=session.run.evaluation.maps_per_group,
            save=save,
            tick=session.context.guard.check,
        )
