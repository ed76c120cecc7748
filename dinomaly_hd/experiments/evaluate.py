"""Evaluate a trained detector on a run's test images: figures, scores, pictures, exported model."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from dinomaly_hd.config.families import RowEvidenceConfig
from dinomaly_hd.config.run import ALL_DOMAINS, TrainingConfig
from dinomaly_hd.data.hdmap import Indices
from dinomaly_hd.errors import DataError, NonFiniteError
from dinomaly_hd.evaluation.metrics import Threshold, f1, normal_quantile, youden
from dinomaly_hd.evaluation.pictures import (
    LONGEST_STEM,
    MapPicture,
    SavePicture,
    map_limit,
    picture_title,
    pictures_saved,
    select_by_rank,
)
from dinomaly_hd.evaluation.plots import figure_pixels, histogram_figure, history_figure, roc_figure
from dinomaly_hd.evaluation.pointing import TOOTH, where_text
from dinomaly_hd.evaluation.results import domain_names, score_and_label
from dinomaly_hd.evaluation.results import evaluate as figures_of
from dinomaly_hd.evaluation.transfer import SOURCE_FPR, transfer_of
from dinomaly_hd.experiments.checks import Work
from dinomaly_hd.experiments.score import (
    Examined,
    Scorer,
    SyntheticBands,
    by_domain,
    fit_references,
    pixel_scores,
    read_mask,
    score_table,
    stack,
)
from dinomaly_hd.files import publish_text
from dinomaly_hd.models.row_evidence import Evidence, fit
from dinomaly_hd.names import NORMALS
from dinomaly_hd.progress import Progress
from dinomaly_hd.randomness import derive
from dinomaly_hd.runs.folder import MODEL, SCORES
from dinomaly_hd.serving.exported import Card, export_model
from dinomaly_hd.training.loop import Trained

HISTORY_SERIES = (
    "train/loss",
    "train/lr",
    "train/grad_norm",
    "train/discard_rate",
    "train/drop_rate",
    "val/loss",
    "val_image_AUROC",
)


class Scored(NamedTuple):
    """Images with their scores and domains, and the domains that could not be scored, with why."""

    positions: Indices
    examined: Examined
    domain_N: npt.NDArray[np.str_]
    failed: dict[str, str]

    def each(self, values: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
        return {name: values[self.domain_N == name] for name in dict.fromkeys(self.domain_N.tolist())}


def evaluate(work: Work, scorer: Scorer, trained: Trained) -> dict[str, Any]:
    """Score every test image once, write scores, pictures and the model, and return what was found."""
    began = time.monotonic()
    run, ready, kept = work.run, work.ready, scorer.features
    normals, tested = _score(work, scorer)
    score_s = time.monotonic() - began

    threshold_of = partial(normal_quantile, held_out=bool(len(ready.split.held_out)))
    thresholds = {name: threshold_of(own) for name, own in normals.each(normals.examined.score_N).items()}
    card = _card(work, normals, thresholds)
    export_model(work.folder / MODEL, scorer.detector, card)
    failed, there = tested.failed, set(tested.domain_N.tolist())
    untested = [name for name in thresholds if name not in there and name not in failed]
    table = _write_tables(work, card, tested, normals, untested=untested)
    found = figures_of(
        table,
        normal_thresholds={name: own for name, own in thresholds.items() if name not in failed},
        seed=derive(run.seed, "bootstrap"),
        pixel=pixel_scores(
            ready.manifest, tested.positions, tested.examined, tooth_N=table[TOOTH], visible=scorer.visible
        ),
        untested=untested,
    )
    if run.data.train_domains != ALL_DOMAINS:
        own_N = normals.examined.score_N[np.isin(normals.domain_N, list(ready.trained_domains))]
        found |= transfer_of(
            found["per_domain_metrics"],
            table,
            sources=sorted(ready.trained_domains),
            threshold=threshold_of(own_N, quantile=1 - SOURCE_FPR),
            failed=failed,
        )
    if run.evaluation.synthetic_copies:
        scorer.features = kept
        found["synthetic"] = SyntheticBands(scorer, ready.trained_on(ready.split.held_out)).examine()
    scorer.tick()
    work.context.say("drawing plots and anomaly maps")
    _draw(work, normals, tested, table, thresholds, visible=scorer.visible)
    scorer.tick()  # what follows is short, and ends with the whole record
    if isinstance(run.training, TrainingConfig) and trained.steps:
        work.timing["train_images_per_s"] = run.training.batch_size * trained.steps / trained.seconds
    work.timing.update(
        train_s=trained.seconds,
        score_s=score_s,
        score_images_per_s=(len(tested.positions) + len(normals.positions)) / score_s,
        evaluate_s=time.monotonic() - began,
    )
    return found


def _score(work: Work, scorer: Scorer) -> tuple[Scored, Scored]:
    """Score the held-out normals, or where there are none those of the training, then all test images."""
    split, say, kept = work.ready.split, work.context.say, scorer.features
    scorer.detector.eval()
    if kept is not None and work.context.features is not kept:  # no other run reads them in memory
        scorer.features = kept.files_only()
    held_out = bool(len(split.held_out))
    positions = split.held_out if held_out else split.normals
    say(f"scoring {len(positions)} {'held-out' if held_out else 'training'} normals")
    normals = _examine(work, scorer, positions, failed={})
    test = work.ready.manifest.indices(split="test")
    say(f"scoring {len(test)} test images")
    return normals, _examine(work, scorer, test, failed=normals.failed)


def _card(work: Work, normals: Scored, thresholds: Mapping[str, Threshold]) -> Card:
    manifest = work.ready.manifest
    return Card(
        run=work.run,
        shape=manifest.shape,
        dtype=manifest.dtype,
        thresholds={domain: threshold.value for domain, threshold in thresholds.items()},
        normal_scores=normals.each(normals.examined.score_N),
        normal_rows=normals.examined.map_Nhw.mean(axis=(0, 2), dtype=np.float64).tolist(),
        data_digest=manifest.digest,
        encoder_digest=work.ready.weights.digest,
    )


def _write_tables(
    work: Work, card: Card, tested: Scored, normals: Scored, *, untested: Sequence[str]
) -> pd.DataFrame:
    """Write every domain's score tables of test images and of normals, and return that of the test images."""
    table_of = partial(
        score_table,
        work.store,
        card=card,
        references=fit_references(work.store, work.ready.split.normals),
        evidence=_row_evidence(work),
    )
    table, rows = (table_of(scored.positions, examined=scored.examined) for scored in (tested, normals))
    for scored, ending, empty in ((table, "", untested), (rows, NORMALS, ())):
        for name in [*domain_names(scored), *empty]:
            lines = scored[scored["domain"] == name]
            text = lines.drop(columns="domain").to_csv(index=False, float_format="%.17g")
            publish_text(work.folder / SCORES / f"{name}{ending}.csv", text)
    return table


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


