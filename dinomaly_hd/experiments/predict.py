"""Score any folder of images with a finished run: a table of scores and decisions, and the highest maps."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from dinomaly_hd.config.base import with_values
from dinomaly_hd.config.run import TrainingConfig
from dinomaly_hd.data.features import ImageStore
from dinomaly_hd.data.folder import load_folder
from dinomaly_hd.data.hdmap import Manifest
from dinomaly_hd.errors import ConfigError
from dinomaly_hd.evaluation.pictures import MapPicture, map_limit, pictures_saved
from dinomaly_hd.evaluation.pointing import where_text
from dinomaly_hd.experiments.score import Examined, Scorer, decided, stack
from dinomaly_hd.files import check_output, make_dated_folder, publish_text
from dinomaly_hd.names import as_cell
from dinomaly_hd.progress import Progress
from dinomaly_hd.serving.exported import Card, Model
from dinomaly_hd.serving.find import open_model
from dinomaly_hd.training.loop import named_when_exhausted, resolve_device

KEPT_IMAGES_BYTES = 2 * 1024**3
HIGHEST_SAID = 5
COLOURS = "colours up to 99.5 % of the scored maps"
LONGEST_NAME = 60  # characters: 240 bytes at most, below every file system's limit


def predict(
    name: str,
    images: Path,
    *,
    domain: str | None,
    output: Path | None,
    maps: int,
    gpu: str,
    result_dir: Path,
    root: Path,
    say: Callable[[str], None],
    tick: Callable[[], None],
) -> Path:
    """Score one image, or all below a folder, with the model that ``name`` names (see ``open_model``).

    Everything the user gave is checked before the model is loaded; ``tick`` is called for each image.

    Args:
        domain: Whose threshold decides; None: the domain folder in each image's path, or the only domain.
        output: Empty or new folder, which is returned; None for ``{result_dir}/predict/{UTC time}``.
        maps: How many of the highest-scoring images get an anomaly map.
        root: The project, for MLflow's database.
    """
    if maps < 0:
        raise ConfigError(f"maps={maps}: expected 0 or more")
    device = resolve_device(with_values(TrainingConfig(), {"gpu": gpu}).gpu)
    check_output(output)
    with open_model(name, result_dir=result_dir, root=root, say=say, tick=tick) as model:
        card = model.card
        if domain is not None and model.undecided:
            why = f"no threshold to decide by: {model.undecided}"
            raise ConfigError(f"domain={domain!r}: {why}; leave domain out to get scores")
        chosen = None if domain is None else card.domain(domain)
        grey = card.run.data.grey
        manifest = load_folder(images, shape=card.shape, dtype=card.dtype, grey=grey, tick=tick)
        say(f"scoring {len(manifest.records)} images of {images}")
        detector = model.load()
    scorer = Scorer(  # what scored the run's own test images
        detector.to(device),
        ImageStore(manifest, keep_bytes=KEPT_IMAGES_BYTES),
        run=with_values(card.run, {"num_workers": 0}),
        device=device,
        features=None,
        tick=tick,
    )
    hint = "try gpu=cpu" if device.type == "cuda" else "score fewer images at a time"
    with named_when_exhausted(device, hint=hint):
        examined = scorer.examine(np.arange(len(manifest.records)))
    table = _table(manifest, examined, card=card, chosen=chosen)
    output = output or make_dated_folder(result_dir / "predict")
    publish_text(output / "scores.csv", table.to_csv(index=False, float_format="%.17g"))
    highest = table.sort_values(["score", "path"], ascending=[False, True]).head(maps)
    if maps:
        _draw(output / "anomaly_maps", highest, scorer=scorer, map_Nhw=examined.map_Nhw)
    for line in _summary(table, model, drawn=len(highest), output=output):
        say(line)
    return output


def _table(manifest: Manifest, examined: Examined, *, card: Card, chosen: str | None) -> pd.DataFrame:
    """Return path, domain, score, threshold, decision, named tooth and percentile, as far as known."""
    thresholds = card.thresholds
    only = next(iter(thresholds)) if len(thresholds) == 1 else ""

    def domain_of(path: Path) -> str:
        folders = reversed(path.resolve().parts[:-1])  # the innermost one decides
        return next((folder for folder in folders if folder in thresholds), only)

    paths = [as_cell(record.path) for record in manifest.records]
    domains = [chosen or domain_of(manifest.path(i)) for i in range(len(paths))]
    table = pd.DataFrame({"path": paths, "domain": domains}).join(decided(examined, domains, card))
    table["fault"] = table["fault"].map({True: "fault", False: "good"}).fillna("")
    return table.rename(columns={"fault": "decision"})


def _draw(folder: Path, rows: pd.DataFrame, *, scorer: Scorer, map_Nhw: npt.NDArray[np.float32]) -> None:
    """Write ``{rank}_{path}.png`` of a table's rows in their order, all on one colour scale."""
    positions = rows.index.to_numpy(np.int64)
    images_NHW = stack(scorer.store, positions)
    picture = MapPicture(
        input_shape=scorer.store.manifest.shape,
        limit=map_limit(map_Nhw),
        input_limit=map_limit(images_NHW),
        visible=scorer.visible,
    )
    numbered = enumerate(rows.to_dict("records"), start=1)
    with pictures_saved() as save, Progress("drawing", len(rows), unit="image") as progress:
        for (number, row), image_HW, map_hw in zip(numbered, images_NHW, map_Nhw[positions], strict=True):
            scorer.tick()
            side = f", {row['decision']} at threshold {row['threshold']:.4g}" if row["decision"] else ""
            where = where_text(row)
            title = f"{row['path']}\nscore {row['score']:.4g}{side}{where and f' · {where}'}\n{COLOURS}"
            # The end of a path tells images apart.
            flat = str(Path(row["path"]).with_suffix("")).replace("/", "_")[-LONGEST_NAME:]
            save(folder / f"{number:03d}_{flat}.png", picture.draw(image_HW, map_hw, title=title))
            progress()


def _summary(table: pd.DataFrame, model: Model, *, drawn: int, output: Path) -> Iterator[str]:
    faults, goods, undecided = ((table["decision"] == name).sum() for name in ("fault", "good", ""))
    yield f"{len(table)} images: {faults} fault, {goods} good, {undecided} undecided"
    if model.undecided:
        yield f"undecided: {model.undecided}"
    elif undecided:
        known = model.card.thresholds
        yield (
            f"undecided: no domain given, none of the model's in the path, and it knows {len(known)} "
            f"({', '.join(known)}); choose one with --domain"
        )
    yield "highest scores:"
    for _, row in table.nlargest(HIGHEST_SAID, "score").iterrows():
        yield f"  {row['score']:.4g}  {row['decision'] or '-':5}  {row['path']}  {where_text(row)}".rstrip()
    yield f"scores:       {output / 'scores.csv'}"
    if drawn:
        yield f"anomaly maps: {output / 'anomaly_maps'}, the {drawn} highest; colours reach up to the 99.5 %"
        yield "              quantile of the maps scored here, so they compare within this prediction only"
