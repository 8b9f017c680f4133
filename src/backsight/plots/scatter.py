"""Many images at once: as dots and pictures on a map, and in rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .canvas import empty_figure, load_matplotlib, wrapped
from .sheet import GAP, Sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["picture_map", "rows_of_pictures"]

_SIDE = 6.4  # inches, of a map
_NAMED = 12  # so many classes stand in the legend, the most frequent ones
_FRAME = 0.07  # the share of a cell's side that its colour takes
_CELL = 24  # pixels, the least side of a cell's picture
_TILE = 1.1  # inches, of a picture in a row


def picture_map(
    places: npt.NDArray[np.floating[Any]],
    cells: npt.NDArray[np.integer[Any]],
    pictures: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.integer[Any]],
    classes: Sequence[str],
    *,
    grid: tuple[int, int],
    title: str,
    note: str = "",
) -> Figure:
    """Images as dots where they lie, and beside that as pictures on a grid, framed in the colours
    of their classes.

    Args:
        places: (images, 2), right and up.
        cells: (images, 2) row and column on the grid; -1: not shown there.
        pictures: (images, h, w, 3) uint8 RGB. Without pixels the cells are coloured whole.
        labels: (images,) which of the classes.
        classes: their names.
        grid: rows and columns.
        title: one line above all.
        note: one line below that.

    Raises:
        ImportError: matplotlib is not installed.
    """
    matplotlib = load_matplotlib()
    from matplotlib.lines import Line2D

    order = np.argsort(-np.bincount(labels, minlength=len(classes)), kind="stable")
    hues = [matplotlib.colormaps["tab20"](i % 20) for i in [*range(0, 20, 2), *range(1, 20, 2)]]
    colors = np.full((len(classes), 3), 0.6)
    for rank, label in enumerate(order[: len(hues)]):
        colors[label] = hues[rank][:3]
    figure = empty_figure((2 * _SIDE + 0.3, _SIDE + 1.5))
    dots, tiles = figure.subplots(1, 2)
    size = float(np.clip(9000 / len(places), 4, 60))
    dots.scatter(*places.T, s=size, c=colors[labels], edgecolors="white", linewidths=0.3)
    dots.set(xticks=[], yticks=[], box_aspect=1, title="t-SNE")
    for line in dots.spines.values():
        line.set_color("0.8")
    tiles.imshow(_mosaic(cells, pictures, colors[labels], grid), interpolation="antialiased")
    tiles.set_axis_off()
    tiles.set(box_aspect=1, title="on a grid, one image a cell")
    handles = [
        Line2D([], [], marker="o", ls="", color=colors[label], label=wrapped(classes[label], 26, 1))
        for label in order[:_NAMED]
    ]
    more = len(classes) - _NAMED
    if more > 0:
        handles.append(Line2D([], [], ls="", label=f"and {more} more"))
    figure.legend(handles=handles, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    figure.suptitle(f"{title}\n{note}" if note else title, fontsize=11)
    return figure


def rows_of_pictures(
    pictures: Sequence[Sequence[npt.NDArray[np.uint8]]],
    labels: Sequence[Sequence[str]],
    *,
    title: str,
    note: str = "",
) -> Figure:
    """Rows of pictures, the first of each set off, with a line or two under each.

    Args:
        pictures: rows of (h, w, 3) uint8 RGB.
        labels: what stands under each.
        title: one line above all.
        note: smaller text below.

    Raises:
        ValueError: there is no row, or a row has not as many labels.
        ImportError: matplotlib is not installed.
    """
    if not pictures or [*map(len, pictures)] != [*map(len, labels)]:
        raise ValueError("expected rows of pictures, and a label for each, got others")
    step, first = _TILE + GAP, 0.25
    columns = max(map(len, pictures))
    sheet = Sheet(max(columns * step + first + 2 * GAP, 4.0), title)
    for row, texts in zip(pictures, labels, strict=True):
        for column, (picture, text) in enumerate(zip(row, texts, strict=True)):
            left = GAP + column * step + first * bool(column)
            sheet.put(picture / 255, left, _TILE, _TILE)
            lines = "\n".join(wrapped(part, 17, 1) for part in text.splitlines())
            sheet.write(left + _TILE / 2, lines, 7, down=_TILE + 0.04, ha="center")
        sheet.down(_TILE + 0.4)
    return sheet.figure(note)


def _mosaic(
    cells: npt.NDArray[np.integer[Any]],
    pictures: npt.NDArray[np.uint8],
    colors: npt.NDArray[np.float64],
    grid: tuple[int, int],
) -> npt.NDArray[np.uint8]:
    """The pictures on their cells, each in a frame of its colour, on white."""
    height, width = pictures.shape[1:3]
    # Small pictures as large as whole pixels allow.
    scale = max(1, _CELL // max(height, width, 1))
    side = max(height, width, 1) * scale
    edge = max(1, round(_FRAME * side))
    whole = side + 2 * edge + 1
    mosaic = np.full((grid[0] * whole, grid[1] * whole, 3), 255, np.uint8)
    for (row, column), picture, color in zip(cells, pictures, colors, strict=True):
        if row < 0:
            continue
        top, left = row * whole, column * whole
        cell = mosaic[top : top + whole - 1, left : left + whole - 1]
        cell[:] = (color * 255).round()
        if picture.size:
            shown = picture.repeat(scale, 0).repeat(scale, 1)
            top = edge + (side - shown.shape[0]) // 2
            left = edge + (side - shown.shape[1]) // 2
            cell[top : top + shown.shape[0], left : left + shown.shape[1]] = shown
    return mosaic
