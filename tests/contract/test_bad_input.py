"""A wrong flag, weights file, data folder or output folder ends in one clear line and the right exit code."""

import errno
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch

from dinomaly_hd.experiments import prepare
from dinomaly_hd.runs.folder import read_state
from dinomaly_hd.runs.tracker import Tracker
from entry_points import common, horizontal, topk
from entry_points.common import launch
from tests.work import returned

from .conftest import SETTINGS, TinyRun

TINY = {**SETTINGS, "maps_per_group": "0"}
VIT = {"encoder": "dinov2reg_vit_small_14", "encoder_weights": "random", "image_size": "56"}


def write_domain(root: Path, name: str, *, count: int = 2) -> None:
    generator = np.random.default_rng(len(name))
    for place in ("train/good", "test/good", "test/fault"):
        folder = root / name / place
        folder.mkdir(parents=True)
        for number in range(count):
            tifffile.imwrite(folder / f"{number:06d}.tiff", generator.random((31, 95), dtype=np.float32))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_domain(tmp_path / "maps", "domain_A")
    return tmp_path / "maps"


class Refusal:
    """Runs an entry point that must fail before a model exists and leave nothing behind."""

    def __init__(self, capsys: pytest.CaptureFixture[str], results: Path) -> None:
        self.capsys, self.results = capsys, results

    def __call__(self, code: int, *, main: Any = horizontal.main, **flags: str) -> str:
        values = {**TINY, "domains": "A", "result_dir": str(self.results), **flags}
        before = set(self.results.rglob("*")) if self.results.is_dir() else set()
        assert launch(main, arguments(values)) == code
        lines = self.capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1, lines
        after = set(self.results.rglob("*")) if self.results.is_dir() else set()
        assert after == before
        return lines[0]


def arguments(values: dict[str, str]) -> list[str]:
    return [word for name, value in values.items() for word in (f"--{name}", value)]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Refusal:
    def no_model(*_: object, **__: object) -> None:
        raise AssertionError("a model was built")

    monkeypatch.setattr(prepare, "build_detector", no_model)
    return Refusal(capsys, tmp_path / "results")


FLAGS: list[tuple[dict[str, str], str]] = [
    ({"row_pp": ".2"}, "unknown flag --row_pp. Did you mean 'row_p'?"),
    ({"conditions": "half"}, "conditions='half': input should be 'auto', 'halves' or 'none'"),
    ({"preset": "qick"}, "preset='qick': unknown. Did you mean 'quick'?"),
    ({"row_p": "1.5"}, "row_p='1.5': input should be less than or equal to 1"),
    ({"row_p": "abc"}, "row_p='abc': input should be a valid number"),
    ({"row_p": "nan"}, "row_p='nan': input should be a finite number"),
    ({"seg_len": "9"}, "seg_len=9: the token grid is only 8 wide; use 1..8"),
    ({**VIT, "class_token": "keep"}, "class_token=keep: horizontal reads the token grid and needs"),
    ({"encoder": "dinov2reg_vit_bas_14"}, "Did you mean 'dinov2reg_vit_base_14'?"),
    ({"encoder": "vit_small_patch14_reg4_dinov2.bogus"}, "Leave out what follows the dot"),
    ({"encoder": "levit_128", "image_size": "224"}, "encoder=levit_128: has stages of strides"),
    ({"encoder": "test_vit"}, "the encoder has 6 blocks; Dinomaly takes the outputs of eight"),
    ({"image_size": "60"}, "60x60 pixels: efficientnet_lite0 needs multiples of 8"),
    ({**VIT, "image_size": "64"}, "64x64 pixels: dinov2reg_vit_small_14 needs multiples of 14x14"),
    ({"crop": "72"}, "crop=72 is larger than image_size=64"),
    ({"gpu": "7"}, "gpu=7: this machine has"),
    (
        {"q_percent": "2"},
        "q_percent does not apply to horizontal as it is set, only to topk, horizontal_topk",
    ),
    ({"use_topk": "maybe"}, "use_topk='maybe': expected true or false"),
]


@pytest.mark.parametrize(("flags", "message"), FLAGS, ids=lambda value: str(value)[:40])
def test_wrong_flags_end_with_64_and_the_way_out(
    refused: Refusal, data: Path, flags: dict[str, str], message: str
) -> None:
    line = refused(64, data_root=str(data), **flags)
    assert line.startswith("ConfigError: ")
    assert message in line
    assert len(line) < 2000


