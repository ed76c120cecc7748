"""Pictures: what they show where, which images are chosen, and that odd input does not break them."""

import io
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib import colormaps
from PIL import Image

from dinomaly_hd.errors import NonFiniteError, OutputError, SignalGuard
from dinomaly_hd.evaluation import pictures, plots, pointing
from dinomaly_hd.evaluation.metrics import Threshold, auroc, youden
from dinomaly_hd.evaluation.pictures import (
    MOST_WAITING,
    MapPicture,
    cut_panel,
    pictures_saved,
    select_by_rank,
)
from dinomaly_hd.experiments import evaluate
from dinomaly_hd.experiments.score import Examined
from tests.work import made_up_scores

SHAPE = (31, 95)
DOMAINS = ("domain_A", "domain_C")
FIRST = {
    "/".join((d, "test", k, c))
    for d, k, c in product(DOMAINS, ("good", "fault"), ("cold0.tiff", "warm0.tiff"))
}


def score_table(*, count: int = 20, domains: tuple[str, ...] = DOMAINS, seed: int = 0) -> pd.DataFrame:
    return made_up_scores(domains, count=count, seed=seed)


def pixels(png: bytes) -> np.ndarray:
    assert png.startswith(b"\x89PNG")
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def test_roc_has_a_curve_per_condition_named_by_its_auroc():
    table = score_table()
    figure = plots.roc_figure(table, domain="domain_C")
    legend = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    rows = table[(table["domain"] == "domain_C") & (table["condition"] == "cold")]
    assert legend[0] == f"cold: AUROC {100 * auroc(rows['score'], rows['label']):.2f} %"
    assert [text.split(":")[0] for text in legend] == ["cold", "warm", "all", "FPR 1 %"]
    png = plots.png_bytes(figure)
    assert pixels(png).std() > 10
    assert plots.png_bytes(plots.roc_figure(table, domain="domain_C")) == png
    one_class = plots.roc_figure(table[table["label"] == 0], domain="domain_C")
    plots.png_bytes(one_class)
    assert one_class.axes[0].get_legend().get_texts()[0].get_text() == "cold: one class only"


def test_histogram_counts_all_images_and_marks_thresholds():
    table = score_table()
    rows = table[table["domain"] == "domain_C"]
    found = youden(rows["score"], rows["label"])
    figure = plots.histogram_figure(table, domain="domain_C", thresholds=[found])
    assert [axes.get_title() for axes in figure.axes] == ["cold", "warm", "all"]
    texts = [text.get_text() for text in figure.axes[2].get_legend().get_texts()]
    assert texts == ["good (40)", "fault (40)", f"youden {found.value:.4g} (optimistic)"]
    assert (
        sum(patch.get_data().values.sum() for patch in figure.axes[2].patches) == 2 * 80
    )  # fill and outline
    assert figure.axes[0].lines[0].get_xdata()[0] == found.value


SCORES = {
    "constant": np.zeros(160),
    "huge": 1e300 * np.linspace(-1, 1, 160),
    "tiny": 1e-300 * np.linspace(0, 1, 160),
    "one outlier": np.append(np.zeros(159), 1e9),
}


@pytest.mark.parametrize("kind", SCORES)
def test_any_score_scale_can_be_drawn(kind):
    table = score_table().assign(score=SCORES[kind], condition="all")
    for threshold in (float("nan"), 0.5):
        chosen = [Threshold("normal_quantile", threshold, False, "held-out normals")]
        plots.png_bytes(plots.histogram_figure(table, domain="domain_C", thresholds=chosen))
    plots.png_bytes(plots.roc_figure(table, domain="domain_C"))


