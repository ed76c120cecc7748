"""One run as one HTML file that needs nothing else: what it was, its tables, its pictures."""

import base64
import html
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dinomaly_hd.evaluation.blocks import Block
from dinomaly_hd.evaluation.results import ALL
from dinomaly_hd.evaluation.summary import percent, with_interval

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 }
caption { text-align: left; font-weight: 600; padding: .3rem 0 }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #ddd; text-align: right }
th:first-child { text-align: left }
figure { margin: 1rem 0 }
img { max-width: 100%; margin: .5rem 0; border: 1px solid #ddd }
code { background: #f3f3f3 }
.facts td { text-align: left }
"""
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
    rows = {
        **result["per_domain_metrics"],
        "mean": result["mean_metrics"],
        "pooled": result["overall_pooled_metrics"],
    }
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        "<div class=facts>",
        _table("", ["", ""], [[name, f"<code>{html.escape(text)}</code>"] for name, text in facts.items()]),
        "</div>",
        "<h2>Results</h2>",
        _detector_table(rows),
        f"<p>{INTERVAL_NOTE}</p>",
        *_missing(result["mean_metrics"]),
        "<h2>Scores without a model</h2>",
        _trivial_table(result),
        f"<p>{TRIVIAL_NOTE}</p>",
        "<h2>Pictures</h2>",
        *(_figure(picture) for picture in pictures),
    ]
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    return f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def _detector_table(rows: Mapping[str, Block]) -> str:
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
    return _table("The detector, in %", head, body)


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
    return _table("AUROC in %", ["", "detector", *scores], body)


def _missing(mean: Block) -> list[str]:
    missing = mean["missing"].get("auroc", [])
    names = ", ".join(html.escape(name) for name in missing)
    return [f"<p><b>Left out of the means:</b> {names}</p>"] if missing else []


def _table(caption: str, head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    rows = "".join(
        f"<tr><th>{html.escape(row[0])}</th>{''.join(f'<td>{cell}</td>' for cell in row[1:])}</tr>"
        for row in body
    )
    return f"<table>{title}<tr>{top}</tr>{rows}</table>"


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode()
    caption = html.escape(picture.caption)
    image = f'<img alt="{caption}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"
