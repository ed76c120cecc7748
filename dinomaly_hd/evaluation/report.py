"""A result's views: MLflow's metrics, tables as texts in per cent; and pages, which templates make.

Pages are HTML files that need nothing else, and Markdown to paste. One environment fills all templates: in
pages every text is escaped, in Markdown by the filter ``md``.
"""

import base64
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import wrap
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from dinomaly_hd.evaluation.metrics import NAN, known, number
from dinomaly_hd.evaluation.results import (
    ALL,
    FIGURES,
    FPR_TARGETS,
    Block,
)
from dinomaly_hd.files import publish, publish_text
from dinomaly_hd.names import as_markdown, listed
from dinomaly_hd.trivial import GEAR_INDICATORS, PREFIX, ROW_EVIDENCE, ROW_FILTER, SCAN

NAME_WIDTH, WIDTH, SHOWN_PLACES = 14, 110, 4
OF_MASKS = {"named_tooth": "tooth right", "pixel_auroc": "pixel AUROC", "aupro": "AUPRO"}
"""What is measured where masks are known, and its column."""
TOLD_OF_MASKS = {
    "named_tooth": "Named tooth right (+- 1), %",
    "pixel_auroc": "Pixel AUROC, %",
    "aupro": "AUPRO up to FPR 30 %, %",
}
BESIDE = ("good", "fault", "TPR@FPR 5 %", "pixel AUROC", "AUPRO")
NO_BREAK = "\N{NO-BREAK SPACE}"
HEADLINES = ("auroc", "tpr_at_fpr_1pct")
REFERENCES = tuple(name.removeprefix(PREFIX) for name in (ROW_FILTER, SCAN, ROW_EVIDENCE))
TRANSFER = {
    "source_auroc": "source AUROC",
    "average_target_auroc": "mean target AUROC",
    "transfer_ratio": "ratio",
    "domain_gap": "gap",
    "chance_corrected_ratio": "ratio above chance",
}


class Picture(NamedTuple):
    """A PNG and what it shows."""

    caption: str
    png: bytes


def render(template: str, **values: Any) -> str:
    return ENVIRONMENT.get_template(template).render(values)


def write_files(folder: Path, texts: Mapping[str, str], pictures: Mapping[str, Picture]) -> list[Path]:
    """Publish a report's texts and, under plots/, its pictures, and return where they lie."""
    for name, text in texts.items():
        publish_text(folder / name, text)
    plots = {folder / "plots" / f"{name}.png": picture.png for name, picture in pictures.items()}
    for path, png in plots.items():
        publish(path, lambda stream, png=png: stream.write(png))  # type: ignore[misc]
    return [*(folder / name for name in texts), *plots]


def flat_metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """Return what MLflow shows: ``mean/auroc``, ``domain_C/auroc``, ``domain_C/cold/tpr_at_fpr_1``, ...

    The most important come first, in four digits, and NaN is left out; all the rest is in the result itself.
    What stands before the last ``/`` is a section of MLflow's charts, and every metric is a chart.
    """
    blocks = {"mean": result["mean_metrics"], **result["per_domain_metrics"]}

    def headlines(name: str, block: Block) -> dict[str, float]:
        return {f"{name}/{FIGURES[metric]}": block[metric] for metric in HEADLINES}

    flat: dict[str, float] = {}
    for name, block in blocks.items():
        flat |= headlines(name, block)
    flat["mean/auroc_low"], flat["mean/auroc_high"] = blocks["mean"]["intervals"]["auroc"]
    flat |= {f"{name}/named_tooth": block.get("named_tooth", NAN) for name, block in blocks.items()}
    learned = result["trivial"].get(ROW_EVIDENCE.removeprefix(PREFIX))
    flat |= {f"{ROW_EVIDENCE}/mean.auroc": learned["mean"]["auroc"]} if learned else {}
    transfer = result.get("transfer", {})
    flat |= {f"transfer/{name}": transfer[name] for name in TRANSFER if transfer}
    for name, block in blocks.items():
        for prefix, part in list(_parts(name, block))[1:]:
            flat |= headlines(prefix, part)
    for domain, calls in transfer.get("at_source_threshold", {}).items():
        flat |= {f"transfer/{domain}/{name}_at_source_threshold": rate for name, rate in calls.items()}
    return {name: round(value, 4) for name, value in known(flat).items()}


def data_figures(result: Mapping[str, Any]) -> dict[str, str]:
    """Return how well scores that no seed changes tell the faults, in the words that MLflow shows."""
    return {
        f"AUROC of {score}, %": ", ".join(f"{name} {percent(own[name]['auroc'])}" for name in own)
        for score, own in result["trivial"].items()
        if PREFIX + score != ROW_EVIDENCE
    }


