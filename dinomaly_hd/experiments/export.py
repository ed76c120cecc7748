"""A trained run's detector as one file that others load, proved to give the run's own scores and maps."""

# N maps, H W pixels of the input

import importlib.util
from collections.abc import Callable, Sequence
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
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
from dinomaly_hd.experiments.score import Scorer, SyntheticBands, sample_at_pixels, score, visible_pixels
from dinomaly_hd.files import check_output, make_dated_folder, publish, publish_json
from dinomaly_hd.models.detector import Detector
from dinomaly_hd.models.networks import visible_box
from dinomaly_hd.serving.exported import Card
from dinomaly_hd.serving.find import open_model

LIMIT, AT_ONCE = 1e-4, 2  # of the largest value of the run; maps that a file is proved with
INPUT, OUTPUTS = "maps", ("score", "map")
Results = Sequence[NDArray[Any]]  # scores and maps
Run = Callable[[Tensor], Results]


class Format(NamedTuple):
    """A kind of file: its name, the packages it needs, how it is written, and loaded to be run."""

    name: str
    packages: tuple[str, ...]
    write: Callable[[ExportedProgram, BinaryIO], object]
    load: Callable[[Path], Run]


def _write_onnx(program: ExportedProgram, stream: BinaryIO) -> None:
    names: dict[str, Any] = {"input_names": [INPUT], "output_names": [*OUTPUTS]}
    written = torch.onnx.export(program, external_data=False, verbose=False, **names)
    assert written is not None
    stream.write(written.model_proto.SerializeToString())


def _load_onnx(path: Path) -> Run:
    from onnxruntime import InferenceSession

    session = InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda maps_NHW: session.run(OUTPUTS, {INPUT: maps_NHW.numpy()})


def _write_torch(program: ExportedProgram, stream: BinaryIO) -> None:
    program = program.run_decompositions({})  # takes out autocast, which no file holds
    program.example_inputs = None  # the only thing that would be pickled
    torch.export.save(program, stream)


def _load_torch(path: Path) -> Run:
    program = torch.export.load(path).module()
    return lambda maps_NHW: [one.numpy() for one in program(maps_NHW)]


FORMATS = {
    "onnx": Format("model.onnx", ("onnx", "onnxscript", "onnxruntime"), _write_onnx, _load_onnx),
    "torch": Format("model.pt2", ("torch",), _write_torch, _load_torch),
}


