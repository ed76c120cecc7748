"""How well a detector trained on some domains does on others (protocols.md, "Transfer").

All figures are shares. A target without an AUROC (one class only, or not scored at all) is named and left out
of the average, never counted as 0.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from dinomaly_hd.evaluation.metrics import NAN, Threshold, confusion_at, known

FROM = " from "
"""Between a model and its source in the label of a run, where a comparison has several sources."""
CHANCE = 0.5
SOURCE_FPR = 0.01
FIGURES = ("source_auroc", "average_target_auroc", "transfer_ratio", "domain_gap", "chance_corrected_ratio")


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
        rates = {"tpr": (calls.tp, calls.fn), "fpr": (calls.fp, calls.tn)}
        at_source[name] = {rate: _ratio(called, called + not_) for rate, (called, not_) in rates.items()}
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


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else NAN


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else NAN