def flat_synthetic(synthetic: Mapping[str, Any]) -> dict[str, float]:
    """Return ``synthetic/domain_C/auroc``, ``synthetic/mean/tpr_at_fpr_1``, ... for MLflow."""
    return {
        f"synthetic/{name}/{metric}": number(block[figure])
        for name, block in {**synthetic["per_domain"], "mean": synthetic["mean"]}.items()
        for figure, metric in FIGURES.items()
    }


def detector_table(result: Mapping[str, Any]) -> pd.DataFrame:
    """A row a domain, of several then ``mean`` and ``pooled``; columns (condition or "", figure) of texts."""
    conditions = [name for name in result["overall_pooled_metrics"]["by_condition"] if name != ALL]
    rows: dict[str, dict[tuple[str, str], str]] = {}
    masked = {
        name: column
        for name, column in OF_MASKS.items()
        if any(name in block for block in result["per_domain_metrics"].values())
    }
    for name, block in _blocks(result).items():
        counts = block.get("counts", {"good": "", "fault": ""})
        row = rows[name] = {("", kind): str(counts[kind]) for kind in ("good", "fault")}
        row["", "AUROC [95 %]"] = with_interval(block, "auroc")
        row["", "TPR@FPR 1 % [95 %]"] = with_interval(block, "tpr_at_fpr_1pct")
        row["", "TPR@FPR 5 %"] = percent(block["tpr_at_fpr_5pct"])
        row |= {("", column): percent(block.get(metric, NAN)) for metric, column in masked.items()}
        for condition in conditions if len(conditions) > 1 else ():
            part = block["by_condition"][condition]
            row[condition, "AUROC"] = percent(part["auroc"])
            row[condition, "TPR 1 %"] = percent(part["tpr_at_fpr_1pct"])
    return pd.DataFrame.from_dict(rows, orient="index")


def defect_table(result: Mapping[str, Any]) -> pd.DataFrame:
    """A row a kind of defect, of the domains that have several: how it is told from the good images."""
    rows = {
        (domain, kind): {
            "faults": str(own["fault"]),
            "AUROC": percent(own["auroc"]),
            "TPR@FPR 1 %": percent(own["tpr_at_fpr_1pct"]),
        }
        for domain, block in result["per_domain_metrics"].items()
        for kind, own in block.get("by_defect", {}).items()
    }
    table = pd.DataFrame.from_dict(rows, orient="index")
    return table.set_axis([f"{domain} {kind}" for domain, kind in rows]) if rows else table


def missing_lines(result: Mapping[str, Any]) -> list[str]:
    """Return which domains have no AUROC, and why."""
    domains = result["per_domain_metrics"]
    without = [name for name in result["mean_metrics"]["missing"].get("auroc", ()) if name in domains]
    return [f"{name}: {domains[name]['reasons']['auroc']}" for name in without]


def trivial_table(result: Mapping[str, Any]) -> pd.DataFrame:
    """AUROC of the detector and of every model-free score, a row a domain, of several then ``mean``."""
    blocks = {name: block for name, block in _blocks(result).items() if name != "pooled"}
    # What knows the defect's shape stands apart from the scores that know nothing.
    scores = {
        "detector": blocks,
        **dict(sorted(result["trivial"].items(), key=lambda own: own[0] in REFERENCES)),
    }
    columns = {score: {name: percent(own[name]["auroc"]) for name in blocks} for score, own in scores.items()}
    return pd.DataFrame(columns)


def alarm_line(result: Mapping[str, Any]) -> str:
    """Say what the thresholds call the test images, "" where there is none."""
    if not (calls := result["overall_pooled_metrics"]["confusion"]):
        return ""
    healthy, faulty = calls["fp"] + calls["tn"], calls["tp"] + calls["fn"]
    alarms = f"{calls['fp']} of {healthy} healthy maps raise a false alarm"
    return f"At the thresholds {alarms}, and {calls['tp']} of {faulty} faults are called so"


def summary_lines(result: Mapping[str, Any]) -> list[str]:
    """Lay the result out as plain text of at most 110 columns; ``-`` is what cannot be had."""
    table = detector_table(result)
    conditions = table.columns.unique(0)[:3]  # "" and two
    told_below = [("", column) for column in ("TPR@FPR 5 %", *OF_MASKS.values())]
    printed = _printed(table[list(conditions)].drop(columns=told_below, errors="ignore"))
    kinds, trivial = defect_table(result), trivial_table(result)
    recorded = [name for name in trivial if name in GEAR_INDICATORS]
    text = render(
        "summary.txt",
        result=result,
        missing=missing_lines(result),
        alarms=alarm_line(result),
        kinds=kinds.to_string().splitlines() if len(kinds) else [],
        masked=mask_lines(result),
        table=[line for line in printed if line.strip()],  # where all is one condition, none is named
        references=[name for name in REFERENCES if name in result["trivial"]],
        trivial=_printed(trivial.drop(columns=recorded)),
        recorded=_printed(trivial[recorded]) if recorded else [],
    )
    return text.splitlines()