class Graph(nn.Module):
    """What a file computes: maps (N, H, W) as they are read to scores (N,) and maps at their pixels.

    Those are NaN where a crop hides the pixel.
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
    """Write the model that ``name`` names (see ``open_model``) with a JSON file of what it takes and gives.

    Only if ``images`` of its held-out normals, as they are and with a band each, get the same scores and maps
    from the file; else it is an OutputError.
    """
    kind = FORMATS[format]
    if any(importlib.util.find_spec(package) is None for package in kind.packages):
        way_out = 'pip install "dinomaly-hd[export]", or take format=torch'
        raise ConfigError(f"format={format}: needs {', '.join(kind.packages)}; {way_out}")
    check_output(output)
    with open_model(name, result_dir=result_dir, root=root, say=say, tick=tick) as model:
        card = model.card
        manifest, normals = _normals(card, data_root=data_root, root=root, say=say, tick=tick)
        detector = model.load()
    chosen = normals[np.linspace(0, len(normals) - 1, min(images, len(normals))).astype(np.int64)]
    run, store = with_values(card.run, {"synthetic_copies": 1}), ImageStore(manifest, keep_bytes=0)
    scorer = Scorer(detector, store, run=run, device=torch.device("cpu"), features=None, tick=tick)
    bands, graph = SyntheticBands(scorer, chosen), Graph(detector, card).eval()
    maps_NHW = bands.images_NHW
    say(f"scoring {len(chosen)} normals and {sum(bands.label_N)} copies of them with a band")

    def as_predict(part_NHW: Tensor) -> Results:
        prediction = score(detector, scorer.encode(part_NHW, ()), bf16=False)
        return [prediction.score_B.numpy(), graph.at_pixels(prediction.map_BHW).numpy()]

    own = _results(as_predict, maps_NHW, size=run.evaluation.eval_batch_size, tick=tick)
    content = _written(graph, maps_NHW[:1].repeat(AT_ONCE, 1, 1), format=format)
    with TemporaryDirectory(prefix="dinomaly-hd-") as temporary:
        draft = Path(temporary, kind.name)
        publish(draft, lambda stream: stream.write(content), durable=False)
        theirs = _results(kind.load(draft), maps_NHW, size=AT_ONCE, tick=tick)
    parity = _parity(own, theirs, label_N=np.array(bands.label_N), say=say)
    file = (output or make_dated_folder(result_dir / "export")) / kind.name
    publish(file, lambda stream: stream.write(content))
    said = _said(name, card) | {"versions": {one: version(one) for one in kind.packages}, "parity": parity}
    publish_json(file.with_suffix(".json"), said)
    say(f"{file}, {len(content) / 2**20:.1f} MiB; what it takes and gives: {file.with_suffix('.json')}")
    return file


def _normals(
    card: Card, *, data_root: Path | None, root: Path, say: Callable[[str], None], tick: Callable[[], None]
) -> tuple[Manifest, Indices]:
    """Return a model's data and the normals held out from its training, where there are none the others.

    Refused is what has no graph, or other data.
    """
    kind, data = card.run.model.model_type, card.run.data
    if kind in ("row_evidence", "trivial"):
        why = "is computed by NumPy and SciPy, which no graph holds"
        raise ConfigError(f"model_type={kind}: {why}; use predict, or MLflow's server")
    if card.run.bf16:
        why = "a file computes in float32, so its scores would not be the run's"
        raise ConfigError(f"precision=bf16: {why}; train with precision=32")
    data = data if data_root is None else with_values(data, {"data_root": str(data_root)})
    folder = data_folder(data, root=root, say=say, tick=tick)
    names = data.domain_names
    manifest = load_manifest(folder, domains=names, conditions=data.conditions, grey=data.grey, tick=tick)
    if manifest.digest != card.data_digest:
        why = "not the images of the model's training, on whose held-out normals a file is proved"
        raise DataError(f"data_root={folder}: {why}; give the folder that holds them")
    split = hold_out(manifest, ratio=data.val_split_ratio, seed=card.run.seed)
    return manifest, split.held_out if len(split.held_out) else split.normals


def _written(graph: Graph, example_NHW: Tensor, *, format: str) -> bytes:
    stream = BytesIO()
    graph = graph.requires_grad_(False).to(memory_format=torch.contiguous_format)
    try:
        program = torch.export.export(graph, (example_NHW,), dynamic_shapes=({0: Dim("N", min=1)},))
        FORMATS[format].write(program, stream)
    except Exception as error:  # such as an encoder of timm's with unknown operators, or more than 2 GiB
        raise OutputError(f"format={format}: cannot hold this model: {reason_of(error)}") from error
    return stream.getvalue()


def _results(run: Run, maps_NHW: Tensor, *, size: int, tick: Callable[[], None]) -> Results:
    parts = []
    for part_NHW in torch.split(maps_NHW, size):
        tick()
        parts.append(run(part_NHW))
    return [np.concatenate(one) for one in zip(*parts, strict=True)]


def _parity(
    own: Results, theirs: Results, *, label_N: NDArray[np.int64], say: Callable[[str], None]
) -> dict[str, Any]:
    """Return how far scores and maps are apart; above the limit it is an OutputError."""
    found: dict[str, Any] = {"limit": LIMIT}
    for label, group in enumerate(("normals", "bands")):
        found[group] = {"images": int((label_N == label).sum())}
        for what, ours, other in zip(OUTPUTS, own, theirs, strict=True):
            seen = np.isfinite(ours) & (label_N == label).reshape(-1, *[1] * (ours.ndim - 1))  # a crop hides
            largest = float(np.abs(ours[seen]).max(initial=0))
            apart = float(np.abs(ours[seen] - other[seen]).max(initial=0))
            relative = apart / (largest or 1.0)
            found[group][what] = {"largest": largest, "largest_difference": apart, "relative": relative}
            differ = f"{what}s of {group} differ by {apart:.1e} at most, {relative:.1e} of the largest"
            if not relative <= LIMIT:
                raise OutputError(f"{differ}: more than {LIMIT:g} is another model, so no file is left")
            say(f"{differ}, {largest:.3g}")
    return found


def _said(name: str, card: Card) -> dict[str, Any]:
    """Return what a file takes and gives, for whoever has not this package."""
    stored = {"stored_as": card.dtype, "divided_by": SCALES.get(card.dtype, 1.0)}
    return {
        "schema": 1,
        "run": name,
        "variant": card.run.model.variant,
        "seed": card.run.seed,
        "input": {"name": INPUT, "type": "float32", "shape": ["N", *card.shape], **stored},
        "output": {"score": ["N"], "map": ["N", *card.shape], "hidden_by_a_crop": "NaN"},
        "thresholds": card.thresholds,
        "data_digest": card.data_digest,
        "encoder_digest": card.encoder_digest,
    }
