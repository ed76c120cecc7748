"""Whether this installation and its data can be worked with: one line a check, with the way out."""

import importlib.metadata
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement

from dinomaly_hd.config import SIMULATED, DataConfig
from dinomaly_hd.data.hdmap import load_manifest
from dinomaly_hd.errors import DinomalyHDError, EncoderError, OutputError, TrackingError
from dinomaly_hd.runs.sync import lacking
from dinomaly_hd.files import publish_text
from dinomaly_hd.models.weights import locate
from dinomaly_hd.runs.store import default_uri, prepare_store, server_answers

DISTRIBUTION = "dinomaly-hd"
OLDEST, NEWEST = (3, 11), (3, 12)
GIB = 1024**3
LITTLE_DISK_GIB = 5.0
ANSWER_S = 5.0
GOOD, NOTE, BAD = "ok", "note", "PROBLEM"


class Finding(NamedTuple):
    """One line: how it stands (ok, note, PROBLEM), what was looked at, what was found and the way out.

    ``exit_code`` is that of the error a run would end with.
    """

    state: str
    what: str
    text: str
    exit_code: int = 0

    def line(self) -> str:
        """Return what is printed."""
        return f"{self.state:8}{self.what:13}{self.text}"


@dataclass(frozen=True, kw_only=True)
class Patient:
    """What is looked at.

    Attributes:
        root: The project's folder.
        result_dir: Of all runs.
        feature_dir: Of encoder outputs, None where none are kept.
        experiment: In MLflow.
        data: Which maps.
        encoder: Name.
        encoder_weights: Where from.
    """

    root: Path
    result_dir: Path
    feature_dir: Path | None
    experiment: str
    data: DataConfig
    encoder: str
    encoder_weights: str


def examine(patient: Patient, *, tick: Callable[[], None]) -> Iterator[Finding]:
    """Yield a finding for each check, those that cost little first; ``tick`` may raise."""
    for check in CHECKS:
        tick()
        yield from check(patient)


def _python(patient: Patient) -> Iterator[Finding]:
    del patient
    found = sys.version_info[:2]
    version = ".".join(map(str, sys.version_info[:3]))
    if OLDEST <= found <= NEWEST:
        yield Finding(GOOD, "Python", version)
    else:
        yield Finding(BAD, "Python", f"{version}; 3.11 or 3.12 is needed: make PYTHON=python3.11 setup", 70)


def _packages(patient: Patient) -> Iterator[Finding]:
    del patient
    wrong, count = [], 0
    for text in importlib.metadata.requires(DISTRIBUTION) or []:
        needed = Requirement(text)
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        count += 1
        try:
            version = importlib.metadata.version(needed.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{needed.name} is missing")
        else:
            if not needed.specifier.contains(version, prereleases=True):
                wrong.append(f"{needed.name} {version}, needed {needed.specifier}")
    if wrong:
        yield Finding(BAD, "packages", f"{'; '.join(wrong)}: run `make setup`", 70)
    else:
        yield Finding(GOOD, "packages", f"all {count} that are needed, in versions that fit")


def _device(patient: Patient) -> Iterator[Finding]:
    del patient
    import torch

    kind = f"torch {torch.__version__}, {torch.get_num_threads()} CPU threads"
    if not torch.cuda.is_available():
        yield Finding(NOTE, "device", f"{kind}, no GPU: the quick preset is the default")
        return
    for index in range(torch.cuda.device_count()):
        free, total = (value / GIB for value in torch.cuda.mem_get_info(index))
        name = torch.cuda.get_device_name(index)
        yield Finding(GOOD, "device", f"{kind}, gpu={index}: {name}, {free:.0f} of {total:.0f} GiB free")


def _weights(patient: Patient) -> Iterator[Finding]:
    try:
        found = locate(patient.encoder, patient.encoder_weights)
    except DinomalyHDError as error:
        yield Finding(BAD, "weights", str(error), EncoderError.exit_code)
    else:
        yield Finding(GOOD, "weights", f"{patient.encoder}: {found.source}, digest {found.digest}")


def _disk(patient: Patient) -> Iterator[Finding]:
    for name, folder in (("results", patient.result_dir), ("features", patient.feature_dir)):
        if folder is None:
            yield Finding(NOTE, name, "feature_gb=0: no encoder outputs are kept")
            continue
        try:
            probe = folder / f".doctor-{os.getpid()}"
            publish_text(probe, "")
            probe.unlink()
        except OutputError as error:
            yield Finding(BAD, name, f"{error}; choose another folder", OutputError.exit_code)
            continue
        free = shutil.disk_usage(folder).free / GIB
        enough = free >= LITTLE_DISK_GIB
        advice = "" if enough else f", less than {LITTLE_DISK_GIB:g}: make room, or choose another folder"
        yield Finding(GOOD if enough else NOTE, name, f"{folder}: writable, {free:.1f} GiB free{advice}")


def _store(patient: Patient) -> Iterator[Finding]:
    uri = default_uri(patient.root)
    try:
        if not server_answers(uri, timeout_s=ANSWER_S):
            raise TrackingError(
                f"no server answers at {uri} within {ANSWER_S:g} s; start it, or unset MLFLOW_TRACKING_URI"
            )
        prepare_store(uri, experiment=patient.experiment, root=patient.root)
    except TrackingError as error:
        yield Finding(BAD, "MLflow", str(error), TrackingError.exit_code)
    else:
        yield Finding(GOOD, "MLflow", f"{uri} answers, experiment {patient.experiment!r}")


def _undelivered(patient: Patient) -> Iterator[Finding]:
    folders = lacking(patient.result_dir)
    if folders:
        yield Finding(
            NOTE, "runs", f"{len(folders)} lack something in MLflow, or are at work: `dinomaly-hd sync`"
        )
    else:
        yield Finding(GOOD, "runs", "MLflow has all of those in the result folder")


def _data(patient: Patient) -> Iterator[Finding]:
    if patient.data.data_root == SIMULATED:
        yield Finding(NOTE, "data", "simulated maps; name your own by data_root")
        return
    root = Path(patient.data.data_root).expanduser()
    try:
        manifest = load_manifest(root, domains=patient.data.domain_names, conditions=patient.data.conditions)
    except DinomalyHDError as error:
        yield Finding(BAD, "data", str(error), error.exit_code)
        return
    height, width = manifest.shape
    yield Finding(
        GOOD, "data", f"{manifest.root}: {len(manifest.records)} maps of {height} x {width}, {manifest.dtype}"
    )
    for domain, counts in manifest.counts().items():
        yield Finding(GOOD, domain, ", ".join(f"{count} {place}" for place, count in counts.items()))
    yield Finding(GOOD, "conditions", manifest.condition_rule)
    for warning in manifest.warnings:
        yield Finding(NOTE, "data", warning)


CHECKS = (_python, _packages, _device, _weights, _disk, _undelivered, _store, _data)
