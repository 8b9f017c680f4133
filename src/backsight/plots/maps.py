"""Maps over a photo: drops in colours, and what a sweep reads position by position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .canvas import (
    cell_edges,
    check_photo,
    check_picture,
    empty_figure,
    load_matplotlib,
    outline,
    shades,
    wrapped,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["overlay", "readings"]

_PANEL = 4.8  # inches, the longer side of a panel
_COLORS = "RdBu_r"  # red where covering costs the class, blue where it helps
_FAINTEST = 0.4  # where in the half of the colour map the smallest values start
_GRAY = 0.55  # how much contrast the photo keeps under the colours
_OPAQUE = 0.85  # opacity of the largest value

_CLASSES = 8  # so many classes get a colour of their own


def overlay(
    photo: npt.NDArray[np.uint8],
    heat: npt.NDArray[np.floating[Any]],
    *,
    title: str,
    note: str = "",
    label: str = "drop of the logit",
    box: Sequence[int] | Sequence[Sequence[int]] = (),
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
        box: top, left, bottom, right (half-open, pixels), or several of them; outlined in both
            panels.
        limit: the value at the ends of the colour bar; the largest |value| unless told.

    Returns:
        A figure on matplotlib's Agg canvas. pyplot and its settings are not touched.

    Raises:
        ValueError: the shapes do not fit, or the map holds a NaN or an infinity.
        ImportError: matplotlib is not installed.
    """
    matplotlib = load_matplotlib()
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    check_photo(photo)
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
    figure = empty_figure(figsize)
    left, right = figure.subplots(1, 2)
    left.imshow(photo, interpolation="antialiased")
    right.imshow(pale, cmap="gray", vmin=0, vmax=1, interpolation="antialiased")
    right.imshow(values, cmap=ListedColormap(hues), norm=scale, interpolation="nearest")
    for axes in (left, right):
        axes.set_axis_off()
        for top, start, bottom, end in np.reshape(box, (-1, 4)):
            outline(axes, start - 0.5, top - 0.5, end - start, bottom - top)
    colors = ScalarMappable(scale, ListedColormap(bar))
    figure.colorbar(colors, ax=right, label=label, fraction=0.05, pad=0.03)
    figure.suptitle(title, fontsize=13)
    if note:
        figure.supxlabel(note, fontsize=9)
    return figure


def readings(
    photo: npt.NDArray[np.uint8],
    centres: tuple[Sequence[float], Sequence[float]],
    *,
    activation: npt.NDArray[np.floating[Any]],
    probability: npt.NDArray[np.floating[Any]],
    most_probable: npt.NDArray[np.integer[Any]],
    projection: npt.NDArray[np.floating[Any]] | None = None,
    names: Mapping[int, str],
    title: str,
    labels: tuple[str, str],
    note: str = "",
) -> Figure:
    """Figure 7 of Zeiler & Fergus (arXiv:1311.2901) for one photo: what becomes of a feature map,
    of a class and of the decision as the box wanders over it.

    Each position is painted around the centre of its box, at the photo's scale; the photo's margin
    that no centre comes near stays gray.

    Args:
        photo: ``(H, W, 3)`` uint8 RGB.
        centres: of the boxes in each row and in each column of positions, in pixels, rising.
        activation: ``(rows, columns)``, a feature map's total activation with each box covered.
        probability: ``(rows, columns)`` in 0..1, of the class that is asked about.
        most_probable: ``(rows, columns)``, the index of the class that wins.
        projection: ``(H, W, 3)`` RGB of any float dtype and unit: the feature map of the photo
            projected back. Gray is 0, and the strongest hundredth as bright or as dark as can be.
        names: what to call the classes. The first that win most often are told apart by colour.
        title: one line above the panels.
        labels: what the feature map and the class are called, below the panels.
        note: smaller text at the bottom.

    Raises:
        ValueError: the shapes do not fit, or the projection holds a NaN or an infinity.
        ImportError: matplotlib is not installed.
    """
    matplotlib = load_matplotlib()
    from matplotlib.colors import BoundaryNorm, ListedColormap
    from matplotlib.patches import Patch

    check_photo(photo)
    shape = tuple(map(len, centres))
    for values in (activation, probability, most_probable):
        if values.shape != shape:
            raise ValueError(f"expected readings of {shape} positions, got {values.shape}")
    if projection is not None:
        check_picture(projection, photo.shape[:2])
    winners, counts = np.unique(most_probable, return_counts=True)
    order = winners[np.argsort(-counts, kind="stable")].tolist()
    shown = order if len(order) <= _CLASSES else order[: _CLASSES - 1]
    paints = [matplotlib.colormaps["tab10"](i) for i in (0, 1, 2, 4, 6, 8, 9, 5)][: len(shown)]
    words = [wrapped(names[index], 28) for index in shown]
    if len(shown) < len(order):
        paints.append((0.35, 0.35, 0.35, 1.0))
        words.append(f"{len(order) - len(shown)} others")
    rank = np.full(most_probable.shape, len(shown))
    for i, index in enumerate(shown):
        rank[most_probable == index] = i

    height, width = photo.shape[:2]
    unit = _PANEL / max(height, width)
    side = max(width * unit, 3.2)
    figure = empty_figure((3 * side + 2.6, 2 * max(height * unit, 2.6) + 1.7), padding=0.1)
    *panels, rest = figure.subplots(2, 3).ravel()
    rest.set_axis_off()
    panels[0].imshow(photo, interpolation="antialiased")
    if projection is not None:
        panels[2].imshow(shades(projection), interpolation="antialiased")
    edges = [cell_edges(np.asarray(places, float)) for places in (centres[1], centres[0])]
    drawn = [
        panels[1].pcolormesh(*edges, activation, cmap="viridis"),
        panels[3].pcolormesh(*edges, probability, cmap="viridis", vmin=0, vmax=1),
    ]
    panels[4].pcolormesh(
        *edges,
        rank,
        cmap=ListedColormap(paints),
        norm=BoundaryNorm(np.arange(len(paints) + 1) - 0.5, len(paints)),
    )
    heads = (
        "photo",
        f"(b) {labels[0]}",
        "(c) that map projected down" if projection is not None else "(c) cannot be projected",
        f"(a) {labels[1]}",
        "(d) most probable class",
    )
    for panel, head in zip(panels, heads, strict=True):
        panel.set_title(wrapped(head, 30), fontsize=10)
        panel.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), xticks=[], yticks=[])
        panel.set_aspect("equal")
        panel.set_facecolor("0.88")
    bars = zip(panels[1:4:2], drawn, ("total activation", "probability"), strict=True)
    for panel, mesh, label in bars:
        # Beside the panel itself: a bar of the column's would stand behind the other row's legend.
        figure.colorbar(mesh, cax=panel.inset_axes((1.03, 0.04, 0.05, 0.92)), label=label)
    rest.legend(
        handles=[Patch(color=paint, label=word) for paint, word in zip(paints, words, strict=True)],
        loc="upper left",
        borderaxespad=0.0,
        frameon=False,
        fontsize=8,
        handlelength=1.0,
    )
    figure.suptitle(title, fontsize=13)
    if note:
        figure.supxlabel(note, fontsize=9)
    return figure
