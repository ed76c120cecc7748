"""Score any folder of images with a finished run: a table of scores and decisions, and the highest maps."""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from dinomaly_hd.config import TrainingConfig, with_values
from dinomaly_hd.data.folder import load_folder
from dinomaly_hd.data.hdmap import Manifest
from dinomaly_hd.data.store import ImageStore
from dinomaly_hd.errors import ConfigError, OutputError, nearest
from dinomaly_hd.evaluation.pictures import MapPicture, map_limit
from dinomaly_hd.experiments.score import Examiner, Positions, stack
from dinomaly_hd.experiments.exported import Exported
from dinomaly_hd.experiments.gallery import SavePicture, pictures_saved
from dinomaly_hd.experiments.model_source import Source, open_source
from dinomaly_hd.files import make_dated_folder, publish_text
from dinomaly_hd.models.preprocessing import visible_box
from dinomaly_hd.names import as_cell
from dinomaly_hd.training.loop import resolve_device
from dinomaly_hd.training.memory import named_when_exhausted

KEPT_IMAGES_BYTES = 2 * 1024**3
HIGHEST_SAID = 5
LONGEST_NAME = 60  # characters: 240 bytes at most, below every file system's limit
Say = Callable[[str], None]
Tick = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to score and where the answer goes.

    Attributes:
        run: Run folder, its name, its MLflow run id, a registered model (``models:/NAME/VERSION``,
            ``models:/NAME@ALIAS``), or a run's checkpoint (``RUN/checkpoints/step_00000400.pt``).
        source: Folder of images, searched recursively, or one image.
        domain: Whose threshold decides; None: the domain folder in each image's path, or the only domain.
        output: Empty or new folder; None for ``{result_dir}/predict/{UTC time}``.
        maps: How many of the highest-scoring images get an anomaly map.
        gpu: auto, cpu or an index.
        result_dir: Parent of the run folders.
        root: The project, for MLflow's database.
        say: Prints a line.
        tick: Called for each image.
    """

    run: str
    source: Path
    domain: str | None
    output: Path | None
    maps: int
    gpu: str
    result_dir: Path
    root: Path
    say: Say
    tick: Tick


class Predicted(NamedTuple):
    """Where the results lie, and the table: path, domain, score, threshold, decision."""

    output: Path
    table: pd.DataFrame


def predict(request: Request) -> Predicted:
    """Score every image; everything the user gave is checked before the model is loaded.

    Raises:
        ConfigError: No such run or domain, or a bad number.
        ImageError: An image cannot be used with this model.
        CheckpointError: The run holds no readable model, or the checkpoint cannot be used.
        OutOfMemory: The device has no memory left.
        OutputError: The output folder holds something, or cannot be written.
        TrackingError: The run is not here and MLflow does not have it either.
    """
    if request.maps < 0:
        raise ConfigError(f"maps={request.maps}: expected 0 or more")
    device = resolve_device(with_values(TrainingConfig(), {"gpu": request.gpu}).gpu)
    _check_output(request.output)
    place = {"result_dir": request.result_dir, "root": request.root}
    with open_source(request.run, **place, say=request.say, tick=request.tick) as source:
        card = source.card
        chosen = None if request.domain is None else _chosen(request.domain, source)
        manifest = load_folder(request.source, shape=card.shape, dtype=card.dtype, tick=request.tick)
        request.say(f"scoring {len(manifest.records)} images of {request.source}")
        model = source.load()
    examiner = _examiner(model, manifest, device=device, tick=request.tick)
    examined = named_when_exhausted(
        partial(examiner.examine, np.arange(len(manifest.records))),
        device=device,
        hint="try gpu=cpu" if device.type == "cuda" else "score fewer images at a time",
    )
    table = _table(manifest, examined.score_N, thresholds=card.thresholds, chosen=chosen)
    output = request.output or make_dated_folder(request.result_dir / "predict")
    publish_text(output / "scores.csv", table.to_csv(index=False, float_format="%.17g"))
    highest = table.sort_values(["score", "path"], ascending=[False, True]).index[: request.maps]
    limit = map_limit(examined.map_Nhw)
    with pictures_saved() as save:
        _draw(output, table, highest.to_numpy(np.int64), examiner=examiner, limit=limit, save=save)
    for line in _summary(table, source, drawn=len(highest), output=output):
        request.say(line)
    return Predicted(output, table)


def known_domain(asked: str, thresholds: Mapping[str, float]) -> str:
    """Return the model's domain for "domain_C" or "C".

    Raises:
        ConfigError: The model has no threshold for it.
    """
    for name in (asked, f"domain_{asked}"):
        if name in thresholds:
            return name
    raise ConfigError(f"domain={asked!r}: the model has no threshold for it.{nearest(asked, thresholds)}")


def _chosen(asked: str, source: Source) -> str:
    """Return the domain whose threshold shall decide.

    Raises:
        ConfigError: There is none.
    """
    if source.undecided:
        raise ConfigError(
            f"domain={asked!r}: no threshold to decide by: {source.undecided}; leave domain out to get scores"
        )
    return known_domain(asked, source.card.thresholds)


def _examiner(model: Exported, manifest: Manifest, *, device: torch.device, tick: Tick) -> Examiner:
    """Return what scored the run's own test images, over these images."""
    return Examiner(
        model.detector.to(device),
        ImageStore(manifest, keep_bytes=KEPT_IMAGES_BYTES),
        evaluation=model.card.run.evaluation,
        box=visible_box(model.card.run.encoder, shape=manifest.shape),
        device=device,
        num_workers=0,
        bf16=model.card.run.bf16,
        tick=tick,
    )


