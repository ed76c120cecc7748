"""A trained run's detector as one file that others load, proved to give the run's own scores and maps."""

# N maps, H W pixels of the input

import contextlib
import importlib.util
from collections.abc import Callable, Sequence
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from dinomaly_hd.config.base import with_values
from dinomaly_hd.data.features import ImageStore
from dinomaly_hd.data.hdmap import Indices, Manifest, hold_out, load_manifest
from dinomaly_hd.data.images import SCALES
from dinomaly_hd.errors import ConfigError, DataError, OutputError, reason_of
from dinomaly_hd.experiments.checks import data_folder
from dinomaly_hd.experiments.predict import check_output
from dinomaly_hd.experiments.score import Scorer, SyntheticBands, sample_at_pixels, score, visible_pixels
from dinomaly_hd.files import make_dated_folder, publish, publish_json
from dinomaly_hd.models.detector import Detector
from dinomaly_hd.models.networks import visible_box
from dinomaly_hd.serving.exported import Card
from dinomaly_hd.serving.find import open_model

SCHEMA_VERSION = 1
LIMIT = 1e-4  # of the largest score or map value of the run
AT_ONCE, MOST_AT_ONCE = 2, 2**16  # maps that a file is proved with, and that it takes
INPUT, OUTPUTS = "maps", ("score", "map")
Run = Callable[[Tensor], Sequence[NDArray[Any]]]


class Format(NamedTuple):
    """A kind of file: its ending, the packages it needs, how it is written, and loaded to be run."""

    ending: str
    packages: tuple[str, ...]
    write: Callable[[ExportedProgram, BinaryIO], object]
    load: Callable[[Path], Run]


def _write_onnx(program: ExportedProgram, stream: BinaryIO) -> None:
    names = {"input_names": [INPUT], "output_names": [*OUTPUTS]}
    written = torch.onnx.export(program, external_data=False, verbose=False, **names)
    assert written is not None
    stream.write(written.model_proto.SerializeToString())


def _load_onnx(path: Path) -> Run:
    from onnxruntime import InferenceSession

    session = InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda maps_NHW: session.run(OUTPUTS, {INPUT: maps_NHW.numpy()})


def _write_torch(program: ExportedProgram, stream: BinaryIO) -> None:
    torch.export.save(program.run_decompositions({}), stream)  # takes out autocast, which no file holds


def _load_torch(path: Path) -> Run:
    with path.open("rb") as stream:
        program = torch.export.load(stream).module()
    return lambda maps_NHW: [one.numpy() for one in program(maps_NHW)]


FORMATS = {
    "onnx": Format("onnx", ("onnx", "onnxscript", "onnxruntime"), _write_onnx, _load_onnx),
    "torch": Format("pt2", ("torch",), _write_torch, _load_torch),
}


class Graph(nn.Module):
    """What a file computes: maps as they are read (N, H, W) in, scores (N,) and maps at their pixels out.

    NaN where a crop hides the pixel.
    """

    def __init__(self, detector: Detector, card: Card) -> None:
        super().__init__()
        self.detector, self.shape = detector, card.shape
        self.box = visible_box(card.run.encoder, shape=card.shape)

    def at_pixels(self, map_NHW: Tensor) -> Tensor:
        rows, columns = visible_pixels(self.box, shape=self.shape)
        hidden = (columns.start, self.shape[1] - columns.stop, rows.start, self.shape[0] - rows.stop)
        return F.pad(sample_at_pixels(map_NHW, box=self.box, shape=self.shape), hidden, value=torch.nan)

    def forward(self, maps_NHW: Tensor) -> tuple[Tensor, Tensor]:
        prediction = self.detector.score(self.detector.encode(maps_NHW))
        return prediction.score_B, self.at_pixels(prediction.map_BHW)


def export(
    name: str,
    *,
    format: str,
    output: Path | None,
    images: int,
    data_root: Path | None,
    result_dir: Path,
    root: Path,
    say: Callable[[str], None],
    tick: Callable[[], None],
) -> Path:
    """Write ``model.onnx`` or ``model.pt2`` with ``model.json``, what it takes and what was proved.

    The file is kept if ``images`` held-out normals of the model that ``name`` names (see ``open_model``), as
    they are and with a band each, get the same scores and maps from it; else it is an OutputError.
    """
    kind = FORMATS[format]
    if any(importlib.util.find_spec(package) is None for package in kind.packages):
        way_out = 'pip install "dinomaly-hd[export]", or take format=torch'
        raise ConfigError(f"format={format}: needs {', '.join(kind.packages)}; {way_out}")
    check_output(output)
    with open_model(name, result_dir=result_dir, root=root, say=say, tick=tick) as model:
        card = model.card
        _check_has_graph(card)
        manifest, normals = _normals(card, data_root=data_root, root=root, say=say, tick=tick)
        detector = model.load()
    chosen = normals[np.linspace(0, len(normals) - 1, min(images, len(normals))).astype(np.int64)]
    run, store = with_values(card.run, {"synthetic_copies": 1}), ImageStore(manifest, keep_bytes=0)
    scorer = Scorer(detector, store, run=run, device=torch.device("cpu"), features=None, tick=tick)
    bands, graph = SyntheticBands(scorer, chosen), Graph(detector, card).eval()
    maps_NHW, is_banded_N = bands.images_NHW, np.array(bands.label_N) == 1
    say(f"scoring {len(chosen)} normals and {is_banded_N.sum()} copies of them with a band")

    def ours(part_NHW: Tensor) -> list[NDArray[Any]]:  # as predict scores
        prediction = score(detector, scorer.encode(part_NHW, ()), bf16=False)
        return [prediction.score_B.numpy(), graph.at_pixels(prediction.map_BHW).numpy()]

    own = _results(ours, maps_NHW, size=run.evaluation.eval_batch_size, tick=tick)
    written = _written(graph, maps_NHW[:AT_ONCE], format=format)
    output = output or make_dated_folder(result_dir / "export")
    file, parity = output / f"model.{kind.ending}", dict[str, Any]()

    def write(stream: BinaryIO) -> None:  # a file that is not proved never gets its name
        stream.write(written)
        stream.flush()
        theirs = _results(kind.load(Path(stream.name)), maps_NHW, size=AT_ONCE, tick=tick)
        for which, chosen_N in (("normals", ~is_banded_N), ("bands", is_banded_N)):
            pairs = [(one[chosen_N], other[chosen_N]) for one, other in zip(own, theirs, strict=True)]
            parity[which] = {"images": int(chosen_N.sum()), **_differences(pairs, which, say=say)}

    try:
        publish(file, write)
    except BaseException:
        with contextlib.suppress(OSError):
            output.rmdir()
        raise
    proved = {"limit": LIMIT, **parity, "with": {package: version(package) for package in kind.packages}}
    publish_json(file.with_suffix(".json"), {**_said(name, card), "parity": proved})
    say(f"{file}, {len(written) / 2**20:.1f} MiB; what it takes and gives: {file.with_suffix('.json')}")
    return file


