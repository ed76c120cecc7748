"""Drill 14: files that carry code where numbers or settings are expected, and checkpoints of other runs."""

import contextlib
import io
import json
import os
import pickle
import random
import struct
import subprocess
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

import numpy as np
import torch
import yaml

from benchmarks.drills import Drill, Tally
from dinomaly_hd.config.base import Frozen, flatten, with_values
from dinomaly_hd.config.conditions_file import read_conditions
from dinomaly_hd.config.presets import FAMILIES, preset_run
from dinomaly_hd.config.run import WITHOUT_EFFECT, RunConfig
from dinomaly_hd.config.variants import VARIANTS
from dinomaly_hd.data.feature_files import CHECK_BYTES, SUFFIX, FeatureFiles, FeaturePlace
from dinomaly_hd.errors import CheckpointError, ConfigError, DinomalyHDError, EncoderError
from dinomaly_hd.models import weights
from dinomaly_hd.runs.folder import RESULTS, STATE, read_results, read_state
from dinomaly_hd.serving.exported import CARD, WEIGHTS, read_card, read_weights
from dinomaly_hd.training.checkpoint import SCHEMA_VERSION, Checkpoint, check_belongs, load, newest, save

SEED = 14
CHANGES_FAST = 38
KEY = "0" * 64
STEP, PTH = "step_00000001.pt", "weights.pth"
MAGIC = (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}})
"""What PyTorch's formats before version 1.6 begin with, a pickle each."""


