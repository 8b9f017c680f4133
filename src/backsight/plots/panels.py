"""Pictures and maps side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .canvas import empty_figure, load_matplotlib, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Panel", "check_panels", "draw_panel", "panels"]

_SIDE = 3.6  # inches, the longer side of a panel


@dataclass(frozen=True)
class Panel:
    """A picture or a map to draw.

    Attributes:
        values: a picture, ``(H, W, 3)`` uint8 RGB or floats in 0..1; or a map, ``(H, W)`` of
            numbers or bools.
        title: the line above it.
        colors: matplotlib's colour map for maps.
        limits: the values at the ends of the colours; the least and the largest unless told.
        bar: what a map's colour bar is called; "": it has none.
        under: a picture that lies under the map, which is then transparent where it is weak.
    """

    values: npt.NDArray[Any]
    title: str = ""
    colors: str = "gray"
    limits: tuple[float, float] | None = None
    bar: str = ""
    under: npt.NDArray[np.uint8] | None = None


def panels(
    drawn: Sequence[Panel], *, title: str, note: str = "", columns: int | None = None
) -> Figure:
    """Pictures and maps in a row, or in rows of `columns`.

    Raises:
        ValueError: there is nothing to draw, or a map holds a NaN or an infinity.
        ImportError: matplotlib is not installed.
    """
    if not drawn:
        raise ValueError("expected pictures to draw, got none")
    check_panels(drawn)
    load_matplotlib()
    columns = min(columns or len(drawn), len(drawn))
    rows = math.ceil(len(drawn) / columns)
    ratio = [panel.values.shape[0] / panel.values.shape[1] for panel in drawn]
    height = _SIDE * min(1.0, max(ratio))
    width = _SIDE * min(1.0, 1 / min(ratio))
    bars = any(panel.bar for panel in drawn)
    size = (columns * (max(width, 1.6) + 0.9 * bars) + 0.2, rows * (max(height, 1.2) + 0.4) + 0.7)
    figure = empty_figure(size)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, panel in zip(grid, drawn, strict=False):
        draw_panel(figure, axes, panel)
    figure.suptitle(title, fontsize=12)
    if note:
        figure.supxlabel(note, fontsize=9)
    return figure


def check_panels(drawn: Sequence[Panel]) -> None:
    for panel in drawn:
        if panel.values.ndim not in (2, 3) or not panel.values.size:
            raise ValueError(f"expected a picture or a map, got shape {panel.values.shape}")
        if not np.isfinite(panel.values).all():
            raise ValueError("expected a finite map, got one with a NaN or an infinity")


def draw_panel(figure: Any, axes: Any, panel: Panel) -> None:
    """Draw in some axes of a figure or a part of one."""
    axes.set_title(wrapped(panel.title, 44), fontsize=10)
    if panel.values.ndim == 3:
        axes.imshow(panel.values, interpolation="antialiased")
        return
    values = panel.values.astype(np.float64)
    low, high = panel.limits or (float(values.min()), float(values.max()))
    alpha = None
    if panel.under is not None:
        axes.imshow(panel.under.mean(2), cmap="gray", vmin=-80, vmax=335)
        strength = np.abs(values) / (max(abs(low), abs(high)) or 1.0)
        alpha = 0.75 * np.clip(strength, 0.0, 1.0)
    mesh = axes.imshow(
        values, cmap=panel.colors, vmin=low, vmax=high, alpha=alpha, interpolation="nearest"
    )
    if panel.bar:
        figure.colorbar(mesh, ax=axes, label=panel.bar, fraction=0.05, pad=0.03)
