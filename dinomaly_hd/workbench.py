"""Read maps, train, look at what came out, score new maps, compare: what the entry points do, in Python."""

# N maps, H rows (driving teeth), W columns (driven teeth)

import shutil
import tempfile
import weakref
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from pydantic import TypeAdapter

from dinomaly_hd.config.resolve import resolve_model
from dinomaly_hd.config.run import FOUND_DOMAINS, DataConfig
from dinomaly_hd.config.variants import config_label
from dinomaly_hd.data import simulator
from dinomaly_hd.data.features import ImageStore
from dinomaly_hd.data.hdmap import load_manifest
from dinomaly_hd.data.tree import ConditionRule, found_domains
from dinomaly_hd.errors import CheckpointError, ConfigError, SignalGuard
from dinomaly_hd.evaluation.comparison_pages import Question
from dinomaly_hd.evaluation.pictures import INPUT_COLOURS, as_html, coloured
from dinomaly_hd.evaluation.pointing import POINTED, TOOTH, where_text
from dinomaly_hd.evaluation.report import detector_table
from dinomaly_hd.experiments.members import read_member
from dinomaly_hd.experiments.reporting import report_folder, write_report
from dinomaly_hd.experiments.run import execute
from dinomaly_hd.experiments.score import stack
from dinomaly_hd.progress import say
from dinomaly_hd.runs.folder import MODEL, Context, read_results
from dinomaly_hd.runs.store import default_uri
from dinomaly_hd.serving.find import bare, download_model, run_here
from dinomaly_hd.serving.served import Refusal, ServedModel

RESULTS = Path("results")
SHOWN = 4  # pictures, teeth: what stands beside one another in a notebook
ASKED = "Which of these runs is the better one on the same test images?"


@dataclass(frozen=True)
class Maps:
    """Maps (N, H, W), float32 as read; a table of path, domain, split, label (1 is a fault), condition."""

    images: NDArray[np.float32]
    table: pd.DataFrame

    def __len__(self) -> int:
        return len(self.images)

    def of(self, **values: Any) -> "Maps":
        """Return those of e.g. ``domain="domain_C", split="test", label=1, condition="cold"``."""
        unknown = values.keys() - set(self.table.columns)
        if unknown:
            raise ConfigError(f"{', '.join(sorted(unknown))}: maps have {', '.join(self.table.columns)}")
        wanted = np.all(
            [self.table[name] == value for name, value in values.items()] or [[True] * len(self)], 0
        )
        return Maps(self.images[wanted], self.table[wanted].reset_index(drop=True))

    def _repr_html_(self) -> str:
        counts = self.table.groupby(["domain", "split", "label"], sort=False).size().rename("maps").to_frame()
        words = f"{len(self)} maps of {self.images.shape[1]} x {self.images.shape[2]}"
        first = self.table.drop_duplicates(["domain", "label"])[:SHOWN]
        pictures = [
            as_html(coloured(self.images[row], INPUT_COLOURS), path)
            for row, path in zip(first.index.to_numpy(), first["path"], strict=True)
        ]
        return f"<p>{words}</p>{counts.to_html()}{''.join(pictures)}"


def read(folder: str | Path, *, domains: Sequence[str] | None = None, conditions: str = "auto") -> Maps:
    """Read and check all maps of a data root; whatever is wrong with it is one DataError.

    ``domains`` None are A, B, C and D where the root holds these, else all that it holds.
    """
    rule = TypeAdapter[ConditionRule](ConditionRule).validate_python(conditions)
    root = Path(folder)
    chosen = domains or found_domains(root, usual=DataConfig().domain_names) or (FOUND_DOMAINS,)
    manifest = load_manifest(root, domains=tuple(chosen), conditions=rule)
    table = pd.DataFrame([record._asdict() for record in manifest.records])
    images = stack(ImageStore(manifest, keep_bytes=0), np.arange(len(table)))
    return Maps(images, table[["path", "domain", "split", "label", "condition"]])


def simulate(folder: str | Path, *, size: str = "quick", seed: int = 0) -> Path:
    """Write a simulated data set (tiny, quick, full) where it is not there yet, and return its root."""
    return simulator.simulate(Path(folder), size=size, seed=seed)


class Scores(NamedTuple):
    """A row a map: score, threshold, fault, named tooth, percentile; and the anomaly maps (N, H, W)."""

    table: pd.DataFrame
    maps: NDArray[np.float32]

    def _repr_html_(self) -> str:
        faults = self.table[self.table["fault"].eq(True)]
        teeth = faults[TOOTH].value_counts().head(SHOWN)
        named = ", ".join(f"tooth {tooth} in {count}" for tooth, count in teeth.items())
        words = f"{len(self.table)} maps, {len(faults)} called faults{named and f': {named}'}"
        highest = self.table.nlargest(SHOWN, "score")
        pictures = [
            as_html(coloured(self.maps[row]), f"{row}: score {one['score']:.4g}, {where_text(one)}")
            for row, one in zip(highest.index.to_numpy(), highest.to_dict("records"), strict=True)
        ]
        return f"<p>{words}</p>{self.table.to_html(max_rows=10)}{''.join(pictures)}"


