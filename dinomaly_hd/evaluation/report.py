"""A result's views: MLflow's metrics, tables as texts in per cent; and pages, which templates make.

Pages are HTML files that need nothing else, and Markdown to paste. One environment fills all templates: in
pages every text is escaped, in Markdown by the filter ``md``.
"""

import base64
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from dinomaly_hd.evaluation.metrics import NAN, known, mean_of_known, std_of_known
from dinomaly_hd.evaluation.results import ALL, CALLS, PIXEL, RANKING, WITH_INTERVAL, Block
from dinomaly_hd.names import as_markdown
from dinomaly_hd.trivial import GEAR_INDICATORS, PREFIX, ROW_EVIDENCE, ROW_FILTER, SCAN

NAME_WIDTH, TOOTH_RIGHT = 14, "tooth right"
TRIVIAL_METRICS = ("auroc", "tpr_at_fpr_1pct")
REFERENCES = tuple(name.removeprefix(PREFIX) for name in (ROW_FILTER, SCAN, ROW_EVIDENCE))
TRIVIAL_HEADING = "Without a network, AUROC in %; these know that a fault is a band: "
MEANINGS = {
    "max, mean, std, contrast": "the image's largest value, mean, standard deviation, and (max - mean) / std",
    "row_filter": "the row that stands out most from its neighbours, in deviations of the training normals",
    "scan": "the interval of a row that stands out most from the training normals at its place",
    ", ".join(GEAR_INDICATORS): "indicators of the vibration, see docs/vibration.md",
    "row_evidence": "how much likelier a row is with a band than without, learned from normals",
}
"""What the columns of the table are, one sentence each."""


class Picture(NamedTuple):
    """A PNG and what it shows."""

    caption: str
    png: bytes


def render(template: str, **values: Any) -> str:
    return ENVIRONMENT.get_template(template).render(values)


def flat_metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """Flatten to ``domain_C/auroc``, ``domain_C/cold/tpr_at_fpr_1``, ``mean/auroc_low``, ...

    What stands before the last ``/`` is a section of MLflow's charts, and every metric is a chart; so trivial
    scores are ``trivial/max/domain_C.cold.auroc``, and left out are NaN, the calls and intervals within a
    condition, and of the trivial scores everything but AUROC and TPR@FPR 1 %.
    """
    flat: dict[str, float] = {}
    for name, block in _blocks(result).items():
        for prefix, part in _parts(name, block):
            flat |= {f"{prefix}/{_short(metric)}": part[metric] for metric in RANKING}
        flat |= {
            f"{name}/{metric}": block.get(metric, NAN) for metric in (*CALLS, *PIXEL, "optimal_threshold")
        }
        for metric in WITH_INTERVAL:
            for end, value in zip(("low", "high"), block["intervals"][metric], strict=True):
                flat[f"{name}/{_short(metric)}_{end}"] = value
    for score, members in result["trivial"].items():
        for name, block in members.items():
            for prefix, part in _parts(name, block):
                for metric in TRIVIAL_METRICS:
                    flat[f"trivial/{score}/{prefix.replace('/', '.')}.{_short(metric)}"] = part[metric]
    return known(flat)


def detector_table(result: Mapping[str, Any]) -> pd.DataFrame:
    """A row a domain, then ``mean`` and ``pooled``; columns (condition or "", figure) of texts."""
    conditions = [name for name in result["overall_pooled_metrics"]["by_condition"] if name != ALL]
    rows: dict[str, dict[tuple[str, str], str]] = {}
    pointed = any("named_tooth" in block for block in result["per_domain_metrics"].values())
    for name, block in _blocks(result).items():
        counts = block.get("counts", {"good": "", "fault": ""})
        row = rows[name] = {("", kind): str(counts[kind]) for kind in ("good", "fault")}
        row["", "AUROC [95 %]"] = with_interval(block, "auroc")
        row["", "TPR@FPR 1 % [95 %]"] = with_interval(block, "tpr_at_fpr_1pct")
        row["", "TPR@FPR 5 %"] = percent(block["tpr_at_fpr_5pct"])
        if pointed:
            row["", TOOTH_RIGHT] = percent(block.get("named_tooth", NAN))
        for condition in conditions if len(conditions) > 1 else ():
            part = block["by_condition"][condition]
            row[condition, "AUROC"] = percent(part["auroc"])
            row[condition, "TPR 1 %"] = percent(part["tpr_at_fpr_1pct"])
    return pd.DataFrame.from_dict(rows, orient="index")


def trivial_table(result: Mapping[str, Any]) -> pd.DataFrame:
    """AUROC of the detector and of every model-free score, a row a domain, then ``mean``."""
    blocks = {name: block for name, block in _blocks(result).items() if name != "pooled"}
    # What knows the defect's shape stands apart from the scores that know nothing.
    scores = {
        "detector": blocks,
        **dict(sorted(result["trivial"].items(), key=lambda own: own[0] in REFERENCES)),
    }
    columns = {score: {name: percent(own[name]["auroc"]) for name in blocks} for score, own in scores.items()}
    return pd.DataFrame(columns)


