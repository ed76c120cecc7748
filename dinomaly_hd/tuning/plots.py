"""Pictures of a study: history, importances, parallel coordinates, slices, and two objectives' front."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dinomaly_hd.evaluation.plots import FAULT_COLOUR, GOOD_COLOUR, new_figure, png_bytes
from dinomaly_hd.evaluation.report import Picture
from dinomaly_hd.tuning.trials import COMPLETE, PRUNED, Row, best_of

COLUMNS = 3
COLOURS = "viridis"
Trials = Sequence[Row]


def study_pictures(
    rows: Trials, *, names: Sequence[str], objectives: Sequence[str], importances: Mapping[str, float]
) -> dict[str, Picture]:
    """Return every picture by its file stem.

    Args:
        rows: Trials that are over.
        names: Searched, in their order.
        objectives: What the values are called; 0..1.
        importances: Share of a name in the first objective's variance; empty where it is not known.
    """
    complete = [row for row in rows if row.state == COMPLETE]
    if not complete:
        return {}
    first = objectives[0]
    drawn = {
        "history": (history_figure(rows, first), "objective of each trial, and the best so far"),
        "parallel_coordinates": (
            parallel_figure(complete, names, first),
            "a line a trial; one that ends at an axis did not need that value",
        ),
        "slices": (slice_figure(complete, names, first), "objective against each value, darker is later"),
    }
    if importances:
        caption = "share of the variance of the objective (fANOVA), of the values that all trials have"
        drawn["importances"] = (importance_figure(importances), caption)
    if len(objectives) > 1:
        caption = "orange: no other trial is better in both"
        drawn["pareto_front"] = (front_figure(complete, objectives), caption)
    return {name: Picture(caption, png_bytes(figure)) for name, (figure, caption) in drawn.items()}


def history_figure(rows: Trials, objective: str) -> Figure:
    """Draw values by trial number, given-up ones hollow, known settings named."""
    figure = new_figure(9, 4)
    axes = figure.subplots()
    for state, fill in ((COMPLETE, GOOD_COLOUR), (PRUNED, "none")):
        shown = [row for row in rows if row.state == state and row.values]
        axes.scatter(
            [row.number for row in shown],
            [row.values[0] for row in shown],
            facecolors=fill,
            edgecolors=GOOD_COLOUR,
            label=state,
        )
        for row in shown:
            axes.annotate(row.setting, (row.number, row.values[0]), textcoords="offset points", xytext=(4, 4))
    complete = [row for row in rows if row.state == COMPLETE]
    best = np.maximum.accumulate([row.values[0] for row in complete])
    axes.step([row.number for row in complete], best, where="post", color=FAULT_COLOUR, label="best so far")
    axes.set(xlabel="trial", ylabel=objective)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return figure


def importance_figure(importances: Mapping[str, float]) -> Figure:
    """Draw a bar a value, the most important on top."""
    figure = new_figure(8, 1.2 + 0.35 * len(importances))
    axes = figure.subplots()
    axes.barh(list(importances), list(importances.values()), color=GOOD_COLOUR)
    axes.invert_yaxis()
    axes.set(xlabel="importance", xlim=(0, 1))
    axes.grid(alpha=0.3, axis="x")
    return figure


def parallel_figure(rows: Trials, names: Sequence[str], objective: str) -> Figure:
    """Draw every trial as a line over axes of its values and its objective, coloured by the objective."""
    axes_of = [*names, objective]
    table = [[*(_number(row, name) for name in names), row.values[0]] for row in rows]
    values_RA = np.array(table, dtype=np.float64)
    low_A, high_A = np.nanmin(values_RA, axis=0), np.nanmax(values_RA, axis=0)
    span_A = np.where(high_A > low_A, high_A - low_A, 1.0)
    figure = new_figure(2 + 1.3 * len(axes_of), 4.5)
    axes = figure.subplots()
    colours = ScalarMappable(Normalize(low_A[-1], low_A[-1] + span_A[-1]), COLOURS)
    for row_A in sorted(values_RA.tolist(), key=lambda row: row[-1]):
        colour = colours.to_rgba(row_A[-1])
        axes.plot((np.array(row_A) - low_A) / span_A, color=colour, alpha=0.8, marker=".")
    for place, (low, high) in enumerate(zip(low_A, high_A, strict=True)):
        axes.axvline(place, color="0.6", linewidth=0.8)
        axes.annotate(f"{high:.3g}", (place, 1.03), ha="center", fontsize="small")
        axes.annotate(f"{low:.3g}", (place, -0.07), ha="center", fontsize="small")
    axes.set_xticks(range(len(axes_of)), axes_of, rotation=20, ha="right")
    axes.set(ylim=(-0.12, 1.12), yticks=[])
    figure.colorbar(colours, ax=axes, label=objective)
    return figure


def slice_figure(rows: Trials, names: Sequence[str], objective: str) -> Figure:
    """Draw the objective against each value, a panel a name."""
    lines = -(-len(names) // COLUMNS)
    figure = new_figure(3.4 * COLUMNS, 2.8 * lines)
    panels = figure.subplots(lines, COLUMNS, sharey=True, squeeze=False).ravel()
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    for axes, name in zip(panels, names, strict=False):
        shown = [row for row in rows if name in row.params]
        axes.scatter(
            [_number(row, name) for row in shown],
            [row.values[0] for row in shown],
            c=[row.number for row in shown],
            cmap=f"{COLOURS}_r",
        )
        axes.set_title(name, fontsize="medium")
        axes.grid(alpha=0.3)
    figure.supylabel(objective, fontsize="medium")
    return figure


def front_figure(rows: Trials, objectives: Sequence[str]) -> Figure:
    """Draw one objective against the other."""
    figure = new_figure(6.5, 5)
    axes = figure.subplots()
    axes.scatter(*zip(*(row.values for row in rows), strict=True), color=GOOD_COLOUR)
    front = sorted(best_of(rows), key=lambda row: row.values)
    axes.plot(*zip(*(row.values for row in front), strict=True), "o-", color=FAULT_COLOUR)
    for row in rows:
        place = (row.values[0], row.values[1])
        text = row.setting or str(row.number)
        axes.annotate(text, place, textcoords="offset points", xytext=(4, 4), fontsize="small")
    axes.set(xlabel=objectives[0], ylabel=objectives[1])
    axes.grid(alpha=0.3)
    return figure


def _number(row: Row, name: str) -> float:
    return float(row.params.get(name, np.nan))
