"""Figures: right sizes and limits, no clipped text, and no traces in matplotlib's settings."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from backsight.plots import overlay, png, projections, readings, units

matplotlib = pytest.importorskip("matplotlib", reason="figures need matplotlib")

PHOTO = np.random.default_rng(9).integers(0, 256, (40, 60, 3), dtype=np.uint8)
HEAT = np.linspace(-1.0, 3.0, 2400).reshape(40, 60)


def test_colours_are_centred_on_zero() -> None:
    figure = overlay(PHOTO, HEAT, title="t", label="drop of the logit")
    bar = figure.axes[-1]
    assert bar.get_ylim() == (-3.0, 3.0)
    assert bar.get_ylabel() == "drop of the logit"
    assert overlay(PHOTO, HEAT, title="t", limit=5.0).axes[-1].get_ylim() == (-5.0, 5.0)
    assert overlay(PHOTO, 0 * HEAT, title="t").axes[-1].get_ylim() == (-1.0, 1.0)


def test_a_red_spot_is_red_and_a_blue_one_blue() -> None:
    """Read from the picture itself: a drop, a rise, and nothing, on a gray photo."""
    heat = np.zeros((30, 30))
    heat[:, :10], heat[:, 20:] = 2.0, -2.0
    figure = overlay(np.full((30, 30, 3), 128, np.uint8), heat, title="t")
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba()).astype(int)
    panel = figure.axes[1]

    def color(column: float) -> list[int]:
        x, y = panel.transData.transform((column, 15))
        return pixels[pixels.shape[0] - 1 - int(y), int(x), :3].tolist()

    red, nothing, blue = color(5), color(15), color(25)
    assert red[0] > red[2] + 50
    assert blue[2] > blue[0] + 50
    assert max(nothing) - min(nothing) <= 2


def assert_apart(figure: Any, boxes: list[Any]) -> None:
    """All of them inside the figure, and none over another."""
    width, height = figure.canvas.get_width_height()
    for box in boxes:
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= width
        assert box.y1 <= height
    pairs = [(i, j) for i, a in enumerate(boxes) for j in range(i) if a.overlaps(boxes[j])]
    assert not pairs, [(boxes[i], boxes[j], i, j) for i, j in pairs]


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (10, 90), (90, 10), (227, 227)])
def test_no_text_is_clipped_and_none_overlaps(shape: tuple[int, int]) -> None:
    photo = np.zeros((*shape, 3), np.uint8)
    heat = np.linspace(-2e-4, 1e-4, photo[..., 0].size).reshape(shape)
    figure = overlay(
        photo,
        heat,
        title="Cardigan, Cardigan Welsh corgi (class 264), probability 0.971",
        note=f"{'n' * 30}, {'m' * 20}, window 32 x 32, stride 8 x 8\nthe largest drop, 0.000123",
        label="drop of the logit, mean over covering boxes",
        box=(0, 0, 5, 5),
    )
    figure.canvas.draw()
    bar = figure.axes[-1]
    words = [figure.get_suptitle(), figure.get_supxlabel()]
    drawn = [text for text in figure.findobj(matplotlib.text.Text) if text.get_text() in words]
    drawn += [bar.yaxis.label, *bar.get_yticklabels(), bar.yaxis.get_offset_text()]
    boxes = [text.get_window_extent() for text in drawn if text.get_text()]
    boxes += [panel.get_window_extent() for panel in figure.axes]
    assert len(boxes) > 8
    assert_apart(figure, boxes)


def figure_7(shape: tuple[int, int] = (60, 90), **changed: Any) -> Any:
    """Readings at 3 x 4 positions; ten classes with long names win somewhere."""
    arguments: dict[str, Any] = {
        "activation": np.linspace(1e3, 2e3, 12).reshape(3, 4),
        "probability": np.linspace(0, 1, 12).reshape(3, 4),
        "most_probable": np.array([[7, 7, 7, 0], [1, 2, 3, 4], [5, 6, 8, 9]]),
        "projection": np.random.default_rng(0).normal(size=(*shape, 3)),
        "names": {i: f"Cardigan Welsh corgi of the {i}th kind" for i in range(10)},
        "title": "a photo, a network",
        "labels": ("feature map 7 of some.layer", "Cardigan Welsh corgi of the 7th kind"),
        "note": "window 32 x 32, stride 8 x 8; unoccluded: activation 1.2e+03, probability 0.9",
        **changed,
    }
    height, width = shape
    centres = np.linspace(0.2, 0.8, 3) * height, np.linspace(0.2, 0.8, 4) * width
    return readings(np.zeros((*shape, 3), np.uint8), centres, **arguments)


@pytest.mark.parametrize("shape", [(60, 90), (90, 60), (20, 90), (90, 20), (224, 224)])
def test_no_text_of_the_readings_is_clipped_and_none_overlaps(shape: tuple[int, int]) -> None:
    figure = figure_7(shape)
    figure.canvas.draw()
    bars = [child for panel in figure.axes for child in panel.child_axes]
    assert len(bars) == 2
    legend = figure.axes[5].get_legend()
    words = [text.get_text() for text in legend.get_texts()]
    assert len(words) == 8
    assert words[-1] == "3 others"
    titles = [figure.get_suptitle(), figure.get_supxlabel()]
    drawn = [text for text in figure.findobj(matplotlib.text.Text) if text.get_text() in titles]
    drawn += [panel.title for panel in figure.axes]
    drawn += [label for bar in bars for label in (bar.yaxis.label, *bar.get_yticklabels())]
    boxes = [text.get_window_extent() for text in drawn if text.get_text()]
    boxes += [legend.get_window_extent()]
    boxes += [panel.get_window_extent() for panel in (*figure.axes[:5], *bars)]
    assert len(boxes) > 20
    assert_apart(figure, boxes)


def test_readings_stand_where_their_boxes_were() -> None:
    """Read from the picture: the centre of each cell has its class's colour in the legend."""
    figure = figure_7()
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba()).astype(int)[..., :3]
    panel = figure.axes[4]
    paints = [patch.get_facecolor()[:3] for patch in figure.axes[5].get_legend().get_patches()]

    def color(row: float, column: float) -> np.ndarray:
        x, y = panel.transData.transform((column - 0.5, row - 0.5))
        return pixels[len(pixels) - 1 - int(y), int(x)]

    rows, columns = np.linspace(0.2, 0.8, 3) * 60, np.linspace(0.2, 0.8, 4) * 90
    # 7 wins most often; the others as they come; the last three share a gray
    ranks = [[0, 0, 0, 1], [2, 3, 4, 5], [6, 7, 7, 7]]
    for row, line in zip(rows, ranks, strict=True):
        for column, rank in zip(columns, line, strict=True):
            assert np.abs(color(row, column) - np.array(paints[rank]) * 255).max() <= 1
    margin = color(2, 45)
    assert margin.tolist() == [round(0.88 * 255)] * 3
    panels = [axes.get_window_extent() for axes in figure.axes[:5]]
    assert [panels[i].x0 for i in (0, 1)] == pytest.approx([panels[i].x0 for i in (3, 4)])
    assert len({(round(box.width), round(box.height)) for box in panels}) == 1


