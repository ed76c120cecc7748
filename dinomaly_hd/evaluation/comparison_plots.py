"""Pictures of a comparison: labels as dots per domain and differences to the reference."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dinomaly_hd.evaluation.compare import MEAN, NAMES, SHOWN, Comparison, Focus, focus_table, where
from dinomaly_hd.evaluation.plots import FAULT_COLOUR, GOOD_COLOUR, new_figure, png_bytes, printable
from dinomaly_hd.evaluation.report import Picture
from dinomaly_hd.evaluation.results import ALL

DOT_CAPTION = (
    "small dots are seeds, the square is their mean, the bar one standard deviation to each side, the dashed "
    "line the reference's mean."
)
FOREST_CAPTION = "95 % intervals over seeds and over images, neither corrected for the number of labels."
PANELS_IN_ROW = 5
LONGEST_LABEL = 33
WIDEST_SEEDS = 3.0  # times what the images' intervals need: a t-interval of two seeds may be 30 times as wide


def comparison_pictures(comparison: Comparison, *, focuses: Sequence[Focus]) -> dict[str, Picture]:
    """Return every picture of the report by its file stem, in the report's order."""
    pictures = {}
    for condition in dict.fromkeys([ALL, *(focus.condition for focus in focuses)]):
        for metric in SHOWN:
            caption = f"{NAMES[metric]}, condition {condition}: {DOT_CAPTION}"
            figure = dot_figure(comparison, condition=condition, metric=metric)
            pictures[f"dots_{condition}_{metric}"] = Picture(caption, png_bytes(figure))
    for focus in focuses if comparison.others else ():
        for metric in SHOWN:
            place = f"{focus.domain} {focus.condition}, {NAMES[metric]}"
            caption = f"{place}: difference to {comparison.reference}, with {FOREST_CAPTION}"
            png = png_bytes(forest_figure(comparison, focus, metric=metric))
            pictures[f"forest_{focus.domain}_{focus.condition}_{metric}"] = Picture(caption, png)
    return pictures


def dot_figure(comparison: Comparison, *, condition: str, metric: str) -> Figure:
    """Draw every label's seeds, mean and standard deviation in %, a panel per domain and one for the mean."""
    domains = (*comparison.domains, MEAN)
    columns = min(PANELS_IN_ROW, len(domains))
    lines = -(-len(domains) // columns)
    figure = new_figure(1.6 + 2.1 * columns, lines * (1.3 + 0.26 * len(comparison.labels)))
    panels = figure.subplots(lines, columns, sharey=True, squeeze=False).ravel()
    for axes in panels[len(domains) :]:
        axes.set_visible(False)
    for axes, domain in zip(panels, domains, strict=False):
        _dots(axes, comparison, domain=domain, condition=condition, metric=metric)
    figure.suptitle(printable(f"{NAMES[metric]} in %, condition {condition}"), parse_math=False)
    return figure


def forest_figure(comparison: Comparison, focus: Focus, *, metric: str) -> Figure:
    """Draw one cell's differences to the reference in percentage points, best on top, with both intervals.

    An interval beyond the axis ends in an arrow; one that cannot be had is not drawn.
    """
    table = focus_table(comparison, focus, metric=metric)
    figure = new_figure(9, 1.6 + 0.34 * len(table))
    axes = figure.subplots()
    place = np.arange(len(table))
    reach = _reach(table)
    for offset, kind, colour in ((-0.13, "seeds", GOOD_COLOUR), (0.13, "images", FAULT_COLOUR)):
        low, high = (100 * table[f"{kind}_{end}"].to_numpy(np.float64) for end in ("low", "high"))
        axes.hlines(place + offset, low, high, color=colour, linewidth=2, label=f"95 % over {kind}")
        for marker, beyond, edge in (("<", low < -reach, -reach), (">", high > reach, reach)):
            for height in (place + offset)[beyond]:
                axes.plot(edge, height, marker, color=colour, clip_on=False)
    axes.plot(100 * table["mean_difference"], place, "s", color="k", markersize=5, label="mean difference")
    axes.axvline(0.0, color="0.4", linestyle="--", linewidth=1)
    texts = [f"{_tick(label)} ({seeds})" for label, seeds in zip(table["label"], table["seeds"], strict=True)]
    axes.set_yticks(place, texts, parse_math=False)
    axes.set(xlim=(-reach, reach), ylim=(len(table) - 0.4, -0.6))
    axes.set_xlabel(
        "percentage points, right of the line better than the reference; common seeds in brackets"
    )
    axes.grid(alpha=0.3, axis="x")
    figure.legend(loc="outside lower center", ncols=3, fontsize="small")
    title = f"{focus.domain} {focus.condition}: {NAMES[metric]}, difference to {comparison.reference}"
    figure.suptitle(printable(title), parse_math=False)
    return figure


def _dots(axes: Axes, comparison: Comparison, *, domain: str, condition: str, metric: str) -> None:
    labels = comparison.labels
    values, means = (
        where(table, domain=domain, condition=condition, metric=metric)
        for table in (comparison.values, comparison.means)
    )
    means = means.set_index("label").loc[list(labels)]
    mean, std = (100 * means[name].to_numpy(np.float64) for name in ("mean", "std"))
    place = np.arange(len(labels))
    rows = [labels.index(label) for label in values["label"]]
    reference = mean[labels.index(comparison.reference)]
    if not np.isnan(reference):
        axes.axvline(reference, color="0.5", linestyle="--", linewidth=1)
    axes.errorbar(mean, place, xerr=std, fmt="s", color=GOOD_COLOUR, markersize=5, linewidth=1.4)
    axes.plot(100 * values["value"], np.asarray(rows) + 0.22, ".", color=FAULT_COLOUR, markersize=4)
    axes.set_yticks(place, [_tick(label) for label in labels], parse_math=False)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(alpha=0.3)
    axes.set_title(printable(domain), fontsize="medium", parse_math=False)


def _reach(table: pd.DataFrame) -> float:
    """Half width of the forest plot's axis, in percentage points."""
    needed = table[["mean_difference", "images_low", "images_high"]].abs().max(axis=None)
    wanted = table[["seeds_low", "seeds_high"]].abs().max(axis=None)
    needed = np.nanmax([1e-3, needed])
    return float(100 * 1.1 * min(np.nanmax([needed, wanted]), WIDEST_SEEDS * needed))


def _tick(label: str) -> str:
    text = printable(label)
    if len(text) <= LONGEST_LABEL:
        return text
    half = (LONGEST_LABEL - 1) // 2
    return f"{text[:half]}~{text[-half:]}"  # names of a family differ at either end
