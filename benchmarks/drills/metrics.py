"""Drill 10: metrics beside scikit-learn's at any scale, scores that are no numbers, splits of one class."""

import math
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn import config_context
from sklearn import metrics as sk
from torch import Tensor

from benchmarks.drills import Drill, Tally, not_refused
from dinomaly_hd.config.presets import preset_run
from dinomaly_hd.config.variants import baseline
from dinomaly_hd.data.features import ImageStore
from dinomaly_hd.data.hdmap import load_manifest
from dinomaly_hd.errors import NonFiniteError
from dinomaly_hd.evaluation import metrics
from dinomaly_hd.evaluation.metrics import f1, normal_quantile, youden
from dinomaly_hd.evaluation.results import evaluate
from dinomaly_hd.experiments.score import Scorer
from dinomaly_hd.files import publish_json
from dinomaly_hd.models.detector import Detector, Prediction
from dinomaly_hd.runs.folder import read_results
from tests.files import add_domain

SEED = 10
SETS, FAST_SETS = 1000, 100
TOLERANCE = 1e-12
EXPONENTS = (*range(-30, 31), -300, 300)
DOMAINS = ("domain_A", "domain_B")
MAX_FPRS = (0.0, 0.01, 0.05, 0.29, 0.3, 0.57, 1.0)
NEED_BOTH = (
    *("auroc", "tpr_at_fpr_1pct", "tpr_at_fpr_5pct", "average_precision", "f1_max"),
    *("precision", "recall", "f1_score", "accuracy"),
)

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


def random_set(number: int) -> tuple[Floats, Labels]:
    """Return the ``number``-th set: of 2 to 2000 scores, of seven kinds, at 1e-300 to 1e300."""
    draw = np.random.default_rng([SEED, number])
    size = int(2 * 1000 ** draw.random())
    label = (draw.random(size) < draw.choice([0.05, 0.5, 0.9])).astype(np.int64)
    label[:2] = 0, 1
    if number % 5 == 0:  # of which 0.29 is 28.999999999999996 images
        size, label = 200, np.repeat(np.array([0, 1]), 100)
    score = draw.normal(size=size) + label * draw.uniform(-1, 3)
    kind = number % 7
    if kind == 6:
        return 5e-324 * draw.integers(0, 9, size), label  # the smallest numbers there are
    if kind == 1:
        score = np.round(score)  # many ties
    elif kind == 2:
        score = np.full(size, score[0])  # one tie
    elif kind == 3:
        score = 1.0 + np.spacing(1.0) * np.round(3 * score)  # neighbours
    elif kind == 4:
        score = score.astype(np.float32).astype(np.float64)  # what a model gives
    elif kind == 5:
        score = draw.choice(score, size)  # ties between few
    return score * 10.0 ** EXPONENTS[number % len(EXPONENTS)], label


def theirs(score: Floats, label: Labels) -> dict[str, float]:
    """Return scikit-learn's figures by name; of each number of calls there is one point."""
    fpr, tpr, threshold = sk.roc_curve(label, score, drop_intermediate=False)
    precision, recall, _ = sk.precision_recall_curve(label, score)
    called = precision + recall > 0
    f1_scores = 2 * precision[called] * recall[called] / (precision + recall)[called]
    gain = tpr - fpr
    calls = score >= np.median(score)
    return {
        "AUROC": sk.roc_auc_score(label, score),
        "average precision": sk.average_precision_score(label, score),
        "F1": f1_scores.max(),
        "Youden's J": gain.max(),
        **{f"TPR at FPR {limit}": tpr[fpr <= limit].max() for limit in MAX_FPRS},
        "area under the vertices": sk.auc(fpr, tpr),
        "vertices": len(threshold),
        "precision": sk.precision_score(label, calls, zero_division=np.nan),
        "recall": sk.recall_score(label, calls),
        "F1 of calls": sk.f1_score(label, calls),
        "accuracy": sk.accuracy_score(label, calls),
    }


def ours(score: Floats, label: Labels) -> dict[str, float]:
    fpr, tpr = metrics.roc_curve(score, label)
    at = partial(metrics.confusion_at, score, label)
    calls, best = at(threshold=float(np.median(score))), at(threshold=youden(score, label).value)
    return {
        "AUROC": metrics.auroc(score, label),
        "average precision": metrics.average_precision(score, label),
        "F1": at(threshold=f1(score, label).value).f1_score,
        "Youden's J": best.tp / (best.tp + best.fn) - best.fp / (best.fp + best.tn),
        **{f"TPR at FPR {limit}": metrics.tpr_at_fpr(score, label, max_fpr=limit) for limit in MAX_FPRS},
        "area under the vertices": float(np.trapezoid(tpr, fpr)),
        "vertices": len(fpr),
        "precision": calls.precision,
        "recall": calls.recall,
        "F1 of calls": calls.f1_score,
        "accuracy": calls.accuracy,
    }


def _differs(number: int) -> tuple[float, str | None]:
    score, label = random_set(number)
    expected, found = theirs(score, label), ours(score, label)
    expected["pixels"] = expected["AUROC"]
    found["pixels"] = metrics.pixel_auroc(score.reshape(-1, 1, 1), label.reshape(-1, 1, 1) == 1)
    off = {name: abs(found[name] - value) for name, value in expected.items()}
    far = [f"{name} {found[name]!r}, not {expected[name]!r}" for name in off if not off[name] <= TOLERANCE]
    return max(off.values()), "; ".join(far) or None


# Scores that are no numbers.