def _examine(work: Work, scorer: Scorer, positions: Indices, *, failed: Mapping[str, str]) -> Scored:
    """Score images; a domain that was not trained on may fail without taking the others along.

    Domains in ``failed`` are left out from the start.
    """
    trained, records = work.ready.trained_domains, work.ready.manifest.records
    domains = np.array([records[int(i)].domain for i in positions])
    if set(domains.tolist()) <= trained:
        return Scored(positions, scorer.examine(positions), domains, {})
    kept, parts, why = [], [], dict(failed)
    for domain, own in by_domain(work.ready.manifest, positions).items():
        if domain in why:
            continue
        try:
            parts.append(scorer.examine(positions[own]))
            kept.append(own)
        except NonFiniteError as error:
            if domain in trained:
                raise
            why[domain] = str(error)
            work.context.say(f"{domain} is left out: {error}")
    if not parts:
        return Scored(positions[:0], scorer.examine(positions[:0]), domains[:0], why)
    scores, maps = zip(*parts, strict=True)
    order = np.concatenate(kept)
    return Scored(
        positions[order], Examined(np.concatenate(scores), np.concatenate(maps)), domains[order], why
    )


def _draw(
    work: Work,
    normals: Scored,
    tested: Scored,
    table: pd.DataFrame,
    thresholds: Mapping[str, Threshold],
    *,
    visible: tuple[slice, slice],
) -> None:
    lines: dict[str, list[Threshold]] = {}
    for domain, own in table.groupby("domain", sort=False):
        score, label = score_and_label(own)
        lines[str(domain)] = [thresholds[str(domain)], youden(score, label), f1(score, label)]
    count, values = work.run.evaluation.maps_per_group, {name: one.value for name, one in thresholds.items()}
    chosen = select_by_rank(table, thresholds=values, count=count) if count and len(table) else table.iloc[:0]
    images = normals.each(stack(work.store, normals.positions))
    maps = normals.each(normals.examined.map_Nhw)
    with pictures_saved() as save, Progress("drawing", len(chosen), unit="image") as progress:
        history = work.tracker.journal.history()
        draw_plots(work.folder / "plots", table, thresholds=lines, history=history, save=save)
        for name, rows in chosen.groupby("domain", sort=False):
            picture = MapPicture(
                input_shape=work.ready.manifest.shape,
                limit=map_limit(maps[str(name)]),  # one colour scale a domain
                input_limit=map_limit(images[str(name)]),
                visible=visible,
            )
            _draw_maps(work, tested, picture, rows, threshold=values[str(name)], save=save, tell=progress)


