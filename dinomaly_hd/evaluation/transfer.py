"""How well a detector trained on some domains does on others (protocols.md, "Transfer").

All figures are shares. A target without an AUROC (one class only, or not scored at all) is named and left out
of the average, never counted as 0.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from dinomaly_hd.evaluation.metrics import NAN, confusion_at, known
from dinomaly_hd.evaluation.thresholds import Threshold

CHANCE = 0.5
SOURCE_FPR = 0.01
FIGURES = (
    "source_auroc",
    "average_target_auroc",
    "transfer_ratio",
    "domain_gap",
    "chance_corrected_ratio",
)


def transfer_of(
    per_domain: Mapping[str, Mapping[str, Any]],
    table: pd.DataFrame,
    *,
    sources: Sequence[str],
    threshold: Threshold,
    failed: Mapping[str, str],
) -> dict[str, Any]:
    """Return ``source_results``, ``target_results`` and ``transfer`` of a result.

    Args:
        per_domain: Blocks of ``results.evaluate``.
        table: The score table behind them.
        sources: Domains trained on; all others are targets.
        threshold: From the sources' normals, at 1 % of them; ``at_source_threshold`` of each target is what
            it finds there.
        failed: Targets that could not be scored, and why.
    """
    source = {name: block for name, block in per_domain.items() if name in sources}
    target = {name: block for name, block in per_domain.items() if name not in sources}
    missing = {**{name: _reason(block) for name, block in target.items() if _missing(block)}, **failed}
    source_auroc = _mean(source)
    average = _mean({name: block for name, block in target.items() if name not in missing})
    return {
        "source_results": source,
        "target_results": target,
        "transfer": {
            "source_domains": list(source),
            "target_domains": [*target, *failed],
            "missing_targets": missing,
            "source_auroc": source_auroc,
            "average_target_auroc": average,
            "transfer_ratio": _ratio(average, source_auroc),
            "domain_gap": source_auroc - average,
            "chance_corrected_ratio": _ratio(average - CHANCE, source_auroc - CHANCE),
            "source_threshold": threshold.value,
            "at_source_threshold": {
                name: _calls(table[table["domain"] == name], threshold.value) for name in target
            },
        },
    }


def flat_transfer(transfer: Mapping[str, Any]) -> dict[str, float]:
    """Return ``transfer/...`` metrics for MLflow; NaN is left out."""
    flat = {f"transfer/{name}": transfer[name] for name in FIGURES}
    for domain, calls in transfer["at_source_threshold"].items():
        flat |= {f"transfer/{domain}/{name}_at_source_threshold": value for name, value in calls.items()}
    return known(flat)


def transfer_lines(transfer: Mapping[str, Any]) -> list[str]:
    """Return what a run prints of its transfer, in per cent."""
    shown = [100 * transfer[name] for name in FIGURES]
    lines = [
        "Transfer from {}: source AUROC {:.2f}, targets {:.2f}, ratio {:.1f} %, gap {:.2f}, "
        "chance-corrected ratio {:.1f} %".format(", ".join(transfer["source_domains"]), *shown)
    ]
    for domain, calls in transfer["at_source_threshold"].items():
        lines.append(
            f"  {domain}: with the source's threshold TPR {100 * calls['tpr']:.1f} %, "
            f"FPR {100 * calls['fpr']:.1f} %"
        )
    return lines + [f"  {name}: left out: {why}" for name, why in transfer["missing_targets"].items()]


def _calls(rows: pd.DataFrame, threshold: float) -> dict[str, float]:
    counts = confusion_at(rows["score"], rows["label"], threshold=threshold)
    faults, goods = counts.tp + counts.fn, counts.fp + counts.tn
    return {"tpr": _ratio(counts.tp, faults), "fpr": _ratio(counts.fp, goods)}


def _mean(blocks: Mapping[str, Mapping[str, Any]]) -> float:
    values = [block["auroc"] for block in blocks.values()]
    return float(np.mean(values)) if values else NAN


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else NAN


def _missing(block: Mapping[str, Any]) -> bool:
    return bool(np.isnan(block["auroc"]))


def _reason(block: Mapping[str, Any]) -> str:
    return str(block["reasons"]["auroc"])
