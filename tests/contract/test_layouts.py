"""Every form of HDMAP's files trains and evaluates, and what must not change a number does not."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image

from dinomaly_hd.config.resolve import resolve_model
from dinomaly_hd.data.feature_files import FeaturePlace
from dinomaly_hd.data.features import ImageStore
from dinomaly_hd.data.hdmap import load_manifest
from dinomaly_hd.experiments.run import Outcome, execute
from dinomaly_hd.runs.folder import Context
from dinomaly_hd.training.checkpoint import newest

from .conftest import SETTINGS
from .light_runs import assert_same_weights

SHAPE = (31, 95)
BRIGHT = 2.9


def write_tiff(path: Path, image: NDArray[np.float32]) -> None:
    tifffile.imwrite(path.with_suffix(".tiff"), image)


def png_of(kind: type[np.unsignedinteger[Any]]) -> Callable[[Path, NDArray[np.float32]], None]:
    def write(path: Path, image: NDArray[np.float32]) -> None:
        whole = (np.clip(image, 0, 1) * np.iinfo(kind).max).round().astype(kind)
        Image.fromarray(whole).save(path.with_suffix(".png"))

    return write


FORMS: dict[str, tuple[Any, str, float]] = {
    "tiff": (write_tiff, "float32", BRIGHT),
    "png8": (png_of(np.uint8), "uint8", 1.0),
    "png16": (png_of(np.uint16), "uint16", 1.0),
}


def write_maps(root: Path, *, write: Any = write_tiff, count: int = 4) -> Path:
    for place in ("train/good", "test/good", "test/fault"):
        folder = root / "domain_C" / place
        folder.mkdir(parents=True)
        images = np.random.default_rng(len(place)).uniform(0.1, 0.5, (count, *SHAPE)).astype(np.float32)
        if place == "test/fault":
            images[:, 12, 20:60] = BRIGHT
        for i, image in enumerate(images):
            write(folder / f"{i:06d}", image)
    return root


@pytest.fixture
def train(own: Context, tmp_path: Path) -> Any:
    """Run `horizontal` on a folder."""

    def run(root: Path, *, name: str = "results", **flags: str) -> Outcome:
        values = {**SETTINGS, "maps_per_group": "0", "domains": "C", "data_root": str(root), **flags}
        features = FeaturePlace(tmp_path / "features", 1)
        context = replace(own, result_dir=tmp_path / name, feature_place=features)
        return execute(resolve_model("horizontal", values), context)

    return run


def scores(outcome: Outcome) -> bytes:
    return (outcome.folder / "scores" / "domain_C.csv").read_bytes()


def weights(outcome: Outcome) -> dict[str, torch.Tensor]:
    checkpoint = newest(outcome.folder / "checkpoints").checkpoint
    assert checkpoint is not None
    return checkpoint.weights


@pytest.mark.parametrize("form", FORMS)
def test_every_file_form_trains_also_without_held_out_normals(train: Any, tmp_path: Path, form: str) -> None:
    write, dtype, brightest = FORMS[form]
    root = write_maps(tmp_path / "maps", write=write)
    outcome = train(root, max_steps="3", **({} if form == "tiff" else {"val_split_ratio": "0"}))
    manifest = load_manifest(root, domains=["C"], conditions="none")
    assert (manifest.dtype, manifest.shape) == (dtype, SHAPE)
    assert manifest.warnings == () if form == "tiff" else "above 1" in manifest.warnings[0]
    losses = outcome.results["training_history"]["train/loss"]["value"]
    assert len(losses) == 3
    assert np.isfinite(losses).all()
    assert outcome.results["domains"] == ["domain_C"]
    metrics = outcome.results["per_domain_metrics"]["domain_C"]
    assert np.isfinite(metrics["auroc"])
    fault = int(manifest.indices(label=1)[0])
    assert ImageStore(manifest, keep_bytes=0)[fault].max() == pytest.approx(brightest)
    text = scores(outcome).decode()
    assert text.count("\n") == 9
    assert "nan" not in text
    threshold = metrics["thresholds"]["normal_quantile"]
    assert (outcome.results["held_out"] == 0) == threshold["optimistic"] == (form != "tiff")
    assert (threshold["source"] == "training normals") == (form != "tiff")


def test_cache_and_loader_workers_change_no_number(train: Any, tmp_path: Path) -> None:
    root = write_maps(tmp_path / "maps")
    fresh = train(root, name="fresh", cache="off", max_steps="3")
    others = {
        "kept": {"cache": "memory"},
        "parallel": {"cache": "off", "num_workers": "2"},
        "written": {"cache": "files", "eval_batch_size": "5"},
        "read": {"cache": "files"},
        "torn": {"cache": "auto"},
    }
    for name, flags in others.items():
        files = sorted((tmp_path / "features").glob("**/*.features"))
        if name == "torn":
            for path in files:
                path.write_bytes(path.read_bytes()[:-1])
        own = train(root, name=name, max_steps="3", **flags)
        assert (name in ("read", "torn")) == bool(files)
        assert name == "written" or scores(own) == scores(fresh), name
        assert_same_weights(weights(own), weights(fresh))


def test_in_16_bits_files_are_half_as_large_and_change_no_number(train: Any, tmp_path: Path) -> None:
    root = write_maps(tmp_path / "maps", count=2)
    flags = {"max_steps": "2", "batch_size": "2"}
    sizes = []
    for precision in ("32", "bf16"):
        train(root, name=f"of {precision}", cache="files", precision=precision, **flags)
        every = (tmp_path / "features").glob("**/*.features")
        sizes.append(sum(path.stat().st_size for path in every) - sum(sizes))
    assert sizes[1] == pytest.approx(sizes[0] / 2, rel=0.05)
    off = train(root, name="off", cache="off", precision="bf16", **flags)
    read = train(root, name="read", cache="files", precision="bf16", **flags)
    assert_same_weights(weights(read), weights(off))
    assert scores(read) == scores(off)
    assert np.isfinite(off.results["training_history"]["train/loss"]["value"]).all()
