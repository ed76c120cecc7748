"""Anomaly-map pictures in three panels (input, anomaly map, overlay), and the choice of images to draw.

One ``MapPicture`` serves one domain: one colour scale for all its pictures, 0 .. the 99.5 % quantile of the
anomaly maps of normal images. What its pictures share is drawn once; a picture adds its pixels and title.
Source: protocols.md, "Result file".
"""

from base64 import b64encode
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.image import AxesImage
from numpy.typing import NDArray
from PIL import Image

from dinomaly_hd.evaluation.metrics import BoolArray, check_finite
from dinomaly_hd.evaluation.plots import Pixels, drawn_canvas, encode_png, new_figure, printable, shown_pixels
from dinomaly_hd.evaluation.results import domain_names
from dinomaly_hd.files import publish

COLOUR_QUANTILE = 0.995
MAP_COLOURS = "inferno"
INPUT_COLOURS = "gray"
OUTLINE_COLOUR = "#00e5ff"
OVERLAY_OPACITY = 0.75
SMALLEST_LIMIT = 1e-12  # a scale needs a length even where all normals are 0
LONGEST_STEM = 50  # characters: 200 bytes at most, below every file system's limit with what is put before
PANEL_ROWS = {"input": (83, 277), "anomaly map": (303, 497)}  # of a picture, for images of any shape
MOST_WAITING = 8  # pictures that are drawn and not yet written
Map = NDArray[np.floating]
SavePicture = Callable[[Path, Pixels], None]


@contextmanager
def pictures_saved() -> Iterator[SavePicture]:
    """Yield what encodes and publishes a picture while the next one is drawn; all are there at the end.

    That a picture cannot be written is raised with one of the next, or at the end.
    """
    waiting: deque[Future[None]] = deque()
    with ThreadPoolExecutor(max_workers=1) as pool:

        def save(path: Path, pixels_HW3: Pixels) -> None:
            waiting.append(pool.submit(publish, path, lambda stream: stream.write(encode_png(pixels_HW3))))
            if len(waiting) > MOST_WAITING:
                waiting.popleft().result()

        yield save
        for picture in waiting:
            picture.result()


def map_limit(normals_NHW: Map) -> float:
    """Upper end of a domain's colour scale: the 99.5 % quantile over its normal images' pixels or maps."""
    check_finite(normals_NHW)
    return float(np.quantile(normals_NHW, COLOUR_QUANTILE))


def coloured(map_HW: Map, colours: str = MAP_COLOURS) -> bytes:
    """Return a map alone as a PNG, four pixels a cell, on a scale of its own."""
    level_HW = np.clip(map_HW / max(map_limit(map_HW), SMALLEST_LIMIT), 0.0, 1.0)
    pixels_HW3 = (255 * colormaps[colours](level_HW)[..., :3]).astype(np.uint8)
    return encode_png(pixels_HW3.repeat(4, axis=0).repeat(4, axis=1))


def as_html(png: bytes, caption: str) -> str:
    """Return a picture that stands in the page itself, so that a saved notebook keeps it."""
    source = f"data:image/png;base64,{b64encode(png).decode()}"
    image = f'<img style="width: 100%" src="{source}">'
    return (
        f'<figure style="display: inline-block; width: 400px; margin: 4px">{image}{escape(caption)}</figure>'
    )


def picture_title(
    *, path: str, label: int, condition: str, score: float, threshold: float, where: str = ""
) -> str:
    """Three lines: the file; label, condition, score and its side of the threshold; what ``where`` says."""
    sign = "≥" if score >= threshold else "<"
    side = ", no threshold" if np.isnan(threshold) else f" {sign} threshold {threshold:.4g}"
    known = "" if condition == "all" else f" · {condition}"
    return (
        f"{path}\n{'fault' if label else 'good'}{known} · score {score:.4g}{side}{where and chr(10) + where}"
    )


