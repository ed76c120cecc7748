"""Evaluate a trained detector on a run's test images: figures, scores, pictures, exported model."""

import time
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from dinomaly_hd.config import ALL_DOMAINS, RowEvidenceConfig, TrainingConfig
from dinomaly_hd.errors import DataError, NonFiniteError
from dinomaly_hd.evaluation.metrics import Threshold, f1, normal_quantile, youden
from dinomaly_hd.evaluation.pictures import map_limit
from dinomaly_hd.evaluation.pointing import TOOTH
from dinomaly_hd.evaluation.results import evaluate as figures_of
from dinomaly_hd.evaluation.transfer import SOURCE_FPR, transfer_of
from dinomaly_hd.experiments import gallery
from dinomaly_hd.experiments.score import (
    Examined,
    Positions,
    Scorer,
    pixel_scores,
    score_table,
    stack,
    write_scores,
)
from dinomaly_hd.experiments.synthetic import SyntheticBands
from dinomaly_hd.experiments.work import Work
from dinomaly_hd.models.row_evidence import Evidence, fit
from dinomaly_hd.randomness import derive
from dinomaly_hd.runs.folder import MODEL, SCORES
from dinomaly_hd.serving.exported import Card, export_model
from dinomaly_hd.training.loop import Trained

SCORES_KEPT = 1000  # of a domain's normals, in the exported model


