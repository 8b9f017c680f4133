"""Pages of many pictures and lines of text."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .canvas import EMPTY, empty_figure, load_matplotlib, outline

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["GAP", "Sheet"]

GAP = 0.06  # inches between tiles


class Sheet:
    """Pictures and lines of text on one page, measured in inches from its left and upper edges.

    One pair of axes holds them all: hundreds of axes would take matplotlib minutes to lay out.
    """

    def __init__(self, width: float, title: str) -> None:
        load_matplotlib()
        self._width = width
        self._at = 0.12  # how far down the page is filled
        self._figure = empty_figure((width, 1.0))
        self._figure.set_layout_engine("none")
        self._axes = self._figure.add_axes((0.0, 0.0, 1.0, 1.0))
        self._axes.set_axis_off()
        self._axes.set_autoscale_on(False)
        self._lines(title, 13)

    def down(self, inches: float) -> None:
        """Go on further below."""
        self._at += inches

    def write(self, left: float, text: str, size: float, down: float = 0.0, **style: Any) -> None:
        how: dict[str, Any] = {"va": "top", "ha": "left", "linespacing": 1.3, **style}
        self._axes.text(left, self._at + down, text, fontsize=size, **how)

    def put(
        self,
        picture: npt.NDArray[Any],
        left: float,
        width: float,
        height: float,
        down: float = 0.0,
        lie: float = 0.5,
    ) -> tuple[float, float]:
        """Show a picture in a field, as large as fits, and at its upper (0) or lower edge (1) where
        it is too flat; where its corner came to lie.
        """
        rows, columns = picture.shape[:2]
        if not picture.size:
            picture = np.full((1, 1, 3), EMPTY)
            rows, columns = 1, 1
        scale = min(width / columns, height / rows)
        x = left + (width - columns * scale) / 2
        y = self._at + down + (height - rows * scale) * lie
        extent = (x, x + columns * scale, y + rows * scale, y)
        self._axes.imshow(picture, extent=extent, aspect="auto", vmin=0, vmax=1)
        return x, y

    def outline(self, left: float, top: float, width: float, height: float) -> None:
        outline(self._axes, left, top, width, height)

    def figure(self, note: str) -> Figure:
        """The page, with a note at its end."""
        if note:
            self._lines(note, 9)
        self._at += 0.06
        self._figure.set_size_inches(self._width, self._at)
        self._axes.set(xlim=(0, self._width), ylim=(self._at, 0))
        return self._figure

    def _lines(self, text: str, size: int) -> None:
        """Centred text, broken where the page ends."""
        width = int(self._width * 72 / (0.56 * size))
        broken = [line for part in text.splitlines() for line in textwrap.wrap(part, width)]
        self.write(self._width / 2, "\n".join(broken), size, ha="center")
        self.down(len(broken) * 1.45 * size / 72 + 0.08)
