"""What `export` promises: a file that scores as the run does, loaded without this package, or no file."""

import json
import shutil
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

# With whatever a graph needs otherwise than the code: scaling by places, crops, near places, odd pools.
MODELS = (
    "aux:aux_score_weight=.5:scaling=position:crop=24",
    "row_mask:row_context=1",
    "patchcore:context=1:position_radius=4:scaling=position",
    "draem:image_score=top_share",
    "draem_sevnet:severity_head_pooling_type=spatial_aware:severity_head_mode=multi_scale:fault_source=band",
)
WITHOUT_PACKAGE = """
import sys, numpy, torch
sys.modules["dinomaly_hd"] = None
program = torch.export.load(sys.argv[1]).module()
score, map = program(torch.from_numpy(numpy.load(sys.argv[2])))
numpy.savez(sys.argv[3], score=score.numpy(), map=map.numpy())
"""


def loaded(file: Path) -> Callable[[Any], Any]:
    """Load a file as those do who have not this package."""
    if file.suffix == ".onnx":
        session = InferenceSession(file)
        return lambda maps: session.run(["score", "map"], {"maps": maps})
    program = torch.export.load(file).module()
    return lambda maps: [one.numpy() for one in program(torch.from_numpy(maps))]


@pytest.mark.parametrize("model", MODELS)
def test_both_files_of_every_family_score_other_images_as_predict_does(
    model: str, own: Context, tmp_path: Path
) -> None:
    name, *changes = model.split(":")
    values = SMALL.get(name, SMALL["dinomaly"]) | dict(change.split("=") for change in changes)
    run = execute(resolve_model(name, values), own).folder
    places: Any = {"result_dir": own.result_dir, "root": own.root, "say": own.say, "tick": own.guard.check}
    data, settings = own.root / "data/simulated_tiny_seed0/domain_B/test", {"domain": "B", "output": None}
    table = pd.read_csv(predict(str(run), data, maps=0, gpu="cpu", **settings, **places) / "scores.csv")
    maps, score_N = np.stack([read_image(data / path) for path in table["path"]]), table["score"].to_numpy()
    near: Any = {"rtol": 0, "atol": 1e-4 * np.abs(score_N).max()}
    for format, kind in FORMATS.items():
        output = tmp_path / format
        file = export(str(run), format=format, output=output, images=2, data_root=None, **places)
        assert (
            {path.name for path in output.iterdir()} == {file.name, "model.json"} == {kind.name, "model.json"}
        )
        found, map_NHW = loaded(file)(maps)
        np.testing.assert_allclose(found, score_N, **near)
        np.testing.assert_allclose(loaded(file)(maps[:1])[0], score_N[:1], **near)
        assert map_NHW.shape == maps.shape
        assert np.isnan(map_NHW).any() == ("crop" in values)
        said = json.loads((output / "model.json").read_text())
        assert said["thresholds"] == read_card(run / "model").thresholds
        assert said["input"]["shape"] == ["N", 31, 95]
        for which in ("normals", "bands"):
            assert said["parity"][which]["images"] == 2
            for one in (said["parity"][which][what] for what in ("score", "map")):
                assert one["relative"] == one["largest_difference"] / one["largest"] <= 1e-4


def words_of(run: TinyRun, output: Path) -> list[str]:
    places = ["--result_dir", str(run.result_dir), "--data_root", str(run.data), "--output", str(output)]
    return ["--run", f"runs:/{run.run_id}", *places, "--format", "torch", "--images", "2"]


