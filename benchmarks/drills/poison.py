"""Drill 14: files that carry code where numbers or settings are expected, and checkpoints of other runs."""

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
from itertools import permutations
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

import numpy as np
import torch
import yaml

from benchmarks.drills.tally import Drill, Tally
from dinomaly_hd.config import WITHOUT_EFFECT, Frozen, RunConfig, flatten, from_json
from dinomaly_hd.config.conditions_file import read_conditions
from dinomaly_hd.config.presets import FAMILIES, preset_run
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
PICKLE_TO_READ = 2
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


class Poison(NamedTuple):
    """A file that carries code.

    Attributes:
        write: Writes it into an empty folder.
        read: Reads it as a run does.
        refused: How it must be refused; None where what it carries beside is ignored.
        explode: What a careless reader would do, which shows that the code is live; None where none would.
    """

    write: Callable[[Path, Code], object]
    read: Callable[[Path], object]
    refused: type[DinomalyHDError] | None
    explode: Callable[[Path], object] | None


def _checkpoint(**changes: Any) -> dict[str, Any]:
    run = preset_run("quick", VARIANTS["horizontal"]())
    good = Checkpoint(1, run.to_json(), "data", "encoder", 0, {"w": torch.zeros(2)}, {"state": {}}, {})
    return {"schema": SCHEMA_VERSION, **good._asdict(), **changes}


def _in_checkpoint(**places: Callable[[Code], object]) -> Callable[[Path, Code], object]:
    def write(folder: Path, code: Code) -> None:
        content = _checkpoint(**{name: place(code) for name, place in places.items()})
        torch.save(content, folder / "step_00000001.pt")

    return write


def _only_code(folder: Path, code: Code) -> None:
    torch.save(code, folder / "step_00000001.pt")


def _second_pickle(folder: Path, code: Code) -> None:
    path = folder / "step_00000001.pt"
    torch.save(_checkpoint(), path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/evil.pkl", pickle.dumps(code, protocol=PICKLE_TO_READ))


def _torchscript(folder: Path, code: Code) -> None:
    with zipfile.ZipFile(folder / "step_00000001.pt", "w") as archive:
        for name in ("data.pkl", "constants.pkl"):
            archive.writestr(f"archive/{name}", pickle.dumps(code, protocol=PICKLE_TO_READ))
        archive.writestr("archive/code/__torch__.py", "import os")
        archive.writestr("archive/version", "3\n")


def _old_format(name: str) -> Callable[[Path, Code], object]:
    def write(folder: Path, code: Code) -> None:
        parts = [*MAGIC, code, []]
        pickles = [pickle.dumps(part, protocol=PICKLE_TO_READ) for part in parts]
        (folder / name).write_bytes(b"".join(pickles))

    return write


def _tar_format(name: str) -> Callable[[Path, Code], object]:
    def write(folder: Path, code: Code) -> None:
        data = pickle.dumps(code, protocol=PICKLE_TO_READ)
        with tarfile.open(folder / name, "w") as archive:
            for member in ("storages", "tensors", "pickle"):
                entry = tarfile.TarInfo(member)
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))

    return write


def _pickle(name: str) -> Callable[[Path, Code], object]:
    return lambda folder, code: (folder / name).write_bytes(pickle.dumps(code, protocol=PICKLE_TO_READ))


def _weights(folder: Path, code: Code) -> None:
    torch.save({"state_dict": {"patch_embed.proj.weight": torch.zeros(2), "x": code}}, folder / "weights.pth")


def _objects(folder: Path, code: Code) -> None:
    with (folder / "weights.pth").open("wb") as stream:
        np.save(stream, np.array([code], dtype=object), allow_pickle=True)


def _header(folder: Path, code: Code) -> None:
    header = pickle.dumps(code, protocol=PICKLE_TO_READ)
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(header)) + header)


def _endless_header(folder: Path, code: Code) -> None:
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", 2**62) + pickle.dumps(code, protocol=PICKLE_TO_READ))


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


def _card(folder: Path, code: Code) -> None:
    config = json.loads(preset_run("quick", VARIANTS["horizontal"]()).to_json())
    config["model"]["model_type"] = _tagged(code)["_target_"]
    card = {"schema": 1, "config": {**config, **_tagged(code)}, "shape": [31, 95], "dtype": "float32"}
    more = {"thresholds": {}, "data_digest": "", "encoder_digest": "", "module": "os"}
    (folder / CARD).write_text(json.dumps({**card, **more}))


def _run_folder(folder: Path, code: Code) -> None:
    for name in (STATE, RESULTS):
        (folder / name).write_text(json.dumps({"status": "FINISHED", "config": _tagged(code)}))


def _yaml(folder: Path, code: Code) -> None:
    call = yaml.dump(code)
    (folder / "conditions.yaml").write_text(f"experiment_conditions: {call}")


