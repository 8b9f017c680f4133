"""What units see, over the photo."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .canvas import check_photo, empty_figure, load_matplotlib, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["fields"]

_PHOTO = 4.6  # inches, the longer side


def fields(
    photo: npt.NDArray[np.uint8],
    boxes: Sequence[Sequence[int]],
    *,
    labels: Sequence[str],
    title: str,
    note: str = "",
) -> Figure:
    """A photo with boxes in colours of their own, and a legend.

    Args:
        photo: ``(H, W, 3)`` uint8 RGB.
        boxes: top, left, bottom, right of each (half-open, pixels).
        labels: what each is called.
        title: one line above all.
        note: smaller text below.

    Raises:
        ValueError: there is no photo, or there are not as many labels as boxes.
        ImportError: matplotlib is not installed.
    """
    check_photo(photo)
    if len(boxes) != len(labels) or not boxes:
        raise ValueError(
            f"expected as many labels as boxes, one at least, got {len(labels)} and {len(boxes)}"
        )
    matplotlib = load_matplotlib()
    from matplotlib.patches import Patch, Rectangle

    height, width = photo.shape[:2]
    unit = _PHOTO / max(height, width)
    figure = empty_figure((max(width * unit, 2.0) + 3.3, max(height * unit, 2.4) + 0.8))
    axes: Any = figure.subplots()
    axes.imshow(photo, interpolation="antialiased")
    axes.set_axis_off()
    colors = matplotlib.colormaps["turbo"](np.linspace(0.08, 0.95, len(boxes)))
    for (top, left, bottom, right), color in zip(boxes, colors, strict=True):
        corner, size = (left - 0.5, top - 0.5), (right - left, bottom - top)
        for line, hue in ((3.6, "white"), (2.0, color)):
            axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor=hue, lw=line))
    axes.set(xlim=(-0.5 - width / 50, width - 0.5 + width / 50))
    axes.set(ylim=(height - 0.5 + height / 50, -0.5 - height / 50))
    axes.legend(
        handles=[
            Patch(color=color, label=wrapped(label, 32))
            for color, label in zip(colors, labels, strict=True)
        ],
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        frameon=False,
        fontsize=9,
    )
    figure.suptitle(title, fontsize=12)
    if note:
        figure.supxlabel(note, fontsize=9)
    return figure