def test_history_leaves_out_values_that_are_not_finite():
    series = {
        "loss": [3.0, 2.0, float("nan"), 1.0],
        "learning rate": [0.0, 1.0, 1.0, 1.0],
        "grad": [np.inf] * 4,
    }
    figure = plots.history_figure([0, 10, 20, 30], series=series)
    plots.png_bytes(figure)
    assert [axes.get_yscale() for axes in figure.axes] == ["log", "linear", "linear"]
    assert figure.axes[0].lines[0].get_xydata().tolist() == [[0, 3], [10, 2], [30, 1]]


def test_names_that_the_font_lacks_are_drawn_all_the_same():
    assert plots.printable("domain_가\n$x^2$") == "domain_??$x^2$"
    table = score_table(domains=("기어_$\\frac",))
    plots.png_bytes(plots.roc_figure(table, domain="기어_$\\frac"))


def picture(**keywords) -> MapPicture:
    return MapPicture(input_shape=SHAPE, limit=1.0, input_limit=1.0, **keywords)


def colour_at(
    drawn: MapPicture, grid: plots.Pixels, *, panel: int, row: float, column: float
) -> tuple[int, ...]:
    """Colour of the picture where a panel (0 input, 1 map, 2 overlay) shows an input pixel."""
    x, y = drawn.figure.axes[panel].transData.transform((column, row))
    return tuple(grid[grid.shape[0] - 1 - int(y), int(x)])


def test_input_and_map_are_shown_at_their_places():
    image, anomaly = np.zeros(SHAPE), np.zeros((27, 95))
    image[7, 60] = 1.0
    anomaly[12:15, 50:55] = 1.0  # the map covers rows 2..28: rows 14-16 of the input
    drawn = picture(visible=(slice(2, 29), slice(0, 95)))
    shown = drawn.draw(image, anomaly, title="a title")
    assert colour_at(drawn, shown, panel=0, row=7, column=60) == (255, 255, 255)
    assert colour_at(drawn, shown, panel=0, row=7, column=62) == (0, 0, 0)
    top_colour = colour_at(drawn, shown, panel=1, row=15, column=52)
    assert top_colour == (252, 254, 164)  # the end of the colour scale
    for row, column in ((14, 50), (16, 54)):
        assert colour_at(drawn, shown, panel=1, row=row, column=column) == top_colour
        over = colour_at(drawn, shown, panel=2, row=row, column=column)
        assert over == (189, 191, 123)  # three quarters of it, over black
    for row, column in ((13, 52), (17, 52), (15, 49), (15, 55)):
        assert max(colour_at(drawn, shown, panel=1, row=row, column=column)) < 10
    assert colour_at(drawn, shown, panel=1, row=0.5, column=52) == (217, 217, 217)  # hidden by the crop
    assert colour_at(drawn, shown, panel=2, row=0.5, column=52) == (0, 0, 0)
    assert colour_at(drawn, shown, panel=2, row=7, column=60) == (255, 255, 255)  # clear where the map is 0
    assert [axes.get_ylabel() for axes in drawn.figure.axes[:3]] == ["driving tooth"] * 3
    assert drawn.figure.axes[2].get_xlabel() == "driven tooth"


def test_one_scale_for_all_pictures_of_a_domain():
    drawn = picture()
    faint, strong = (drawn.draw(np.zeros(SHAPE), np.full(SHAPE, v), title="t") for v in (0.25, 5.0))
    assert colour_at(drawn, strong, panel=1, row=15, column=40) == (252, 254, 164)
    assert max(colour_at(drawn, faint, panel=1, row=15, column=40)) < 130
    assert pictures.map_limit(np.arange(1001.0).reshape(1, 7, 143)) == pytest.approx(995.0)


def test_mask_is_outlined_and_the_outline_does_not_stay():
    mask = np.zeros(SHAPE, dtype=bool)
    mask[10:13, 20:40] = True
    drawn = picture()
    blank = np.zeros(SHAPE)
    before = drawn.draw(blank, blank, title="t")
    with_mask = drawn.draw(blank, blank, title="t", mask_HW=mask)
    for panel in range(3):
        edge = colour_at(drawn, with_mask, panel=panel, row=11, column=19.5)
        assert edge[1] > 100 > edge[0]
        assert max(colour_at(drawn, with_mask, panel=panel, row=11, column=30)) < 10  # no line inside
    assert np.array_equal(drawn.draw(blank, blank, title="t"), before)