class Run:
    """A finished run, or a model that lies in MLflow: what it found, and new maps scored by it."""

    def __init__(self, folder: Path, *, model: Path | None = None) -> None:
        self.folder, self._model_folder = folder, model or folder / MODEL

    @cached_property
    def results(self) -> pd.DataFrame:
        """Figures of each domain's test images, their mean and all together (pooled), in shares."""
        found = self._results()
        blocks = {"mean": found["mean_metrics"], "pooled": found["overall_pooled_metrics"]}
        rows = {
            name: {key: value for key, value in block.items() if isinstance(value, float)}
            for name, block in {**found["per_domain_metrics"], **blocks}.items()
        }
        return pd.DataFrame.from_dict(rows, orient="index")

    @cached_property
    def scores(self) -> pd.DataFrame:
        """A row a test image: path, domain, label, condition, score, named tooth, model-free scores."""
        scores = read_member(self.folder).scores.reset_index(drop=True)
        return scores.astype(dict.fromkeys(POINTED, "Int64"))

    @cached_property
    def _model(self) -> ServedModel:
        return ServedModel(self._model_folder)

    def score(self, maps: Maps | ArrayLike, *, domain: str | None = None) -> Scores:
        """Score maps as the run scored its own; ``domain`` says whose threshold decides.

        It may be left out where maps say it (``Maps``) or the model knows one domain only.
        """
        if isinstance(maps, Maps):
            if domain is None:
                return self._by_domain(maps)
            maps = maps.images
        try:
            table = self._model.predict(np.asarray(maps), {"domain": domain or "", "return_map": True})
        except Refusal as error:
            raise error.__cause__ or error from None
        whole = table.drop(columns="map").astype(dict.fromkeys(POINTED, "Int64"))
        return Scores(whole, np.array(table["map"].tolist(), dtype=np.float32))

    def _by_domain(self, maps: Maps) -> Scores:
        parts = maps.table.groupby("domain", sort=False).indices
        scored = [self.score(maps.images[rows], domain=str(domain)) for domain, rows in parts.items()]
        order = np.argsort(np.concatenate(list(parts.values())))
        table = pd.concat([one.table for one in scored], ignore_index=True).iloc[order]
        own = maps.table[["path", "domain", "label", "condition"]].join(table.reset_index(drop=True))
        return Scores(own, np.concatenate([one.maps for one in scored])[order])

    def _results(self) -> dict[str, Any]:
        found = read_results(self.folder)
        if found is None:
            raise CheckpointError(f"{self.folder}: a model only, without the results of its run")
        return found

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    def _repr_html_(self) -> str:
        found = read_results(self.folder)
        if found is None:
            return f"<p>a model only, without the results of its run: {escape(str(self.folder))}</p>"
        words = f"{found['variant']}, seed {found['seed']}: {self.folder}"
        highest = sorted(self.folder.glob("anomaly_maps/**/fault_highest_01_*.png"))[:SHOWN]
        pictures = [as_html(path.read_bytes(), f"{path.parent.name}, its highest fault") for path in highest]
        return f"<p>{escape(words)}</p>{detector_table(found).to_html()}{''.join(pictures)}"


def train(
    model: str, *, result_dir: str | Path = RESULTS, experiment: str = "dinomaly-hd", **parameters: Any
) -> Run:
    """Train and evaluate a variant or family ("horizontal", "patchcore:context=2"), as its entry point does.

    ``parameters`` are those that ``dinomaly-hd NAME --help-all`` lists. A run that was begun before with the
    same ones goes on, and MLflow gets its copy (MLFLOW_TRACKING_URI, else ``mlflow.db`` here).
    """
    values = {name: _as_text(value) for name, value in parameters.items()}
    flags = "".join(f" --{name}={value}" for name, value in values.items())
    with SignalGuard() as guard:
        context = Context(
            root=Path.cwd(),
            result_dir=Path(result_dir),
            experiment=experiment,
            guard=guard,
            say=say,
            command=f"dinomaly-hd {model}{flags}",
            entry_point=model,
        )
        return Run(execute(resolve_model(model, values), context).folder)


def load(name: str | Path, *, result_dir: str | Path = RESULTS) -> Run:
    """Return a run by folder, name, MLflow id or ``runs:/ID``, or a model by ``models:/NAME@ALIAS``."""
    text = bare(str(name))
    folder = run_here(text, Path(result_dir))
    if folder is not None:
        return Run(folder)
    place = Path(tempfile.mkdtemp(prefix="dinomaly-hd-"))
    try:
        run = Run(place, model=download_model(text, uri=default_uri(Path.cwd()), target=place))
    except BaseException:
        shutil.rmtree(place)
        raise
    weakref.finalize(run, shutil.rmtree, place)
    return run


class Report(NamedTuple):
    """What a comparison found; ``folder`` holds report.html with its tests."""

    folder: Path
    means: pd.DataFrame
    differences: pd.DataFrame  # paired over seeds, to the reference
    markdown: str

    def _repr_html_(self) -> str:
        auroc = self.means[self.means["metric"] == "auroc"]
        shown = auroc.pivot(index="label", columns=["domain", "condition"], values="mean")
        text = shown.to_html(float_format="{:.4f}".format)
        answer = escape(self.markdown.split("\n\n")[1].strip("*"))
        return f"<p>{answer}</p><p>AUROC; {escape(str(self.folder))}/report.html has the tests</p>{text}"


def compare(runs: Sequence[Run], *, reference: str | None = None, output: str | Path | None = None) -> Report:
    """Compare finished runs of one data set, labels over their seeds, with the first or ``reference``."""
    members = [read_member(run.folder) for run in runs]
    question = Question(f"{len(members)} runs", ASKED, reference=reference and config_label(reference))
    place = nullcontext(Path(output)) if output else report_folder(RESULTS, members)
    with SignalGuard() as guard, place as folder:
        report = write_report(
            members, folder, question=question, command="dinomaly_hd.compare", failed={}, tick=guard.check
        )
    found = report.comparison
    return Report(folder, found.means, found.differences, report.markdown)


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
