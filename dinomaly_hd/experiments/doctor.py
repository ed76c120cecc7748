"""Whether this installation and its data can be worked with: one line a check, with the way out."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from dinomaly_hd import provenance
from dinomaly_hd.config.run import SIMULATED, RunConfig
from dinomaly_hd.data.features import ImageStore
from dinomaly_hd.data.hdmap import hold_out, load_manifest
from dinomaly_hd.errors import (
    DataError,
    DinomalyHDError,
    OutputError,
    TrackingError,
    UnfitError,
    without_passwords,
)
from dinomaly_hd.files import publish_text
from dinomaly_hd.models.weights import locate
from dinomaly_hd.runs.store import default_uri, prepare_store, silence_of
from dinomaly_hd.runs.sync import lacking
from dinomaly_hd.trivial import signature_share

OLDEST, NEWEST = (3, 11), (3, 12)
GIB = 1024**3
LITTLE_DISK_GIB = 5.0
LOOKED_AT, REGISTERED = 200, 0.02  # training maps of a domain; least share of a signature
ANSWER_S = 5.0
GOOD, NOTE, BAD = "ok", "note", "PROBLEM"
Findings = Iterator[tuple[str, str, str]]  # how it stands (ok, note), what was looked at, what was found


def examine(
    run: RunConfig,
    *,
    root: Path,
    result_dir: Path,
    feature_dir: Path | None,
    experiment: str,
    say: Callable[[str], None],
    tick: Callable[[], None],
) -> None:
    """Say how each check ends, those that cost little first; ``feature_dir`` None keeps no encoder outputs.

    Where there are problems it is an UnfitError with the exit code that a run would end with.
    """
    checks = {
        "Python": _python(),
        "packages": _packages(),
        "device": _device(),
        "weights": _weights(run),
        "results": _disk("results", result_dir),
        "features": _disk("features", feature_dir),
        "runs": _undelivered(result_dir),
        "MLflow": _store(default_uri(root), experiment=experiment, root=root),
        "data": _data(run),
    }
    codes = []
    for checked, findings in checks.items():
        tick()
        try:
            for state, what, text in findings:
                say(f"{state:8}{what:13}{text}")
        except DinomalyHDError as error:
            say(f"{BAD:8}{checked:13}{error}")
            codes.append(error.exit_code)
    if codes:
        raise UnfitError(f"lines above that need mending: {len(codes)}", code=codes[0])


def _python() -> Findings:
    version = ".".join(map(str, sys.version_info[:3]))
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        raise DinomalyHDError(f"{version}; 3.11 or 3.12 is needed: make PYTHON=python3.11 setup")
    yield GOOD, "Python", version


def _packages() -> Findings:
    wrong, needed = [], provenance.requirements()
    for one in needed:
        version = provenance.installed_version(one.name)
        if version is None:
            wrong.append(f"{one.name} is missing")
        elif not one.specifier.contains(version, prereleases=True):
            wrong.append(f"{one.name} {version}, needed {one.specifier}")
    if wrong:
        raise DinomalyHDError(f"{'; '.join(wrong)}: run `make setup`")
    yield GOOD, "packages", f"all {len(needed)} that are needed, in versions that fit"


def _device() -> Findings:
    import torch

    kind = f"torch {torch.__version__}, CPU threads: {torch.get_num_threads()}"
    if not torch.cuda.is_available():
        yield NOTE, "device", f"{kind}, no GPU: the quick preset is the default"
    for index in range(torch.cuda.device_count()):
        free, total = (value / GIB for value in torch.cuda.mem_get_info(index))
        name = torch.cuda.get_device_name(index)
        yield GOOD, "device", f"{kind}, gpu={index}: {name}, {free:.0f} of {total:.0f} GiB free"


def _weights(run: RunConfig) -> Findings:
    found = locate(run.encoder.encoder, run.encoder.encoder_weights)
    yield GOOD, "weights", f"{run.encoder.encoder}: {found.source}, digest {found.digest}"


def _disk(name: str, folder: Path | None) -> Findings:
    if folder is None:
        yield NOTE, name, "feature_gb=0: no encoder outputs are kept"
        return
    try:
        probe = folder / f".doctor-{os.getpid()}"
        publish_text(probe, "")
        probe.unlink()
    except OutputError as error:
        raise OutputError(f"{error}; choose another folder") from error
    free = shutil.disk_usage(folder).free / GIB
    found = f"{folder}: writable, {free:.1f} GiB free"
    if free >= LITTLE_DISK_GIB:
        yield GOOD, name, found
    else:
        yield NOTE, name, f"{found}, less than {LITTLE_DISK_GIB:g}: make room, or choose another folder"


def _undelivered(result_dir: Path) -> Findings:
    if folders := lacking(result_dir):
        yield NOTE, "runs", f"{len(folders)} lack something in MLflow, or are at work: `dinomaly-hd sync`"
    else:
        yield GOOD, "runs", "MLflow has all of those in the result folder"


def _store(uri: str, *, experiment: str, root: Path) -> Findings:
    if reason := silence_of(uri, timeout_s=ANSWER_S):
        trust = (
            ", name its certificate by MLFLOW_TRACKING_SERVER_CERT_PATH" if "CERTIFICATE" in reason else ""
        )
        raise TrackingError(
            f"no server answers at {uri}: {reason}; start it{trust}, or unset MLFLOW_TRACKING_URI"
        )
    prepare_store(uri, experiment=experiment, root=root)
    yield GOOD, "MLflow", f"{without_passwords(uri)} answers, experiment {experiment!r}"


def _data(run: RunConfig) -> Findings:
    if run.data.data_root == SIMULATED:
        yield NOTE, "data", "simulated maps; name your own by data_root"
        return
    from dinomaly_hd.experiments.checks import given_root, with_found_domains  # imports torch
    from dinomaly_hd.models.row_evidence import check_form

    config = with_found_domains(run).data
    manifest = load_manifest(
        given_root(config), domains=config.domain_names, conditions=config.conditions, grey=config.grey
    )
    height, width = manifest.shape
    found = f"{len(manifest.records)} maps of {height} x {width}, {manifest.dtype}"
    yield GOOD, "data", f"{manifest.root}: {found}"
    for domain, counts in manifest.counts().items():
        yield GOOD, domain, ", ".join(f"{count} {place}" for place, count in counts.items())
    yield GOOD, "conditions", manifest.condition_rule
    store = ImageStore(manifest, keep_bytes=0)
    for domain in manifest.domains:
        normals = manifest.indices(split="train", domain=domain)
        chosen = normals[:: -(-len(normals) // LOOKED_AT)]
        share = signature_share(np.stack([store[int(i)] for i in chosen]))
        found = f"{100 * share:.1f} % of the training maps' variance is a fixed signature of positions"
        if share >= REGISTERED:
            yield GOOD, domain, f"{found}: the maps are registered"
        else:
            yield NOTE, domain, f"{found}: not registered, so that `scan` and positions tell little"
    for warning in manifest.warnings:
        yield NOTE, "data", warning
    normals = hold_out(manifest, ratio=config.val_split_ratio, seed=run.seed).train
    try:
        check_form(len(normals), manifest.shape)
    except DataError as error:
        yield NOTE, "data", f"{error}; other models need less"
