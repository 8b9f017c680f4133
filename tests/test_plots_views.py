"""Figures of tiles, curves and fields: what is drawn where, nothing cut off, bad input refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from backsight.plots import Line, Panel, Tile, curves, fields, tiles

pytest.importorskip("matplotlib", reason="figures need matplotlib")

PHOTO = np.random.default_rng(9).integers(0, 256, (40, 60, 3), dtype=np.uint8)
X = np.linspace(0, 1, 5)


def assert_inside(figure: Any, boxes: list[Any]) -> None:
    width, height = figure.canvas.get_width_height()
    assert boxes
    for box in boxes:
        assert box.x0 >= -1
        assert box.y0 >= -1
        assert box.x1 <= width + 1
        assert box.y1 <= height + 1


def test_tiles_lie_in_rows_with_their_frames_and_legend() -> None:
    drawn = [Tile(PHOTO, str(i), "dead" if i == 3 else "") for i in range(10)]
    figure = tiles(drawn, title="Ten tiles", note="a note", photo=PHOTO)
    figure.canvas.draw()
    (axes,) = figure.axes
    # the photo, ten tiles, one frame, one square of the legend
    assert len(axes.images) == 13
    extents = [image.get_extent() for image in axes.images[1:]]
    assert len({round(top, 3) for *_, top in extents}) >= 2
    words = [text.get_text() for text in axes.texts]
    assert words.count("dead") == 1
    assert {"Ten tiles", "a note", "0", "9"} < set(words)
    assert_inside(figure, [text.get_window_extent() for text in axes.texts])


def test_a_gray_tile_is_as_bright_as_it_says() -> None:
    figure = tiles([Tile(np.full((4, 4), value)) for value in (0.0, 0.5, 1.0)], title="t")
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba()).astype(int)
    (axes,) = figure.axes
    for image, value in zip(axes.images, (0, 127, 255), strict=True):
        left, right, bottom, top = image.get_extent()
        x, y = axes.transData.transform(((left + right) / 2, (bottom + top) / 2))
        assert np.abs(pixels[pixels.shape[0] - 1 - int(y), int(x), :3] - value).max() <= 1


@pytest.mark.parametrize(
    ("count", "columns"), [(1, 1), (7, 7), (9, 9), (32, 8), (64, 8), (96, 12), (256, 16)]
)
def test_the_last_row_of_tiles_is_full_where_it_can_be(count: int, columns: int) -> None:
    figure = tiles([Tile(np.zeros((3, 3)))] * count, title="t")
    lefts = {round(image.get_extent()[0], 3) for image in figure.axes[0].images}
    assert len(lefts) == columns


def test_curves_with_pictures() -> None:
    lines = [Line(X, X**2, "square", filled=True), Line(X, X, "a line of its own", strong=True)]
    shown = [Panel(PHOTO, "photo"), Panel(PHOTO[..., 0], "map")]
    figure = curves(lines, title="Curves", x="x", y="y", shown=shown, note="n", step=0.5)
    figure.canvas.draw()
    upper, lower = figure.subfigs
    assert [axes.get_title() for axes in upper.axes] == ["photo", "map"]
    (axes,) = lower.axes
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), X**2)
    assert axes.lines[1].get_linewidth() > axes.lines[0].get_linewidth()
    assert len(axes.collections) == 1  # one area is shaded
    legend = axes.get_legend()
    assert [t.get_text() for t in legend.get_texts()] == ["square", "a line of its own"]
    assert_inside(figure, [legend.get_window_extent(), axes.get_tightbbox()])
    assert not curves(lines, title="Curves", x="x", y="y").subfigs[0].axes[0].get_title()


def test_fields_are_outlined_where_they_are() -> None:
    figure = fields(PHOTO, [(0, 0, 40, 60), (5, 10, 20, 50)], labels=["all", "some"], title="t")
    figure.canvas.draw()
    (axes,) = figure.axes
    corners = {(*patch.get_xy(), patch.get_width(), patch.get_height()) for patch in axes.patches}
    assert corners == {(-0.5, -0.5, 60, 40), (9.5, 4.5, 40, 15)}
    assert_inside(figure, [axes.get_legend().get_window_extent()])


def test_bad_input_gets_a_sentence() -> None:
    with pytest.raises(ValueError, match="pictures to draw, got none"):
        tiles([], title="t")
    with pytest.raises(ValueError, match=r"of one shape, got \(2, 2\) and \(3, 3\)"):
        tiles([Tile(np.zeros((2, 2))), Tile(np.zeros((3, 3)))], title="t")
    with pytest.raises(ValueError, match="NaN or an infinity"):
        tiles([Tile(np.full((2, 2), np.nan))], title="t")
    with pytest.raises(ValueError, match="curves to draw, got none"):
        curves([], title="t", x="x", y="y")
    with pytest.raises(ValueError, match="NaN or infinity in bad"):
        curves([Line(X, X * np.nan, "bad")], title="t", x="x", y="y")
    with pytest.raises(ValueError, match=r"as many x as y, got \(5,\) and \(4,\)"):
        curves([Line(X, X[:4], "short")], title="t", x="x", y="y")
    with pytest.raises(ValueError, match="as many labels as boxes, one at least, got 0 and 1"):
        fields(PHOTO, [(0, 0, 1, 1)], labels=[], title="t")