class Code:
    """An object whose unpickling calls ``function(*arguments)``."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def codes(marker: Path) -> dict[str, Code]:
    """Return ways to write a file from within a pickle."""
    return {
        "os.system": Code(os.system, f"touch '{marker}'"),
        "exec": Code(exec, f"open({str(marker)!r}, 'w').close()"),
        "subprocess": Code(subprocess.check_call, ["touch", str(marker)]),
    }


def _pickled(code: object) -> bytes:
    return pickle.dumps(code, protocol=2)


def _checkpoint(**changes: Any) -> dict[str, Any]:
    run = preset_run("quick", VARIANTS["horizontal"]())
    good = Checkpoint(1, run.to_json(), "data", "encoder", 0, {"w": torch.zeros(2)}, {"state": {}}, {})
    return {"schema": SCHEMA_VERSION, **good._asdict(), **changes}


def _streamed(write: Callable[[io.BytesIO], object], start: bytes = b"") -> bytes:
    """Return what is written to a stream, behind what it begins with."""
    stream = io.BytesIO(start)
    write(stream)
    return stream.getvalue()


def _saved(content: object) -> bytes:
    return _streamed(lambda stream: torch.save(content, stream))


def _with_members(start: bytes, members: Mapping[str, bytes | str]) -> bytes:
    """Return a zip archive that has more members."""

    def write(stream: io.BytesIO) -> None:
        with zipfile.ZipFile(stream, "a" if start else "w") as archive:
            for name, content in members.items():
                archive.writestr(f"archive/{name}", content)

    return _streamed(write, start)


def _torchscript(code: Code) -> bytes:
    pickles = dict.fromkeys(("data.pkl", "constants.pkl"), _pickled(code))
    return _with_members(b"", {**pickles, "code/__torch__.py": "import os", "version": "3\n"})


def _old_format(code: Code) -> bytes:
    return b"".join(_pickled(part) for part in (*MAGIC, code, []))


def _tar_format(code: Code) -> bytes:
    def write(stream: io.BytesIO) -> None:
        with tarfile.open(fileobj=stream, mode="w") as archive:
            for member in ("storages", "tensors", "pickle"):
                entry = tarfile.TarInfo(member)
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))

    data = _pickled(code)
    return _streamed(write)


def _header(code: Code, *, size: int | None = None) -> bytes:
    """Return a safetensors file whose header is a pickle."""
    header = _pickled(code)
    return struct.pack("<Q", len(header) if size is None else size) + header


def _tagged(code: Code) -> dict[str, Any]:
    """Return what YAML, jsonpickle and Hydra would make a call of."""
    function, arguments = code.call
    name = f"{function.__module__}.{function.__qualname__}"
    return {
        f"!!python/object/apply:{name}": list(arguments),
        "py/reduce": [{"py/function": name}, {"py/tuple": list(arguments)}],
        "_target_": name,
        "_args_": list(arguments),
    }


def _card(code: Code) -> bytes:
    config = json.loads(preset_run("quick", VARIANTS["horizontal"]()).to_json())
    config["model"]["model_type"] = _tagged(code)["_target_"]
    card = {"schema": 1, "config": {**config, **_tagged(code)}, "shape": [31, 95], "dtype": "float32"}
    more = {"thresholds": {}, "data_digest": "", "encoder_digest": "", "module": "os"}
    return json.dumps({**card, **more}).encode()


def _state(code: Code) -> bytes:
    return json.dumps({"status": "FINISHED", "config": _tagged(code)}).encode()


def _features(folder: Path) -> Path:
    """Keep encoded images and return their file, to be overwritten."""
    FeatureFiles(FeaturePlace(folder, 1.0), KEY).put(KEY, {"tokens": torch.zeros(2)})
    return next(folder.rglob(f"*{SUFFIX}"))


def _with_checksum(code: Code) -> bytes:
    body = _pickled(code)
    return body + zlib.crc32(body).to_bytes(CHECK_BYTES, "big")


def _no_features(folder: Path) -> None:
    if FeatureFiles(FeaturePlace(folder, 1.0), KEY).get(KEY) is not None:
        raise AssertionError("the file was taken for encoded images")


def _step(folder: Path) -> object:
    found = newest(folder)
    if found.checkpoint is None and len(found.unreadable) != 1:
        raise AssertionError(f"the unreadable checkpoint is not named: {found.unreadable}")
    return load(folder / STEP)


class Poison(NamedTuple):
    """A file that carries code.

    Its name or what makes it, its bytes; what reads it as a run does, and how that must refuse it (None: what
    it carries beside is ignored). ``explode`` is what a careless reader would do with the file, which shows
    that the code is live; None where none would.
    """

    name: str | Callable[[Path], Path]
    data: Callable[[Code], bytes]
    read: Callable[[Path], object] = _step
    refused: type[DinomalyHDError] | None = CheckpointError
    explode: Callable[[Path], object] | None = partial(torch.load, weights_only=False)


def _in_checkpoint(**places: Callable[[Code], object]) -> Poison:
    return Poison(
        STEP, lambda code: _saved(_checkpoint(**{name: place(code) for name, place in places.items()}))
    )


def _unpickle(path: Path, *, skip: int = 0) -> object:
    return pickle.loads(path.read_bytes()[skip:])  # noqa: S301


def _member(number: int, path: Path) -> object:
    with zipfile.ZipFile(path) as archive:
        return pickle.loads(archive.read(archive.namelist()[number]))  # noqa: S301


_OF_ENCODER = {"read": lambda at: weights.read_state(at / PTH), "refused": EncoderError}
_BARE = {"explode": _unpickle}
_BEHIND_LENGTH = {"explode": partial(_unpickle, skip=8)}
POISONS: dict[str, Poison] = {
    "a checkpoint that is code": Poison(STEP, _saved),
    "in the optimizer's state": _in_checkpoint(optimizer=lambda code: {"state": {0: {"exp_avg": code}}}),
    "in place of the config": _in_checkpoint(config=lambda code: code),
    "among the weights": _in_checkpoint(weights=lambda code: {"w": torch.zeros(1), "x": code}),
    "a second pickle in the checkpoint": Poison(
        STEP,
        lambda code: _with_members(_saved(_checkpoint()), {"evil.pkl": _pickled(code)}),
        refused=None,
        explode=partial(_member, -1),
    ),
    "a TorchScript archive": Poison(STEP, _torchscript, explode=partial(_member, 0)),
    "a checkpoint of PyTorch before 1.6": Poison(STEP, _old_format),
    "a checkpoint as tar": Poison(STEP, _tar_format),
    "a bare pickle": Poison(STEP, _pickled, **_BARE),
    "encoder weights": Poison(
        PTH, lambda code: _saved({"state_dict": {"a.weight": torch.zeros(2), "x": code}}), **_OF_ENCODER
    ),
    "encoder weights of PyTorch before 1.6": Poison(PTH, _old_format, **_OF_ENCODER),
    "encoder weights as tar": Poison(PTH, _tar_format, **_OF_ENCODER),
    "encoder weights as numpy objects": Poison(
        PTH,
        lambda code: _streamed(lambda to: np.save(to, np.array([code], dtype=object), allow_pickle=True)),
        explode=lambda path: np.load(path, allow_pickle=True),
        **_OF_ENCODER,
    ),
    "a model's weights": Poison(WEIGHTS, _pickled, read_weights, **_BARE),
    "a model's weights, behind a length": Poison(WEIGHTS, _header, read_weights, **_BEHIND_LENGTH),
    "a model's weights, 4 EiB of header": Poison(
        WEIGHTS, partial(_header, size=2**62), read_weights, **_BEHIND_LENGTH
    ),
    "encoder weights as safetensors": Poison(
        *(WEIGHTS, _header, lambda at: weights.read_state(at / WEIGHTS), EncoderError), **_BEHIND_LENGTH
    ),
    "a model's card": Poison(CARD, _card, read_card, explode=None),
    "a run folder's state": Poison(STATE, _state, read_state, None, None),
    "a run folder's results": Poison(RESULTS, _state, read_results, None, None),
    "a conditions file": Poison(
        "conditions.yaml",
        lambda code: f"experiment_conditions: {yaml.dump(code)}".encode(),
        lambda folder: read_conditions(folder / "conditions.yaml"),
        ConfigError,
        lambda path: yaml.unsafe_load(path.read_text()),
    ),
    "encoded images": Poison(_features, _with_checksum, _no_features, None, _unpickle),
}


def _stays_inert(folder: Path, poison: Poison, code: Code, marker: Path) -> str | None:
    path = folder / poison.name if isinstance(poison.name, str) else poison.name(folder)
    path.write_bytes(poison.data(code))
    refusal: DinomalyHDError | None = None
    try:
        poison.read(folder)
    except DinomalyHDError as error:
        refusal = error
    except Exception as error:
        return f"{type(error).__name__} instead of one of ours: {error}"
    if marker.exists():
        return "the code ran"
    if poison.refused is not None and not isinstance(refusal, poison.refused):
        return f"not refused by {poison.refused.__name__}: {refusal!r}"
    if refusal is not None and "\n" in str(refusal):
        return f"more than one line: {refusal}"
    if poison.explode is None:
        return None
    path.write_bytes(poison.data(code))
    with contextlib.suppress(Exception):  # the file is no model: what matters is whether the code ran
        poison.explode(path)
    return None if marker.exists() else "the drill's code is not live"


def changed_runs(run: RunConfig) -> Iterator[tuple[str, RunConfig]]:
    """Yield each value's name with the run in which it alone has another allowed value."""
    flat = flatten(run)
    for name, candidates in _candidates(run):
        for candidate in candidates:
            try:
                other = with_values(run, {name: candidate})
            except ConfigError:
                continue
            theirs = flatten(other)
            if {key for key in {*flat, *theirs} if flat.get(key) != theirs.get(key)} == {name}:
                yield name, other
                break