def test_outline_has_one_segment_per_pixel_edge():
    mask = np.zeros((4, 5), dtype=bool)
    mask[0, 1:3] = True
    segments = pictures.outline(mask)
    assert [np.abs(segment[0] - segment[1]).sum() for segment in segments] == [1] * 6
    corners = {tuple(corner) for segment in segments for corner in segment}
    assert corners == {(x - 0.5, y - 0.5) for x in (1, 2, 3) for y in (0, 1)}


def test_flat_normals_and_odd_titles_are_drawn_and_bad_maps_refused():
    drawn = MapPicture(input_shape=SHAPE, limit=0.0, input_limit=0.0)
    title = pictures.picture_title(
        path="기어/$x_.tiff", label=1, condition="all", score=1.0, threshold=float("nan")
    )
    assert title == "기어/$x_.tiff\nfault · score 1, no threshold"
    drawn.draw(np.zeros(SHAPE), np.zeros(SHAPE), title=title)
    facts = {"path": "C/test/17.tiff", "label": 1, "condition": "cold", "threshold": 0.11}
    above, below = (pictures.picture_title(**facts, score=score) for score in (0.1234, 0.05))
    assert above == "C/test/17.tiff\nfault · cold · score 0.1234 ≥ threshold 0.11"
    assert below.endswith("score 0.05 < threshold 0.11")
    with pytest.raises(NonFiniteError):
        drawn.draw(np.zeros(SHAPE), np.full(SHAPE, np.nan), title=title)


def test_selection_takes_highest_lowest_and_nearest_of_each_label_and_domain():
    table = score_table()
    chosen = select_by_rank(table, thresholds={"domain_A": 0.5, "domain_C": 0.5})
    first = chosen[chosen["rank"] == "first"]
    assert set(first["path"]) <= FIRST
    assert len(chosen) == 2 * 2 * 30 + len(first)
    assert not chosen["path"].duplicated().any()
    for (_, _), rows in table.groupby(["domain", "label"]):
        picked = chosen[chosen["path"].isin(rows["path"])]
        ranked = rows.sort_values("score", ascending=False)
        middle = ranked.iloc[10:-10]
        nearest = middle.loc[(middle["score"] - 0.5).abs().sort_values().index[:10]]
        for rank, expected in (("highest", ranked[:10]), ("lowest", ranked[-10:]), ("threshold", nearest)):
            assert set(picked["path"][picked["rank"] == rank]) == set(expected["path"]), rank


def test_the_first_of_each_condition_is_chosen_whatever_its_score():
    one, other = (select_by_rank(score_table(seed=seed), thresholds={}, count=1) for seed in (0, 1))
    alike = set(one["path"]) & set(other["path"])
    assert alike >= FIRST


@pytest.mark.parametrize("shape", [(31, 95), (64, 64), (20, 100), (95, 31), (7, 95), (32, 3)])
def test_a_panel_is_cut_out_of_a_picture_of_any_shape(shape: tuple[int, int], tmp_path: Path):
    drawn = MapPicture(input_shape=shape, limit=12345.0)
    pixels = drawn.draw(np.full(shape, 0.5), np.full(shape, 6000.0), title="a\nb\nc")
    inked = np.flatnonzero((pixels[200:] < 255).any(axis=(0, 2)))
    assert abs(inked[0] + inked[-1] - pixels.shape[1]) < 100, "the panels stand aside"
    (tmp_path / "map.png").write_bytes(plots.encode_png(pixels))
    middle = [round(255 * part) for part in colormaps["inferno"](6000 / 12345)[:3]]
    for panel, colour in (("input", [128] * 3), ("anomaly map", middle)):
        cut = np.asarray(Image.open(io.BytesIO(cut_panel(tmp_path / "map.png", panel)))).astype(int)
        assert np.abs(cut[10:-10, 10:-10] - colour).max() <= 2, "more than the panel"
        assert cut.shape[1] / cut.shape[0] == pytest.approx(shape[1] / shape[0], rel=0.15, abs=0.04)