def _features(folder: Path, code: Code) -> None:
    FeatureFiles(FeaturePlace(folder, 1.0), KEY).put(KEY, {"tokens": torch.zeros(2)})
    (path,) = folder.rglob(f"*{SUFFIX}")
    body = pickle.dumps(code, protocol=PICKLE_TO_READ)
    path.write_bytes(body + zlib.crc32(body).to_bytes(CHECK_BYTES, "big"))


def _no_features(folder: Path) -> None:
    kept = FeatureFiles(FeaturePlace(folder, 1.0), KEY).get(KEY)
    if kept is not None:
        raise AssertionError("the file was taken for encoded images")


def _load_any(folder: Path) -> object:
    (path,) = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return torch.load(path, weights_only=False)


def _unpickle(name: str, *, skip: int = 0) -> Callable[[Path], object]:
    return lambda folder: pickle.loads((folder / name).read_bytes()[skip:])  # noqa: S301


def _last_pickle(folder: Path) -> None:
    with zipfile.ZipFile(folder / "step_00000001.pt") as archive:
        pickle.loads(archive.read(archive.namelist()[-1]))  # noqa: S301


def _first_pickle(folder: Path) -> None:
    with zipfile.ZipFile(folder / "step_00000001.pt") as archive:
        pickle.loads(archive.read(archive.namelist()[0]))  # noqa: S301


def _step(folder: Path) -> object:
    found = newest(folder)
    if found.checkpoint is None and len(found.unreadable) != 1:
        raise AssertionError(f"the unreadable checkpoint is not named: {found.unreadable}")
    return load(folder / "step_00000001.pt")


def _pth(folder: Path) -> object:
    return weights.read_state(folder / "weights.pth")


POISONS: dict[str, Poison] = {
    "a checkpoint that is code": Poison(_only_code, _step, CheckpointError, _load_any),
    "in the optimizer's state": Poison(
        _in_checkpoint(optimizer=lambda code: {"state": {0: {"exp_avg": code}}}),
        *(_step, CheckpointError, _load_any),
    ),
    "in place of the config": Poison(
        _in_checkpoint(config=lambda code: code), _step, CheckpointError, _load_any
    ),
    "among the weights": Poison(
        _in_checkpoint(weights=lambda code: {"w": torch.zeros(1), "x": code}),
        *(_step, CheckpointError, _load_any),
    ),
    "a second pickle in the checkpoint": Poison(_second_pickle, _step, None, _last_pickle),
    "a TorchScript archive": Poison(_torchscript, _step, CheckpointError, _first_pickle),
    "a checkpoint of PyTorch before 1.6": Poison(
        _old_format("step_00000001.pt"), _step, CheckpointError, _load_any
    ),
    "a checkpoint as tar": Poison(_tar_format("step_00000001.pt"), _step, CheckpointError, _load_any),
    "a bare pickle": Poison(
        _pickle("step_00000001.pt"), _step, CheckpointError, _unpickle("step_00000001.pt")
    ),
    "encoder weights": Poison(_weights, _pth, EncoderError, _load_any),
    "encoder weights of PyTorch before 1.6": Poison(
        _old_format("weights.pth"), _pth, EncoderError, _load_any
    ),
    "encoder weights as tar": Poison(_tar_format("weights.pth"), _pth, EncoderError, _load_any),
    "encoder weights as numpy objects": Poison(
        _objects,
        *(_pth, EncoderError, lambda folder: np.load(folder / "weights.pth", allow_pickle=True)),
    ),
    "a model's weights": Poison(_pickle(WEIGHTS), read_weights, CheckpointError, _unpickle(WEIGHTS)),
    "a model's weights, behind a length": Poison(
        _header, read_weights, CheckpointError, _unpickle(WEIGHTS, skip=8)
    ),
    "a model's weights, 4 EiB of header": Poison(
        _endless_header, read_weights, CheckpointError, _unpickle(WEIGHTS, skip=8)
    ),
    "encoder weights as safetensors": Poison(
        _header,
        lambda folder: weights.read_state(folder / WEIGHTS),
        *(EncoderError, _unpickle(WEIGHTS, skip=8)),
    ),
    "a model's card": Poison(_card, read_card, CheckpointError, None),
    "a run folder's files": Poison(
        _run_folder, lambda folder: (read_state(folder), read_results(folder)), None, None
    ),
    "a conditions file": Poison(
        _yaml,
        lambda folder: read_conditions(folder / "conditions.yaml"),
        ConfigError,
        lambda folder: yaml.unsafe_load((folder / "conditions.yaml").read_text()),
    ),
    "encoded images": Poison(
        _features,
        _no_features,
        None,
        lambda folder: pickle.loads(next(folder.rglob(f"*{SUFFIX}")).read_bytes()),  # noqa: S301
    ),
}


def _stays_inert(folder: Path, poison: Poison, code: Code, marker: Path) -> str | None:
    """Return what was wrong about reading a poisoned file."""
    poison.write(folder, code)
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
    return _is_live(folder, poison, marker)


