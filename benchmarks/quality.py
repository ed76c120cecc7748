"""How the quick preset was chosen, and what lies beyond it.

    python -m benchmarks.quality choose       # candidates, on held-out normals with synthetic bands only
    python -m benchmarks.quality reference    # on test: the preset, ten times its steps, nearest neighbours

Prints tables and writes benchmarks/results/quality_{choose,reference}.json.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import ROOT, given, record, timed
from dinomaly_hd.config import RunConfig, with_values
from dinomaly_hd.config.presets import preset_run
from dinomaly_hd.config.variants import horizontal
from dinomaly_hd.data.features import FeatureCache, TrainingSet, digests, image_batches
from dinomaly_hd.data.hdmap import Manifest, load_manifest
from dinomaly_hd.data.splits import Split, hold_out
from dinomaly_hd.data.store import ImageStore
from dinomaly_hd.evaluation.metrics import auroc
from dinomaly_hd.experiments.checks import resolve_root
from dinomaly_hd.models.build import build_detector
from dinomaly_hd.models.dinomaly import score as scoring
from dinomaly_hd.models.dinomaly.detector import Dinomaly
from dinomaly_hd.models.dinomaly.distance import MeanPooling
from dinomaly_hd.models.draem.faults import horizontal_bands
from dinomaly_hd.models.weights import locate
from dinomaly_hd.training.loop import Hooks, TrainingData, train
from dinomaly_hd.training.signals import SignalGuard

COPIES = 4
BANK_TOKENS = 20_000
CANDIDATES: dict[str, dict[str, Any]] = {
    "248 x 96 px, 31 x 12 tokens, 2 blocks": {"image_size": "248x96", "decoder_depth": 2},
    "248 x 96 px, 31 x 12 tokens, 4 blocks": {"image_size": "248x96", "decoder_depth": 4},
    "112 x 112 px, 14 x 14 tokens, 2 blocks": {"image_size": "112", "decoder_depth": 2},
    "224 x 224 px, 28 x 28 tokens, 2 blocks": {"image_size": "224", "decoder_depth": 2},
}

Score = Callable[[Tensor], Tensor]


class Setup(NamedTuple):
    manifest: Manifest
    store: ImageStore
    split: Split

    def images(self, positions: np.ndarray[Any, np.dtype[np.int64]]) -> Tensor:
        return torch.from_numpy(np.stack([self.store[int(i)] for i in positions]))


def set_up(run: RunConfig, *, ratio: float) -> Setup:
    """Read the quick simulated data and hold out a share of its training normals."""
    root = resolve_root(run.data, root=ROOT, say=print, tick=lambda: None)
    manifest = load_manifest(root, domains=run.data.domain_names, conditions=run.data.conditions)
    split = hold_out(manifest, ratio=ratio, seed=run.seed)
    return Setup(manifest, ImageStore(manifest, keep_bytes=2**30), split)


def trained(run: RunConfig, setup: Setup) -> tuple[Dinomaly, Tensor]:
    """Return a trained detector and its encoded training images."""
    detector = build_detector(run, weights=locate(run.encoder.encoder, run.encoder.encoder_weights))
    assert isinstance(detector, Dinomaly)
    positions, size = setup.split.train, run.evaluation.eval_batch_size

    def batches() -> Any:
        return image_batches(setup.store, positions, batch_size=size, num_workers=0)

    detector.fit_encoder(batches())
    detector.fit_loss(batches())
    encoded = torch.cat([detector.encode(images) for images in batches()])
    cache = FeatureCache()
    cache.use("")
    cache.add(digests(setup.manifest, positions), encoded)
    dataset = TrainingSet(setup.store, positions, cache=cache)
    data = TrainingData(dataset, len(positions), 0, "", "", str, None)
    with SignalGuard() as guard:
        hooks = Hooks(lambda *_: None, lambda _: None, guard, lambda *_: None)
        train(detector, run=run, data=data, hooks=hooks, resume=None)
    return detector.eval(), encoded


def in_batches(score: Score, images: Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
    return torch.cat([score(part) for part in images.split(8)]).double().numpy()


def synthetic_auroc(score: Score, setup: Setup, *, seed: int) -> dict[str, float]:
    """Return per domain the AUROC between held-out normals and copies of them with a synthetic band."""
    values = {}
    for number, domain in enumerate(setup.manifest.domains):
        own = [i for i in setup.split.held_out if setup.manifest.records[int(i)].domain == domain]
        normals = setup.images(np.array(own, dtype=np.int64))
        faulty = horizontal_bands(normals.repeat(COPIES, 1, 1), seed=seed, position=number).images_BHW
        scores = np.concatenate([in_batches(score, normals), in_batches(score, faulty)])
        values[domain] = auroc(scores, np.repeat([0, 1], [len(normals), len(faulty)]))
    return values


def test_auroc(score: Score, setup: Setup) -> dict[str, float]:
    """Return per domain the AUROC on the test images, and on the cold ones of it."""
    values = {}
    for domain in setup.manifest.domains:
        positions = setup.manifest.indices(domain=domain, split="test")
        records = [setup.manifest.records[int(i)] for i in positions]
        scores = in_batches(score, setup.images(positions))
        label = np.array([record.label for record in records])
        cold = np.array([record.condition == "cold" for record in records])
        values[domain] = auroc(scores, label)
        values[f"{domain}/cold"] = auroc(scores[cold], label[cold])
    return values


def nearest_neighbour(detector: Dinomaly, encoded: Tensor) -> Score:
    """Return the plain cosine distance to the nearest of 20,000 training tokens, scored like the model's."""
    tokens = F.normalize(encoded.transpose(1, 2).flatten(2).flatten(0, 1), dim=1)
    chosen = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(0))[:BANK_TOKENS]
    bank = tokens[chosen]

    def score(images_BHW: Tensor) -> Tensor:
        own = F.normalize(detector.encode(images_BHW).transpose(1, 2).flatten(2), dim=2)
        distance_BN = 1 - (own.flatten(0, 1) @ bank.T).amax(dim=1).reshape(len(images_BHW), -1)
        return scoring.predict(
            distance_BN.reshape(len(images_BHW), 1, *detector.encoder.grid),
            pool=MeanPooling(),
            image_size=detector.preprocessing.input_size,
            map_size=detector.map_size,
            border=detector.config.border,
            row_context=0,
        ).score_B

    return score


