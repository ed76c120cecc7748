"""Read, encode and score images of a data set with one detector, and copies of normals with bands."""

# B batch, N images, H W pixels of a map, h w rows and columns of the input

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from dinomaly_hd import trivial
from dinomaly_hd.config.run import RunConfig
from dinomaly_hd.data.features import FeatureCache, ImageStore, digests, image_batches
from dinomaly_hd.data.hdmap import Indices, Manifest
from dinomaly_hd.data.images import read_image
from dinomaly_hd.errors import DataError, NonFiniteError, reason_of
from dinomaly_hd.evaluation.metrics import aupro, pixel_auroc
from dinomaly_hd.evaluation.pointing import PERCENTILE, is_right, named_teeth, percentiles
from dinomaly_hd.evaluation.results import synthetic_figures
from dinomaly_hd.geometry import Box
from dinomaly_hd.models.allocator import keep_freed_memory
from dinomaly_hd.models.detector import Detector, Prediction, encode_in_groups
from dinomaly_hd.models.draem.faults import horizontal_bands
from dinomaly_hd.models.networks import visible_box
from dinomaly_hd.models.row_evidence import Evidence, chunks, image_scores
from dinomaly_hd.progress import Progress
from dinomaly_hd.randomness import derive
from dinomaly_hd.serving.exported import Card


class Examined(NamedTuple):
    """Raw scores of images, and their maps sampled at the input's pixels that the encoder sees (N, h, w)."""

    score_N: npt.NDArray[np.float64]
    map_Nhw: npt.NDArray[np.float32]


class Scorer:
    """What a run does with images: each is read, encoded and scored alone as far as results go.

    ``features`` keeps encoder outputs, None keeps nothing; ``tick`` is called before each batch, and while
    another process encodes the same images, and may raise. ``box`` is the part of the input that the encoder
    sees, ``visible`` are the rows and columns whose centres lie in it.
    """

    def __init__(
        self,
        detector: Detector,
        store: ImageStore,
        *,
        run: RunConfig,
        device: torch.device,
        features: FeatureCache | None,
        tick: Callable[[], None],
    ) -> None:
        keep_freed_memory()
        self.detector, self.store, self.run, self.device = detector, store, run, device
        self.features, self.tick = features, tick
        self.box = visible_box(run.encoder, shape=store.manifest.shape)
        self.visible = visible_pixels(self.box, shape=store.manifest.shape)

    def images(self, positions: Indices, stage: str, *, size: int | None = None) -> Iterator[Tensor]:
        """Yield maps (B, H, W), ``size`` at once, by default as many as in the evaluation."""
        size = size or self.run.evaluation.eval_batch_size
        workers = self.run.data.num_workers
        with Progress(stage, len(positions), unit="image") as progress:
            for images_BHW in image_batches(
                self.store, positions, batch_size=size, num_workers=workers, tick=self.tick
            ):
                yield images_BHW
                progress(len(images_BHW))

    def encode(self, images_BHW: Tensor, names: Sequence[str]) -> Tensor:
        """Return encoder outputs (B, ...) on the device: kept ones of these names, else new ones."""

        def make() -> Tensor:
            return encode_in_groups(self.detector, images_BHW.to(self.device))

        if self.features is None:
            return make()
        return self.features.encode(names, make, tick=self.tick).to(self.device)

    def encoded(self, positions: Indices, *, size: int | None = None) -> Iterator[Tensor]:
        return (encoded for _, _, encoded in self._batches(positions, "encoding", size=size))

    def batches(self, positions: Indices) -> Iterator[tuple[Indices, Tensor, Prediction]]:
        """Yield positions, images (B, H, W), and maps and scores on the CPU, batch by batch."""
        for chosen, images_BHW, encoded in self._batches(positions, "scoring"):
            yield chosen, images_BHW, score(self.detector, encoded, bf16=self.run.bf16)

    def _batches(
        self, positions: Indices, stage: str, *, size: int | None = None
    ) -> Iterator[tuple[Indices, Tensor, Tensor]]:
        size = size or self.run.evaluation.eval_batch_size
        for number, images_BHW in enumerate(self.images(positions, stage, size=size)):
            chosen = positions[number * size : (number + 1) * size]
            yield chosen, images_BHW, self.encode(images_BHW, digests(self.store.manifest, chosen))

    def examine(self, positions: Indices) -> Examined:
        """Score images; a score that is NaN or infinite is a NonFiniteError that names the file."""
        scores, maps = [], []
        for chosen, images_BHW, prediction in self.batches(positions):
            finite = torch.isfinite(prediction.score_B)
            if not bool(finite.all()):
                bad = self.store.manifest.records[int(chosen[int(torch.argmin(finite.int()))])].path
                raise NonFiniteError(f"{bad}: the model's score is NaN or infinite; lower learning_rate")
            shape = tuple(images_BHW.shape[1:])
            scores.append(prediction.score_B.numpy())
            maps.append(sample_at_pixels(prediction.map_BHW, box=self.box, shape=shape).numpy())
        if not scores:
            return Examined(np.empty(0), np.empty((0, 0, 0), np.float32))
        return Examined(np.concatenate(scores), np.concatenate(maps))