@pytest.mark.parametrize("size", [1, 5, 15, 25])
def test_selection_of_few_images_takes_each_once(size):
    table = made_up_scores(("domain_A", "domain_C"), count=size, conditions=["all"])
    chosen = select_by_rank(table, thresholds={"domain_A": 0.0, "domain_C": 0.0})
    assert len(chosen) == 4 * size
    assert not chosen["path"].duplicated().any()
    without = select_by_rank(table, thresholds={"domain_A": float("nan")})
    assert len(without[without["rank"] != "first"]) == 4 * min(size, 20)
    assert "threshold" not in set(without["rank"])


def test_each_picture_shows_its_own_image_and_map(tmp_path: Path):
    """Also where images are no longer in the data set's order, as behind a domain that failed."""
    positions = np.array([7, 2, 5, 4])
    map_Nhw = np.full((4, 2, 3), np.arange(4.0)[:, None, None], np.float32)
    tested = evaluate.Scored(positions, Examined(np.arange(4.0), map_Nhw), np.full(4, "domain_B"), {})
    told = {"domain": "domain_B", "label": 0, "condition": "all", "rank": "highest", "score": 1.0}
    unknown = dict.fromkeys((*pointing.POINTED, pointing.PERCENTILE), float("nan"))
    table = pd.DataFrame([{"path": f"{position}.tiff", **told, **unknown} for position in positions])
    work: Any = SimpleNamespace(
        store={int(position): np.full((2, 3), position) for position in positions},
        context=SimpleNamespace(guard=SignalGuard()),
        ready=SimpleNamespace(manifest=None),
        maps_folder=lambda domain: tmp_path / domain,
    )
    shown: Any = SimpleNamespace(draw=lambda image_HW, map_hw, **_: (image_HW[0, 0], map_hw[0, 0]))
    drawn: dict[str, Any] = {}

    def save(path: Path, what: Any) -> None:
        drawn[path.name] = what

    rows, ignored = table.iloc[[3, 0, 2]], lambda: None
    evaluate._draw_maps(work, tested, shown, rows, threshold=1.0, save=save, tell=ignored)
    names = [f"good_highest_{number:02d}_{position}.png" for number, position in enumerate((4, 7, 5), 1)]
    assert drawn == dict(zip(names, [(4, 3), (7, 0), (5, 2)], strict=True))


# ---- written while the next ones are drawn ----


def blank(value: int) -> np.ndarray:
    return np.full((4, 6, 3), value, dtype=np.uint8)


def test_all_pictures_are_there_at_the_end_whatever_stops_the_drawing(tmp_path: Path):
    count = 3 * MOST_WAITING

    def draw() -> None:
        with pictures_saved() as save:
            for number in range(count):
                save(tmp_path / f"{number}.png", blank(number))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw()
    for number in range(count):
        assert np.array_equal(np.asarray(Image.open(tmp_path / f"{number}.png")), blank(number))


@pytest.mark.parametrize("others", [0, 3 * MOST_WAITING])
def test_a_picture_that_cannot_be_written_is_an_error(tmp_path: Path, others: int):
    (tmp_path / "file").write_text("no folder")
    saved = []

    def draw() -> None:
        with pictures_saved() as save:
            save(tmp_path / "file" / "first.png", blank(0))
            for number in range(others):
                save(tmp_path / f"{number}.png", blank(number))
                saved.append(number)

    with pytest.raises(OutputError, match="cannot write"):
        draw()
    assert len(saved) <= MOST_WAITING