def score_table() -> pd.DataFrame:
    """Return scores of two domains in two conditions, and model-free ones."""
    draw = np.random.default_rng(SEED)
    every = product(DOMAINS, enumerate(("good", "fault")), enumerate(["cold"] * 4 + ["warm"] * 4))
    rows = [
        (f"{domain}/test/{folder}/{number}.tiff", domain, label, name)
        for domain, (label, folder), (number, name) in every
    ]
    table = pd.DataFrame(rows, columns=["path", "domain", "label", "condition"])
    return table.assign(**{name: draw.normal(size=len(rows)) for name in ("score", "trivial/max")})


def evaluated(table: pd.DataFrame) -> dict[str, Any]:
    normal = normal_quantile(np.linspace(-1, 1, 100), held_out=True)
    return evaluate(table, normal_thresholds=dict.fromkeys(DOMAINS, normal), seed=SEED, draws=20)


class _Broken(Detector):
    """A model whose score of the brightest image is no number."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def encode(self, images_BHW: Tensor) -> Tensor:
        return images_BHW

    def score(self, encoded: Tensor) -> Prediction:
        score_B = encoded.amax(dim=(1, 2))
        return Prediction(encoded, torch.where(score_B == score_B.max(), self.value, score_B))


def _scored_by(folder: Path, value: float) -> Callable[[], object]:
    """Return what scores a folder of images with a model that gives ``value`` for the brightest of them."""
    add_domain(folder, "domain_A")
    manifest = load_manifest(folder, domains=["A"], conditions="none")
    scorer = Scorer(
        *(_Broken(value), ImageStore(manifest, keep_bytes=0)),
        run=preset_run("quick", baseline()),
        device=torch.device("cpu"),
        features=None,
        tick=lambda: None,
    )
    return partial(scorer.examine, manifest.indices(split="test"))


LABEL = np.array([0, 0, 1, 1])
MEASURES: dict[str, Callable[[Floats, Labels], Any]] = {
    "AUROC": metrics.auroc,
    "TPR at FPR": partial(metrics.tpr_at_fpr, max_fpr=0.01),
    "average precision": metrics.average_precision,
    "F1": metrics.f1_max,
    "Youden": youden,
    "pixels": lambda score, label: metrics.pixel_auroc(*_as_maps(score, label)),
    "AUPRO": lambda score, label: metrics.aupro(*_as_maps(score, label)),
}
MORE: dict[str, Callable[[Floats, Labels], Any]] = {
    "ROC curve": metrics.roc_curve,
    "calls": partial(metrics.confusion_at, threshold=0.0),
    "quantile": lambda score, _: normal_quantile(score, held_out=True),
}
"""Defined for one class, too."""


def _as_maps(score: Floats, label: Labels) -> tuple[Floats, NDArray[np.bool_]]:
    return score.reshape(4, 1, 1), (label == 1).reshape(4, 1, 1)


def no_numbers(folder: Path, tally: Tally) -> None:
    """Give a NaN or an infinite score to each function, to a table, and let a model have one."""
    for value in (math.nan, math.inf, -math.inf):
        score = np.array([1.0, 2.0, value, 3.0])
        for name, measure in {**MEASURES, **MORE}.items():
            named = "anomaly map 2" if name in ("pixels", "AUPRO") else "position 2"
            found = not_refused(partial(measure, score, LABEL), named, NonFiniteError)
            tally.add(f"{name} of {value}", found)
        for column in ("score", "trivial/max"):
            table = score_table()
            table.loc[5, column] = value
            found = not_refused(partial(evaluated, table), str(table.loc[5, "path"]), NonFiniteError)
            tally.add(f"a table with {value} in {column}", found)
        model = _scored_by(folder / f"model{value}", value)
        tally.add(f"a model's score {value}", not_refused(model, "domain_A/test/", NonFiniteError))


# Splits of one class.


def _of_one_class(folder: Path, label: int) -> str | None:
    table = score_table()
    table = table[(table["domain"] == "domain_B") | (table["label"] == label)]
    results = evaluated(table)
    publish_json(folder / "results.json", results)
    stored = read_results(folder)
    for block in (results["per_domain_metrics"]["domain_A"], stored["per_domain_metrics"]["domain_A"]):
        for name in NEED_BOTH:
            if not math.isnan(metrics.number(block[name])):
                return f"{name} is {block[name]}"
            if "needs both classes" not in block["reasons"].get(name, ""):
                return f"no reason for {name}: {block['reasons']}"
    mean, other = results["mean_metrics"], results["per_domain_metrics"]["domain_B"]
    if mean["auroc"] != other["auroc"] or mean["missing"]["auroc"] != ["domain_A"]:
        return f"the mean is {mean['auroc']}, without {mean['missing']}"
    return None


def one_class(folder: Path, tally: Tally) -> None:
    for label, name in enumerate(("good", "fault")):
        (folder / name).mkdir()
        tally.add(f"a domain of {name} images only", _of_one_class(folder / name, label))
        for figure, measure in MEASURES.items():
            found = measure(np.arange(4.0), np.full(4, label))
            value = getattr(found, "value", found[0] if isinstance(found, tuple) else found)
            tally.add(f"{figure} of {name} only", None if math.isnan(value) else f"is {value}")


def exact_metrics(folder: Path, full: bool) -> Tally:
    """Compare random sets of scores with scikit-learn; then scores that are no numbers, and one class."""
    tally, largest = Tally(), 0.0
    with config_context(assume_finite=True, skip_parameter_validation=True):
        for number in range(SETS if full else FAST_SETS):
            off, fault = _differs(number)
            largest = max(largest, off)
            tally.add(f"set {number}", fault)
    no_numbers(folder, tally)
    one_class(folder, tally)
    tally.note = f"{SETS if full else FAST_SETS} sets, largest difference {largest:.1e}"
    return tally


DRILLS = (Drill(10, "metrics equal scikit-learn's; no number is an error", exact_metrics),)
