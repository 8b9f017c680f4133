"""Curves, with the pictures that they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .canvas import empty_figure, load_matplotlib, wrapped
from .panels import Panel, check_panels, draw_panel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Line", "curves"]

_WIDTH = 7.4  # inches
_CURVES = 3.4  # inches, the height of the curves


@dataclass(frozen=True)
class Line:
    """A curve to draw.

    Attributes:
        x, y: (points,) numbers; x rising.
        label: what it is called in the legend.
        filled: shade the area below it.
        strong: draw it thick.
    """

    x: npt.NDArray[Any]
    y: npt.NDArray[Any]
    label: str
    filled: bool = False
    strong: bool = False


def curves(
    lines: Sequence[Line],
    *,
    title: str,
    x: str,
    y: str,
    shown: Sequence[Panel] = (),
    note: str = "",
    step: float | None = None,
) -> Figure:
    """Curves over one axis, below a row of pictures.

    Args:
        lines: the curves.
        title: one line above all.
        x, y: what the axes show, and in which unit.
        shown: pictures and maps; a few fit beside each other.
        note: smaller text below.
        step: where the ticks of x stand: at its multiples; None: where they usually do.

    Raises:
        ValueError: there is no curve, or one or a map holds a NaN or an infinity.
        ImportError: matplotlib is not installed.
    """
    if not lines:
        raise ValueError("expected curves to draw, got none")
    for line in lines:
        if line.x.shape != line.y.shape or line.x.ndim != 1:
            raise ValueError(
                f"expected curves of as many x as y, got {line.x.shape} and {line.y.shape}"
            )
        if not np.isfinite(line.y.astype(np.float64)).all():
            raise ValueError(f"expected finite curves, got NaN or infinity in {line.label}")
    check_panels(shown)
    matplotlib = load_matplotlib()
    from matplotlib.ticker import MultipleLocator

    ratios = [panel.values.shape[0] / panel.values.shape[1] for panel in shown]
    row = min(2.3, _WIDTH * 0.95 / sum(1 / r for r in ratios)) if shown else 0.0
    figure = empty_figure((_WIDTH, _CURVES + 0.5 + (row + 0.35) * bool(shown)))
    if shown:
        parts: Any = figure.subfigures(2, 1, height_ratios=[row + 0.35, _CURVES + 0.1])
        upper, lower = parts
        grid = upper.subplots(1, len(shown), squeeze=False).ravel()
        for place, panel in zip(grid, shown, strict=True):
            place.set_axis_off()
            draw_panel(upper, place, panel)
    else:
        lower = figure.subfigures(1, 1)
    axes: Any = lower.subplots()
    hues = matplotlib.colormaps["tab10"]
    for i, line in enumerate(lines):
        width = 2.4 if line.strong else 1.5
        axes.plot(line.x, line.y, color=hues(i), lw=width, label=wrapped(line.label, 36))
        if line.filled:
            axes.fill_between(line.x, line.y, color=hues(i), alpha=0.12, lw=0)
    axes.set_xlabel(x)
    axes.set_ylabel(wrapped(y, 40))
    axes.margins(x=0.01)
    if step is not None:
        axes.xaxis.set_major_locator(MultipleLocator(step))
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.suptitle(title, fontsize=12)
    if note:
        lower.supxlabel(note, fontsize=9)
    return figure
