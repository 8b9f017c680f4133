"""Maps of what a classifier says all over a photo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .canvas import cell_edges, check_photo, empty_figure, load_matplotlib, outline, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["prediction_maps"]

_PANEL = 4.2  # inches, the longer side of a panel
_CLASSES = 9  # so many classes get a colour of their own
_VEIL = 0.6  # how much of the colours covers the photo


def prediction_maps(
    photo: npt.NDArray[np.uint8],
    centres: tuple[Sequence[float], Sequence[float]],
    *,
    share: npt.NDArray[np.floating[Any]],
    best: npt.NDArray[np.integer[Any]],
    names: Mapping[int, str],
    box: Sequence[int],
    title: str,
    note: str = "",
) -> Figure:
    """A photo with a detection outlined; a class's probability at each cell; and each cell's most
    probable class, in colours.

    Args:
        photo: ``(H, W, 3)`` uint8 RGB.
        centres: of the cells in each row and in each column, in pixels, rising.
        share: ``(rows, columns)`` in 0..1, the probability of the class that is asked about.
        best: ``(rows, columns)``, the index of the class that wins.
        names: what to call those. The ones that win most often get colours of their own.
        box: top, left, bottom, right (half-open, pixels).
        title: one line above the panels.
        note: smaller text at the bottom.

    Raises:
        ValueError: the shapes do not fit.
        ImportError: matplotlib is not installed.
    """
    matplotlib = load_matplotlib()
    from matplotlib.colors import BoundaryNorm, ListedColormap
    from matplotlib.patches import Patch

    check_photo(photo)
    shape = tuple(map(len, centres))
    if share.shape != shape or best.shape != shape:
        raise ValueError(f"expected maps of {shape} cells, got {share.shape} and {best.shape}")
    height, width = photo.shape[:2]
    unit = _PANEL / max(height, width)
    side = max(width * unit, 3.2)
    figure = empty_figure((3 * side + 1.2, max(height * unit, 2.6) + 2.0), padding=0.06)
    panels = figure.subplots(1, 3)
    for panel in panels:
        panel.imshow(photo, interpolation="antialiased")
    edges = [cell_edges(np.asarray(places, float)) for places in (centres[1], centres[0])]
    mesh = panels[1].pcolormesh(*edges, share, cmap="viridis", vmin=0, vmax=1, alpha=0.75)
    beside = panels[1].inset_axes((1.03, 0.02, 0.04, 0.96))
    figure.colorbar(mesh, cax=beside, label="probability")
    winners, counts = np.unique(best, return_counts=True)
    order = winners[np.argsort(-counts, kind="stable")].tolist()
    shown = order if len(order) <= _CLASSES else order[: _CLASSES - 1]
    paints = [matplotlib.colormaps["tab10"](i) for i in (0, 1, 2, 4, 6, 8, 9, 5, 3)][: len(shown)]
    words = [wrapped(names[index], 24, 1) for index in shown]
    if len(shown) < len(order):
        paints.append((0.35, 0.35, 0.35, 1.0))
        words.append(f"{len(order) - len(shown)} others")
    rank = np.full(shape, len(shown))
    for i, index in enumerate(shown):
        rank[best == index] = i
    norm = BoundaryNorm(np.arange(len(paints) + 1) - 0.5, len(paints))
    panels[2].pcolormesh(*edges, rank, cmap=ListedColormap(paints), norm=norm, alpha=_VEIL)
    heads = "photo and detection", "probability at each cell", "most probable class at each cell"
    for panel, head in zip(panels, heads, strict=True):
        panel.set_title(head, fontsize=10)
        panel.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), xticks=[], yticks=[])
        panel.set_aspect("equal")
    top, left, bottom, right = box
    outline(panels[0], left - 0.5, top - 0.5, right - left, bottom - top)
    handles = [
        Patch(color=paint, alpha=_VEIL, label=word)
        for paint, word in zip(paints, words, strict=True)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    figure.suptitle(f"{title}\n{note}" if note else title, fontsize=11)
    return figure
