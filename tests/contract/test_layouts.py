"""Every form of HDMAP's files trains and evaluates, and what must not change a number does not."""

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image

from dinomaly_hd.config.resolve import resolve_model
from dinomaly_hd.data.feature_files import FeaturePlace
from dinomaly_hd.data.features import ImageStore
from dinomaly_hd.data.hdmap import load_manifest
from dinomaly_hd.errors import DataError, LayoutError, SignalGuard
from dinomaly_hd.experiments.checks import with_found_domains
from dinomaly_hd.experiments.predict import predict
from dinomaly_hd.experiments.run import Outcome, execute
from dinomaly_hd.runs.folder import MODEL, Context
from dinomaly_hd.serving.find import open_model
from dinomaly_hd.training.checkpoint import newest
from entry_points import multi_domain, single_domain
from entry_points.common import Start
from entry_points.families import trials_of

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
def said() -> list[str]:
    """What runs of ``train`` say."""
    return []


@pytest.fixture
def train(own: Context, tmp_path: Path, said: list[str]) -> Any:
    """Run `horizontal` on a folder."""

    def run(root: Path, *, name: str = "results", model: str = "horizontal", **flags: str) -> Outcome:
        values = {**SETTINGS, "maps_per_group": "0", "domains": "C", "data_root": str(root), **flags}
        features = FeaturePlace(tmp_path / "features", 1)
        context = replace(own, result_dir=tmp_path / name, feature_place=features, say=said.append)
        run = resolve_model(model, {key: value for key, value in values.items() if value})
        return execute(run, context)

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


# Other people's folders ------------------------------------------------------------------------------------

TRIVIAL = {
    **dict.fromkeys(("domains", "image_size", "decoder_depth", "max_steps", "batch_size"), ""),
    "model": "trivial",
    "trivial_score": "std",
}
"""A model that is there at once, on the domains that are found."""


def write_category(folder: Path, *, seed: int = 0) -> Path:
    """Write RGB pictures as MVTec has them: bright cracks, holes that nothing shows, masks of both."""
    draw = np.random.default_rng(seed)
    for place in ("train/good", "test/good", "test/crack", "test/hole"):
        (folder / place).mkdir(parents=True)
        for number in range(4):
            picture = draw.integers(90, 110, (*SHAPE, 3)).astype(np.uint8)
            mask = np.zeros(SHAPE, np.uint8)
            mask[12, 20:60] = 255
            if place == "test/crack":
                picture[mask > 0] = 255
            Image.fromarray(picture).save(folder / place / f"{number:03}.png")
            if place in ("test/crack", "test/hole"):
                masks = folder / "ground_truth" / Path(place).name
                masks.mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask).save(masks / f"{number:03}_mask.png")
    return folder


def table_of(outcome: Outcome, domain: str) -> pd.DataFrame:
    return pd.read_csv(outcome.folder / "scores" / f"{domain}.csv").sort_values("score")


def test_mvtecs_categories_are_found_read_as_grey_and_told_by_kind_of_defect(
    train: Any, tmp_path: Path, said: list[str]
) -> None:
    for seed, name in enumerate(("bottle", "cable")):
        write_category(tmp_path / "mvtec" / name, seed=seed)
    with pytest.raises(
        DataError, match=r"32 times: 8-bit RGB PNG.*; grey=true turns RGB grey \(bottle/train"
    ):
        train(tmp_path / "mvtec", **TRIVIAL)
    outcome = train(tmp_path / "mvtec", grey="true", **TRIVIAL)
    assert outcome.results["domains"] == ["bottle", "cable"]
    assert outcome.results["config"]["data"]["domains"] == "bottle,cable"
    block = outcome.results["per_domain_metrics"]["bottle"]
    scores = table_of(outcome, "bottle")
    assert scores.groupby("defect")["label"].agg(["size", "max"]).to_dict("list") == {
        "size": [4, 4, 4],
        "max": [1, 0, 1],
    }
    good, hole = (scores[scores["defect"] == kind]["score"].to_numpy() for kind in ("good", "hole"))
    assert block["by_defect"]["crack"] == {"fault": 4, "auroc": 1.0, "tpr_at_fpr_1pct": 1.0}
    assert block["by_defect"]["hole"]["auroc"] == np.mean(hole[:, None] > good)
    assert block["auroc"] == (1 + block["by_defect"]["hole"]["auroc"]) / 2
    text, page = "\n".join(said), (outcome.folder / "report.html").read_text()
    pixels = f"{100 * block['pixel_auroc']:.2f}"
    assert f"\nPixel AUROC, %: bottle {pixels}, cable " in text
    assert f"\nAUPRO up to FPR 30 %, %: bottle {100 * block['aupro']:.2f}, cable " in text
    assert re.search(r"bottle crack +4 +100\.00 +100\.00\n", text)
    for part in ("bottle crack", "pixel AUROC", "AUPRO", pixels):
        assert part in page


def test_a_category_by_itself_and_a_table_of_it_have_the_same_scores(train: Any, tmp_path: Path) -> None:
    folder = write_category(tmp_path / "bottle")
    rows = ["path,label,split,domain,mask"]
    for path in sorted(folder.glob("t*/*/*.png")):
        kind, name = path.parent.name, path.relative_to(folder).as_posix()
        mask = "" if kind == "good" else f"ground_truth/{kind}/{path.stem}_mask.png"
        rows.append(f"{name},{kind},{path.parts[-3]},bottle,{mask}")
    (folder / "images.csv").write_text("\n".join(rows))
    results = [
        train(root, name=name, grey="true", **TRIVIAL).results["per_domain_metrics"]
        for name, root in (("all", tmp_path), ("one", folder), ("table", folder / "images.csv"))
    ]
    assert results[0] == results[1] == results[2]
    assert results[0]["bottle"]["pixel_auroc"] > 0.5


