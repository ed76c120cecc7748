"""PatchCore beside anomalib's: features, coreset at equal start and projection, prediction from one bank.

    python -m benchmarks.speed.patchcore --images 50      # needs anomalib: pip install 'anomalib>=2.7'
    python -m benchmarks.speed.patchcore --images 200 --their_centres 100

resnet18 with the same random weights, layers 2 and 3, simulated good maps at 224 x 224 (784 tokens an image),
a tenth of them kept. anomalib's selection computes one distance to every token for every centre, which grows
with the square of the images (22 minutes for 200 of them on two cores): with ``their_centres`` it chooses so
many alone, and its time for all is reckoned from theirs, each of which costs the same. Writes
benchmarks/results/speed_patchcore_{images}.json.
"""

import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd
import timm
import torch
from anomalib.models.components import KCenterGreedy
from anomalib.models.image.patchcore.torch_model import PatchcoreModel
from torch import Tensor

from benchmarks.common import given, record, timed
from dinomaly_hd.config.base import with_values
from dinomaly_hd.config.families import PatchCoreConfig
from dinomaly_hd.config.presets import preset_run
from dinomaly_hd.data.features import ImageStore
from dinomaly_hd.data.hdmap import load_manifest
from dinomaly_hd.data.simulator import simulate
from dinomaly_hd.models.build import build_detector
from dinomaly_hd.models.patchcore.coreset import greedy_centres, projection
from dinomaly_hd.models.patchcore.detector import PatchCore
from dinomaly_hd.models.weights import locate

RATIO, NEIGHBOURS, BATCH, SEED = 0.1, 9, 8, 42


def maps(count: int, folder: Path) -> Tensor:
    """Return good training maps (N, H, W) of the simulated data, from several seeds where one has too few."""
    found: list[Tensor] = []
    for seed in range(count):
        root = simulate(folder / f"data{seed}", size="quick", seed=seed)
        manifest = load_manifest(root, domains=("A", "B", "C", "D"), conditions="auto")
        store = ImageStore(manifest, keep_bytes=0)
        found += [torch.from_numpy(store[int(i)]) for i in manifest.indices(split="train")]
        if len(found) >= count:
            return torch.stack(found[:count])
    raise AssertionError("every seed has maps")


def theirs_of(weights: Path) -> PatchcoreModel:
    model = PatchcoreModel(("layer2", "layer3"), "resnet18", pre_trained=False, num_neighbors=NEIGHBOURS)
    model.feature_extractor.feature_extractor.load_state_dict(
        torch.load(weights, weights_only=True), strict=False
    )
    return model


def ours_of(weights: Path) -> PatchCore:
    values = {"encoder": "resnet18", "encoder_weights": str(weights), "layers": "2,3", "image_size": "224"}
    values |= {"coreset_sampling_ratio": str(RATIO), "num_neighbors": str(NEIGHBOURS)}
    run = with_values(preset_run("full", PatchCoreConfig()), values)
    detector = build_detector(run, weights=locate(run.encoder.encoder, run.encoder.encoder_weights))
    assert isinstance(detector, PatchCore)
    return detector.eval()


def their_coreset(points_Nd: Tensor, *, size: int, start: int) -> list[int]:
    """Return anomalib's selection from projected points, from a given first centre."""
    sampler = KCenterGreedy(points_Nd.unsqueeze(-1), RATIO)  # three dimensions: taken as projected already
    sampler.coreset_size = size
    with mock.patch("torch.randint", return_value=torch.tensor([start])):
        chosen: list[int] = sampler.select_coreset_idxs()
    return chosen


def compare(count: int, *, rounds: int, their_centres: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        weights = Path(name) / "resnet18.pth"
        torch.manual_seed(0)
        torch.save(timm.create_model("resnet18", pretrained=False).state_dict(), weights)
        images_NHW = maps(count, Path(name))
        ours, theirs = ours_of(weights), theirs_of(weights).eval()
        encoded = torch.cat([ours.encode(part) for part in images_NHW.split(BATCH)])
        tokens_ND = encoded.permute(0, 2, 3, 1).flatten(0, 2)
        matrix = projection(tokens_ND.shape[1], count=len(tokens_ND), seed=SEED)
        points_Nd = tokens_ND if matrix is None else tokens_ND @ matrix
        size = int(len(tokens_ND) * RATIO)
        our_s, chosen_M = timed(lambda: greedy_centres(points_Nd, count=size, start=0))
        theirs_size = min(size, their_centres or size)
        their_s, their_M = timed(lambda: their_coreset(points_Nd, size=theirs_size, start=0))
        their_s *= size / theirs_size
        ours.bank = theirs.memory_bank = tokens_ND[chosen_M]
        part = images_NHW[:BATCH]
        ready = ours.preprocessing(part)
        calls = {
            "ours": lambda: ours.score(ours.encode(part)),
            "theirs": lambda: theirs(ready),
            "our features": lambda: ours.encode(part),
            "their features": lambda: theirs.feature_extractor(ready),
        }
        turns = [{name: timed(call)[0] for name, call in calls.items()} for _ in range(rounds + 1)]
    seconds = pd.DataFrame(turns[1:])
    rates = BATCH / seconds.median()
    return {
        "images": count,
        "tokens": len(tokens_ND),
        "projected_to": points_Nd.shape[1],
        "coreset": {
            "centres": size,
            "anomalib_centres": theirs_size,
            "same_indices": chosen_M.tolist()[:theirs_size] == their_M,
            "first_difference": next(
                (i for i, (a, b) in enumerate(zip(chosen_M.tolist(), their_M, strict=False)) if a != b), None
            ),
            "seconds": our_s,
            "anomalib_seconds": their_s,
            "times_faster": their_s / our_s,
        },
        "prediction": {
            "images_per_s": rates["ours"],
            "anomalib_images_per_s": rates["theirs"],
            "times_faster": (seconds["theirs"] / seconds["ours"]).median(),
        },
        "features": {
            "images_per_s": rates["our features"],
            "anomalib_images_per_s": rates["their features"],
        },
    }


def main() -> None:
    told = given(__doc__, images=50, rounds=5, their_centres=0)
    found = compare(told.images, rounds=told.rounds, their_centres=told.their_centres)
    record(f"speed_patchcore_{told.images}", {"threads": torch.get_num_threads(), **found})


if __name__ == "__main__":
    main()
