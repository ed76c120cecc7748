"""What `export` promises: a file that scores as the run does, loaded without this package, or none at all."""

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from onnxruntime import InferenceSession

from dinomaly_hd.config.resolve import resolve_model
from dinomaly_hd.data.images import read_image
from dinomaly_hd.errors import ConfigError, DataError, OutputError
from dinomaly_hd.experiments import export as exporting
from dinomaly_hd.experiments.export import FORMATS, export
from dinomaly_hd.experiments.predict import predict
from dinomaly_hd.experiments.run import execute
from dinomaly_hd.runs.folder import Context
from dinomaly_hd.serving.exported import Model, read_card
from entry_points.common import launch
from entry_points.export import main

from .conftest import TinyRun
from .light_runs import SMALL

# Whatever a graph cannot hold as it stands in the code: position scaling, crops, places in the bank, pools.
MODELS = (
    "dinomaly:scaling=position:crop=24",
    "row_mask:decoder_depth=2",
    "aux:decoder_depth=2:aux_score_weight=.5",
    "patchcore:context=1:position_radius=4:scaling=position",
    "draem:image_score=top_share:patch_width_range=4-12",
    "draem_sevnet:severity_head_pooling_type=spatial_aware:severity_head_mode=multi_scale:fault_source=band",
)
WITHOUT_PACKAGE = """
import sys, numpy as np, torch
sys.modules["dinomaly_hd"] = None
with open(sys.argv[1], "rb") as stream:
    program = torch.export.load(stream).module()
score, map = program(torch.from_numpy(np.load(sys.argv[2])))
np.savez(sys.argv[3], score=score.numpy(), map=map.numpy())
"""


def exported(run: TinyRun, output: Path | None, name: str = "", **changes: Any) -> Path:
    settings = {
        "format": "torch",
        "images": 2,
        "data_root": None,
        "say": lambda _: None,
        "tick": lambda: None,
    }
    places: dict[str, Any] = {"result_dir": run.result_dir, "root": run.root}
    return export(name or str(run.folder), output=output, **{**settings, **places, **changes})


def refused(run: TinyRun, error: type[Exception], line: str, **changes: Any) -> None:
    with pytest.raises(error, match=line) as raised:
        exported(run, changes.pop("output", None), **changes)
    assert "\n" not in str(raised.value)
    assert not list(run.result_dir.glob("export/*"))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.filterwarnings("default")  # torch.onnx's own
def test_both_files_of_every_family_score_new_images_as_predict_does(
    model: str, own: Context, tmp_path: Path
) -> None:
    family, *changes = model.split(":")
    small = SMALL[family if family in SMALL else "dinomaly"]
    values = {**small, **dict(change.split("=") for change in changes)}
    run = execute(resolve_model("baseline" if family == "dinomaly" else family, values), own).folder
    places: Any = {"result_dir": own.result_dir, "root": own.root, "say": own.say, "tick": own.guard.check}
    data = own.root / "data" / "simulated_tiny_seed0" / "domain_B" / "test"
    settings: Any = {"domain": None, "output": None, "maps": 0, "gpu": "cpu"}
    table = pd.read_csv(predict(str(run), data, **settings, **places) / "scores.csv")
    maps = np.stack([read_image(data / path) for path in table["path"]])
    for format in FORMATS:
        output = tmp_path / format
        file = export(str(run), format=format, output=output, images=3, data_root=None, **places)
        assert {path.name for path in output.iterdir()} == {file.name, "model.json"}
        score, map_NHW = _load(file)(maps)
        assert map_NHW.shape == maps.shape
        assert np.isnan(map_NHW).any() == ("crop" in values)
        scale = np.abs(table["score"]).max()
        np.testing.assert_allclose(score, table["score"], rtol=0, atol=1e-4 * scale)
        np.testing.assert_allclose(_load(file)(maps[:1])[0], score[:1], rtol=0, atol=1e-4 * scale)
        said = json.loads((output / "model.json").read_text())
        assert said["thresholds"] == read_card(run / "model").thresholds
        assert said["input"]["maps"] == ["N", 31, 95]
        for which, images in (("normals", 3), ("bands", 3)):
            assert said["parity"][which]["images"] == images
            for what in ("score", "map"):
                found = said["parity"][which][what]
                assert found["relative"] == found["largest_difference"] / found["largest"] <= 1e-4