def test_a_flag_of_another_variant_names_the_variants_that_take_it(refused: Refusal, data: Path) -> None:
    line = refused(64, main=topk.main, data_root=str(data), row_p=".2")
    assert (
        "row_p does not apply to topk as it is set, only to horizontal, horizontal_topk, decoder_dropout, "
        "row_masking;" in line
    )


def spoil(file: str) -> Callable[[Callable[[Path], object]], Callable[[Path], None]]:
    return lambda change: lambda root: (change(root / "domain_A" / file), None)[1]


def _nan(path: Path) -> None:
    image = tifffile.imread(path)
    image[3, 7] = np.nan
    tifffile.imwrite(path, image)


FILE = "test/good/000001.tiff"
DATA: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "missing root": (shutil.rmtree, ("data_root=", "no such folder", "or simulated")),
    "root is a file": (
        lambda root: (shutil.rmtree(root), root.write_text("x")),
        ("data_root=", "not a folder", "or simulated"),
    ),
    "empty domain": (
        spoil("test/fault")(lambda path: [file.unlink() for file in path.iterdir()]),
        ("domain_A/test/fault: holds no images",),
    ),
    "unknown domain": (
        lambda root: (root / "domain_A").rename(root / "domain_AB"),
        ("unknown domain 'A'", "domain_AB"),
    ),
    "truncated": (
        spoil(FILE)(lambda path: path.write_bytes(path.read_bytes()[:-40])),
        (FILE, "cut short"),
    ),
    "nan": (spoil(FILE)(_nan), (FILE, "1 of 2945 values are NaN or infinite, the first at row 3, column 7")),
    "mixed shapes": (
        spoil(FILE)(lambda path: tifffile.imwrite(path, np.zeros((32, 95), np.float32))),
        ("mixed shapes: 31 x 95 (5 of 6 files", f"32 x 95 (1 of 6 files, first domain_A/{FILE})"),
    ),
    "three pages": (
        spoil(FILE)(
            lambda path: tifffile.imwrite(path, np.zeros((3, 31, 95), np.float32), photometric="minisblack")
        ),
        (FILE, "3 pages, expected 1"),
    ),
}


@pytest.mark.parametrize("case", DATA)
def test_bad_data_end_with_65_and_name_the_place(refused: Refusal, data: Path, case: str) -> None:
    change, parts = DATA[case]
    change(data)
    line = refused(65, data_root=str(data))
    assert line.startswith(("LayoutError: ", "ImageError: "))
    assert all(part in line for part in parts), line