def draw_plots(
    folder: Path,
    table: pd.DataFrame,
    *,
    thresholds: Mapping[str, list[Threshold]],
    history: Mapping[str, list[tuple[int, float]]],
    save: SavePicture,
) -> None:
    """Write ``roc_{domain}.png``, ``scores_{domain}.png`` and ``training.png``."""
    for domain in domain_names(table):
        save(folder / f"roc_{domain}.png", figure_pixels(roc_figure(table, domain=domain)))
        figure = histogram_figure(table, domain=domain, thresholds=thresholds.get(domain, []))
        save(folder / f"scores_{domain}.png", figure_pixels(figure))
    shown = {name: dict(history[name]) for name in HISTORY_SERIES if name in history}
    steps = sorted({step for values in shown.values() for step in values})
    if steps:
        series = {name: [values.get(step, float("nan")) for step in steps] for name, values in shown.items()}
        save(folder / "training.png", figure_pixels(history_figure(steps, series=series)))


def _draw_maps(
    work: Work,
    tested: Scored,
    picture: MapPicture,
    rows: pd.DataFrame,
    *,
    threshold: float,
    save: SavePicture,
    tell: Callable[[], None],
) -> None:
    """Write three-panel pictures ``{label}_{rank}_{nn}_{stem}.png`` of a domain's chosen images."""
    numbered = rows.assign(number=rows.groupby(["label", "rank"]).cumcount() + 1)
    for n, row in zip(rows.index, numbered.to_dict("records"), strict=True):
        work.context.guard.check()
        position = int(tested.positions[n])
        facts = {name: row[name] for name in ("path", "label", "condition", "score")}
        title = picture_title(**facts, threshold=threshold, where=where_text(row))
        mask_HW = read_mask(work.ready.manifest, position) if row["label"] else None
        kind, stem = "fault" if row["label"] else "good", Path(row["path"]).stem[-LONGEST_STEM:]
        name = f"{kind}_{row['rank']}_{row['number']:02d}_{stem}.png"
        map_hw = tested.examined.map_Nhw[n]
        save(
            work.maps_folder(row["domain"]) / name,
            picture.draw(work.store[position], map_hw, title=title, mask_HW=mask_HW),
        )
        tell()
