"""One run as one HTML file that needs nothing else: what it was, its tables, its pictures."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dinomaly_hd.evaluation import page
from dinomaly_hd.evaluation.blocks import Block
from dinomaly_hd.evaluation.results import ALL
from dinomaly_hd.evaluation.summary import percent, with_interval
from dinomaly_hd.names import as_markdown

TRIVIAL_NOTE = (
    "Scores without a model. A detector that does not beat them has learnt nothing useful; row_filter knows "
    "the shape of the defect and is a reference, not a rival."
)
INTERVAL_NOTE = (
    "Intervals are 95 %, from a bootstrap over images; they say nothing about other seeds. One run is one "
    "seed: compare ideas over at least three."
)


class Picture(NamedTuple):
    """A PNG and what it shows."""

    caption: str
    png: bytes


def report_html(
    title: str, *, facts: Mapping[str, str], result: Mapping[str, Any], pictures: Sequence[Picture]
) -> str:
    """Return the page.

    Args:
        title: Heading.
        facts: What the run was, name -> text.
        result: From ``results.evaluate``.
        pictures: Embedded in this order.
    """
    parts = [
        page.facts(facts),
        page.heading("Results"),
        page.table("The detector, in %", *_detector_rows(_detector_blocks(result))),
        page.paragraph(INTERVAL_NOTE),
        *_missing(result["mean_metrics"]),
        page.heading("Scores without a model"),
        _trivial_table(result),
        page.paragraph(TRIVIAL_NOTE),
        page.heading("Pictures"),
        *(page.figure(picture.caption, picture.png) for picture in pictures),
    ]
    return page.page(title, parts)


def results_markdown(result: Mapping[str, Any]) -> str:
    """Return the detector's table as Markdown; ``result`` as in `report_html`."""
    head, body = _detector_rows(_detector_blocks(result))
    lines = [[head[0], *map(as_markdown, head[1:])], *([as_markdown(row[0]), *row[1:]] for row in body)]
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "".join(f"| {' | '.join(row)} |\n" for row in (lines[0], rule, *lines[1:]))


def _detector_blocks(result: Mapping[str, Any]) -> dict[str, Block]:
    return {
        **result["per_domain_metrics"],
        "mean": result["mean_metrics"],
        "pooled": result["overall_pooled_metrics"],
    }


def _detector_rows(rows: Mapping[str, Block]) -> tuple[list[str], list[list[str]]]:
    conditions = [name for name in next(iter(rows.values()))["by_condition"] if name != ALL]
    shown = conditions if len(conditions) > 1 else []
    head = ["", "AUROC [95 %]", "TPR at FPR 1 % [95 %]", "TPR at FPR 5 %"]
    head += [f"{condition} {metric}" for condition in shown for metric in ("AUROC", "TPR at 1 %")]
    body = []
    for name, block in rows.items():
        cells = [name, with_interval(block, "auroc"), with_interval(block, "tpr_at_fpr_1pct")]
        cells.append(percent(block["tpr_at_fpr_5pct"]))
        for condition in shown:
            part = block["by_condition"][condition]
            cells += [percent(part["auroc"]), percent(part["tpr_at_fpr_1pct"])]
        body.append(cells)
    return head, body


def _trivial_table(result: Mapping[str, Any]) -> str:
    scores, domains = list(result["trivial"]), [*result["per_domain_metrics"], "mean"]
    blocks = {**result["per_domain_metrics"], "mean": result["mean_metrics"]}
    body = [
        [
            domain,
            percent(blocks[domain]["auroc"]),
            *(percent(result["trivial"][s][domain]["auroc"]) for s in scores),
        ]
        for domain in domains
    ]
    return page.table("AUROC in %", ["", "detector", *scores], body)


def _missing(mean: Block) -> list[str]:
    missing = mean["missing"].get("auroc", [])
    return [page.paragraph(f"Left out of the means: {', '.join(missing)}")] if missing else []