def predict(detector: Detector, images_BHW: Tensor, *, device: torch.device, bf16: bool) -> Prediction:
    return score(detector, detector.encode(images_BHW.to(device)), bf16=bf16)


def score(detector: Detector, encoded: Tensor, *, bf16: bool) -> Prediction:
    """Return maps (float32) and scores (float64) on the CPU; the one way in which images are scored."""
    with torch.no_grad(), torch.autocast(encoded.device.type, dtype=torch.bfloat16, enabled=bf16):
        prediction = detector.score(encoded)
    return Prediction(prediction.map_BHW.float().cpu(), prediction.score_B.double().cpu())


def visible_pixels(box: Box, *, shape: tuple[int, ...]) -> tuple[slice, slice]:
    """Return the rows and columns whose centres lie inside the box."""
    rows, columns = np.arange(shape[0]) + 0.5, np.arange(shape[1]) + 0.5
    inside_rows = np.flatnonzero((rows > box.top) & (rows < box.bottom))
    inside_columns = np.flatnonzero((columns > box.left) & (columns < box.right))
    return (
        slice(int(inside_rows[0]), int(inside_rows[-1]) + 1),
        slice(int(inside_columns[0]), int(inside_columns[-1]) + 1),
    )


def sample_at_pixels(map_BHW: Tensor, *, box: Box, shape: tuple[int, ...]) -> Tensor:
    """Read maps at the centres of the visible input pixels, bilinear, (B, h, w)."""
    rows, columns = visible_pixels(box, shape=shape)
    y = (torch.arange(rows.start, rows.stop) + 0.5 - box.top) / (box.bottom - box.top)
    x = (torch.arange(columns.start, columns.stop) + 0.5 - box.left) / (box.right - box.left)
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).mul(2).sub(1).to(map_BHW.dtype)
    sampled = F.grid_sample(
        map_BHW.unsqueeze(1),
        grid.expand(map_BHW.shape[0], -1, -1, -1),
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )
    return sampled.squeeze(1)


def score_table(
    store: ImageStore,
    positions: Indices,
    *,
    examined: Examined,
    card: Card,
    references: Mapping[str, trivial.Fitted],
    evidence: Evidence | None,
) -> pd.DataFrame:
    """Return one row per image: what it is, score, named tooth and the trivial scores.

    ``references`` were fitted on each domain's training images, ``evidence`` on those of all domains.
    """
    records = store.manifest.records
    table = pd.DataFrame(
        [(r.path, r.domain, r.label, r.defect, r.condition) for r in (records[int(i)] for i in positions)],
        columns=["path", "domain", "label", "defect", "condition"],
    )
    table = table.join(decided(examined, table["domain"].tolist(), card).drop(columns=["threshold", "fault"]))
    columns: dict[str, npt.NDArray[np.float64]] = {}
    for domain, rows in by_domain(store.manifest, positions).items():
        images = stack(store, positions[rows])
        own = trivial.trivial_scores(images)
        own |= {name: fitted.score(images) for name, fitted in references.get(domain, {}).items()}
        if evidence is not None:
            own[trivial.ROW_EVIDENCE] = np.concatenate(
                [image_scores(evidence.of(chunk.astype(np.float64))[0]) for chunk in chunks(images)]
            )
        for name, values in own.items():
            columns.setdefault(name, np.full(len(table), np.nan))[rows] = values
    columns |= recorded_indicators(store.manifest, table["path"].tolist())
    return table.assign(**{name: values for name, values in columns.items() if not np.isnan(values).any()})


def recorded_indicators(manifest: Manifest, paths: list[str]) -> dict[str, npt.NDArray[np.float64]]:
    """Return what ``hdmap`` wrote beside the maps, the usual indicators of gears, as trivial scores."""
    file = manifest.root / trivial.INDICATORS
    if not file.is_file():
        return {}
    try:
        own = pd.read_csv(file).set_index("file").reindex(paths)[list(trivial.GEAR_INDICATORS)]
        return {f"{trivial.PREFIX}{name}": values.to_numpy(np.float64) for name, values in own.items()}
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{file}: not the table that hdmap wrote: {reason_of(error)}; remove it") from error


def stack(store: ImageStore, positions: Indices) -> npt.NDArray[np.float32]:
    return np.stack([store[int(i)] for i in positions])


def by_domain(manifest: Manifest, positions: Indices) -> dict[str, Indices]:
    """Return which of these images are each domain's, in the order in which domains first appear."""
    domain_N = np.array([manifest.records[int(i)].domain for i in positions])
    return {domain: np.flatnonzero(domain_N == domain) for domain in dict.fromkeys(domain_N.tolist())}


def fit_references(store: ImageStore, train: Indices) -> dict[str, trivial.Fitted]:
    """Return what is fitted on the training images of each domain that has two of them or more."""
    own = by_domain(store.manifest, train)
    return {
        domain: trivial.fit_references(stack(store, train[rows]))
        for domain, rows in own.items()
        if len(rows) > 1
    }


