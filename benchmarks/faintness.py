"""How faint a band may be, and how many healthy maps are enough: two curves for each way of detecting.

    python -m benchmarks.faintness                       # row evidence, PatchCore, Dinomaly and the scan
    python -m benchmarks.faintness --configs=row_evidence --counts=25,100

Trains on some maps of each simulated domain (``--counts``), then tells faults from good test images, and good
test images with a band of one severity (a row times 1 + severity, 20 columns or longer, with gaps) from those
without. AUROC by domain and condition. Further flags (--name=value) go to the runs. Writes
benchmarks/results/faintness.json and faintness.png.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from benchmarks.common import RESULTS, flags, numbers, record, run
from benchmarks.quality import of_test, scores_of
from dinomaly_hd.data.features import ImageStore
from dinomaly_hd.data.hdmap import load_manifest
from dinomaly_hd.data.simulator import simulate
from dinomaly_hd.evaluation.metrics import auroc
from dinomaly_hd.experiments.score import predict, stack
from dinomaly_hd.models import row_evidence
from dinomaly_hd.models.detector import Detector
from dinomaly_hd.models.row_evidence import Floats
from dinomaly_hd.serving.exported import read_model
from dinomaly_hd.trivial import Scan

SEVERITIES = (0.1, 0.15, 0.2, 0.3, 0.45, 0.7, 1.0)
BANK_TOKENS = 13_000
"""Of PatchCore, whatever the number of maps; its own tenth would take hours of a CPU for 1,000 maps."""
TOKENS_A_MAP = 31 * 12


def subset(source: Path, target: Path, *, train: int, test: int) -> Path:
    """Copy ``train`` normals and ``test`` test maps of each kind of every domain, evenly chosen."""
    conditions = pd.read_csv(source / "conditions.csv").set_index("path")
    kept = []
    for folder in sorted(path for path in source.glob("domain_*/*/*") if path.is_dir()):
        files = sorted(folder.glob("*.tiff"))
        count = train if folder.parent.name == "train" else test
        for file in files[:: max(1, len(files) // count)][:count]:
            name = file.relative_to(source)
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target / name)
            kept.append(name.as_posix())
    conditions.loc[kept].to_csv(target / "conditions.csv")
    return target


def scores_by(detector: Detector, scan: Scan, maps: Floats) -> dict[str, Floats]:
    images = torch.from_numpy(maps.astype(np.float32)).split(8)
    own = [predict(detector, one, device=torch.device("cpu"), bf16=False).score_B for one in images]
    return {"detector": torch.cat(own).numpy(), "scan": scan.score(maps)}


def of_severities(config: str, folder: Path, data: Path) -> Iterator[tuple[str, float, dict[str, float]]]:
    """Yield way, severity and AUROC by domain of bands on good test images, for a run and for the scan."""
    detector, manifest = (
        read_model(folder / "model").load(),
        load_manifest(data, domains=("A", "B", "C", "D"), conditions="auto"),
    )
    store = ImageStore(manifest, keep_bytes=2**30)
    found: dict[tuple[str, float], dict[str, float]] = {}
    for domain in manifest.domains:
        good = stack(store, manifest.indices(domain=domain, split="test", label=0)).astype(np.float64)
        scan = Scan.fit(stack(store, manifest.indices(domain=domain, split="train")))
        usual = scores_by(detector, scan, good)
        for severity in SEVERITIES:
            with mock.patch.object(row_evidence, "SEVERITY", (severity, severity)):
                bands = row_evidence.factor_bands(good, seed=7, copy=0, positive=True)
            for way, values in scores_by(detector, scan, bands.maps_NRC).items():
                both = np.concatenate([usual[way], values])
                found.setdefault((way, severity), {})[domain[-1]] = auroc(both, np.repeat([0, 1], len(good)))
    for (way, severity), values in found.items():
        yield config if way == "detector" else way, severity, values


def draw(rows: pd.DataFrame, path: Path) -> None:
    """Draw AUROC on C over severity and over the number of maps, a line a way."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, over in zip(figure.subplots(1, 2, sharey=True), ("severity", "maps"), strict=True):
        own = rows[rows["over"] == over]
        for way, line in own.groupby("way"):
            axes.plot(line["at"], line["C"], marker="o", label=way)
        axes.set(xscale="log", xlabel=f"{over} (log)", ylabel="AUROC on C", ylim=(0.4, 1.01))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path)


def main() -> None:
    told, more = flags(
        __doc__, configs="row_evidence,patchcore,A0", counts="25,50,100,400,1000", test=100, seed=42
    )
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        place, counts = Path(name), numbers(told.counts)
        whole = simulate(place / "full", size="full", seed=0)
        for count in counts:
            data = subset(whole, place / f"data{count}", train=count, test=told.test)
            share = min(1.0, BANK_TOKENS / (4 * count * TOKENS_A_MAP))
            for config in told.configs.split(","):
                text = f"{config}:coreset_sampling_ratio={share:.4f}" if config == "patchcore" else config
                own = {"configs": text, "seeds": told.seed, "data_root": data, "preset": "quick", **more}
                folder = place / f"{config}{count}"
                run("ablation", {**own, "result_dir": folder, "maps_per_group": 0}, folder=place)
                results = next(folder.glob("**/scores")).parent
                table = scores_of(results)
                ways = {config: "score", "scan": "trivial/scan"}
                found = [("maps", way, count, of_test(table, column)) for way, column in ways.items()]
                if count == 100:
                    found += [("severity", *one) for one in of_severities(config, results, data)]
                for over, way, at, values in found:
                    row = {"over": over, "way": way, "at": at, **values}
                    if row not in rows:  # the scan is the same beside each
                        rows.append(row)
                        print(json.dumps(row), flush=True)
                record("faintness", {"torch": torch.__version__, "rows": rows}, show=False)
    draw(pd.DataFrame(rows), RESULTS / "faintness.png")


if __name__ == "__main__":
    main()