def test_readings_that_do_not_fit_get_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"readings of \(3, 4\) positions, got \(4, 3\)"):
        figure_7(probability=np.zeros((4, 3)))
    with pytest.raises(ValueError, match="uint8 photo"):
        readings(
            np.zeros((9, 9)),
            ([1], [1]),
            activation=np.zeros((1, 1)),
            probability=np.zeros((1, 1)),
            most_probable=np.zeros((1, 1), int),
            names={0: "a"},
            title="t",
            labels=("a", "b"),
        )
    assert png(figure_7(most_probable=np.zeros((3, 4), int))) == png(
        figure_7(most_probable=np.zeros((3, 4), int))
    )


def test_several_boxes_are_outlined() -> None:
    both = overlay(PHOTO, HEAT, title="t", box=[(1, 2, 3, 4), (5, 6, 17, 28)])
    places = {patch.get_bbox().bounds for patch in both.axes[0].patches}
    assert places == {(1.5, 0.5, 2.0, 2.0), (5.5, 4.5, 22.0, 12.0)}
    assert not overlay(PHOTO, HEAT, title="t").axes[0].patches


def test_same_figure_is_the_same_file() -> None:
    first, second = (png(overlay(PHOTO, HEAT, title="t", box=(1, 2, 3, 4))) for _ in range(2))
    assert first == second
    image = pytest.importorskip("PIL.Image").open(io.BytesIO(first))
    assert image.format == "PNG"


