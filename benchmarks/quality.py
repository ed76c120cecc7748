"""How the quick preset was chosen, and what lies beyond it; ordinary runs, started as a user starts them.

    python -m benchmarks.quality choose       # candidates, on held-out normals with synthetic bands only
    python -m benchmarks.quality reference    # on test: the preset, ten times its steps, nearest neighbours

Further flags (--name=value) go to the runs. Writes benchmarks/results/quality_{choose,reference}.json.
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import flags, newest, record, run, timed
from dinomaly_hd.data.features import ImageStore
from dinomaly_hd.data.hdmap import Manifest, load_manifest
from dinomaly_hd.evaluation.metrics import auroc
from dinomaly_hd.models.dinomaly import score
from dinomaly_hd.models.dinomaly.detector import Dinomaly
from dinomaly_hd.models.dinomaly.score import MeanPooling
from dinomaly_hd.serving.exported import read_model

BANK_TOKENS = 20_000
HELD_OUT = {"val_split_ratio": 0.3, "synthetic_copies": 4}
CANDIDATES: dict[str, dict[str, object]] = {
    "248 x 96 px, 31 x 12 tokens, 2 blocks": {"image_size": "248x96", "decoder_depth": 2},
    "248 x 96 px, 31 x 12 tokens, 4 blocks": {"image_size": "248x96", "decoder_depth": 4},
    "112 x 112 px, 14 x 14 tokens, 2 blocks": {"image_size": "112", "decoder_depth": 2},
    "224 x 224 px, 28 x 28 tokens, 2 blocks": {"image_size": "224", "decoder_depth": 2},
}


def finished_run(values: dict[str, object], folder: Path) -> Path:
    """Do a run with the quick preset and return its folder."""
    own = {"preset": "quick", "maps_per_group": 0, "resume": "never", "result_dir": folder, **values}
    run("horizontal", own, folder=folder)
    return newest(folder, "horizontal/*/results.json").parent


def of_bands(folder: Path) -> dict[str, float]:
    """Return per domain the AUROC between held-out normals and copies of them with a synthetic band."""
    domains = json.loads((folder / "results.json").read_text())["synthetic"]["per_domain"]
    return {domain: block["auroc"] for domain, block in domains.items()}


def of_test(table: pd.DataFrame, column: str = "score") -> dict[str, float]:
    """Return the AUROC on the test images, by domain and by domain and condition."""
    parts = {str(name).removeprefix("domain_"): own for name, own in table.groupby("domain")}
    parts |= {f"{name}/{one}": part for name, own in parts.items() for one, part in own.groupby("condition")}
    return {name: auroc(own[column].to_numpy(), own["label"].to_numpy()) for name, own in parts.items()}


def scores_of(folder: Path) -> pd.DataFrame:
    tables = sorted((folder / "scores").glob("domain_?.csv"))  # beside those of held-out normals
    return pd.concat([pd.read_csv(path).assign(domain=path.stem) for path in tables])


def encoded(detector: Dinomaly, manifest: Manifest, positions: np.ndarray) -> Tensor:
    """Return normalised tokens of images (N, tokens of both groups side by side)."""
    store, found = ImageStore(manifest, keep_bytes=0), []
    with torch.no_grad():
        for part in np.array_split(positions, max(1, len(positions) // 8)):
            images_BHW = torch.from_numpy(np.stack([store[int(i)] for i in part]))
            found.append(detector.encode(images_BHW).transpose(1, 2).flatten(2))
    return F.normalize(torch.cat(found), dim=2)


def nearest_neighbour(folder: Path) -> dict[str, float]:
    """Score by the cosine distance to the nearest of 20,000 training tokens, pooled as the model does."""
    detector = read_model(folder / "model").load()
    assert isinstance(detector, Dinomaly)
    settings = json.loads((folder / "experiment_settings.json").read_text())
    manifest = load_manifest(Path(settings["data_root"]), domains=("A", "B", "C", "D"), conditions="auto")
    tokens = encoded(detector, manifest, manifest.indices(split="train")).flatten(0, 1)
    chosen = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(0))[:BANK_TOKENS]
    positions, bank = manifest.indices(split="test"), tokens[chosen]
    distances = [1 - (own @ bank.T).amax(dim=1) for own in encoded(detector, manifest, positions)]
    predicted = score.predict(
        torch.stack(distances).reshape(len(positions), 1, *detector.encoder.grid),
        pool=MeanPooling(),
        image_size=detector.preprocessing.input_size,
        map_size=detector.map_size,
        border=detector.config.border,
        row_context=0,
    )
    records = [manifest.records[int(i)] for i in positions]
    rows = [(record.domain, record.condition, record.label) for record in records]
    table = pd.DataFrame(rows, columns=["domain", "condition", "label"])
    return of_test(table.assign(score=predicted.score_B.double().numpy()))


def main() -> None:
    told, others = flags(__doc__, first="table", among=("choose", "reference"), seed=42)
    more = {"seed": told.seed, **others}
    steps = int(more.get("max_steps", 400))
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        of: dict[str, Callable[[], dict[str, float]]] = {
            candidate: lambda own=own: of_bands(finished_run({**HELD_OUT, **own, **more}, place))
            for candidate, own in CANDIDATES.items()
        }
        if told.table == "reference":
            preset, longer = place / "preset", place / "longer"
            of = {
                f"{steps} steps": lambda: of_test(scores_of(finished_run(more, preset))),
                "nearest neighbour, same features": lambda: nearest_neighbour(*preset.glob("horizontal/*")),
                f"{10 * steps} steps": lambda: of_test(
                    scores_of(finished_run({**more, "max_steps": 10 * steps}, longer))
                ),
            }
        rows = []
        for row, measure in of.items():
            seconds, found = timed(measure)  # AUROC by domain, and domain/condition
            numbers = "  ".join(f"{key.removeprefix('domain_')} {value:.3f}" for key, value in found.items())
            mean = np.mean([value for key, value in found.items() if "/" not in key])
            print(f"{row:40} mean {mean:.3f}   {numbers}   {seconds:.0f} s", flush=True)
            rows.append({"name": row, "auroc": found, "seconds": seconds})
            content = {"seed": told.seed, "torch": torch.__version__, "rows": rows}
            record(f"quality_{told.table}", content, show=False)


if __name__ == "__main__":
    main()
