"""What a result holds beside detection on the domains trained on: transfer to others, and synthetic bands.

All figures are shares. A target without an AUROC (one class only, or not scored at all) is named and left out
of the average, never counted as 0. Source: protocols.md, "Transfer"; tracking.md, "Optuna".
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from dinomaly_hd.evaluation.metrics import NAN, Threshold, confusion_at, known, number
from dinomaly_hd.evaluation.results import rates

FROM = " from "
"""Between a model and its source in the label of a run, where a comparison has several sources."""
CHANCE = 0.5
SOURCE_FPR = 0.01
TRANSFER = ("source_auroc", "average_target_auroc", "transfer_ratio", "domain_gap", "chance_corrected_ratio")
FIGURES = {"auroc": "auroc", "tpr_at_fpr_1pct": "tpr_at_fpr_1", "tpr_at_fpr_5pct": "tpr_at_fpr_5"}
"""Name in results.json -> name of the metric in MLflow."""


def transfer_of(
    per_domain: Mapping[str, Mapping[str, Any]],
    table: pd.DataFrame,
    *,
    sources: Sequence[str],
    threshold: Threshold,
    failed: Mapping[str, str],
) -> dict[str, Any]:
    """Return ``source_results``, ``target_results`` and ``transfer`` of a result.

    ``per_domain`` holds the blocks of ``results.evaluate`` on the score ``table``. All domains but the
    ``sources`` are targets; ``failed`` says why others could not be scored. ``threshold`` comes from the
    sources' normals, at 1 % of them; ``at_source_threshold`` of each target is what it finds there.
    """
    source = {name: block for name, block in per_domain.items() if name in sources}
    target = {name: block for name, block in per_domain.items() if name not in sources}
    known_targets = known({name: block["auroc"] for name, block in target.items()})
    one_class = {name: str(target[name]["reasons"]["auroc"]) for name in target if name not in known_targets}
    source_auroc = _mean([block["auroc"] for block in source.values()])
    average = _mean([auroc for name, auroc in known_targets.items() if name not in failed])
    at_source = {}
    for name in target:
        rows = table[table["domain"] == name]
        calls = confusion_at(rows["score"], rows["label"], threshold=threshold.value)
        tpr, fpr = _ratio(calls.tp, calls.tp + calls.fn), _ratio(calls.fp, calls.fp + calls.tn)
        at_source[name] = {"tpr": tpr, "fpr": fpr}
    return {
        "source_results": source,
        "target_results": target,
        "transfer": {
            "source_domains": list(source),
            "target_domains": [*target, *failed],
            "missing_targets": {**one_class, **failed},
            "source_auroc": source_auroc,
            "average_target_auroc": average,
            "transfer_ratio": _ratio(average, source_auroc),
            "domain_gap": source_auroc - average,
            "chance_corrected_ratio": _ratio(average - CHANCE, source_auroc - CHANCE),
            "source_threshold": threshold.value,
            "at_source_threshold": at_source,
        },
    }


def flat_transfer(transfer: Mapping[str, Any]) -> dict[str, float]:
    """Return ``transfer/...`` metrics for MLflow; NaN is left out."""
    flat = {f"transfer/{name}": transfer[name] for name in TRANSFER}
    for domain, calls in transfer["at_source_threshold"].items():
        flat |= {f"transfer/{domain}/{name}_at_source_threshold": value for name, value in calls.items()}
    return known(flat)


def transfer_lines(transfer: Mapping[str, Any]) -> list[str]:
    """Return what a run prints of its transfer, in per cent."""
    shown = [_percent(transfer[name], 1 if "ratio" in name else 2) for name in TRANSFER]
    lines = [
        "Transfer from {}: source AUROC {}, targets {}, ratio {} %, gap {}, "
        "chance-corrected ratio {} %".format(", ".join(transfer["source_domains"]), *shown)
    ]
    for domain, calls in transfer["at_source_threshold"].items():
        tpr, fpr = (_percent(calls[name], 1) for name in ("tpr", "fpr"))
        lines.append(f"  {domain}: with the source's threshold TPR {tpr} %, FPR {fpr} %")
    return lines + [f"  {name}: left out: {why}" for name, why in transfer["missing_targets"].items()]


def synthetic_blocks(score: ArrayLike, label: ArrayLike, domain: NDArray[np.str_]) -> dict[str, Any]:
    """Return ``per_domain`` and ``mean``: AUROC and TPR at FPR 1 % and 5 % on held-out normals against copies
    of them with bands, which may choose settings.

    ``score`` (N,) is finite, higher is more anomalous; ``label`` (N,) is 0 normal, 1 with a band; ``domain``
    (N,) names each image's domain.
    """
    score, label = np.asarray(score, np.float64), np.asarray(label)
    per_domain = {}
    for name in dict.fromkeys(domain.tolist()):
        own = domain == name
        counts = {"normals": int((label[own] == 0).sum()), "bands": int((label[own] == 1).sum())}
        per_domain[name] = rates(score[own], label[own]) | counts
    mean = {figure: float(np.mean([block[figure] for block in per_domain.values()])) for figure in FIGURES}
    return {"per_domain": per_domain, "mean": mean}


def flat_synthetic(synthetic: Mapping[str, Any]) -> dict[str, float]:
    """Return ``synthetic/domain_C/auroc``, ``synthetic/mean/tpr_at_fpr_1``, ... for MLflow."""
    return {
        f"synthetic/{name}/{metric}": number(block[figure])
        for name, block in {**synthetic["per_domain"], "mean": synthetic["mean"]}.items()
        for figure, metric in FIGURES.items()
    }


def synthetic_lines(synthetic: Mapping[str, Any]) -> list[str]:
    """Return what a run prints of it, in per cent."""
    lines = ["Held-out normals against synthetic bands (no test image), %: AUROC, TPR at FPR 1 %"]
    for name, block in synthetic["per_domain"].items():
        counts = f"{block['normals']} normals, {block['bands']} bands"
        lines.append(f"  {name}: {100 * block['auroc']:.2f}, {100 * block['tpr_at_fpr_1pct']:.2f} ({counts})")
    return lines


def _percent(value: float, digits: int) -> str:
    return "-" if np.isnan(value) else f"{100 * value:.{digits}f}"


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else NAN


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else NAN