def test_pyplot_and_settings_are_left_alone() -> None:
    program = (
        "import sys, numpy as np, matplotlib\n"
        # asking for the backend makes matplotlib choose one and import pyplot
        "names = [name for name in matplotlib.rcParams if name != 'backend']\n"
        "before = [matplotlib.rcParams[name] for name in names]\n"
        "from backsight.plots import overlay, png, units\n"
        "photo = np.zeros((9, 9, 3), np.uint8)\n"
        "png(overlay(photo, np.ones((9, 9)), title='t'))\n"
        "png(units([[photo]], [[np.ones((9, 9, 3))]], labels=['c'], title='t'))\n"
        "after = [matplotlib.rcParams[name] for name in names]\n"
        "print(after == before, 'matplotlib.pyplot' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "True False\n"


def test_what_does_not_fit_gets_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"expected a map of \(40, 60\) like the photo"):
        overlay(PHOTO, HEAT.T, title="t")
    with pytest.raises(ValueError, match="uint8 photo"):
        overlay(PHOTO / 255, HEAT, title="t")
    with pytest.raises(ValueError, match="finite map"):
        overlay(PHOTO, np.where(HEAT > 0, np.nan, HEAT), title="t")
    with pytest.raises(ValueError, match="positive limit"):
        overlay(PHOTO, HEAT, title="t", limit=0.0)


# ---------------------------------------------------------------------------------------- units


def signal(height: int, width: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(height, width, 3))


def on_page(figure: Any) -> tuple[list[Any], list[Any]]:
    """Where the texts and the pictures lie, in pixels of the figure."""
    figure.canvas.draw()
    texts = [t.get_window_extent() for t in figure.axes[0].texts if t.get_text()]
    pictures = [image.get_window_extent() for image in figure.axes[0].images]
    return texts, pictures


def drawn(figure: Any) -> np.ndarray:
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba()).astype(int)[..., :3]


def inside(pixels: np.ndarray, box: Any) -> np.ndarray:
    """What is drawn in a picture's place, without its rim."""
    height = len(pixels)
    rows = slice(height - int(box.y1) + 3, height - int(box.y0) - 3)
    return pixels[rows, int(box.x0) + 3 : int(box.x1) - 3]


@pytest.mark.parametrize("shape", [(227, 227), (60, 400), (400, 60)])
def test_projections_are_apart_and_on_the_page(shape: tuple[int, int]) -> None:
    boxes = [(0, 0, 30, 20), (10, 20, 60, 60)]
    figure = projections(
        np.zeros((*shape, 3), np.uint8),
        boxes,
        [signal(30, 20), signal(50, 40)],
        labels=[
            "channel 1142: -1.234e-05, at row 111, column 120, sees rows 1160 to 1223, "
            "columns 1136 to 1199"
        ]
        * 2,
        title="a.layer.of.a.rather.long.name of a network of a name that is long as well, guided",
        note=f"{'n' * 40}; gray: 0, brightest or darkest: the strongest hundredth",
    )
    texts, pictures = on_page(figure)
    assert (len(texts), len(pictures)) == (7, 6)
    assert_apart(figure, [*texts, *pictures])