def mask_lines(result: Mapping[str, Any]) -> list[str]:
    """Return what is measured on each domain whose masks are known."""
    lines = []
    for metric, what in TOLD_OF_MASKS.items():
        shares = {name: own[metric] for name, own in result["per_domain_metrics"].items() if metric in own}
        told = ", ".join(f"{_cut(name, NAME_WIDTH)} {percent(share)}" for name, share in shares.items())
        lines += wrap(f"{what}: {told}", WIDTH, subsequent_indent="    ") if shares else []
    return lines


def results_markdown(result: Mapping[str, Any]) -> str:
    """Lay out what fits beside the facts on a run's page in MLflow; the report has all columns."""
    table = detector_table(result).drop(columns=[("", name) for name in BESIDE], errors="ignore")
    whole = named_rows(table.map(lambda cell: cell.replace(", ", f",{NO_BREAK}")))
    return render("results.md", result=result, table=whole, missing=missing_lines(result))


def resolution_lines(normals: Mapping[str, int]) -> list[str]:
    """Name the places with too few normals for an FPR of 1 %, fewest first."""
    few: dict[int, list[str]] = {}
    for place, count in normals.items():
        if count > 0 and min(FPR_TARGETS.values()) * count < 1:
            few.setdefault(count, []).append(place)
    return [
        f"{count} normals: the finest FPR is {100 / count:.3g} % ({listed(few[count], most=SHOWN_PLACES)})"
        for count in sorted(few)
    ]


def normals_of(result: Mapping[str, Any], kind: str = "test") -> dict[str, int]:
    """Return how many normals TPR at an FPR is measured on, by place, e.g. ``domain_C cold``."""
    if kind == "synthetic":
        return {name: block["normals"] for name, block in result["synthetic"]["per_domain"].items()}
    parts = (own for name, block in _blocks(result).items() for own in _parts(name, block) if name != "mean")
    return {prefix.replace("/", " "): part["counts"]["good"] for prefix, part in parts}


def named_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table with the rows' names as its first column, and column names of one level."""
    if table.columns.nlevels > 1:
        table = table.set_axis([" ".join(name).strip() for name in table.columns.to_flat_index()], axis=1)
    return table.reset_index(names="")


def with_interval(block: Block, metric: str) -> str:
    """Return "value [low, high]" in per cent, without interval where there is none."""
    low, high = map(number, block["intervals"][metric])
    value = percent(block[metric])
    return value if np.isnan(low) else f"{value} [{percent(low)}, {percent(high)}]"


def percent(value: float | None, digits: int = 2) -> str:
    return "-" if np.isnan(number(value)) else f"{100 * number(value):.{digits}f}"


def mean_and_spread(values: "pd.Series[float]") -> str:
    """Return "mean ± standard deviation" in per cent over what is no NaN; one value has no deviation."""
    have = values.dropna()
    return percent(have.mean()) + (f" ± {percent(have.std())}" if len(have) > 1 else "")


def _blocks(result: Mapping[str, Any]) -> dict[str, Block]:
    domains = result["per_domain_metrics"]
    if len(domains) == 1:  # which would be told three times
        return dict(domains)
    return {**domains, "mean": result["mean_metrics"], "pooled": result["overall_pooled_metrics"]}


def _parts(name: str, block: Block) -> Iterator[tuple[str, Block]]:
    yield name, block
    for condition, part in block["by_condition"].items():
        if condition != ALL:
            yield f"{name}/{condition}", part


def _printed(table: pd.DataFrame) -> list[str]:
    short = table.rename(index=lambda name: _cut(name, NAME_WIDTH), columns=lambda name: _cut(name, 18))
    return short.to_string().splitlines()


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "~"


def _with_contents(body: Markup) -> Markup:
    """Return a page's body behind its headings, each of which leads to its place.

    They are labels of fields in the headings, since MLflow shows a page in a frame where no link works.
    """
    titles = re.findall("<h2>(.*?)</h2>", body)
    for place, title in enumerate(titles):
        field = Markup(f'<h2><input id="s{place}" tabindex="-1" readonly>{title}')
        body = body.replace(Markup(f"<h2>{title}"), field, 1)
    labels = Markup("".join(f'<label for="s{place}">{title}</label>' for place, title in enumerate(titles)))
    return Markup('<p class="contents">{}</p>\n{}').format(labels, body)


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
ENVIRONMENT.filters |= {
    "base64": lambda png: base64.b64encode(png).decode(),
    "coarse": lambda result, kind="test": resolution_lines(normals_of(result, kind)),
    "cut": _cut,
    "line": _line,
    "md": _markdown,
    "percent": percent,
    "with_contents": _with_contents,
    "shown": lambda text: as_markdown(str(text)),
}