def model_score(detector: Dinomaly) -> Score:
    return lambda images: detector.score(detector.encode(images)).score_B


def choose(seed: int) -> Iterator[tuple[str, Callable[[], dict[str, float]]]]:
    base = with_values(preset_run("quick", horizontal()), {"seed": seed})
    setup = set_up(base, ratio=0.3)

    def found(values: Mapping[str, Any]) -> dict[str, float]:
        detector, _ = trained(with_values(base, values), setup)
        return synthetic_auroc(model_score(detector), setup, seed=seed)

    for name, values in CANDIDATES.items():
        yield name, partial(found, values)


def reference(seed: int) -> Iterator[tuple[str, Callable[[], dict[str, float]]]]:
    """Say on test what the chosen preset, a ten times longer run, and nearest neighbours reach."""
    base = with_values(preset_run("quick", horizontal()), {"seed": seed})
    setup = set_up(base, ratio=base.data.val_split_ratio)
    last: list[tuple[Dinomaly, Tensor]] = []

    def found(run: RunConfig) -> dict[str, float]:
        last[:] = [trained(run, setup)]
        return test_auroc(model_score(last[0][0]), setup)

    for factor in (1, 10):
        run = with_values(base, {"max_steps": factor * base.training.max_steps})
        yield f"{run.training.max_steps} steps", partial(found, run)
        if factor == 1:
            yield "nearest neighbour, same features", lambda: test_auroc(nearest_neighbour(*last[0]), setup)


def main() -> None:
    tables = {"choose": choose, "reference": reference}
    told = given(__doc__, first="table", among=list(tables), seed=42)
    rows = []
    for name, measure in tables[told.table](told.seed):
        seconds, auroc = timed(measure)  # by domain, and domain/cold
        numbers = "  ".join(f"{key.removeprefix('domain_')} {value:.3f}" for key, value in auroc.items())
        mean = np.mean([value for key, value in auroc.items() if "/" not in key])
        print(f"{name:40} mean {mean:.3f}   {numbers}   {seconds:.0f} s", flush=True)
        rows.append({"name": name, "auroc": auroc, "seconds": seconds})
        content = {"seed": told.seed, "torch": torch.__version__, "rows": rows}
        record(f"quality_{told.table}", content, show=False)


if __name__ == "__main__":
    main()