def test_a_checkpoint_of_a_table_says_what_images_it_takes(train: Any, tmp_path: Path) -> None:
    write_category(tmp_path / "bottle")
    paths = sorted(path.relative_to(tmp_path) for path in tmp_path.glob("bottle/t*/*/*.png"))
    rows = [f"{path},{path.parts[2]},{path.parts[1]}" for path in paths]
    table = tmp_path / "images.csv"
    table.write_text("\n".join(["path,label,split", *rows]))
    outcome = train(table, grey="true", domains="", val_split_ratio=".5", max_steps="1")
    shutil.rmtree(outcome.folder / MODEL)
    (checkpoint,) = (outcome.folder / "checkpoints").glob("*.pt")
    with open_model(
        str(checkpoint), result_dir=tmp_path, root=tmp_path, say=print, tick=lambda: None
    ) as model:
        assert model.card.dtype == "uint8"


@pytest.mark.parametrize(
    ("lacking", "counts"),
    [(["fault"], (4, 0)), (["good"], (0, 4)), (["fault", "good"], (0, 0))],
    ids=["only good", "only faults", "no test images"],
)
def test_without_both_kinds_it_trains_and_what_needs_them_says_so(
    train: Any, tmp_path: Path, said: list[str], lacking: list[str], counts: tuple[int, int]
) -> None:
    root = write_maps(tmp_path / "maps")
    for kind in lacking:
        shutil.rmtree(root / "domain_C" / "test" / kind)
    outcome = train(root, max_steps="2", maps_per_group="2", val_check_interval="1", val_split_ratio=".5")
    block = outcome.results["per_domain_metrics"]["domain_C"]
    reason = f"needs both classes, has {counts[0]} good and {counts[1]} fault images"
    assert block["auroc"] is None or np.isnan(block["auroc"])
    assert block["reasons"]["auroc"] == block["reasons"]["f1_score"] == reason
    normal = block["thresholds"]["normal_quantile"]
    assert (normal["source"], normal["optimistic"]) == ("held-out normals", False)
    assert normal["value"] > 0
    assert pd.read_csv(outcome.folder / "scores" / "domain_C.csv").shape[0] == sum(counts)
    assert f"domain_C: {reason}" in said
    assert any(line.startswith("warning: domain_C: no ") for line in said)
    assert f"domain_C: {reason}" in (outcome.folder / "report.html").read_text()
    run = mlflow.get_run(str(outcome.mlflow_run_id))
    assert reason in run.data.tags["mlflow.note.content"]
    assert "domain_C/auroc" not in run.data.metrics
    assert block["optimal_threshold"] == normal["value"]
    assert run.info.status == "FINISHED"


def test_what_was_trained_on_grey_predicts_rgb(train: Any, own: Context, tmp_path: Path) -> None:
    folder = write_category(tmp_path / "bottle")
    outcome = train(folder, grey="true", **TRIVIAL)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "a.png").symlink_to(folder / "test/crack/001.png")
    output = predict(
        str(outcome.folder),
        tmp_path / "linked",
        domain=None,
        output=tmp_path / "predicted",
        maps=0,
        gpu="cpu",
        result_dir=own.result_dir,
        root=own.root,
        say=lambda _: None,
        tick=lambda: None,
    )
    scores = table_of(outcome, "bottle").set_index("path")["score"]
    assert pd.read_csv(output / "scores.csv")["score"].tolist() == [scores["test/crack/001.png"]]


def asked(point: Any, root: Path, *words: str) -> list[tuple[str, str]]:
    """Return the domains of the runs that an entry point makes of a data root, and those trained on."""
    flags = ["--data_root", str(root), "--model_type", "trivial", "--preset", "quick", *words]
    trials = trials_of(Start(point.COMMAND.parse(flags), SignalGuard()))
    return [(one.run.data.domains, one.run.data.train_domains) for one in trials]


def test_where_no_domain_is_named_they_are_those_of_the_root(tmp_path: Path) -> None:
    for name in ("bottle", "cable"):
        write_category(tmp_path / "mvtec" / name)
    root = tmp_path / "mvtec"
    assert asked(single_domain, root) == [("bottle", "all")]
    assert asked(single_domain, root, "--source_domain", "all") == [("bottle", "all"), ("cable", "all")]
    assert asked(multi_domain, root) == [("bottle,cable", "bottle")]
    for letter in "ABCDE":
        (tmp_path / f"usual/domain_{letter}/train/good").mkdir(parents=True)
    for place, names in (("mvtec", "bottle,cable"), ("usual", "A,B,C,D"), ("mvtec/cable", "cable")):
        values = {"preset": "quick", "data_root": str(tmp_path / place)}
        found = with_found_domains(resolve_model("trivial", values))
        assert found == resolve_model("trivial", {**values, "domains": names})
    with pytest.raises(LayoutError, match=r"unknown domain 'dish'\. Known: bottle, cable\. Choose with"):
        load_manifest(root, domains=["dish"], conditions="auto")
