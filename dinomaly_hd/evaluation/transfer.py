"""From the domains trained on to others: figures of a run, a table over runs, a picture of source by target.

All figures are shares. A target without an AUROC (one class only, or not scored at all) is named and left out
of the average, never counted as 0. Source: protocols.md, "Transfer".
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from dinomaly_hd.evaluation.comparison_members import MemberRun
from dinomaly_hd.evaluation.comparison_pages import Table
from dinomaly_hd.evaluation.metrics import NAN, Threshold, confusion_at, known, mean_of, number
from dinomaly_hd.evaluation.plots import new_figure, png_bytes, printable
from dinomaly_hd.evaluation.report import TRANSFER, Picture, mean_and_spread

FROM = " from "
"""Between a model and its source in the label of a run, where a comparison has several sources."""
CHANCE = 0.5
SOURCE_FPR = 0.01
PAIRS_CAPTION = (
    "AUROC in %, mean over seeds: trained on the row's domain, tested on the column's; the diagonal is the "
    "source itself; empty cells were not tested."
)
LOWEST_AUROC = 50.0


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
    source_auroc = mean_of([block["auroc"] for block in source.values()])
    average = mean_of([auroc for name, auroc in known_targets.items() if name not in failed])
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


def transfer_table(members: Sequence[MemberRun]) -> list[Table]:
    """Return the transfer figures of each label, nothing unless every run has some."""
    if not all("transfer" in member.result for member in members):
        return []
    rows = []
    for label in dict.fromkeys(member.label for member in members):
        transfers = pd.DataFrame([one.result["transfer"] for one in members if one.label == label])
        row = {"label": label, "source": " ".join(transfers["source_domains"].iloc[0])}
        for name, title in TRANSFER.items():
            row[title] = mean_and_spread(transfers[name].map(number))
        row["left out"] = ", ".join(sorted(set().union(*transfers["missing_targets"]))) or "-"
        rows.append(row)
    return [Table("Transfer from the source to the other domains", pd.DataFrame(rows), ("transfer",))]


def pairs_pictures(members: Sequence[MemberRun]) -> dict[str, Picture]:
    """Return a heat map of AUROC, source by target, for each model that has several single sources."""
    rows = [
        (one.label.rpartition(FROM)[0], sources[0], target, number(block["auroc"]))
        for one in members
        if len(sources := one.result.get("transfer", {}).get("source_domains", [])) == 1
        for target, block in one.result["per_domain_metrics"].items()
    ]
    table = pd.DataFrame(rows, columns=["model", "source", "target", "auroc"])
    pictures: dict[str, Picture] = {}
    for model, own in table.groupby("model", sort=False):
        if own["source"].nunique() > 1:
            auroc = (
                own.groupby(["source", "target"], sort=False)["auroc"].mean(skipna=False).unstack(sort=False)
            )
            pictures[f"transfer_{len(pictures) + 1}"] = pairs_picture(auroc, title=str(model))
    return pictures


def pairs_picture(auroc: pd.DataFrame, *, title: str) -> Picture:
    """Draw AUROC (shares), a row a source and a column a target, NaN where nothing was tested."""
    sources, targets, cells = list(auroc.index), list(auroc.columns), 100 * auroc.to_numpy(np.float64)
    figure = new_figure(2.4 + 0.9 * len(targets), 1.6 + 0.6 * len(sources))
    axes = figure.subplots()
    image = axes.imshow(cells, vmin=LOWEST_AUROC, vmax=100.0, cmap="viridis", aspect="auto")
    for row, column in np.argwhere(~np.isnan(cells)):
        value = cells[row, column]
        colour = "white" if value < (LOWEST_AUROC + 100.0) / 2 else "black"
        axes.text(column, row, f"{value:.1f}", ha="center", va="center", color=colour)
    axes.set_xticks(range(len(targets)), [printable(name) for name in targets])
    axes.set_yticks(range(len(sources)), [printable(name) for name in sources])
    axes.set(xlabel="tested on", ylabel="trained on")
    axes.set_title(printable(title), parse_math=False)
    figure.colorbar(image, ax=axes, label="AUROC in %")
    return Picture(f"{title}: {PAIRS_CAPTION}", png_bytes(figure))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else NAN
