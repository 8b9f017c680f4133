"""Small tables of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .canvas import EMPTY, empty_figure, load_matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Cells", "cells"]

_CELL = 0.3  # inches, the side of a cell of a table
_PAGE = 11.0  # inches, where tables go on in the next row


@dataclass(frozen=True)
class Cells:
    """A table to draw.

    Attributes:
        title: what it is called, above it.
        texts: for each row what its cells hold.
        colors: for each row the number of its cells' colours: equal numbers from 1 on have equal
            colours, 0 is pale and -1 is white.
    """

    title: str
    texts: Sequence[Sequence[str]]
    colors: Sequence[Sequence[int]]


def cells(rows: Sequence[Sequence[Cells]], *, title: str) -> Figure:
    """Tables of small squares with a few characters each, several beside each other.

    Args:
        rows: the tables of each row, from the left; what does not fit goes on below.
        title: one line above all.

    Raises:
        ValueError: there is no table, or the texts and colours of one do not fit.
        ImportError: matplotlib is not installed.
    """
    if not any(rows):
        raise ValueError("expected a table at least, got none")
    for table in (table for row in rows for table in row):
        if [*map(len, table.texts)] != [*map(len, table.colors)]:
            raise ValueError(f"expected a colour for each cell of {table.title!r}, got others")
    matplotlib = load_matplotlib()
    from matplotlib.patches import Rectangle

    hues = [matplotlib.colormaps["tab20"](2 * i + 1) for i in range(10)]
    placed: list[tuple[Cells, float, float]] = []
    top, right = 0.5, 0.0
    for row in rows:
        left, low = 0.15, top
        for table in row:
            wide = max(len(table.texts[0]) * _CELL, 0.075 * len(table.title) + 0.1)
            if left > 0.15 and left + wide > _PAGE:
                left, top = 0.15, low + 0.15
            placed.append((table, left, top))
            left += wide + 0.25
            right, low = max(right, left), max(low, top + 0.3 + len(table.texts) * _CELL)
        top = low + 0.2
    width = max(right, 0.085 * len(title) + 0.3)
    figure = empty_figure((width, top))
    figure.set_layout_engine("none")
    axes: Any = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    axes.set(xlim=(0, width), ylim=(top, 0))
    axes.text(width / 2, 0.12, title, fontsize=11, ha="center", va="top")
    for table, x, y in placed:
        axes.text(x, y + 0.24, table.title, fontsize=9, ha="left", va="bottom")
        for i, (texts, colors) in enumerate(zip(table.texts, table.colors, strict=True)):
            for j, (text, color) in enumerate(zip(texts, colors, strict=True)):
                hue = "white" if color < 0 else hues[(color - 1) % 10] if color else str(EMPTY)
                corner = (x + j * _CELL, y + 0.28 + i * _CELL)
                axes.add_patch(Rectangle(corner, _CELL, _CELL, fc=hue, ec="0.6", lw=0.6))
                size = 8 if len(text) < 4 else 26 / len(text)
                middle = (corner[0] + _CELL / 2, corner[1] + _CELL / 2)
                axes.text(*middle, text, fontsize=size, ha="center", va="center")
    return figure