def summary_lines(result: Mapping[str, Any]) -> list[str]:
    """Lay the result out as plain text of at most 110 columns; ``-`` is what cannot be had."""
    table = detector_table(result)
    conditions = table.columns.unique(0)[:3]  # "" and two
    told_below = [("", "TPR@FPR 5 %"), ("", TOOTH_RIGHT)]
    printed = _printed(table[list(conditions)].drop(columns=told_below, errors="ignore"))
    lines = [line for line in printed if line.strip()]  # where all is one condition, none is named
    lines.insert(len(lines) - 2, "-" * len(lines[0]))
    mean, domains = result["mean_metrics"], result["per_domain_metrics"]
    without = mean["missing"].get("auroc", [])
    if without:
        lines.append(f"mean: over {mean['domains_used']['auroc']} of {mean['domains']} domains")
    lines += [f"{_cut(name, 40)}: {domains[name]['reasons']['auroc']}" for name in without]
    if result["trivial"]:
        known = [name for name in REFERENCES if name in result["trivial"]]
        lines += [
            "",
            TRIVIAL_HEADING + (", ".join(known) or "none"),
            *_printed(trivial_table(result)),
            *warning_lines(result),
        ]
    named = {name: own["named_tooth"] for name, own in domains.items() if "named_tooth" in own}
    if named:
        said = ", ".join(f"{_cut(name, NAME_WIDTH)} {percent(share)}" for name, share in named.items())
        lines += ["", f"Named tooth right (+- 1), %: {said}"]
    return lines


def warning_lines(result: Mapping[str, Any]) -> list[str]:
    """Return where the scan, which needs no model, is better than the detector."""
    scan = result["trivial"].get("scan", {})
    behind = [
        name
        for name, own in result["per_domain_metrics"].items()
        if name in scan and scan[name]["auroc"] > own["auroc"]
    ]
    said = f"scan is better on {', '.join(behind)}: positions tell more than the detector makes of them"
    return [said] if behind else []


def results_markdown(result: Mapping[str, Any]) -> str:
    table = named_rows(detector_table(result))
    rule = ["---", *["---:"] * (table.shape[1] - 1)]
    rows = [[as_markdown(str(cell)) for cell in row] for row in (table.columns, *table.to_numpy())]
    return "".join(f"| {' | '.join(row)} |\n" for row in (rows[0], rule, *rows[1:]))


def named_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table with the rows' names as its first column, and column names of one level."""
    if table.columns.nlevels > 1:
        table = table.set_axis([" ".join(name).strip() for name in table.columns.to_flat_index()], axis=1)
    return table.reset_index(names="")


def with_interval(block: Block, metric: str) -> str:
    """Return "value [low, high]" in per cent, without interval where there is none."""
    low, high = block["intervals"][metric]
    value = percent(block[metric])
    return value if np.isnan(low) else f"{value} [{percent(low)}, {percent(high)}]"


def percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{100 * value:.2f}"


def mean_and_spread(values: "pd.Series[float]") -> str:
    """Return "mean ± standard deviation" in per cent over what is no NaN; one value has no deviation."""
    std = std_of_known(values)
    return percent(mean_of_known(values)) + ("" if np.isnan(std) else f" ± {percent(std)}")


def _blocks(result: Mapping[str, Any]) -> dict[str, Block]:
    summaries = {"mean": result["mean_metrics"], "pooled": result["overall_pooled_metrics"]}
    return {**result["per_domain_metrics"], **summaries}


def _parts(name: str, block: Block) -> Iterator[tuple[str, Block]]:
    yield name, block
    for condition, part in block["by_condition"].items():
        if condition != ALL:
            yield f"{name}/{condition}", part


def _short(metric: str) -> str:
    return metric.removesuffix("pct")


def _printed(table: pd.DataFrame) -> list[str]:
    short = table.rename(index=lambda name: _cut(name, NAME_WIDTH), columns=lambda name: _cut(name, 18))
    return short.to_string().splitlines()


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "~"


def _markdown(text: object) -> str:
    """Keep a text from breaking a table, opening a tag or changing the type.

    A "<" behind a backslash makes MLflow's pages drop every tag up to the next ">".
    """
    escaped = re.sub(r"([\\|>`*])", r"\\\1", str(text))
    return _line(re.sub(r"<(?=[A-Za-z/!?])", "&lt;", escaped))


def _line(text: str) -> str:
    return " ".join(text.split())


ENVIRONMENT = Environment(
    loader=PackageLoader("dinomaly_hd.evaluation"),
    autoescape=select_autoescape(["html"]),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
ENVIRONMENT.filters["base64"] = lambda png: base64.b64encode(png).decode()
ENVIRONMENT.filters["line"] = _line
ENVIRONMENT.filters["md"] = _markdown