def _candidates(part: Frozen) -> Iterator[tuple[str, list[object]]]:
    for name, field in type(part).model_fields.items():
        value = getattr(part, name)
        if isinstance(value, Frozen):
            yield from _candidates(value)
        elif get_origin(field.annotation) is Literal:
            yield name, [word for word in get_args(field.annotation) if word != value]
        elif isinstance(value, bool):
            yield name, [not value]
        elif isinstance(value, int):
            yield name, [value + 1, value + 2]
        elif isinstance(value, float):
            yield name, [value / 2, value + 0.25]
        else:
            texts = ["drill", "64", "2,3", "0-1", "5-9", ".3,.7", "cpu", "7"]
            yield name, [text for text in texts if text != value]


def _changes() -> list[tuple[str, RunConfig, RunConfig]]:
    """Return every change of one value of every model, and every model in place of another."""
    makers: Mapping[str, Callable[[], Any]] = {**VARIANTS, **FAMILIES}
    runs = {name: preset_run("quick", make()) for name, make in makers.items()}
    changes = [
        (f"{model}, {name}", run, other) for model, run in runs.items() for name, other in changed_runs(run)
    ]
    return changes + [(f"{one} for {other}", runs[other], runs[one]) for one, other in permutations(runs, 2)]


def _is_told(
    folder: Path, theirs: RunConfig, ours: RunConfig, *, data: str = "data", encoder: str = "encoder"
) -> str | None:
    """Let a run find another one's checkpoint, and return what was wrong about how it refused it."""
    found = load(save(folder, Checkpoint(1, theirs.to_json(), "data", "encoder", 0, {}, {}, {})))
    before, now = flatten(theirs), flatten(ours)
    expected = {
        f"{name} {before.get(name)!r} -> {now.get(name)!r}"
        for name in {*before, *now}
        if before.get(name) != now.get(name) and name not in WITHOUT_EFFECT
    }
    expected |= {"the data set's files"} if data != "data" else set()
    expected |= {"the encoder's weights"} if encoder != "encoder" else set()
    try:
        check_belongs(found, config=ours.to_json(), data_digest=data, encoder_digest=encoder)
    except CheckpointError as error:
        told = set(str(error).partition("what differs: ")[2].split("; "))
        return None if told == expected else f"expected {sorted(expected)}, told {sorted(told)}"
    return f"taken for its own in spite of {sorted(expected)}" if expected else None


def poisoned_and_foreign(folder: Path, full: bool) -> Tally:
    """Read files that carry live code, and checkpoints of other configs, data and encoders."""
    tally, marker = Tally(), folder / "the-code-ran"
    for number, (what, poison) in enumerate(POISONS.items()):
        for name, code in list(codes(marker).items())[: None if full else 1]:
            own = folder / f"{number}-{name}"
            own.mkdir()
            with warnings.catch_warnings(action="ignore"):  # PyTorch warns of what it is about to refuse
                tally.add(f"{what}, {name}", _stays_inert(own, poison, code, marker))
            marker.unlink(missing_ok=True)
    inert, changes = tally.tried, _changes()
    if not full:
        without = [change for change in changes if change[0].rpartition(", ")[2] not in WITHOUT_EFFECT]
        changes = random.Random(SEED).sample(without, CHANGES_FAST)
    for what, theirs, ours in changes:
        tally.add(what, _is_told(folder, theirs, ours))
    same = changes[0][1]
    tally.add("other data", _is_told(folder, same, same, data="others"))
    tally.add("other encoder", _is_told(folder, same, same, encoder="others"))
    tally.note = f"{inert} poisoned files, {tally.tried - inert} checkpoints of other runs"
    return tally


DRILLS = (Drill(14, "poisoned files run no code, foreign checkpoints are refused", poisoned_and_foreign),)