@pytest.fixture(scope="module")
def program(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export the tiny run by the command."""
    output = tmp_path_factory.mktemp("program")
    assert launch(main, words_of(tiny_run, output)) == 0
    return output / "model.pt2"


def test_a_program_needs_torch_alone_and_holds_nothing_pickled(program: Path, tmp_path: Path) -> None:
    maps = np.random.default_rng(0).random((3, 31, 95), np.float32)
    np.save(tmp_path / "maps.npy", maps)
    words = [str(program), str(tmp_path / "maps.npy"), str(tmp_path / "found.npz")]
    subprocess.run([sys.executable, "-c", WITHOUT_PACKAGE, *words], check=True)
    found, here = np.load(tmp_path / "found.npz"), loaded(program)(maps)
    assert np.array_equal(found["score"], here[0])
    assert np.array_equal(found["map"], here[1])
    with zipfile.ZipFile(program) as archive:
        members = b"".join(archive.read(member) for member in archive.namelist())
    assert b'"use_pickle": false' in members
    assert b'"use_pickle": true' not in members
    assert b"data.pkl" not in members  # of torch.save


def exported(run: TinyRun, **changes: Any) -> Path:
    usual = {"format": "torch", "images": 2, "data_root": None, "output": None, "name": str(run.folder)}
    places: Any = {"result_dir": run.result_dir, "root": run.root}
    return export(**{**usual, **changes}, say=lambda _: None, tick=lambda: None, **places)


def refused(run: TinyRun, error: type[Exception], line: str, **changes: Any) -> None:
    with pytest.raises(error, match=line) as raised:
        exported(run, **changes)
    assert "\n" not in str(raised.value)
    assert not list(run.result_dir.glob("export/*"))


def test_a_file_that_scores_otherwise_or_cannot_be_written_is_not_left_behind(
    tiny_run: TinyRun, program: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kind, factor, content = FORMATS["torch"], [1.0, 1.0], program.read_bytes()

    def load(path: Path) -> Callable[[Any], Any]:
        run = kind.load(path)
        return lambda maps: [one * by for one, by in zip(run(maps), factor, strict=True)]

    monkeypatch.setitem(FORMATS, "torch", kind._replace(load=load))
    with monkeypatch.context() as patch:
        patch.setattr(exporting, "_written", lambda *_, **__: content)
        for place, name in enumerate(("score", "map")):
            factor[place] = 1 + 2e-4
            line = rf"^{name}s of normals .* 2\.0e-04 of the largest.* more than 0\.0001"
            refused(tiny_run, OutputError, line)
            factor[place] = 1 + 5e-5
        assert exported(tiny_run, output=tmp_path / "out").is_file()
        factor[1] = float("nan")
        refused(tiny_run, OutputError, "maps of normals differ by nan")
    monkeypatch.setattr(exporting.torch.export, "export", lambda *_, **__: [][0])
    refused(tiny_run, OutputError, "^format=torch: cannot hold this model: list index out of range$")


def test_what_no_file_can_hold_or_prove_is_said_before_a_model_is_loaded(
    tiny_run: TinyRun, own: Context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    values = {**SMALL["trivial"], "train_domains": "all"}
    other = str(execute(resolve_model("row_evidence", values), own).folder)
    monkeypatch.setattr(Model, "load", lambda _: pytest.fail("the model was loaded"))
    refused(tiny_run, ConfigError, "^model_type=row_evidence: .*; use predict", name=other)
    (tmp_path / "something").touch()
    refused(tiny_run, OutputError, "already there", output=tmp_path)
    changed = Path(shutil.copytree(tiny_run.data, tmp_path / "data"))
    shutil.copy(changed / "domain_A/train/good/000000.tiff", changed / "domain_A/train/good/000001.tiff")
    refused(tiny_run, DataError, "not the images of the model's training", data_root=changed)
    with monkeypatch.context() as patch:
        patch.setattr("dinomaly_hd.config.run.RunConfig.bf16", True)
        refused(tiny_run, ConfigError, "^precision=bf16: .*precision=32")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    refused(tiny_run, ConfigError, r'pip install "dinomaly-hd\[export\]"', format="onnx")


def test_errors_have_their_exit_codes(tiny_run: TinyRun, program: Path) -> None:
    words = words_of(tiny_run, program.parent)
    assert (launch(main, words), launch(main, [*words, "--format", "keras"])) == (74, 64)
