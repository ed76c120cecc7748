"""A wrong flag, weights file or output folder ends in one clear line and the right exit code.

Broken data folders are drill 9, damaged and mixed images 6 to 8, mistyped names 16.
"""

import errno
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch

from dinomaly_hd.experiments import prepare
from dinomaly_hd.runs.folder import read_state
from entry_points.common import launch
from tests.files import add_domain

from .conftest import SETTINGS, TinyRun

ROOT = Path(__file__).resolve().parents[2]
TINY = {**SETTINGS, "maps_per_group": "0", "domains": "A"}
VIT = "encoder=dinov2reg_vit_small_14 encoder_weights=random"
CONDITIONS = [
    {"name": "first", "config": {"model_type": "draem", "source_domain": "domain_A"}},
    {"name": "second", "config": {"model_type": "trivial", "source_domain": "domain_A"}},
    {
        "name": "transfer",
        "config": {"model_type": "trivial", "source_domain": "domain_B", "target_domains": ["domain_C"]},
    },
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Maps of one domain."""
    root = tmp_path_factory.mktemp("data")
    add_domain(root, "domain_A")
    return root


def arguments(values: dict[str, str]) -> list[str]:
    return [f"--{name}={value}" for name, value in values.items()]


class Refusal:
    """Starts an entry point that must fail before a model exists and leave nothing behind."""

    def __init__(self, capsys: pytest.CaptureFixture[str], root: Path) -> None:
        self.capsys, self.root = capsys, root

    def __call__(self, code: int, *, entry_point: str = "horizontal", **flags: str) -> str:
        module: Any = importlib.import_module(f"entry_points.{entry_point}")
        own = {"result_dir": str(self.root / "results"), "storage": f"sqlite:///{self.root}/optuna.db"}
        usual = TINY if entry_point == "horizontal" else {"preset": "quick", "gpu": "cpu"}
        known = module.COMMAND.parameters()
        values = {name: value for name, value in {**usual, **own}.items() if name in known} | flags
        before = set(self.root.glob("results/**"))
        assert launch(module.main, arguments(values)) == code
        lines = self.capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1, lines
        assert len(lines[0]) < 2000
        assert set(self.root.glob("results/**")) == before
        return lines[0]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Refusal:
    def no_model(*_: object, **__: object) -> None:
        raise AssertionError("a model was built")

    monkeypatch.setattr(prepare, "build_detector", no_model)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    return Refusal(capsys, tmp_path)


OF_FILE = "conditions_file=FILE"
REFUSED = [
    ("horizontal", "preset=qick", "preset='qick': unknown. Did you mean 'quick'?"),
    ("horizontal", "seg_len=9", "seg_len=9: the token grid is only 8 wide; use 1..8"),
    ("horizontal", f"{VIT} image_size=56 class_token=keep", "class_token=keep: horizontal reads the token"),
    ("horizontal", "encoder=dinov2reg_vit_bas_14", "Did you mean 'dinov2reg_vit_base_14'?"),
    ("horizontal", "encoder=vit_small_patch14_reg4_dinov2.bogus", "Leave out what follows the dot"),
    ("horizontal", "encoder=levit_128 image_size=224", "encoder=levit_128: has stages of strides"),
    ("horizontal", "encoder=test_vit", "the encoder has 6 blocks; Dinomaly takes the outputs of eight"),
    ("horizontal", "image_size=60", "60x60 pixels: efficientnet_lite0 needs multiples of 8"),
    ("horizontal", f"{VIT} image_size=64", "dinov2reg_vit_small_14 needs multiples of 14x14; choose"),
    ("horizontal", "crop=72", "crop=72 is larger than image_size=64"),
    ("horizontal", "gpu=7", "gpu=7: this machine has"),
    ("horizontal", "q_percent=2", "q_percent does not apply to horizontal as it is set, only to topk, horiz"),
    ("horizontal", "resume=20200101_seed1", "run '20200101_seed1': no run folder and no MLflow run id of"),
    ("horizontal", "synthetic_copies=3 val_split_ratio=0", "synthetic_copies=3 needs held-out normals"),
    ("topk", "row_p=.2", "only to horizontal, horizontal_topk, decoder_dropout, row_masking;"),
    ("baseline", "mode=compar", "Did you mean 'compare'"),
    ("baseline", "mode=compare domains=A,B train_domains=A", "train_domains=A: mode=compare"),
    ("single_domain", "model_type=dream", "model_type 'dream': unknown.*draem"),
    ("single_domain", "model_type=draem,draem", "model_type='draem,draem'.*each once"),
    ("single_domain", "source_domain=,", "source_domain=','.*one or more"),
    ("single_domain", "model_type=draem:fault_sauce=band", "'fault_sauce' is unknown.*fault_source"),
    ("single_domain", "condition=first", "condition=first: give the conditions_file"),
    ("single_domain", f"{OF_FILE} condition=frist", "condition='frist': not in .*first"),
    ("single_domain", "conditions_file=none.json", "none.json: cannot be read"),
    ("single_domain", f"{OF_FILE} model_type=draem", "model_type and conditions_file: the condition says it"),
    ("single_domain", f"{OF_FILE} condition=transfer", "no target_domains; for others there is multi_domain"),
    ("single_domain", f"{OF_FILE} condition=second width=1", "width does not apply to trivial"),
    ("single_domain", "model_type=patchcore learning_rate=.1", "learning_rate does not apply to pat.*draem"),
    ("single_domain", "model_type=draem patch_count=2", "patch_count does not apply.*fault_source=patch"),
    ("single_domain", "model_type=draem val_split_ratio=0", "patience needs held-out normals.*give val_spl"),
    ("single_domain", "target_domains=B", "unknown flag --target_domains"),
    ("multi_domain", "source_domain=E", "'E' is not one of domains=A\\. Known: A"),
    ("multi_domain", "domains=A,B target_domains=A,B", "target_domains='A,B'.*other domains than A"),
    ("multi_domain", "domains=A", "expected one or more other domains than A"),
    ("multi_domain", f"{OF_FILE} source_domain=B", "source_domain and conditions_file"),
    ("multi_domain", f"{OF_FILE} condition=first", "target_domains; for others there is single_domain"),
    ("ablation", "slots=0", "slots='0': input should be greater than or equal to 1, or auto"),
    ("ablation", "configs=A0,F:seg_len=99 image_size=32", "F:seg_len=99: seg_len=99: the token grid is on"),
    ("encoders", "encoders=small,dinov2reg_vit_small_14", "each once"),
    ("steps", "steps=0,10", "0 is no training"),
    ("finetune", "finetune_steps=0", "finetune_steps='0'"),
    ("suite", "", "--conditions_file is needed"),
    ("suite", f"{OF_FILE} condition=secnod", "condition='secnod': not in .*json. Did you mean 'second'"),
    ("suite", f"{OF_FILE} condition=first,first", "condition='first,first': expected one or more, each once"),
    ("suite", f"{OF_FILE} engine=dask", "engine='dask': unknown."),
    ("suite", f"{OF_FILE} source_domain=A", "source_domain: suite has no such flag; give a condition of the"),
    ("tune", "workers=0", "workers=0: expected 1 or more"),
    ("tune", "metrics=domain_C/tpr", "unknown 'tpr'. Known: auroc, tpr_at_fpr_1"),
    ("tune", "domains=A metrics=domain_X/auroc", "auroc: there is no 'domain_X'; known: domain_A"),
    ("tune", "metrics=a/auroc,b/auroc,c/auroc", "expected one or two figures"),
    ("tune", "objective=tests", "objective='tests': unknown. Did you mean 'test'"),
    ("tune", "sampler=tpf", "sampler='tpf': unknown. Did you mean 'tpe'"),
    ("tune", "synthetic_copies=0", "synthetic_copies=0 leaves objective=synthetic without faults"),
    ("tune", "resume=never", "resume: tune has no such flag; give study"),
]


@pytest.mark.parametrize(("entry_point", "flags", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_wrong_flags_end_with_64_and_the_way_out(
    refused: Refusal, data: Path, tmp_path: Path, entry_point: str, flags: str, message: str
) -> None:
    file = tmp_path / "conditions.json"
    file.write_text(json.dumps({"experiment_conditions": CONDITIONS}))
    words = flags.replace("FILE", str(file)).split()
    line = refused(
        64, entry_point=entry_point, data_root=str(data), **dict(word.split("=", 1) for word in words)
    )
    assert line.startswith("ConfigError: ")
    assert re.search(message, line), line


def test_other_causes_have_other_exit_codes(refused: Refusal, data: Path, tmp_path: Path) -> None:
    asked = {"model_type": "trivial", "source_domain": "E"}
    line = refused(65, entry_point="single_domain", data_root=str(data), **asked)
    assert "unknown domain 'E'. Known: domain_A" in line
    line = refused(65, entry_point="row_evidence", data_root=str(data), domains="A")
    assert "row_evidence: 3 training maps; it needs at least 10 beside those that a run holds out" in line
    storage = "postgresql://me:secret@127.0.0.1:9/db"
    asked = {"data_root": str(data), "domains": "A", "metrics": "mean/auroc", "storage": storage}
    line = refused(75, entry_point="tune", **asked)
    assert "storage postgresql://me:***@127.0.0.1:9/db: " in line
    garbage, other = tmp_path / "g.safetensors", tmp_path / "o.pth"
    garbage.write_bytes(b"no weights at all")
    torch.save({"conv.weight": torch.zeros(3, 3)}, other)
    for path, reason in (
        (tmp_path / "none.pth", "no such file; give a .safetensors or .pth file"),
        (garbage, "cannot be read as weights"),
        (other, "these are not the weights of efficientnet_lite0"),
    ):
        line = refused(75, data_root=str(data), encoder_weights=str(path))
        assert line.startswith("EncoderError: ")
        assert str(path) in line
        assert reason in line


def test_unreachable_weights_come_before_data(
    refused: Refusal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked: list[object] = []

    def unreachable(*about: object, **_: object) -> None:
        asked.append(about)
        raise ConnectionError("no network in tests")

    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", unreachable)
    vit = {"encoder": "dinov2reg_vit_small_14", "encoder_weights": "auto", "image_size": "56"}
    line = refused(75, **vit, data_root=str(tmp_path / "nowhere"))
    assert len(asked) == 1, "one attempt, whose time-out the hub's client keeps"
    assert line.startswith("EncoderError: encoder=dinov2reg_vit_small_14")
    assert "encoder_weights=PATH" in line
    assert "encoder=efficientnet_lite0" in line


@pytest.fixture
def finished(tiny_run: TinyRun, tmp_path: Path) -> Path:
    """A copy of the shared run that a test may spoil."""
    copy = tmp_path / "results" / "horizontal" / tiny_run.folder.name
    shutil.copytree(tiny_run.folder, copy)
    return copy


def resumed(run: TinyRun, folder: Path, **changes: str) -> dict[str, str]:
    settings = {"domains": "A,B,C,D", "data_root": str(run.data), "resume": str(folder)}
    return {**SETTINGS, **settings, **changes}


def test_a_run_of_another_configuration_or_data_is_refused_by_key_and_stays_as_it_is(
    refused: Refusal, tiny_run: TinyRun, finished: Path, tmp_path: Path
) -> None:
    before = read_state(finished)
    line = refused(65, **resumed(tiny_run, finished, seed="43", row_p="0.3"))
    differing = "row_p 0.2 -> 0.3; seed 42 -> 43"
    assert line == f"CheckpointError: the checkpoint belongs to another run; what differs: {differing}"

    other = tmp_path / "other"
    shutil.copytree(tiny_run.data, other)
    file = next((other / "domain_B" / "train" / "good").iterdir())
    tifffile.imwrite(file, tifffile.imread(file) + np.float32(0.01))
    line = refused(65, **resumed(tiny_run, finished, data_root=str(other)))
    assert line.endswith("what differs: the data set's files")

    for path in (finished / "checkpoints").iterdir():
        path.write_bytes(b"spoilt")
    assert "holds no readable checkpoint" in refused(65, **resumed(tiny_run, finished, seed="43"))
    shutil.rmtree(finished / "checkpoints")
    assert "another configuration or data" in refused(64, **resumed(tiny_run, finished, seed="43"))
    assert read_state(finished) == before


def test_an_output_folder_that_cannot_be(
    refused: Refusal, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    line = refused(74, data_root=str(data), result_dir=str(tmp_path / "file" / "below"))
    assert line.startswith(f"OutputError: cannot write {tmp_path}/file/below/horizontal")
    assert "choose another folder" in line
    assert (tmp_path / "file").read_text() == "in the way"

    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", read_only)
    assert "Read-only file system" in refused(74, data_root=str(data))


def test_a_bug_is_70_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    assert launch(broken, []) == 70
    error = capsys.readouterr().err
    assert "ZeroDivisionError: a bug" in error
    assert error.strip().endswith("please report it with the lines above")


def test_the_process_itself_ends_with_the_code() -> None:
    command = [sys.executable, "-m", "entry_points.topk", "--preset", "quick", "--q-percent", "0"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 64
    assert ended.stderr.startswith("ConfigError: q_percent='0': ")
    assert len(ended.stderr.splitlines()) == 1
