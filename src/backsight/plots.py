"""Figures of maps: the photo, and the map laid over it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["overlay", "png"]

_PANEL = 4.8  # inches, the longer side of a panel
_COLORS = "RdBu_r"  # red where covering costs the class, blue where it helps
_FAINTEST = 0.4  # where in the half of the colour map the smallest values start
_GRAY = 0.55  # how much contrast the photo keeps under the colours
_OPAQUE = 0.85  # opacity of the largest value


def overlay(
    photo: npt.NDArray[np.uint8],
    heat: npt.NDArray[np.floating[Any]],
    *,
    title: str,
    note: str = "",
    label: str = "drop of the logit",
    box: Sequence[int] | None = None,
    limit: float | None = None,
) -> Figure:
    """The photo beside the same photo under a signed map, with a colour bar.

    The colours are centred on 0 and reach equally far both ways. They turn transparent towards 0,
    over a gray and paler photo, so that what the map says nothing about stays visible.

    Args:
        photo: ``(H, W, 3)`` uint8 RGB.
        heat: ``(H, W)`` map of any float dtype, in the unit that ``label`` names.
        title: one line above both panels.
        note: smaller text below them; a line of about 100 characters fits.
        label: what the map shows and in which unit; stands at the colour bar.
        box: top, left, bottom, right (half-open, pixels); outlined in both panels.
        limit: the value at the ends of the colour bar; the largest |value| unless told.

    Returns:
        A figure on matplotlib's Agg canvas. pyplot and its settings are not touched.

    Raises:
        ValueError: the shapes do not fit, or the map holds a NaN or an infinity.
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import ListedColormap, Normalize
        from matplotlib.figure import Figure
        from matplotlib.patches import Rectangle
    except ImportError as error:
        raise ImportError(
            'figures need matplotlib: pip install "backsight[cli]"', name="matplotlib"
        ) from error
    import matplotlib

    if photo.ndim != 3 or photo.shape[2] != 3 or photo.dtype != np.uint8:
        raise ValueError(f"expected a (H, W, 3) uint8 photo, got {photo.shape} of {photo.dtype}")
    if heat.shape != photo.shape[:2]:
        raise ValueError(f"expected a map of {photo.shape[:2]} like the photo, got {heat.shape}")
    values = heat.astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("expected a finite map, got one with a NaN or an infinity")
    if limit is None:
        limit = float(np.abs(values).max(initial=0.0)) or 1.0
    if not limit > 0:
        raise ValueError(f"expected a positive limit of the colours, got {limit}")

    shades = np.linspace(-1.0, 1.0, 511)
    # Near 0 the colours fade by transparency; the map's own white would veil the photo.
    depth = np.sign(shades) * (_FAINTEST + (1 - _FAINTEST) * np.abs(shades))
    hues = matplotlib.colormaps[_COLORS]((depth + 1) / 2)
    hues[:, 3] = _OPAQUE * np.abs(shades) ** 0.75
    paper = 0.75  # a middle gray of the pale photo: what the bar's transparent colours lie on
    bar = hues[:, :3] * hues[:, 3:] + paper * (1 - hues[:, 3:])
    scale = Normalize(-limit, limit)
    gray = photo @ np.array([0.299, 0.587, 0.114]) / 255
    pale = 1 - _GRAY * (1 - gray)

    height, width = heat.shape
    unit = _PANEL / max(height, width)
    # Narrow and flat photos still need room for the lines of text and for the bar's label.
    figsize = (max(2 * width * unit + 1.3, 7.5), max(height * unit + 1.1, 4.6))
    figure = Figure(figsize=figsize, dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    left.imshow(photo, interpolation="antialiased")
    right.imshow(pale, cmap="gray", vmin=0, vmax=1, interpolation="antialiased")
    right.imshow(values, cmap=ListedColormap(hues), norm=scale, interpolation="nearest")
    for axes in (left, right):
        axes.set_axis_off()
        if box is not None:
            top, start, bottom, end = box
            place = (start - 0.5, top - 0.5)
            for width_, color in ((3.0, "white"), (1.4, "black")):
                axes.add_patch(
                    Rectangle(
                        place, end - start, bottom - top, fill=False, edgecolor=color, lw=width_
                    )
                )
    colors = ScalarMappable(scale, ListedColormap(bar))
    figure.colorbar(colors, ax=right, label=label, fraction=0.05, pad=0.03)
    figure.suptitle(title, fontsize=13)
    if note:
        figure.supxlabel(note, fontsize=9)
    return figure


def png(figure: Figure) -> bytes:
    """The figure as the bytes of a PNG file; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
