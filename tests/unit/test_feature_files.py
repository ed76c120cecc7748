"""Encoder outputs in files: exact, verified, bounded, made by one of several processes."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def got(own: FeatureFiles, name: str) -> Tensor | None:
    return (own.get(name) or {}).get("encoded")


def written(folder: Path) -> list[Path]:
    return sorted(folder.glob("**/*.features"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_put_comes_back_bit_for_bit_in_any_process(tmp_path: Path, dtype: torch.dtype) -> None:
    encoded = torch.randn(2, 5, 7).to(dtype)
    put(files(tmp_path), "a1", encoded)
    found = got(files(tmp_path), "a1")
    assert found is not None
    assert found.dtype == dtype
    assert torch.equal(found, encoded)
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
    found = got(files(tmp_path), "a1")
    assert found is not None
    assert torch.equal(found, ENCODED)


def test_nothing_ends_a_run_whose_files_are_taken_away(tmp_path: Path) -> None:
    own = files(tmp_path)
    put(own, "a1")
    shutil.rmtree(tmp_path / OWN_FOLDER)
    assert own.get("a1") is None
    own.has_room(ENCODED[None], count=1)
    put(own, "a2")
    with own.writing(["a2"], tick=lambda: None):
        pass


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("**/*") if path.is_file())


def test_a_budget_is_never_broken(tmp_path: Path) -> None:
    own = files(tmp_path, gb=20_000 / GIB)
    assert own.has_room(BIG[None], count=4)
    assert not own.has_room(BIG[None], count=5)
    for number in range(10):
        put(own, f"{number:04d}", BIG)
    assert len(written(tmp_path)) == 4
    assert size_of(tmp_path) <= 20_000
    other = files(tmp_path, OTHER, gb=20_000 / GIB)
    assert not other.has_room(BIG[None], count=1), "the other encoder was used just now"


def test_processes_that_write_together_look_at_what_the_others_have_written(tmp_path: Path) -> None:
    budget = 400_000
    several = [files(tmp_path, str(number) * 64, gb=budget / GIB) for number in range(4)]
    for number in range(100):
        for own in several:
            put(own, f"{number:04d}", BIG)
    assert 0.9 * budget < size_of(tmp_path) < (1 + len(several) * feature_files.RECOUNT_SHARE) * budget


def test_encoders_that_were_not_used_for_an_hour_make_room(tmp_path: Path) -> None:
    gb = 20_000 / GIB
    for number, key in enumerate((ONE, OTHER)):
        own = files(tmp_path, key, gb=gb)
        put(own, "0001", BIG)
        put(own, "0002", BIG)
        os.utime(tmp_path / OWN_FOLDER / key / "used", (time.time() - (3 - number) * IN_USE_S,) * 2)
    new = files(tmp_path, THIRD, gb=gb)
    assert new.has_room(BIG[None], count=2)
    assert not (tmp_path / OWN_FOLDER / ONE).exists()
    assert len(written(tmp_path / OWN_FOLDER / OTHER)) == 2
    put(new, "0003", BIG)
    put(new, "0004", BIG)
    assert len(written(tmp_path / OWN_FOLDER / THIRD)) == 2


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
    for number in range(9):
        put(own, f"{number:04d}", BIG)
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


def test_a_place_that_cannot_be_written_is_only_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(files(tmp_path), "a1")

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "read-only")

    monkeypatch.setattr(Path, "mkdir", refuse)
    own = files(tmp_path)
    assert not own.has_room(ENCODED[None], count=1)
    put(own, "a2")
    with own.writing(["a2"], tick=lambda: None):
        pass
    assert len(written(tmp_path)) == 1


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
    def tick() -> None:
        raise Interrupted(15)

    with (
        files(tmp_path).writing(["a1"], tick=lambda: None),
        pytest.raises(Interrupted),
        files(tmp_path).writing(["a1"], tick=tick),
    ):
        raise AssertionError("unreachable")


def cache(folder: Path | None, *, key: str = "key") -> FeatureCache:
    own = FeatureCache()
    own.use(key, place=None if folder is None else FeaturePlace(folder, 1))
    return own


def made(calls: list[str]) -> Callable[[], Tensor]:
    def make() -> Tensor:
        calls.append("made")
        return BATCH

    return make


def test_files_are_read_by_the_next_cache_and_kept_in_memory_there(tmp_path: Path) -> None:
    calls: list[str] = []
    first = cache(tmp_path).encode(NAMES, made(calls))
    again = cache(tmp_path)
    assert torch.equal(again.encode(NAMES, made(calls)), first)
    assert calls == ["made"]
    shutil.rmtree(tmp_path)
    assert again.in_memory(NAMES)
    found = again.get(NAMES[1:])
    assert found is not None
    assert torch.equal(found, first[1:])
    assert cache(tmp_path, key="another").get(NAMES) is None


def test_one_damaged_image_of_a_batch_makes_the_batch_anew(tmp_path: Path) -> None:
    calls: list[str] = []
    cache(tmp_path).encode(NAMES, made(calls))
    written(tmp_path)[1].write_bytes(b"torn")
    assert torch.equal(cache(tmp_path).encode(NAMES, made(calls)), BATCH)
    assert calls == ["made", "made"]
    assert cache(tmp_path).get(NAMES) is not None


def test_without_files_memory_is_all_there_is() -> None:
    calls: list[str] = []
    own = cache(None)
    own.encode(NAMES, made(calls))
    own.encode(NAMES, made(calls))
    assert calls == ["made"]
    assert own.has_room(ENCODED[None], ["b1"])
    assert not own.has_room(ENCODED[None], ["b1"], where="files")
    own.use("another encoder")
    assert own.get(NAMES) is None


def test_what_is_kept_already_needs_no_room(tmp_path: Path) -> None:
    place = FeaturePlace(tmp_path, 16_000 / GIB)
    own = FeatureCache()
    own.use("key", place=place)
    names = [f"{number:04d}" for number in range(3)]
    own.add(names, torch.zeros(3, 1000))
    written(tmp_path)[0].unlink()
    again = FeatureCache()
    again.use("key", place=place)
    assert again.has_room(torch.zeros(1, 1000), names, where="files")
    assert not again.has_room(torch.zeros(1, 1000), [*names, "0003", "0004"], where="files")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_keeps_its_own_outputs_until_it_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda", 0)
    one = BATCH[0].nelement() * 4
    monkeypatch.setattr(features, "_rooms", lambda _: {gpu: 3.5 * one, features.CPU: 1e9})
    own = FeatureCache()
    own.use("key", device=gpu)
    own.add(NAMES, BATCH.to(gpu))
    own.add(["more"], BATCH[:1].to(gpu))
    assert [own._kept[name].device.type for name in (*NAMES, "more")] == ["cuda"] * 3 + ["cpu"]
    found = own.get([*NAMES, "more"])
    assert found is not None
    assert found.device == gpu
    assert torch.equal(found.cpu(), torch.cat([BATCH, BATCH[:1]]))


def test_files_only_keeps_nothing_in_memory(tmp_path: Path) -> None:
    own = cache(tmp_path).files_only()
    own.encode(NAMES, made([]))
    assert own.get(NAMES) is not None
    shutil.rmtree(tmp_path)
    assert own.get(NAMES) is None
    assert not cache(None).files_only().has_room(ENCODED[None], ["a1"])


def test_statistics_are_taken_once_for_all_processes_and_must_fit(tmp_path: Path) -> None:
    calls: list[str] = []
    taken = {"encoder.mean": torch.tensor([0.1, 0.2]), "encoder.std": torch.tensor([1 / 3])}

    def take() -> dict[str, Tensor]:
        calls.append("taken")
        return taken

    def statistics(source: str, *, like: dict[str, Tensor], place: FeaturePlace | None) -> dict[str, Tensor]:
        return FeatureCache().statistics(source, take, like=like, place=place)

    place = FeaturePlace(tmp_path, 1)
    first = statistics("source", like=taken, place=place)
    again = statistics("source", like=taken, place=place)
    assert calls == ["taken"]
    assert all(torch.equal(first[name], again[name]) for name in taken)
    statistics("another source", like=taken, place=place)
    statistics("source", like=taken, place=None)
    statistics("source", like={**taken, "encoder.std": torch.zeros(2)}, place=place)
    statistics("source", like={"encoder.mean": taken["encoder.mean"]}, place=place)
    assert calls == ["taken"] * 5


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