def _table(
    manifest: Manifest,
    score_N: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
    *,
    thresholds: Mapping[str, float],
    chosen: str | None,
) -> pd.DataFrame:
    """Return path, domain, score, threshold, decision; the last two and the domain empty where unknown."""
    domains = [chosen or _domain_of(manifest.path(i), thresholds) for i in range(len(manifest.records))]
    threshold_N = np.array([thresholds.get(domain, np.nan) for domain in domains])
    decisions = np.where(np.isnan(threshold_N), "", np.where(score_N >= threshold_N, "fault", "good"))
    return pd.DataFrame(
        {
            "path": [as_cell(record.path) for record in manifest.records],
            "domain": domains,
            "score": score_N,
            "threshold": threshold_N,
            "decision": decisions,
        }
    )


def _domain_of(path: Path, thresholds: Mapping[str, float]) -> str:
    """Return the innermost folder of a path that is a domain of the model, else its only domain, else ""."""
    found = next((part for part in reversed(path.resolve().parts[:-1]) if part in thresholds), None)
    if found is not None:
        return found
    return next(iter(thresholds)) if len(thresholds) == 1 else ""


def _draw(
    output: Path,
    table: pd.DataFrame,
    positions: Positions,
    *,
    examiner: Examiner,
    limit: float,
    save: SavePicture,
) -> None:
    """Write ``anomaly_maps/{rank}_{path}.png``, highest score first, all on one colour scale."""
    if not len(positions):
        return
    picture = MapPicture(
        input_shape=examiner.store.manifest.shape,
        limit=limit,
        input_limit=map_limit(stack(examiner.store, positions)),
        box=examiner.box,
    )
    rank = 0
    for batch, images_BHW, prediction in examiner.batches(positions):
        for i, position in enumerate(batch):
            examiner.tick()
            rank += 1
            row = table.iloc[int(position)]
            drawn = picture.draw(images_BHW[i].numpy(), prediction.map_BHW[i].numpy(), title=_title(row))
            save(output / "anomaly_maps" / f"{rank:03d}_{_flat(row['path'])}.png", drawn)


def _flat(path: str) -> str:
    """Return a path without folders and extension as one file name; its end tells images apart."""
    return str(Path(path).with_suffix("")).replace("/", "_")[-LONGEST_NAME:]


def _title(row: pd.Series) -> str:
    side = f", {row['decision']} at threshold {row['threshold']:.4g}" if row["decision"] else ""
    return f"{row['path']}\nscore {row['score']:.4g}{side} · colours up to 99.5 % of the scored maps"


def _summary(table: pd.DataFrame, source: Source, *, drawn: int, output: Path) -> Iterator[str]:
    counts = table["decision"].value_counts()
    faults, goods, undecided = (int(counts.get(name, 0)) for name in ("fault", "good", ""))
    yield f"{len(table)} images: {faults} fault, {goods} good, {undecided} undecided"
    if source.undecided:
        yield f"undecided: {source.undecided}"
    elif undecided:
        known = source.card.thresholds
        yield (
            f"undecided: no domain given, none of the model's in the path, and it knows {len(known)} "
            f"({', '.join(known)}); choose one with --domain"
        )
    yield "highest scores:"
    highest = table.nlargest(HIGHEST_SAID, "score")
    for path, score, decision in zip(highest["path"], highest["score"], highest["decision"], strict=True):
        yield f"  {score:.4g}  {decision or '-':5}  {path}"
    yield f"scores:       {output / 'scores.csv'}"
    if drawn:
        yield f"anomaly maps: {output / 'anomaly_maps'}, the {drawn} highest; colours reach up to the 99.5 %"
        yield "              quantile of the maps scored here, so they compare within this prediction only"


def _check_output(output: Path | None) -> None:
    """Refuse a folder with anything in it: maps of an earlier prediction would mix with these.

    Raises:
        OutputError: It holds something, or is a file.
    """
    if output is None or not os.path.exists(output):
        return
    if not output.is_dir() or any(output.iterdir()):
        raise OutputError(f"output={output}: already there; give a new or an empty folder")
