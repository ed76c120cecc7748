"""Drill 10: figures of score sets of every scale and kind, beside scikit-learn's."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn import config_context
from sklearn import metrics as sk

from benchmarks.drills.tally import Drill, Tally
from dinomaly_hd.errors import NonFiniteError
from dinomaly_hd.evaluation import metrics
from dinomaly_hd.evaluation.results import evaluate

FULL_SETS, FAST_SETS = 1000, 100
SCALES = (1e-300, 1e-30, 1e-3, 1.0, 1e30, 1e300)
TARGETS = (0.0, 0.01, 0.05, 0.3)
TOLERANCE = 1e-12


class Scored(NamedTuple):
    """Image scores (N,) and labels (N,), 0 good and 1 fault."""

    score: npt.NDArray[np.float64]
    label: npt.NDArray[np.int64]


def _scored(number: int) -> Scored:
    """Return one of many kinds of sets: plain, tied, all equal, denormal, neighbouring floats."""
    draws = np.random.default_rng(number)
    size = int(draws.integers(2, 150))
    label = draws.integers(0, 2, size)
    label[:2] = 0, 1
    plain = draws.normal(size=size) + label * draws.uniform(-1, 3)
    kinds = (
        plain,
        np.round(plain),
        np.full(size, plain[0]),
        5e-324 * draws.integers(0, 9, size),
        1 + np.spacing(1.0) * np.round(plain),
    )
    kind = number % len(kinds)
    scale = 1.0 if kind == 3 else SCALES[number % len(SCALES)]
    return Scored(kinds[kind] * scale, label)


def _unequal(given: Scored) -> str | None:
    """Return the first figure that is not scikit-learn's."""
    score, label = given
    fpr, tpr, _ = sk.roc_curve(label, score, drop_intermediate=False)
    pairs = {
        "AUROC": (metrics.auroc(score, label), sk.roc_auc_score(label, score)),
        "AP": (metrics.average_precision(score, label), sk.average_precision_score(label, score)),
    }
    for target in TARGETS:
        ours = metrics.tpr_at_fpr(score, label, max_fpr=target)
        pairs[f"TPR at FPR {target}"] = (ours, tpr[fpr <= target].max())
    for name, (ours, theirs) in pairs.items():
        if not abs(ours - theirs) <= TOLERANCE:
            return f"{name} {ours!r}, scikit-learn has {theirs!r}"
    return None


def _taken(given: Scored, value: float) -> str | None:
    """Return a fault if a score that is no finite number is taken."""
    score = given.score.copy()
    score[len(score) // 2] = value
    try:
        found = metrics.auroc(score, given.label)
    except NonFiniteError:
        return None
    return f"an AUROC of {found}"


def _one_class(label: int) -> str | None:
    """Return a fault if the figures of one class are numbers, or no reason is said."""
    table = pd.DataFrame(
        {
            "path": [f"{i}.tiff" for i in range(6)],
            "domain": "domain_A",
            "condition": "",
            "label": label,
            "score": np.arange(6.0),
        }
    )
    block = evaluate(table, normal_thresholds={}, seed=0, draws=10)["per_domain_metrics"]["domain_A"]
    for name in ("auroc", "tpr_at_fpr_1pct", "average_precision", "f1_max"):
        if not np.isnan(block[name]):
            return f"{name} is {block[name]}"
        if "needs both classes" not in block["reasons"].get(name, ""):
            return f"no reason for {name}"
    return None


@config_context(assume_finite=True, skip_parameter_validation=True)
def exact(folder: Path, full: bool) -> Tally:
    """Compare AUROC, AP and TPR at FPR with scikit-learn; feed NaN, infinities and single classes."""
    del folder
    tally = Tally()
    for number in range(FULL_SETS if full else FAST_SETS):
        tally.add(f"set {number}", _unequal(_scored(number)))
    for value in (np.nan, np.inf, -np.inf):
        tally.add(f"a score of {value}", _taken(_scored(0), value))
    for label in (0, 1):
        tally.add(f"only label {label}", _one_class(label))
    tally.note = f"to {TOLERANCE:g}"
    return tally


DRILLS = (Drill(10, "figures exact at any scale", exact),)