def _is_live(folder: Path, poison: Poison, marker: Path) -> str | None:
    """Return that a careless reader would not have run the code either, so that nothing was tried."""
    if poison.explode is None:
        return None
    if poison.write is _features:
        poison.write(folder, next(iter(codes(marker).values())))
    try:
        poison.explode(folder)
    except Exception as error:  # the file is no model: what matters is whether the code ran
        reason = f": {error}"
    else:
        reason = ""
    if not marker.exists():
        return f"the drill's code is not live{reason}"
    marker.unlink()
    return None


def changed_runs(run: RunConfig) -> Iterator[tuple[str, RunConfig]]:
    """Yield each value's name with the run in which it alone has another allowed value."""
    flat = flatten(run)
    for name, candidates in _candidates(run):
        for candidate in candidates:
            try:
                other = from_json(json.dumps(_replaced(json.loads(run.to_json()), name, candidate)))
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


def _replaced(content: Any, name: str, value: object) -> Any:
    if not isinstance(content, dict):
        return content
    return {
        key: value if key == name and not isinstance(own, dict) else _replaced(own, name, value)
        for key, own in content.items()
    }


class Change(NamedTuple):
    """A checkpoint of one run that another run finds; ``what`` is changed."""

    what: str
    theirs: RunConfig
    ours: RunConfig


def _changes() -> list[Change]:
    """Return every change of one value of every model, and every model in place of another."""
    makers: Mapping[str, Callable[[], Any]] = {**VARIANTS, **FAMILIES}
    runs = {name: preset_run("quick", make()) for name, make in makers.items()}
    changes = [
        Change(f"{model}, {name}", run, other)
        for model, run in runs.items()
        for name, other in changed_runs(run)
    ]
    pairs = permutations(runs, 2)
    return changes + [Change(f"{one} for {other}", runs[other], runs[one]) for one, other in pairs]


def _is_told(folder: Path, change: Change, *, data: str, encoder: str) -> str | None:
    """Save a checkpoint, find it in another run, and return what was wrong about the refusal."""
    digests = {"data_digest": "data", "encoder_digest": "encoder"}
    own = Checkpoint(
        1, change.theirs.to_json(), **digests, nonfinite=0, weights={}, optimizer={}, patience={}
    )
    found = load(save(folder, own))
    ours, theirs = flatten(change.ours), flatten(change.theirs)
    expected = {
        f"{name} {theirs.get(name)!r} -> {ours.get(name)!r}"
        for name in {*ours, *theirs}
        if ours.get(name) != theirs.get(name) and name not in WITHOUT_EFFECT
    }
    expected |= {"the data set's files"} if data != "data" else set()
    expected |= {"the encoder's weights"} if encoder != "encoder" else set()
    try:
        check_belongs(found, config=change.ours.to_json(), data_digest=data, encoder_digest=encoder)
    except CheckpointError as error:
        told = set(str(error).partition("what differs: ")[2].split("; "))
        return None if told == expected else f"expected {sorted(expected)}, told {sorted(told)}"
    return f"taken for its own in spite of {sorted(expected)}" if expected else None


def poisoned(folder: Path, full: bool) -> Tally:
    """Read files that carry live code."""
    tally, marker = Tally(), folder / "the-code-ran"
    for number, (what, poison) in enumerate(POISONS.items()):
        for name, code in list(codes(marker).items())[: None if full else 1]:
            own = folder / f"{number}-{name}"
            own.mkdir()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PyTorch warns of what it is about to refuse
                tally.add(f"{what}, {name}", _stays_inert(own, poison, code, marker))
            marker.unlink(missing_ok=True)
    return tally


def foreign(folder: Path, full: bool, tally: Tally) -> None:
    """Find checkpoints of other configs, data and encoders."""
    changes = _changes()
    if not full:
        without = [change for change in changes if change.what.rpartition(", ")[2] not in WITHOUT_EFFECT]
        changes = random.Random(SEED).sample(without, CHANGES_FAST)
    for change in changes:
        tally.add(change.what, _is_told(folder, change, data="data", encoder="encoder"))
    same = changes[0]._replace(ours=changes[0].theirs)
    tally.add("other data", _is_told(folder, same, data="others", encoder="encoder"))
    tally.add("other encoder", _is_told(folder, same, data="data", encoder="others"))


def poisoned_and_foreign(folder: Path, full: bool) -> Tally:
    """Read files that carry live code, and checkpoints of other configs, data and encoders."""
    tally = poisoned(folder, full)
    inert = tally.tried
    own = folder / "foreign"
    own.mkdir()
    foreign(own, full, tally)
    tally.note = f"{inert} poisoned files, {tally.tried - inert} checkpoints of other runs"
    return tally


DRILLS = (Drill(14, "poisoned files run no code, foreign checkpoints are refused", poisoned_and_foreign),)
