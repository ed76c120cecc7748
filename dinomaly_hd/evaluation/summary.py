"""Two flat views of a result (``results.evaluate``): MLflow's metrics, and the table a run prints."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dinomaly_hd.evaluation.blocks import CALLS, PIXEL, RANKING, WITH_INTERVAL, Block
from dinomaly_hd.evaluation.metrics import NAN, known
from dinomaly_hd.evaluation.results import ALL

WIDTH = 110
NAME_WIDTH = 14
TRIVIAL_METRICS = ("auroc", "tpr_at_fpr_1pct")


def flat_metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """Flatten to ``domain_C/auroc``, ``domain_C/cold/tpr_at_fpr_1``, ``mean/auroc_low``, ...

    What stands before the last ``/`` is a section of MLflow's charts, and every metric is a chart; so trivial
    scores are ``trivial/max/domain_C.cold.auroc``, and left out are NaN, the calls and intervals within a
    condition, and of the trivial scores everything but AUROC and TPR@FPR 1 %.
    """
    flat: dict[str, float] = {}
    summaries = {"mean": result["mean_metrics"], "pooled": result["overall_pooled_metrics"]}
    for name, block in {**result["per_domain_metrics"], **summaries}.items():
        for prefix, part in _parts(name, block):
            for metric in RANKING:
                flat[f"{prefix}/{_short(metric)}"] = part[metric]
        for metric in (*CALLS, *PIXEL, "optimal_threshold"):
            flat[f"{name}/{metric}"] = block.get(metric, NAN)
        for metric in WITH_INTERVAL:
            low, high = block["intervals"][metric]
            flat[f"{name}/{_short(metric)}_low"] = low
            flat[f"{name}/{_short(metric)}_high"] = high
    for score, members in result["trivial"].items():
        for name, block in members.items():
            for prefix, part in _parts(name, block):
                for metric in TRIVIAL_METRICS:
                    flat[f"trivial/{score}/{prefix.replace('/', '.')}.{_short(metric)}"] = part[metric]
    return known(flat)


def summary_lines(result: Mapping[str, Any]) -> list[str]:
    """Lay the result out as plain text of at most 110 columns, in per cent; ``-`` is what cannot be had."""
    domains = result["per_domain_metrics"]
    rows = {**domains, "mean": result["mean_metrics"], "pooled": result["overall_pooled_metrics"]}
    conditions = [name for name in result["overall_pooled_metrics"]["by_condition"] if name != ALL][:2]
    lines = _detector_table(rows, conditions)
    lines += _missing_lines(domains, result["mean_metrics"])
    if result["trivial"]:
        lines += ["", *_trivial_table(result)]
    return lines


def _parts(name: str, block: Block) -> Iterator[tuple[str, Block]]:
    yield name, block
    for condition, part in block["by_condition"].items():
        if condition != ALL:
            yield f"{name}/{condition}", part


def _short(metric: str) -> str:
    return metric.removesuffix("pct")


def _detector_table(rows: Mapping[str, Block], conditions: Sequence[str]) -> list[str]:
    name_width = min(NAME_WIDTH, max(len(name) for name in rows))
    above = " " * (name_width + 14) + f"{'':24}{'':24}"
    head = f"{'':{name_width}}{'good':>7}{'fault':>7}{'AUROC [95 %]':>24}{'TPR@FPR 1 % [95 %]':>24}"
    for condition in conditions:
        above += f"{_cut(condition, 12):>15}"
        head += f"{'AUROC':>8}{'TPR 1 %':>8}"[1:]
    lines = [above.rstrip(), head] if conditions else [head]
    for name, block in rows.items():
        if name == "mean":
            lines.append("-" * len(head))
        counts = block.get("counts", {"good": "", "fault": ""})
        line = f"{_cut(name, name_width):{name_width}}{counts['good']:>7}{counts['fault']:>7}"
        line += "".join(f"{with_interval(block, metric):>24}" for metric in ("auroc", "tpr_at_fpr_1pct"))
        for condition in conditions:
            part = block["by_condition"][condition]
            line += f"{percent(part['auroc']):>7}{percent(part['tpr_at_fpr_1pct']):>8}"
        lines.append(line)
    return lines


def _missing_lines(domains: Mapping[str, Block], mean: Block) -> list[str]:
    without = mean["missing"].get("auroc", [])
    if not without:
        return []
    lines = [f"mean: over {mean['domains_used']['auroc']} of {mean['domains']} domains"]
    return lines + [f"{_cut(name, 40)}: {domains[name]['reasons']['auroc']}" for name in without]


def _trivial_table(result: Mapping[str, Any]) -> list[str]:
    trivial: Mapping[str, Mapping[str, Block]] = result["trivial"]
    names = [*result["per_domain_metrics"], "mean"]
    name_width = max(NAME_WIDTH, min(20, max(len(name) for name in names)))
    # row_filter knows the defect's shape, so it stands apart from the scores that know nothing.
    order = sorted(trivial, key=lambda score: score == "row_filter")
    head = f"{'AUROC of':{name_width}}{'detector':>12}" + "".join(f"{_cut(score, 11):>12}" for score in order)
    lines = ["Model-free scores, AUROC in % (row_filter knows the shape of the defect: a reference)", head]
    for name in names:
        block = result["mean_metrics"] if name == "mean" else result["per_domain_metrics"][name]
        cells = [block["auroc"], *(trivial[score][name]["auroc"] for score in order)]
        lines.append(
            f"{_cut(name, name_width):{name_width}}" + "".join(f"{percent(cell):>12}" for cell in cells)
        )
    return lines


def with_interval(block: Block, metric: str) -> str:
    """Return "value [low, high]" in per cent, without interval where there is none."""
    low, high = block["intervals"][metric]
    value = percent(block[metric])
    return value if np.isnan(low) else f"{value} [{percent(low)}, {percent(high)}]"


def percent(value: float) -> str:
    """Return a share in per cent with two decimals, "-" for NaN."""
    return "-" if np.isnan(value) else f"{100 * value:.2f}"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "~"
