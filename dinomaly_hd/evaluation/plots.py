"""ROC curves, score histograms and training histories, drawn on figures that the caller saves.

Figures are made through matplotlib's object API on the Agg canvas: no pyplot, no global state, no display.
Source: protocols.md, "Result file".
"""

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import cycle
from typing import Any

import imagecodecs
import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from dinomaly_hd.evaluation import metrics
from dinomaly_hd.evaluation.metrics import FloatArray, Threshold
from dinomaly_hd.evaluation.results import of_condition, score_and_label, shown_conditions

Pixels = NDArray[np.uint8]
"""A picture (H, W, 3): red, green, blue."""

DPI = 100
GOOD_COLOUR, FAULT_COLOUR = "#0072b2", "#d55e00"  # told apart by colour-blind readers too
CURVE_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9")
LINE_STYLES = ("-", "--", ":")
BINS = 60
ZOOMED_FPR = 0.05
MARKED_POINTS = 50  # fewer points than this are marked one by one


def new_figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def png_bytes(figure: Figure) -> bytes:
    """Render a figure to PNG; equal figures give equal bytes, since no time or version goes in."""
    return encode_png(figure_pixels(figure))


def figure_pixels(figure: Figure) -> Pixels:
    return shown_pixels(drawn_canvas(figure))


def drawn_canvas(figure: Figure) -> Any:
    """Draw a figure on its own Agg canvas (``Any``: matplotlib's backends carry no types)."""
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return canvas


def shown_pixels(canvas: Any) -> Pixels:
    """Return a copy of what a canvas shows (H, W, 3)."""
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])


def encode_png(pixels_HW3: Pixels) -> bytes:
    """Encode pixels, lightly compressed: a run writes hundreds of pictures."""
    # Of one filter and runs only: a third of Pillow's time for a twentieth more bytes.
    light = {"level": 1, "strategy": imagecodecs.PNG.STRATEGY.RLE, "filter": imagecodecs.PNG.FILTER.PAETH}
    return bytes(imagecodecs.png_encode(pixels_HW3, **light))


def roc_figure(table: pd.DataFrame, *, domain: str) -> Figure:
    """Draw one domain's ROC curves, one per condition: the whole, and FPR up to 5 % beside it.

    A condition with one class only has no curve; the legend says so.
    """
    rows = table[table["domain"] == domain]
    figure = new_figure(10, 4.8)
    whole, zoomed = figure.subplots(1, 2)
    for colour, condition in zip(cycle(CURVE_COLOURS), shown_conditions(rows), strict=False):
        score, label = score_and_label(of_condition(rows, condition))
        area = metrics.auroc(score, label)
        text = f"{condition}: one class only" if np.isnan(area) else f"{condition}: AUROC {100 * area:.2f} %"
        fpr, tpr = metrics.roc_curve(score, label)
        for axes in (whole, zoomed):
            axes.plot(fpr, tpr, color=colour, label=text, linewidth=1.6)
    whole.plot([0, 1], [0, 1], color="0.7", linestyle=":", linewidth=1)
    zoomed.axvline(0.01, color="0.5", linestyle="--", linewidth=1, label="FPR 1 %")
    for axes, right in ((whole, 1.0), (zoomed, ZOOMED_FPR)):
        axes.set(xlim=(-0.01 * right, 1.01 * right), ylim=(-0.01, 1.01))
        axes.set(xlabel="false-positive rate", ylabel="true-positive rate")
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.grid(alpha=0.3)
    # Below the diagonal, where the curve of a detector better than chance seldom is.
    whole.legend(*zoomed.get_legend_handles_labels(), loc="lower right", framealpha=0.9)
    figure.suptitle(printable(f"ROC, {domain}"), parse_math=False)
    return figure


def histogram_figure(table: pd.DataFrame, *, domain: str, thresholds: Sequence[Threshold]) -> Figure:
    """Draw one domain's scores, good and fault, one panel per condition, with the thresholds as lines.

    Panels share their bins. Thresholds that are NaN or beyond the scores' range are named in the legend only.
    """
    rows = table[table["domain"] == domain]
    conditions = shown_conditions(rows)
    figure = new_figure(10, 1.0 + 2.2 * len(conditions))
    panels = figure.subplots(len(conditions), 1, sharex=True, squeeze=False)[:, 0]
    edges = _edges(rows["score"].to_numpy(np.float64))
    for axes, condition in zip(panels, conditions, strict=True):
        score, label = score_and_label(of_condition(rows, condition))
        for value, name, colour in ((0, "good", GOOD_COLOUR), (1, "fault", FAULT_COLOUR)):
            count = np.histogram(score[label == value], edges)[0]
            axes.stairs(count, edges, fill=True, color=colour, alpha=0.45)
            axes.stairs(count, edges, color=colour, label=f"{name} ({(label == value).sum()})")
        for style, threshold in zip(cycle(LINE_STYLES), thresholds, strict=False):
            inside = edges[0] <= threshold.value <= edges[-1]
            text = f"{threshold.name} {threshold.value:.4g}" + (
                " (optimistic)" if threshold.optimistic else ""
            )
            place = [threshold.value] if inside else []
            axes.plot(place * 2, [0, 1] * len(place), color="k", linestyle=style, linewidth=1,
                      transform=axes.get_xaxis_transform(), label=text)  # fmt: skip
        axes.set(ylabel="images", title=condition, xlim=(edges[0], edges[-1]))
        axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.02))
    panels[-1].set_xlabel("image score")
    figure.suptitle(printable(f"Scores, {domain}"), parse_math=False)
    return figure


def history_figure(step: Sequence[int], *, series: Mapping[str, Sequence[float]]) -> Figure:
    """Draw training series (loss, learning rate, gradient norm, ...) over the step, one panel each.

    Values that are not finite are left out, so series logged at fewer steps may hold NaN elsewhere. A panel
    is logarithmic if all its values are positive.
    """
    figure = new_figure(8, 0.8 + 1.9 * len(series))
    panels = figure.subplots(len(series), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, values) in zip(panels, series.items(), strict=True):
        array = np.asarray(values, dtype=np.float64)
        shown = np.isfinite(array)
        marker = "." if shown.sum() < MARKED_POINTS else ""
        axes.plot(np.asarray(step)[shown], array[shown], color=GOOD_COLOUR, linewidth=1.2, marker=marker)
        positive = shown.any() and bool((array[shown] > 0).all())
        axes.set(ylabel=name, yscale="log" if positive else "linear")
        axes.grid(alpha=0.3)
    panels[-1].set_xlabel("step")
    return figure


def printable(text: str) -> str:
    """Replace what the figure font cannot draw (line breaks, other scripts) by a question mark."""
    drawable = _drawable()
    return "".join(character if ord(character) in drawable else "?" for character in text)


@cache
def _drawable() -> frozenset[int]:
    return frozenset(get_font(findfont(FontProperties())).get_charmap()) - frozenset(range(32))


def _edges(score: FloatArray) -> FloatArray:
    low, high = float(score.min()), float(score.max())
    if high <= low:
        margin = 0.5 * abs(low) or 0.5
        low, high = low - margin, high + margin
    return np.linspace(low, high, BINS + 1)