def test_projections_show_the_box_the_crop_and_the_signs() -> None:
    photo = np.full((40, 60, 3), 200, np.uint8)
    photo[10:20, 30:50] = (255, 0, 0)
    rising = np.zeros((10, 20, 3))
    rising[:, :10], rising[:, 15:] = 4.0, -2.0
    figure = projections(photo, [(10, 30, 20, 50)], [rising], labels=["l"], title="t")
    pixels, (_, (whole, crop, sent)) = drawn(figure), on_page(figure)
    assert (inside(pixels, crop) == (255, 0, 0)).all()
    shown = inside(pixels, sent)
    values = shown[len(shown) // 2, (np.array([0.25, 0.6, 0.9]) * shown.shape[1]).astype(int)]
    assert np.abs(values - np.array([[255], [127.5], [64]])).max() <= 1
    assert crop.width / crop.height == pytest.approx(2, rel=0.02)
    outline = figure.axes[0].patches[0].get_window_extent()
    for edge, start, stop, at in (
        (outline.x0, whole.x0, whole.x1, 30 / 60),
        (outline.x1, whole.x0, whole.x1, 50 / 60),
        (outline.y1, whole.y1, whole.y0, 10 / 40),
        (outline.y0, whole.y1, whole.y0, 20 / 40),
    ):
        assert edge == pytest.approx(start + (stop - start) * at, abs=2)


@pytest.mark.parametrize(("rows", "columns"), [(3, 9), (1, 1), (2, 4)])
def test_units_are_apart_and_on_the_page(rows: int, columns: int) -> None:
    counts = [max(1, columns - row) for row in range(rows)]
    figure = units(
        [[np.zeros((9, 12, 3), np.uint8)] * count for count in counts],
        [[signal(9, 12)] * count for count in counts],
        labels=["channel 1023\n-1.234e-05\nto -1.234e-05"] * rows,
        title="a.layer.of.a.rather.long.name of a network of a name that is long as well, guided",
        note="the strongest of 123456 pictures; gray: 0, darkest: the strongest hundredth of each",
    )
    texts, pictures = on_page(figure)
    assert (len(texts), len(pictures)) == (2 + rows, 2 * rows * columns)
    assert_apart(figure, [*texts, *pictures])
    # large enough to make something out
    assert min(picture.width for picture in pictures) > 100


def test_units_stand_above_their_projections() -> None:
    """Also flat ones; a unit that sees nothing, and one that is not there, have empty tiles."""
    crops = [[np.full((6, h, 3), 10 * h, np.uint8) for h in (6, 12)], [np.zeros((0, 5, 3), "u1")]]
    sent = [[np.full((6, 6, 3), 3.0), np.full((6, 12, 3), -1e-9)], [np.zeros((0, 5, 3))]]
    figure = units(crops, sent, labels=["a", "b"], title="t")
    pixels, (_, places) = drawn(figure), on_page(figure)
    colors = [inside(pixels, place).reshape(-1, 3) for place in places]
    # crop and projection, column by column
    for color, value in zip(colors, (60, 255, 120, 0, 237, 237, 237, 237), strict=True):
        assert np.abs(color - value).max() <= 1
    for crop, picture in zip(places[::2], places[1::2], strict=True):
        assert crop.x0 == picture.x0
        assert 0 < crop.y0 - picture.y1 < 0.03 * 110
    assert places[2].height == pytest.approx(places[0].height / 2, abs=1)


def test_units_that_do_not_fit_get_a_sentence() -> None:
    crop = np.zeros((4, 5, 3), np.uint8)
    with pytest.raises(ValueError, match=r"expected a projection of \(4, 5, 3\), got \(5, 4, 3\)"):
        units([[crop]], [[signal(5, 4)]], labels=["a"], title="t")
    with pytest.raises(ValueError, match="finite projection"):
        units([[crop]], [[np.full((4, 5, 3), np.nan)]], labels=["a"], title="t")
    with pytest.raises(ValueError, match="expected a picture for each crop, got 0 for 1"):
        units([[crop]], [[]], labels=["a"], title="t")
    with pytest.raises(ValueError, match="got 1, 1 and 2"):
        units([[crop]], [[signal(4, 5)]], labels=["a", "b"], title="t")
    with pytest.raises(ValueError, match="one at least, got 0, 0 and 0"):
        projections(PHOTO, [], [], labels=[], title="t")
    with pytest.raises(ValueError, match="within the photo of 40 x 60, got"):
        projections(PHOTO, [(0, 0, 41, 5)], [signal(41, 5)], labels=["a"], title="t")
    with pytest.raises(ValueError, match=r"a projection of \(4, 5, 3\), got \(4, 6, 3\)"):
        projections(PHOTO, [(0, 0, 4, 5)], [signal(4, 6)], labels=["a"], title="t")
    same = [
        png(projections(PHOTO, [(0, 0, 4, 5)], [signal(4, 5)], labels=["a"], title="t"))
        for _ in range(2)
    ]
    assert same[0] == same[1]
