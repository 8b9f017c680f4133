"""Figures: right sizes and limits, no clipped text, and no traces in matplotlib's settings."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from backsight.plots import overlay, png, readings

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
    legend = figure.axes[3].get_legend()
    words = [text.get_text() for text in legend.get_texts()]
    assert len(words) == 8
    assert words[-1] == "3 others"
    titles = [figure.get_suptitle(), figure.get_supxlabel()]
    drawn = [text for text in figure.findobj(matplotlib.text.Text) if text.get_text() in titles]
    drawn += [panel.title for panel in figure.axes]
    drawn += [label for bar in bars for label in (bar.yaxis.label, *bar.get_yticklabels())]
    boxes = [text.get_window_extent() for text in drawn if text.get_text()]
    boxes += [legend.get_window_extent()]
    boxes += [panel.get_window_extent() for panel in (*figure.axes, *bars)]
    assert len(boxes) > 20
    assert_apart(figure, boxes)


def test_readings_stand_where_their_boxes_were() -> None:
    """Read from the picture: the centre of each cell has its class's colour in the legend."""
    figure = figure_7()
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba()).astype(int)[..., :3]
    panel = figure.axes[3]
    paints = [patch.get_facecolor()[:3] for patch in panel.get_legend().get_patches()]

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
    panels = [axes.get_window_extent() for axes in figure.axes]
    assert [panels[i].x0 for i in (0, 1)] == pytest.approx([panels[i].x0 for i in (2, 3)])
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
        "from backsight.plots import overlay, png\n"
        "png(overlay(np.zeros((9, 9, 3), np.uint8), np.ones((9, 9)), title='t'))\n"
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