class MapPicture:
    """Draws the pictures of one domain, about 800 x 760 pixels each.

    ``limit`` is the upper end of the maps' colour scale (``map_limit``), ``input_limit`` that of the inputs';
    1 is the largest training value, and ``map_limit`` of train normals shows faint bands better. ``visible``
    are the input's rows and columns that the maps cover, all but those that a crop hides.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, int],
        limit: float,
        input_limit: float = 1.0,
        visible: tuple[slice, slice] = (slice(None), slice(None)),
    ) -> None:
        self._visible = visible
        self._map_HW = np.full(input_shape, np.nan, np.float32)
        self.figure = new_figure(8, 7.6)
        # Of the width: what narrow panels and their labels need, in the middle.
        share = min(1.0, 0.2 + 0.28 * input_shape[1] / input_shape[0])
        self.figure.set_layout_engine("constrained", rect=((1 - share) / 2, 0, share, 1))
        self._title = self.figure.suptitle("\n\n", fontsize=11, parse_math=False)
        panels = self.figure.subplots(3, 1, sharex=True, sharey=True)
        of_input = {"cmap": INPUT_COLOURS, "vmin": 0, "vmax": max(input_limit, SMALLEST_LIMIT)}
        of_map = {"cmap": MAP_COLOURS, "vmin": 0, "vmax": max(limit, SMALLEST_LIMIT)}
        self._input = _blank(panels[0], input_shape, **of_input)
        self.figure.colorbar(self._input, ax=panels[0], extend="max", label="input")
        self._map = _blank(panels[1], input_shape, **of_map)
        self.figure.colorbar(self._map, ax=panels[1], extend="max", label="map")
        self._over = _blank(panels[2], (*input_shape, 4))
        self.figure.colorbar(self._map, ax=panels[2], extend="max", label="map")
        self._outlines = [LineCollection([], colors=OUTLINE_COLOUR, linewidths=1.2) for _ in panels]
        for axes, lines in zip(panels, self._outlines, strict=True):
            axes.add_collection(lines, autolim=False)
        for axes, name in zip(panels, ("input", "anomaly map", "overlay"), strict=True):
            axes.set(title=name, ylabel="driving tooth")
            axes.set_facecolor("0.85")  # what the map does not cover
        panels[2].set_xlabel("driven tooth")
        self._changing = [self._title, self._input, self._map, self._over, *self._outlines]
        for artist in self._changing:
            artist.set_animated(True)  # left out of the shared background
        self._canvas = drawn_canvas(self.figure)
        self._background = self._canvas.copy_from_bbox(self.figure.bbox)

    def draw(self, image_HW: Map, map_hw: Map, *, title: str, mask_HW: BoolArray | None = None) -> Pixels:
        """Draw an image (H, W), the map of its visible pixels and, where known, the defect's mask (H, W)."""
        shape = self._map_HW.shape
        assert image_HW.shape == shape, f"image {image_HW.shape}, expected {shape}"
        check_finite(map_hw)
        self._title.set_text("\n".join(printable(line) for line in title.split("\n")))
        self._input.set_data(image_HW)
        self._map_HW[self._visible] = map_hw
        self._map.set_data(self._map_HW)
        # Clear at 0, and densest at the top of the scale and above.
        over_HW4, map_hw4 = self._input.to_rgba(image_HW), self._map.to_rgba(map_hw)
        opacity_hw1 = OVERLAY_OPACITY * np.clip(self._map.norm(map_hw), 0, 1)[..., None]
        over_HW4[self._visible] += opacity_hw1 * (map_hw4 - over_HW4[self._visible])
        self._over.set_data(np.uint8(255 * over_HW4 + 0.5))
        segments = [] if mask_HW is None else outline(mask_HW)
        for lines in self._outlines:
            lines.set_segments(segments)
        self._canvas.restore_region(self._background)
        for artist in self._changing:
            artist.draw(self._canvas.get_renderer())
        return shown_pixels(self._canvas)


def cut_panel(path: Path, panel: str) -> bytes:
    """Return the input or the anomaly map of a picture, without teeth and scale: the longest run of ink."""
    with Image.open(path) as picture:
        pixels_HW3 = np.asarray(picture.convert("RGB"))[slice(*PANEL_ROWS[panel])]
    for _ in range(2):  # its columns, then its rows
        inked = (pixels_HW3 < 255).any(axis=(0, 2))
        starts, ends = np.flatnonzero(np.diff(np.pad(inked, 1).astype(np.int8))).reshape(-1, 2).T
        longest = int((ends - starts).argmax())
        pixels_HW3 = pixels_HW3[:, starts[longest] : ends[longest]].swapaxes(0, 1)
    return encode_png(pixels_HW3)


def outline(mask_HW: BoolArray) -> list[NDArray[np.float64]]:
    """Line segments ((x, y), (x, y)) along the pixel edges between a mask and the rest."""
    padded = np.pad(np.asarray(mask_HW, dtype=bool), 1)
    above = np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1])  # an edge above pixel (row, column)
    beside = np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1])  # an edge left of it
    level = [np.array([[x - 0.5, y - 0.5], [x + 0.5, y - 0.5]]) for y, x in above]
    return level + [np.array([[x - 0.5, y - 0.5], [x - 0.5, y + 0.5]]) for y, x in beside]


def select_by_rank(table: pd.DataFrame, *, thresholds: Mapping[str, float], count: int = 10) -> pd.DataFrame:
    """Choose images to draw: per domain and label the ``count`` highest, lowest and nearest the threshold.

    Those first by path of each condition and label come with them: the same images for every model.
    Returns rows of the score table, none twice, domain by domain, with a column ``rank`` that holds
    ``highest``, ``threshold``, ``lowest`` or ``first``. An image goes to the first of highest, lowest,
    threshold that claims it; ties go to the earlier path. A domain without a threshold (absent or NaN) has
    no such rows.
    """
    chosen = []
    for domain in domain_names(table):
        threshold = thresholds.get(domain, float("nan"))
        for label in (0, 1):
            rows = table[(table["domain"] == domain) & (table["label"] == label)]
            rows = rows.sort_values(["score", "path"], ascending=[False, True])
            highest, rest = rows.iloc[:count], rows.iloc[count:]
            last = max(0, len(rest) - count)
            rest, lowest = rest.iloc[:last], rest.iloc[last:]
            distance = (rest["score"] - threshold).abs().dropna()
            nearest = rest.loc[distance.sort_values(kind="stable").index[:count].sort_values()]
            for rank, part in (("highest", highest), ("threshold", nearest), ("lowest", lowest)):
                chosen.append(part.assign(rank=rank))
        known = {path for part in chosen for path in part["path"]}
        first = table[table["domain"] == domain].sort_values("path").drop_duplicates(["condition", "label"])
        chosen.append(first[~first["path"].isin(known)].assign(rank="first"))
    return pd.concat(chosen)


def _blank(axes: Axes, shape: tuple[int, ...], **look: Any) -> AxesImage:
    return axes.imshow(np.zeros(shape), interpolation="nearest", **look)
