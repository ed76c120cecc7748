"""Every form of HDMAP's folders trains and evaluates, and what must not change a number does not."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image

from dinomaly_hd.config import with_values
from dinomaly_hd.config.resolve import resolve_model
from dinomaly_hd.data.feature_files import FeaturePlace
from dinomaly_hd.data.features import ImageStore
from dinomaly_hd.data.hdmap import load_manifest
from dinomaly_hd.errors import SignalGuard
from dinomaly_hd.experiments.run import Outcome, execute
from dinomaly_hd.experiments.score import Scorer
from dinomaly_hd.models.dinomaly.detector import Dinomaly
from dinomaly_hd.models.networks import preprocessing_of
from dinomaly_hd.runs.folder import Context
from dinomaly_hd.runs.journal import Journal
from dinomaly_hd.serving.exported import read_model
from dinomaly_hd.training.checkpoint import newest

from .conftest import SETTINGS, TinyRun

SHAPE = (31, 95)
BRIGHT = 2.9


def pictures(count: int, *, fault: bool, seed: int) -> NDArray[np.float32]:
    images = np.random.default_rng(seed).uniform(0.1, 0.5, (count, *SHAPE)).astype(np.float32)
    if fault:
        images[:, 12, 20:60] = BRIGHT
    return images


def write_tiff(path: Path, image: NDArray[np.float32]) -> None:
    tifffile.imwrite(path.with_suffix(".tiff"), image)


def write_png8(path: Path, image: NDArray[np.float32]) -> None:
    Image.fromarray((np.clip(image, 0, 1) * 255).round().astype(np.uint8)).save(path.with_suffix(".png"))


def write_png16(path: Path, image: NDArray[np.float32]) -> None:
    Image.fromarray((np.clip(image, 0, 1) * 65535).round().astype(np.uint16)).save(path.with_suffix(".png"))


FORMS: dict[str, tuple[Any, str, float]] = {
    "tiff": (write_tiff, "float32", BRIGHT),
    "png8": (write_png8, "uint8", 1.0),
    "png16": (write_png16, "uint16", 1.0),
}


def write_maps(root: Path, *, write: Any = write_tiff, domains: str = "AC", count: int = 4) -> Path:
    for number, domain in enumerate(domains):
        for place in ("train/good", "test/good", "test/fault"):
            folder = root / f"domain_{domain}" / place
            folder.mkdir(parents=True)
            seed = 10 * number + len(place)
            for i, image in enumerate(pictures(count, fault=place == "test/fault", seed=seed)):
                write(folder / f"{i:06d}", image)
    return root


@pytest.fixture
def train(tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run `horizontal` on a folder; the MLflow store is the shared run's."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tiny_run.uri)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)

    def run(root: Path, *, name: str = "results", **flags: str) -> Outcome:
        values = {**SETTINGS, "maps_per_group": "0", "domains": "A,C", "data_root": str(root), **flags}
        context = Context(
            root=tiny_run.root,
            result_dir=tmp_path / name,
            experiment="contract",
            guard=SignalGuard(),
            say=lambda _: None,
            command="test",
            entry_point="horizontal",
            feature_place=FeaturePlace(tmp_path / "features", 1),
        )
        with warnings.catch_warnings():
            for module in (r"lightning\.", r"torch\.", r"mlflow\."):
                warnings.filterwarnings("ignore", module=module)
            return execute(resolve_model("horizontal", values), context)

    return run


def losses(outcome: Outcome) -> list[float]:
    history = Journal(outcome.folder / "journal.jsonl").history()
    return [value for _, value in history["train/loss"]]


def scores(outcome: Outcome, domain: str) -> bytes:
    return (outcome.folder / "scores" / f"domain_{domain}.csv").read_bytes()


def weights(outcome: Outcome) -> dict[str, torch.Tensor]:
    checkpoint = newest(outcome.folder / "checkpoints").checkpoint
    assert checkpoint is not None
    return checkpoint.weights


@pytest.mark.parametrize("form", FORMS)
def test_every_file_form_trains_and_evaluates(train: Any, tmp_path: Path, form: str) -> None:
    write, dtype, brightest = FORMS[form]
    root = write_maps(tmp_path / "maps", write=write, domains="C")
    outcome = train(root, domains="C", max_steps="3")
    manifest = load_manifest(root, domains=["C"], conditions="none")
    assert (manifest.dtype, manifest.shape) == (dtype, SHAPE)
    assert manifest.warnings == () if form == "tiff" else "above 1" in manifest.warnings[0]
    assert len(losses(outcome)) == 3
    assert np.isfinite(losses(outcome)).all()
    assert outcome.results["domains"] == ["domain_C"]
    assert np.isfinite(outcome.results["per_domain_metrics"]["domain_C"]["auroc"])
    fault = int(manifest.indices(label=1)[0])
    assert ImageStore(manifest, keep_bytes=0)[fault].max() == pytest.approx(brightest)
    text = scores(outcome, "C").decode()
    assert text.count("\n") == 9
    assert "nan" not in text


def test_values_above_one_reach_the_encoder_unclipped(tmp_path: Path) -> None:
    root = write_maps(tmp_path / "maps", domains="C")
    run = resolve_model("horizontal", {**SETTINGS, "image_size": "93x285"})  # three times: centres coincide
    store = ImageStore(load_manifest(root, domains=["C"], conditions="none"), keep_bytes=0)
    fault = int(store.manifest.indices(label=1)[0])
    preprocessing = preprocessing_of(run.encoder)
    seen = preprocessing(torch.from_numpy(store[fault])[None]) * preprocessing.std[0] + preprocessing.mean[0]
    assert float(seen[0, 0].max()) == pytest.approx(BRIGHT, abs=1e-5)


def test_a_domain_scores_alone_what_it_scores_among_others(train: Any, tmp_path: Path) -> None:
    root = write_maps(tmp_path / "maps")
    outcome = train(root)
    model = read_model(outcome.folder / "model")
    detector = model.load()

    def scored(domains: list[str]) -> dict[str, float]:
        manifest = load_manifest(root, domains=domains, conditions="none")
        scorer = Scorer(
            detector,
            ImageStore(manifest, keep_bytes=0),
            run=with_values(model.card.run, {"eval_batch_size": 3}),
            device=torch.device("cpu"),
            features=None,
            tick=lambda: None,
        )
        test = manifest.indices(split="test")
        values = scorer.examine(test).score_N
        return {manifest.records[i].path: float(value) for i, value in zip(test, values, strict=True)}

    alone, among = scored(["C"]), scored(["A", "C"])
    assert len(alone) == 8
    assert all(among[path] == pytest.approx(value, abs=1e-6) for path, value in alone.items())


def test_the_full_preset_runs_with_its_own_grid(train: Any, tmp_path: Path) -> None:
    root = write_maps(tmp_path / "maps", domains="C", count=2)
    outcome = train(
        root,
        preset="full",
        encoder="dinov2reg_vit_small_14",
        encoder_weights="random",
        image_size="448",
        domains="C",
        batch_size="2",
    )
    model = read_model(outcome.folder / "model").load()
    assert isinstance(model, Dinomaly)
    assert model.encoder.grid == (28, 28)
    assert np.isfinite(losses(outcome)).all()


def test_without_hold_out_thresholds_say_so(train: Any, tmp_path: Path) -> None:
    outcome = train(write_maps(tmp_path / "maps", domains="C"), domains="C", val_split_ratio="0")
    assert outcome.results["held_out"] == 0
    threshold = outcome.results["per_domain_metrics"]["domain_C"]["thresholds"]["normal_quantile"]
    assert threshold["optimistic"] is True
    assert threshold["source"] == "training normals"


def test_cache_and_loader_workers_change_no_number(train: Any, tmp_path: Path) -> None:
    root = write_maps(tmp_path / "maps", domains="C")
    fresh = train(root, name="fresh", domains="C", cache="off", max_steps="3")
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
        own = train(root, name=name, domains="C", max_steps="3", **flags)
        assert (name in ("read", "torn")) == bool(files)
        assert name == "written" or scores(own, "C") == scores(fresh, "C"), name
        ours, theirs = weights(own), weights(fresh)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[part], theirs[part]) for part in ours), name


def test_in_16_bits_files_are_half_as_large_and_change_no_number(train: Any, tmp_path: Path) -> None:
    root = write_maps(tmp_path / "maps", domains="C", count=2)
    flags = {"domains": "C", "max_steps": "2", "batch_size": "2"}
    sizes = []
    for precision in ("32", "bf16"):
        train(root, name=f"of {precision}", cache="files", precision=precision, **flags)
        every = (tmp_path / "features").glob("**/*.features")
        sizes.append(sum(path.stat().st_size for path in every) - sum(sizes))
    assert sizes[1] == pytest.approx(sizes[0] / 2, rel=0.05)
    off = train(root, name="off", cache="off", precision="bf16", **flags)
    read = train(root, name="read", cache="files", precision="bf16", **flags)
    ours, theirs = weights(read), weights(off)
    assert all(torch.equal(ours[part], theirs[part]) for part in ours)
    assert scores(read, "C") == scores(off, "C")
    assert np.isfinite(losses(off)).all()
