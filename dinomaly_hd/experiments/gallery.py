"""The pictures of a run: ROC, histograms, training history and anomaly maps, chosen by score rank."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd

from dinomaly_hd.evaluation.metrics import Threshold
from dinomaly_hd.evaluation.pictures import MapPicture, picture_title, select_by_rank
from dinomaly_hd.evaluation.plots import (
    Pixels,
    encode_png,
    figure_pixels,
    histogram_figure,
    history_figure,
    roc_figure,
)
from dinomaly_hd.evaluation.pointing import where_text
from dinomaly_hd.evaluation.results import domain_names
from dinomaly_hd.experiments.score import Scorer, read_mask
from dinomaly_hd.files import publish

History = Mapping[str, list[tuple[int, float]]]
SavePicture = Callable[[Path, Pixels], None]
MOST_WAITING = 8  # pictures that are drawn and not yet written
LONGEST_STEM = 50  # characters: 200 bytes at most, below every file system's limit with what is put before
HISTORY_SERIES = (
    "train/loss",
    "train/lr",
    "train/grad_norm",
    "train/discard_rate",
    "train/drop_rate",
    "val/loss",
    "val_image_AUROC",
)


@contextmanager
def pictures_saved() -> Iterator[SavePicture]:
    """Yield what encodes and publishes a picture while the next one is drawn; all are there at the end.

    That a picture cannot be written is raised with one of the next, or at the end.
    """
    waiting: deque[Future[None]] = deque()
    with ThreadPoolExecutor(max_workers=1) as pool:

        def save(path: Path, pixels_HW3: Pixels) -> None:
            waiting.append(pool.submit(publish, path, lambda stream: stream.write(encode_png(pixels_HW3))))
            if len(waiting) > MOST_WAITING:
                waiting.popleft().result()

        yield save
        for picture in waiting:
            picture.result()


def draw_plots(
    folder: Path,
    table: pd.DataFrame,
    *,
    thresholds: Mapping[str, list[Threshold]],
    history: History,
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


def draw_maps(
    folders: Mapping[str, Path],
    table: pd.DataFrame,
    *,
    scorer: Scorer,
    limits: Mapping[str, float],
    input_limits: Mapping[str, float],
    thresholds: Mapping[str, float],
    count: int,
    save: SavePicture,
) -> None:
    """Write three-panel pictures ``{label}_{rank}_{nn}_{stem}.png`` into each domain's folder.

    Per domain and label the ``count`` highest, nearest the threshold and lowest; one colour scale a domain.
    """
    manifest = scorer.store.manifest
    chosen = select_by_rank(table, thresholds=thresholds, count=count) if count else table.iloc[:0]
    position_of = {record.path: position for position, record in enumerate(manifest.records)}
    for name, rows in chosen.groupby("domain", sort=False):
        domain = str(name)
        picture = MapPicture(
            input_shape=manifest.shape,
            limit=limits[domain],
            input_limit=input_limits[domain],
            box=scorer.box,
        )
        positions = np.array([position_of[path] for path in rows["path"]], dtype=np.int64)
        rows = rows.assign(number=rows.groupby(["label", "rank"]).cumcount() + 1)
        drawn = iter(rows.to_dict("records"))
        for batch, images_BHW, prediction in scorer.batches(positions):
            for i, position in enumerate(batch):
                scorer.tick()
                row = next(drawn)
                title = picture_title(
                    path=row["path"],
                    label=row["label"],
                    condition=row["condition"],
                    score=float(prediction.score_B[i]),
                    threshold=thresholds.get(domain, float("nan")),
                    where=where_text(row),
                )
                pixels_HW3 = picture.draw(
                    images_BHW[i].numpy(),
                    prediction.map_BHW[i].numpy(),
                    title=title,
                    mask_HW=read_mask(manifest, int(position)) if row["label"] else None,
                )
                kind, stem = "fault" if row["label"] else "good", Path(row["path"]).stem[-LONGEST_STEM:]
                save(folders[domain] / f"{kind}_{row['rank']}_{row['number']:02d}_{stem}.png", pixels_HW3)