def _check_has_graph(card: Card) -> None:
    kind = card.run.model.model_type
    if kind in ("row_evidence", "trivial"):
        why = "is computed by NumPy and SciPy, which no graph holds"
        raise ConfigError(f"model_type={kind}: {why}; use predict, or MLflow's server")
    if card.run.bf16:
        why = "autocast rounds by more than an exported file may differ"
        raise ConfigError(f"precision=bf16: {why}; train with precision=32")


def _normals(
    card: Card, *, data_root: Path | None, root: Path, say: Callable[[str], None], tick: Callable[[], None]
) -> tuple[Manifest, Indices]:
    """Return a model's data and the normals held out from its training, where there are none the others."""
    data = card.run.data if data_root is None else with_values(card.run.data, {"data_root": str(data_root)})
    folder = data_folder(data, root=root, say=say, tick=tick)
    manifest = load_manifest(
        folder, domains=data.domain_names, conditions=data.conditions, grey=data.grey, tick=tick
    )
    if manifest.digest != card.data_digest:
        why = "not the images of the model's training, on whose held-out normals a file is proved"
        raise DataError(f"data_root={folder}: {why}; give the folder that holds them")
    split = hold_out(manifest, ratio=data.val_split_ratio, seed=card.run.seed)
    return manifest, split.held_out if len(split.held_out) else split.normals


def _written(graph: Graph, example_NHW: Tensor, *, format: str) -> bytes:
    """Return the file's content; what a library cannot write is an OutputError."""
    stream = BytesIO()
    graph = graph.requires_grad_(False).to(memory_format=torch.contiguous_format)
    try:
        with torch.no_grad():
            sizes = {0: Dim("N", min=1, max=MOST_AT_ONCE)}
            program = torch.export.export(graph, (example_NHW,), dynamic_shapes=(sizes,))
        FORMATS[format].write(program, stream)
    except Exception as error:  # an encoder of timm's that it does not know, more than 2 GiB
        raise OutputError(f"format={format}: cannot hold this model: {reason_of(error)}") from error
    return stream.getvalue()


def _results(run: Run, maps_NHW: Tensor, *, size: int, tick: Callable[[], None]) -> list[NDArray[Any]]:
    """Return scores and maps of all images, scored so many at a time."""
    parts = []
    for part_NHW in torch.split(maps_NHW, size):
        tick()
        parts.append(run(part_NHW))
    return [np.concatenate(one) for one in zip(*parts, strict=True)]


def _differences(
    pairs: list[tuple[NDArray[Any], NDArray[Any]]], which: str, *, say: Callable[[str], None]
) -> dict[str, dict[str, float]]:
    """Return how far scores and maps are apart; above the limit it is an OutputError."""
    found = {}
    for what, (own, theirs) in zip(OUTPUTS, pairs, strict=True):
        seen = np.isfinite(own)  # a crop hides the rest
        largest = float(np.abs(own[seen]).max())
        same_hidden = np.array_equal(np.isfinite(theirs), seen)
        apart = float(np.abs(own - theirs)[seen].max()) if same_hidden else float("inf")
        relative = apart / largest if largest else apart
        found[what] = {"largest": largest, "largest_difference": apart, "relative": relative}
        line = (
            f"{what}s of {which} differ by {apart:.1e} at most, {relative:.1e} of the largest, {largest:.3g}"
        )
        if not relative <= LIMIT:
            raise OutputError(f"{line}; more than {LIMIT:g} is no copy of the run, so the file was removed")
        say(line)
    return found


def _said(name: str, card: Card) -> dict[str, Any]:
    """Return what a file takes and gives, for whoever has not this package."""
    return {
        "schema": SCHEMA_VERSION,
        "run": name,
        "variant": card.run.model.variant,
        "seed": card.run.seed,
        "input": {INPUT: ["N", *card.shape], "type": "float32", "of": card.dtype}
        | {"divided_by": SCALES.get(card.dtype, 1.0)},
        "output": {"score": ["N"], "map": ["N", *card.shape], "hidden by a crop": "NaN"},
        "thresholds": card.thresholds,
        "data_digest": card.data_digest,
        "encoder_digest": card.encoder_digest,
    }