def _load(file: Path) -> Callable[[Any], Any]:
    """Load a file by what others have: no line of this package's."""
    if file.suffix == ".onnx":
        session = InferenceSession(file)
        return lambda maps: session.run(["score", "map"], {"maps": maps})
    with file.open("rb") as stream:
        program = torch.export.load(stream).module()
    return lambda maps: [one.numpy() for one in program(torch.from_numpy(maps))]


def test_a_program_needs_torch_alone_and_holds_no_pickled_objects(tiny_run: TinyRun, tmp_path: Path) -> None:
    file = exported(tiny_run, tmp_path / "out", f"runs:/{tiny_run.run_id}")
    maps = np.random.default_rng(0).random((3, 31, 95), np.float32)
    np.save(tmp_path / "maps.npy", maps)
    words = [str(file), str(tmp_path / "maps.npy"), str(tmp_path / "found.npz")]
    subprocess.run([sys.executable, "-c", WITHOUT_PACKAGE, *words], check=True)
    found = np.load(tmp_path / "found.npz")
    for name, value in zip(("score", "map"), _load(file)(maps), strict=True):
        np.testing.assert_array_equal(found[name], value)
    with zipfile.ZipFile(file) as archive:
        for member in archive.namelist():
            assert not archive.read(member).startswith((b"\x80", b"PK")), member


# ---- what is refused ----


def test_a_file_that_scores_otherwise_is_not_left_behind(
    tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kind, factor = FORMATS["torch"], {"score": 1.0, "map": 1.0}

    def load(path: Path) -> Callable[[Any], Any]:
        run = kind.load(path)
        return lambda maps: [one * factor[name] for name, one in zip(factor, run(maps), strict=True)]

    monkeypatch.setitem(FORMATS, "torch", kind._replace(load=load))
    for name in factor:
        factor[name] = 1 + 2e-4
        line = rf"^{name}s of normals differ by .* 2\.0e-04 of the largest.* more than 0\.0001"
        refused(tiny_run, OutputError, line)
        factor[name] = 1 + 5e-5
    assert exported(tiny_run, tmp_path / "out").is_file()
    factor["map"] = float("nan")
    refused(tiny_run, OutputError, "maps of normals differ by inf")


def test_what_no_file_can_hold_is_one_line(tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no such operator\nand more")

    monkeypatch.setattr(exporting.torch.export, "export", fail)
    refused(tiny_run, OutputError, "^format=torch: cannot hold this model: no such operator$")


def test_what_has_no_graph_lacks_a_package_or_its_data_is_refused_before_it_is_loaded(
    tiny_run: TinyRun, own: Context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Model, "load", lambda _: pytest.fail("the model was loaded"))
    other = str(execute(resolve_model("row_evidence", SMALL["trivial"]), own).folder)
    refused(tiny_run, ConfigError, "^model_type=row_evidence: .*; use predict", name=other)
    (tmp_path / "domain_A").mkdir()
    refused(tiny_run, OutputError, "already there", output=tmp_path)
    monkeypatch.setattr(exporting, "load_manifest", lambda *_, **__: type("Other", (), {"digest": "0"}))
    refused(tiny_run, DataError, "not the images of the model's training")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    refused(tiny_run, ConfigError, r'pip install "dinomaly-hd\[export\]"', format="onnx")


def test_rounded_scores_are_refused(tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dinomaly_hd.config.run.RunConfig.bf16", True)
    refused(tiny_run, ConfigError, "^precision=bf16: .*precision=32")


def test_errors_have_their_exit_codes(
    tiny_run: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (
        "--run",
        str(tiny_run.folder),
        "--format",
        "torch",
        "--images",
        "1",
        "--output",
        str(tmp_path / "a"),
    )
    data = ("--data_root", str(tiny_run.data))
    assert launch(main, [*words, *data]) == 0, capsys.readouterr().err
    assert "scores of bands differ by" in capsys.readouterr().out
    assert launch(main, [*words, *data]) == 74
    assert launch(main, ["--run", "x", "--format", "keras"]) == 64