def decided(examined: Examined, domain_N: Sequence[str], card: Card) -> pd.DataFrame:
    """Return score, threshold, fault (score >= threshold), named tooth, and percentile among normals.

    Where the card knows no threshold of an image's domain, that is NaN and ``fault`` None.
    """
    rows, columns = visible_pixels(visible_box(card.run.encoder, shape=card.shape), shape=card.shape)
    table = pd.DataFrame({"score": examined.score_N})
    table["threshold"] = pd.Series(list(domain_N)).map(card.thresholds).astype(float)
    fault = (table["score"] >= table["threshold"]).astype(object)
    table["fault"] = fault.where(table["threshold"].notna(), None)
    table = table.join(
        named_teeth(examined.map_Nhw, usual_h=card.normal_rows, top=rows.start, left=columns.start)
    )
    table[PERCENTILE] = np.nan
    for domain, normal in card.normal_scores.items():
        own_N = np.asarray(domain_N) == domain
        table.loc[own_N, PERCENTILE] = percentiles(examined.score_N[own_N], normal)
    return table


def pixel_scores(
    manifest: Manifest,
    positions: Indices,
    examined: Examined,
    *,
    tooth_N: "pd.Series[Any]",
    visible: tuple[slice, slice],
) -> dict[str, dict[str, float]]:
    """Return what is measured on every domain whose faults all have ground-truth masks."""
    scores = {}
    for domain, own in by_domain(manifest, positions).items():
        if not any(manifest.records[int(positions[n])].label for n in own):
            continue
        found = [read_mask(manifest, int(positions[n])) for n in own]
        masks = [mask for mask in found if mask is not None]
        if len(masks) == len(own):
            masks_Nhw = np.stack([mask[visible] for mask in masks])
            maps = examined.map_Nhw[own]
            teeth = [(tooth_N[n], mask) for n, mask in zip(own, masks, strict=True) if mask.any()]
            right = [is_right(tooth, mask) for tooth, mask in teeth]
            scores[domain] = {
                "pixel_auroc": pixel_auroc(maps, masks_Nhw),
                "aupro": aupro(maps, masks_Nhw),
                "named_tooth": float(np.mean(right)) if right else float("nan"),
            }
    return scores


def read_mask(manifest: Manifest, position: int) -> npt.NDArray[np.bool_] | None:
    """Return the defect mask of a test image: empty for good ones, None where a fault has none."""
    record = manifest.records[position]
    if record.label == 0:
        return np.zeros(manifest.shape, dtype=np.bool_)
    # Its shape was checked with the images.
    return read_image(manifest.root / record.mask, grey=manifest.grey) > 0 if record.mask else None


class SyntheticBands:
    """Examines a detector on one set of bands, always the same for a run's seed and held-out normals.

    The run says how many copies of each normal at ``positions`` get a band.
    """

    def __init__(self, scorer: Scorer, positions: Indices) -> None:
        self.scorer = scorer
        manifest, copies = scorer.store.manifest, scorer.run.evaluation.synthetic_copies
        seed = derive(scorer.run.seed, "synthetic bands")
        images: list[Tensor] = []
        # By these names their encoder outputs are kept from one examination to the next.
        self.names: list[str] = []
        self.label_N: list[int] = []
        self.domain_N: list[str] = []
        for domain, rows in by_domain(manifest, positions).items():
            own = positions[rows]
            normals_NHW = torch.from_numpy(stack(scorer.store, own))
            kept = digests(manifest, own)
            drawn_from = hashlib.sha256(f"{seed} {kept}".encode()).hexdigest()
            images.append(normals_NHW)
            self.names += kept
            for copy in range(copies):
                faulty = horizontal_bands(normals_NHW, seed=seed, position=copy)
                visible = faulty.mask_BHW.any(dim=(1, 2))  # a broken band may lose all its columns
                images.append(faulty.images_BHW[visible])
                self.names += [f"{drawn_from}-{copy}-{i}" for i in visible.nonzero().flatten().tolist()]
            self.label_N += [0] * len(own) + [1] * (len(self.names) - len(self.label_N) - len(own))
            self.domain_N += [domain] * (len(self.names) - len(self.domain_N))
        self.images_NHW = torch.cat(images)

    def examine(self) -> dict[str, Any]:
        """Return the figures (``evaluation.results``); NaN scores count as the least anomalous ones.

        A detector in the midst of its training may be in any state, and must not be ended by this.
        """
        scorer, size = self.scorer, self.scorer.run.evaluation.eval_batch_size
        scores = []
        for start in range(0, len(self.names), size):
            scorer.tick()
            part = slice(start, start + size)
            encoded = scorer.encode(self.images_NHW[part], self.names[part])
            scores.append(score(scorer.detector, encoded, bf16=scorer.run.bf16).score_B)
        score_N = np.nan_to_num(torch.cat(scores).numpy(), nan=-np.finfo(np.float64).max)
        return synthetic_figures(score_N, self.label_N, np.array(self.domain_N))