class Scored(NamedTuple):
    """Images with their scores and domains, and the domains that could not be scored, with why."""

    positions: Positions
    examined: Examined
    domain_N: npt.NDArray[np.str_]
    failed: dict[str, str]

    def each(self, values: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
        """Return those of one value an image that are each domain's."""
        return {name: values[self.domain_N == name] for name in dict.fromkeys(self.domain_N.tolist())}


def evaluate(work: Work, scorer: Scorer, trained: Trained) -> dict[str, Any]:
    """Score every test image once, write scores, pictures and the model, and return what was found."""
    began = time.monotonic()
    work.timing["train_s"] = trained.seconds
    if isinstance(work.run.training, TrainingConfig) and trained.steps:
        images = work.run.training.batch_size * trained.steps
        work.timing["train_images_per_s"] = images / trained.seconds
    run, ready, store, say = work.run, work.ready, work.store, work.context.say
    scorer.detector.eval()
    kept = scorer.features
    if kept is not None and work.context.features is not kept:  # no other run reads them in memory
        scorer.features = kept.files_only()
    held_out = bool(len(ready.split.held_out))
    positions = ready.split.held_out if held_out else ready.split.normals
    say(f"scoring {len(positions)} {'held-out' if held_out else 'training'} normals")
    normals = _examine(work, scorer, positions, failed={})
    test = ready.manifest.indices(split="test")
    say(f"scoring {len(test)} test images")
    tested = _examine(work, scorer, test, failed=normals.failed)
    score_s = time.monotonic() - began
    thresholds = {
        domain: normal_quantile(own, held_out=held_out)
        for domain, own in normals.each(normals.examined.score_N).items()
    }
    normal_scores = {name: np.sort(own) for name, own in normals.each(normals.examined.score_N).items()}
    usual_h = normals.examined.map_Nhw.mean(axis=(0, 2), dtype=np.float64)
    table_of = partial(
        score_table,
        store,
        box=scorer.box,
        train=ready.split.normals,
        normal_scores=normal_scores,
        usual_h=usual_h,
        evidence=_row_evidence(work),
    )
    table = table_of(tested.positions, examined=tested.examined)
    found = figures_of(
        table,
        normal_thresholds={name: own for name, own in thresholds.items() if name not in tested.failed},
        seed=derive(run.seed, "bootstrap"),
        pixel=pixel_scores(
            ready.manifest,
            tested.positions,
            map_Nhw=tested.examined.map_Nhw,
            tooth_N=table[TOOTH],
            box=scorer.box,
        ),
    )
    if run.data.train_domains != ALL_DOMAINS:
        own = np.isin(normals.domain_N, list(ready.trained_domains))
        threshold = normal_quantile(normals.examined.score_N[own], held_out=held_out, quantile=1 - SOURCE_FPR)
        found |= transfer_of(
            found["per_domain_metrics"],
            table,
            sources=sorted(ready.trained_domains),
            threshold=threshold,
            failed=tested.failed,
        )
    if run.evaluation.synthetic_copies:
        scorer.features = kept
        found["synthetic"] = SyntheticBands(scorer, ready.trained_on(ready.split.held_out)).examine()
    card = Card(
        run=run,
        shape=ready.manifest.shape,
        dtype=ready.manifest.dtype,
        thresholds={domain: threshold.value for domain, threshold in thresholds.items()},
        normal_scores={
            domain: np.quantile(own, np.linspace(0, 1, min(len(own), SCORES_KEPT))).tolist()
            for domain, own in normal_scores.items()
        },
        normal_rows=usual_h.tolist(),
        data_digest=ready.manifest.digest,
        encoder_digest=ready.weights.digest,
    )
    export_model(work.folder / MODEL, scorer.detector, card)
    rows = table_of(normals.positions, examined=normals.examined)
    write_scores(work.folder / SCORES, table, normals=rows)
    scorer.tick()
    say("drawing plots and anomaly maps")
    _draw(work, scorer, normals, table, thresholds)
    scorer.tick()  # what follows is short, and ends with the whole record
    work.timing["score_s"] = score_s
    work.timing["score_images_per_s"] = (len(tested.positions) + len(normals.positions)) / score_s
    work.timing["evaluate_s"] = time.monotonic() - began
    return found


def _row_evidence(work: Work) -> Evidence | None:
    """Return what row evidence, a second detector, learns from the run's training images in seconds.

    None in comparisons, which have it as one of their members, and where it cannot learn, which is said.
    """
    if work.context.folder is not None or work.run.model.model_type == "row_evidence":
        return None
    maps_NRC = stack(work.store, work.ready.split.train)
    try:
        return fit(maps_NRC, RowEvidenceConfig(), seed=work.run.seed, tick=work.context.guard.check)
    except DataError as error:
        work.context.say(f"{error}; left out")
        return None


def _examine(work: Work, scorer: Scorer, positions: Positions, *, failed: Mapping[str, str]) -> Scored:
    """Score images; a domain that was not trained on may fail without taking the others along.

    Domains in ``failed`` are left out from the start.
    """
    trained, records = work.ready.trained_domains, work.ready.manifest.records
    domains = np.array([records[int(i)].domain for i in positions])
    if set(domains.tolist()) <= trained:
        return Scored(positions, scorer.examine(positions), domains, {})
    kept, parts, why = [], [], dict(failed)
    for domain in dict.fromkeys(domains.tolist()):
        if domain in why:
            continue
        own = np.flatnonzero(domains == domain)
        try:
            parts.append(scorer.examine(positions[own]))
            kept.append(own)
        except NonFiniteError as error:
            if domain in trained:
                raise
            why[domain] = str(error)
            work.context.say(f"{domain} is left out: {error}")
    scores, maps = zip(*parts, strict=True)
    order = np.concatenate(kept)
    return Scored(
        positions[order], Examined(np.concatenate(scores), np.concatenate(maps)), domains[order], why
    )


def _draw(
    work: Work, scorer: Scorer, normals: Scored, table: pd.DataFrame, thresholds: Mapping[str, Threshold]
) -> None:
    lines: dict[str, list[Threshold]] = {}
    for domain, own in table.groupby("domain", sort=False):
        score, label = own["score"].to_numpy(np.float64), own["label"].to_numpy(np.int64)
        lines[str(domain)] = [thresholds[str(domain)], youden(score, label), f1(score, label)]
    images = normals.each(stack(work.store, normals.positions))
    maps = normals.each(normals.examined.map_Nhw)
    with gallery.pictures_saved() as save:
        history = work.tracker.journal.history()
        gallery.draw_plots(work.folder / "plots", table, thresholds=lines, history=history, save=save)
        gallery.draw_maps(
            {domain: work.maps_folder(domain) for domain in lines},
            table,
            scorer=scorer,
            limits={domain: map_limit(own) for domain, own in maps.items()},
            input_limits={domain: map_limit(own) for domain, own in images.items()},
            thresholds={domain: threshold.value for domain, threshold in thresholds.items()},
            count=work.run.evaluation.maps_per_group,
            save=save,
        )
