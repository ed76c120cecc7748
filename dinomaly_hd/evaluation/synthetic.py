"""Figures on held-out normals against copies of them with synthetic bands: what may choose settings."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dinomaly_hd.evaluation.metrics import number
from dinomaly_hd.evaluation.results import rates

FIGURES = {"auroc": "auroc", "tpr_at_fpr_1pct": "tpr_at_fpr_1", "tpr_at_fpr_5pct": "tpr_at_fpr_5"}
"""Name in results.json -> name of the metric in MLflow."""


def synthetic_blocks(score: ArrayLike, label: ArrayLike, domain: NDArray[np.str_]) -> dict[str, Any]:
    """Return ``per_domain`` and ``mean``: AUROC and TPR at FPR 1 % and 5 %, each 0..1 (spec/tracking.md).

    ``score`` (N,) is finite, higher is more anomalous; ``label`` (N,) is 0 normal, 1 with a band; ``domain``
    (N,) names each image's domain.
    """
    score, label = np.asarray(score, np.float64), np.asarray(label)
    per_domain = {}
    for name in dict.fromkeys(domain.tolist()):
        own = domain == name
        per_domain[name] = {
            **rates(score[own], label[own]),
            "normals": int((label[own] == 0).sum()),
            "bands": int((label[own] == 1).sum()),
        }
    mean = {figure: float(np.mean([block[figure] for block in per_domain.values()])) for figure in FIGURES}
    return {"per_domain": per_domain, "mean": mean}


def flat_synthetic(synthetic: Mapping[str, Any]) -> dict[str, float]:
    """Return ``synthetic/domain_C/auroc``, ``synthetic/mean/tpr_at_fpr_1``, ... for MLflow."""
    blocks = {**synthetic["per_domain"], "mean": synthetic["mean"]}
    return {
        f"synthetic/{name}/{metric}": number(block[figure])
        for name, block in blocks.items()
        for figure, metric in FIGURES.items()
    }


def synthetic_lines(synthetic: Mapping[str, Any]) -> list[str]:
    """Return what a run prints of it, in per cent."""
    lines = ["Held-out normals against synthetic bands (no test image), %: AUROC, TPR at FPR 1 %"]
    for name, block in synthetic["per_domain"].items():
        counts = f"{block['normals']} normals, {block['bands']} bands"
        lines.append(f"  {name}: {100 * block['auroc']:.2f}, {100 * block['tpr_at_fpr_1pct']:.2f} ({counts})")
    return lines
