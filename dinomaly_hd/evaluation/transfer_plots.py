"""All pairs of source and target as a heat map."""

from collections.abc import Mapping

import numpy as np

from dinomaly_hd.evaluation.plots import new_figure, png_bytes, printable
from dinomaly_hd.evaluation.report import Picture

CAPTION = (
    "AUROC in %, mean over seeds: trained on the row's domain, tested on the column's; the diagonal is the "
    "source itself; empty cells were not tested."
)
LOWEST = 50.0


def pairs_picture(auroc: Mapping[tuple[str, str], float], *, title: str) -> Picture:
    """Draw AUROC (shares) by (source, target), names as they are, sources down and targets across."""
    sources = list(dict.fromkeys(source for source, _ in auroc))
    targets = list(dict.fromkeys(target for _, target in auroc))
    cells = np.array([[100 * auroc.get((s, t), np.nan) for t in targets] for s in sources])
    figure = new_figure(2.4 + 0.9 * len(targets), 1.6 + 0.6 * len(sources))
    axes = figure.subplots()
    image = axes.imshow(cells, vmin=LOWEST, vmax=100.0, cmap="viridis", aspect="auto")
    for row, column in np.ndindex(cells.shape):
        value = cells[row, column]
        if not np.isnan(value):
            colour = "white" if value < (LOWEST + 100.0) / 2 else "black"
            axes.text(column, row, f"{value:.1f}", ha="center", va="center", color=colour)
    axes.set_xticks(range(len(targets)), [printable(name) for name in targets])
    axes.set_yticks(range(len(sources)), [printable(name) for name in sources])
    axes.set_xlabel("tested on")
    axes.set_ylabel("trained on")
    axes.set_title(printable(title), parse_math=False)
    figure.colorbar(image, ax=axes, label="AUROC in %")
    return Picture(f"{title}: {CAPTION}", png_bytes(figure))