def test_unreachable_weights_come_before_missing_data_and_fast(
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
    line = refused(75, **VIT | {"encoder_weights": "auto"}, data_root=str(tmp_path / "nowhere"))
    assert len(asked) == 1, "one attempt, whose time-out the hub's client keeps"
    assert line.startswith("EncoderError: encoder=dinov2reg_vit_small_14")
    assert "encoder_weights=PATH" in line
    assert "encoder=efficientnet_lite0" in line


class Payload:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def test_weights_files_that_are_none_or_others_are_refused(
    refused: Refusal, data: Path, tmp_path: Path
) -> None:
    garbage, other, poisoned = (tmp_path / name for name in ("g.safetensors", "o.pth", "p.pth"))
    garbage.write_bytes(b"no weights at all")
    torch.save({"conv.weight": torch.zeros(3, 3)}, other)
    poisoned.write_bytes(pickle.dumps(Payload(tmp_path / "owned")))
    for path, reason in (
        (tmp_path / "none.pth", "no such file; give a .safetensors or .pth file"),
        (garbage, "cannot be read as weights"),
        (other, "these are not the weights of efficientnet_lite0"),
        (poisoned, "cannot be read as weights"),
    ):
        line = refused(75, data_root=str(data), encoder_weights=str(path))
        assert line.startswith("EncoderError: ")
        assert str(path) in line
        assert reason in line
    assert not (tmp_path / "owned").exists()


@pytest.fixture
def finished(tiny_run: TinyRun, tmp_path: Path) -> Path:
    """A copy of the shared run that a test may spoil."""
    copy = tmp_path / "results" / "horizontal" / tiny_run.folder.name
    shutil.copytree(tiny_run.folder, copy)
    return copy


def resumed(run: TinyRun, folder: Path, **changes: str) -> dict[str, str]:
    settings = {"domains": "A,B,C,D", "data_root": str(run.data), "resume": str(folder)}
    return {**SETTINGS, **settings, **changes}


def test_a_run_of_another_configuration_is_refused_by_key_and_stays_as_it_is(
    refused: Refusal, tiny_run: TinyRun, finished: Path
) -> None:
    before = read_state(finished)
    line = refused(65, **resumed(tiny_run, finished, seed="43", row_p="0.3"))
    differing = "row_p 0.2 -> 0.3; seed 42 -> 43"
    assert line == f"CheckpointError: the checkpoint belongs to another run; what differs: {differing}"
    assert read_state(finished) == before


def test_a_run_of_other_data_is_refused(
    refused: Refusal, tiny_run: TinyRun, finished: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "other"
    shutil.copytree(tiny_run.data, copy)
    file = next((copy / "domain_B" / "train" / "good").iterdir())
    tifffile.imwrite(file, tifffile.imread(file) + np.float32(0.01))
    line = refused(65, **resumed(tiny_run, finished, data_root=str(copy)))
    assert line.endswith("what differs: the data set's files")


def test_a_run_without_readable_checkpoint_is_not_taken_over(
    refused: Refusal, tiny_run: TinyRun, finished: Path
) -> None:
    before = read_state(finished)
    for path in (finished / "checkpoints").iterdir():
        path.write_bytes(b"spoilt")
    assert "holds no readable checkpoint" in refused(65, **resumed(tiny_run, finished, seed="43"))
    shutil.rmtree(finished / "checkpoints")
    assert "another configuration or data" in refused(64, **resumed(tiny_run, finished, seed="43"))
    assert read_state(finished) == before


def test_an_unknown_run_to_resume_is_refused(refused: Refusal, data: Path) -> None:
    line = refused(64, data_root=str(data), resume="20200101_000000_seed1")
    assert "run '20200101_000000_seed1': no run folder and no MLflow run id of the 0 runs" in line


def test_an_output_folder_that_cannot_be_is_74(refused: Refusal, data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    line = refused(74, data_root=str(data), result_dir=str(tmp_path / "file" / "below"))
    assert line.startswith(f"OutputError: cannot write {tmp_path}/file/below/horizontal")
    assert "choose another folder" in line
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_read_only_output_folder_is_74(
    refused: Refusal, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


@pytest.mark.parametrize(
    ("module", "flags", "code", "message"),
    [
        ("horizontal", ["--row-pp", ".2"], 64, "ConfigError: unknown flag --row_pp. Did you mean 'row_p'?\n"),
        ("topk", ["--preset", "quick", "--q-percent", "0"], 64, "ConfigError: q_percent='0': "),
        ("horizontal", ["stray"], 64, "ConfigError: unexpected word 'stray'; write --name value\n"),
        ("topk", ["--help"], 0, ""),
    ],
)
def test_the_process_itself_ends_with_the_code(
    module: str, flags: list[str], code: int, message: str
) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", f"entry_points.{module}", *flags],
        cwd=common.ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert ended.returncode == code
    assert ended.stderr.startswith(message)
    assert len(ended.stderr.splitlines()) == (1 if code else 0)


def test_a_damaged_newest_checkpoint_falls_back_and_a_dead_server_is_not_waited_for(
    tiny_run: TinyRun,
    finished: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoints = finished / "checkpoints"
    (newest,) = checkpoints.glob("step_*.pt")
    shutil.copy(newest, checkpoints / "step_00000009.pt")
    (checkpoints / "step_00000009.pt").write_bytes(newest.read_bytes()[:1000])
    (finished / "tracking.jsonl").unlink()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    waited: list[str] = []

    def for_ever(name: str) -> Callable[..., Any]:
        method = getattr(Tracker, name)

        def call(*values: Any, **_: float) -> Any:
            waited.append(name)
            return returned(lambda: method(*values, timeout_s=1e5))

        return call

    for name in ("start", "close"):
        monkeypatch.setattr(Tracker, name, for_ever(name))
    assert launch(horizontal.main, arguments(resumed(tiny_run, finished))) == 0
    assert waited == ["start", "close"]
    said = capsys.readouterr()
    assert "step_00000009.pt" in said.out
    assert "using the one before" in said.out
    assert "going on at step 2" in said.out
    warnings = [record.message for record in caplog.records if "the run goes on" in record.message]
    assert len(warnings) == 1
    assert "this is a bug" not in said.err
