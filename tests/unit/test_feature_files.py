"""Encoder outputs in files: exact, verified, bounded, made by one of several processes."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

from dinomaly_hd.data import feature_files, features
from dinomaly_hd.data.feature_files import GIB, IN_USE_S, OWN_FOLDER, FeatureFiles, FeaturePlace
from dinomaly_hd.data.features import FeatureCache
from dinomaly_hd.errors import Interrupted

ENCODED = torch.arange(24.0).reshape(2, 3, 4)
NAMES = ["aa01", "ab02", "ab03"]
BATCH = torch.randn(3, 2, 4)
BIG = torch.zeros(1000)
ONE, OTHER, THIRD = "1" * 64, "2" * 64, "3" * 64


@pytest.fixture(autouse=True)
def roomy_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """However full the disk is that the tests run on."""
    disk(monkeypatch, total=1000 * GIB, free=500 * GIB)


def disk(monkeypatch: pytest.MonkeyPatch, *, total: int, free: int) -> None:
    usage = shutil.disk_usage("/")._replace(total=total, used=total - free, free=free)
    monkeypatch.setattr(feature_files.shutil, "disk_usage", lambda _: usage)


def files(folder: Path, key: str = ONE, *, gb: float | None = 1) -> FeatureFiles:
    return FeatureFiles(FeaturePlace(folder, gb), key)


def put(own: FeatureFiles, name: str, encoded: Tensor = ENCODED) -> None:
    own.put(name, {"encoded": encoded})


def got(own: FeatureFiles, name: str) -> Any:
    return (own.get(name) or {}).get("encoded")


def fill(own: FeatureFiles, count: int) -> None:
    for number in range(count):
        put(own, f"{number:04d}", BIG)


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("**/*") if path.is_file())


def written(folder: Path) -> list[Path]:
    return sorted(folder.glob("**/*.features"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_put_comes_back_bit_for_bit_in_any_process(tmp_path: Path, dtype: torch.dtype) -> None:
    encoded = torch.randn(2, 5, 7).to(dtype)
    put(files(tmp_path), "a1", encoded)
    torch.testing.assert_close(got(files(tmp_path), "a1"), encoded, rtol=0, atol=0)
    assert files(tmp_path, OTHER).get("a1") is None
    assert files(tmp_path).get("a2") is None


def flip(content: bytes, position: int) -> bytes:
    position %= len(content)
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "half": lambda content: content[: len(content) // 2],
    "longer": lambda content: content + b"x",
    "one bit of the values": lambda content: flip(content, -9),
    "one bit of the length": lambda content: flip(content, 0),
    "one bit of the check": lambda content: flip(content, -1),
    "zeros": lambda content: bytes(len(content)),
    "another type": lambda content: content.replace(b"F32", b"I32"),
    "another name": lambda content: content.replace(b"encoded", b"encodes"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_counts_as_missing_and_is_replaced(tmp_path: Path, name: str) -> None:
    own = files(tmp_path)
    put(own, "a1")
    assert got(own, "a1") is not None
    (path,) = written(tmp_path)
    content = DAMAGES[name](path.read_bytes())
    assert content != path.read_bytes()
    path.write_bytes(content)
    assert own.get("a1") is None, "also after a good reading"
    assert not path.exists()
    put(own, "a1")
    assert torch.equal(got(files(tmp_path), "a1"), ENCODED)


@pytest.mark.parametrize("fault", ["taken away", "read-only"])
def test_nothing_ends_a_run_whose_place_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    own = files(tmp_path)
    put(own, "a1")
    if fault == "taken away":
        shutil.rmtree(tmp_path / OWN_FOLDER)
        assert own.get("a1") is None
        own.has_room(ENCODED[None], count=1)
    else:
        monkeypatch.setattr(Path, "mkdir", Mock(side_effect=PermissionError(13, "read-only")))
        own = files(tmp_path)
        assert not own.has_room(ENCODED[None], count=1)
    put(own, "a2")
    with own.writing(["a2"], tick=lambda: None):
        assert len(written(tmp_path)) == 1


def test_a_budget_is_never_broken_but_for_encoders_that_were_not_used_for_an_hour(tmp_path: Path) -> None:
    gb = 20_000 / GIB
    own, other, third = (files(tmp_path, key, gb=gb) for key in (ONE, OTHER, THIRD))
    assert own.has_room(BIG[None], count=4)
    assert not own.has_room(BIG[None], count=5)
    fill(own, 10)
    assert len(written(tmp_path)) == 4
    assert size_of(tmp_path) <= 20_000
    assert not other.has_room(BIG[None], count=1), "the first encoder was used just now"
    shutil.rmtree(tmp_path / OWN_FOLDER)
    for hours, key in ((3, ONE), (2, OTHER)):
        fill(files(tmp_path, key, gb=gb), 2)
        os.utime(tmp_path / OWN_FOLDER / key / "used", (time.time() - hours * IN_USE_S,) * 2)
    assert third.has_room(BIG[None], count=2)
    assert not (tmp_path / OWN_FOLDER / ONE).exists()
    fill(third, 2)
    assert [len(written(tmp_path / OWN_FOLDER / key)) for key in (OTHER, THIRD)] == [2, 2]


def test_processes_that_write_together_look_at_what_the_others_have_written(tmp_path: Path) -> None:
    budget = 400_000
    several = [files(tmp_path, str(number) * 64, gb=budget / GIB) for number in range(4)]
    for number in range(100):
        for own in several:
            put(own, f"{number:04d}", BIG)
    assert 0.9 * budget < size_of(tmp_path) < (1 + len(several) * feature_files.RECOUNT_SHARE) * budget


def test_what_is_not_the_caches_is_neither_counted_nor_removed(tmp_path: Path) -> None:
    theirs = [tmp_path / "precious" / "file", tmp_path / OWN_FOLDER / "notes", tmp_path / ".writing-mine"]
    for path in theirs:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(50_000))
        os.utime(path, (0, 0))
    (tmp_path / OWN_FOLDER / ("f" * 64)).symlink_to(tmp_path / "precious")
    own = files(tmp_path, gb=20_000 / GIB)
    assert own.has_room(BIG[None], count=3)
    assert not own.has_room(BIG[None], count=9)
    fill(own, 9)
    assert all(path.stat().st_size == 50_000 for path in theirs)


@pytest.mark.parametrize(
    ("total", "free", "gb", "fits"),
    [(1_000_000, 102_000, None, 200), (250 * GIB, 10 * GIB + 102_000, 100, 20_000)],
    ids=["a tenth of the disk", "ten GiB of a large one"],
)
def test_a_part_of_the_disk_is_left_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, total: int, free: int, gb: float | None, fits: int
) -> None:
    disk(monkeypatch, total=total, free=free)
    own = files(tmp_path, gb=gb)
    assert own.has_room(torch.zeros(1, fits), count=1)
    assert not own.has_room(torch.zeros(1, fits + 10_000), count=1)
    put(own, "a1", torch.zeros(fits + 10_000))
    assert not written(tmp_path)


def test_what_killed_writers_left_is_removed_later(tmp_path: Path) -> None:
    put(files(tmp_path), "a1")
    left, fresh = (written(tmp_path)[0].with_name(f".writing-{name}") for name in ("old", "new"))
    for path in (left, fresh):
        path.write_bytes(b"half")
    os.utime(left, (time.time() - 2 * IN_USE_S,) * 2)
    files(tmp_path).has_room(ENCODED[None], count=1)
    assert not left.exists()
    assert fresh.exists(), "it may be at work"


def test_a_signal_is_heard_while_another_process_encodes(tmp_path: Path) -> None:
    tick = Mock(side_effect=Interrupted(15))
    with files(tmp_path).writing(["a1"], tick=lambda: None), pytest.raises(Interrupted):
        files(tmp_path).writing(["a1"], tick=tick).__enter__()


def cache(folder: Path | None, *, key: str = "key", gb: float = 1) -> FeatureCache:
    own = FeatureCache()
    own.use(key, place=None if folder is None else FeaturePlace(folder, gb))
    return own


@pytest.fixture
def make() -> Mock:
    """What encodes, and counts how often."""
    return Mock(return_value=BATCH)


def test_files_are_read_by_the_next_cache_and_kept_in_memory_there(tmp_path: Path, make: Mock) -> None:
    cache(tmp_path).encode(NAMES, make)
    again: Any = cache(tmp_path)
    assert torch.equal(again.encode(NAMES, make), BATCH)
    assert make.call_count == 1
    written(tmp_path)[1].write_bytes(b"torn")
    assert torch.equal(cache(tmp_path).encode(NAMES, make), BATCH), "one is damaged: the batch is made anew"
    assert make.call_count == 2
    assert cache(tmp_path).get(NAMES) is not None
    shutil.rmtree(tmp_path)
    assert again.in_memory(NAMES)
    assert torch.equal(again.get(NAMES[1:]), BATCH[1:])
    assert cache(tmp_path, key="another").get(NAMES) is None


def test_without_files_memory_is_all_there_is(make: Mock) -> None:
    own = cache(None)
    for _ in range(2):
        own.encode(NAMES, make)
    assert make.call_count == 1
    assert own.has_room(ENCODED[None], ["b1"])
    assert not own.has_room(ENCODED[None], ["b1"], where="files")
    own.use("another encoder")
    assert own.get(NAMES) is None


def test_what_is_kept_already_needs_no_room(tmp_path: Path) -> None:
    gb = 16_000 / GIB
    names = [f"{number:04d}" for number in range(3)]
    cache(tmp_path, gb=gb).add(names, torch.zeros(3, 1000))
    written(tmp_path)[0].unlink()
    again = cache(tmp_path, gb=gb)
    assert again.has_room(BIG[None], names, where="files")
    assert not again.has_room(BIG[None], [*names, "0003", "0004"], where="files")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_keeps_its_own_outputs_until_it_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda", 0)
    one, names = BATCH[0].nelement() * 4, [*NAMES, "more"]
    monkeypatch.setattr(features, "_rooms", lambda _: {gpu: 3.5 * one, features.CPU: 1e9})
    own: Any = FeatureCache()
    own.use("key", device=gpu)
    own.add(NAMES, BATCH.to(gpu))
    own.add(["more"], BATCH[:1].to(gpu))
    assert [own._kept[name].device.type for name in names] == ["cuda"] * 3 + ["cpu"]
    assert own.get(names).device == gpu
    assert torch.equal(own.get(names).cpu(), torch.cat([BATCH, BATCH[:1]]))


def test_files_only_keeps_nothing_in_memory(tmp_path: Path, make: Mock) -> None:
    own = cache(tmp_path).files_only()
    own.encode(NAMES, make)
    assert own.get(NAMES) is not None
    shutil.rmtree(tmp_path)
    assert own.get(NAMES) is None
    assert not cache(None).files_only().has_room(ENCODED[None], ["a1"])


def test_statistics_are_taken_once_for_all_processes_and_must_fit(tmp_path: Path) -> None:
    taken = {"encoder.mean": torch.tensor([0.1, 0.2]), "encoder.std": torch.tensor([1 / 3])}
    take, here = Mock(return_value=taken), FeaturePlace(tmp_path, 1)
    for source, like, place, calls in (
        ("source", taken, here, 1),
        ("source", taken, here, 1),
        ("another source", taken, here, 2),
        ("source", taken, None, 3),
        ("source", {**taken, "encoder.std": torch.zeros(2)}, here, 4),
        ("source", {"encoder.mean": taken["encoder.mean"]}, here, 5),
    ):
        found = FeatureCache().statistics(source, take, like=like, place=place)
        assert take.call_count == calls
        assert all(torch.equal(found[name], value) for name, value in taken.items())


def test_of_two_processes_one_encodes_and_the_other_waits(tmp_path: Path) -> None:
    code = f"""
import sys, time
from pathlib import Path
import torch
from dinomaly_hd.data import feature_files
from dinomaly_hd.data.feature_files import FeaturePlace
from dinomaly_hd.data.features import FeatureCache
feature_files.FREE_MOST_GB = 0
own, calls = FeatureCache(), []
own.use("key", place=FeaturePlace(Path({str(tmp_path / "files")!r}), 1))
def make():
    calls.append(1)
    time.sleep(.5)
    return torch.full((2, 3), float(len(calls)))
Path(sys.argv[1]).touch()
while len(list(Path({str(tmp_path)!r}).glob("ready*"))) < 2:
    time.sleep(.01)
for number in range(3):
    own.encode([f"{{number}}a", f"{{number}}b"], make)
print(len(calls))
"""
    commands = [[sys.executable, "-c", code, str(tmp_path / f"ready{number}")] for number in range(2)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    counts = [int(process.communicate(timeout=600)[0]) for process in processes]
    assert sum(counts) == 3
