"""Figures of maps: the photo, the map laid over it, what a sweep reads position by position; of
units projected back to pixels; and of small tables of numbers.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Cells", "cells", "overlay", "png", "projections", "readings", "units"]

_PANEL = 4.8  # inches, the longer side of a panel
_COLORS = "RdBu_r"  # red where covering costs the class, blue where it helps
_FAINTEST = 0.4  # where in the half of the colour map the smallest values start
_GRAY = 0.55  # how much contrast the photo keeps under the colours
_OPAQUE = 0.85  # opacity of the largest value
_CLASSES = 8  # so many classes get a colour of their own
_TILE = 1.15  # inches, the side of a tile in a sheet of units
_ROW = 2.6  # inches, the height of a row of projections
_GAP = 0.06  # inches between tiles
_CUT = 0.01  # the share of a projection that is drawn as strong as can be
_EMPTY = 0.93  # the gray of a tile that shows nothing
_CELL = 0.3  # inches, the side of a cell of a table
_PAGE = 11.0  # inches, where tables go on in the next row


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
    matplotlib = _matplotlib()
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    _check_photo(photo)
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
    figure = _figure(figsize)
    left, right = figure.subplots(1, 2)
    left.imshow(photo, interpolation="antialiased")
    right.imshow(pale, cmap="gray", vmin=0, vmax=1, interpolation="antialiased")
    right.imshow(values, cmap=ListedColormap(hues), norm=scale, interpolation="nearest")
    for axes in (left, right):
        axes.set_axis_off()
        for top, start, bottom, end in np.reshape(box, (-1, 4)):
            _outline(axes, start - 0.5, top - 0.5, end - start, bottom - top)
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
    matplotlib = _matplotlib()
    from matplotlib.colors import BoundaryNorm, ListedColormap
    from matplotlib.patches import Patch

    _check_photo(photo)
    shape = tuple(map(len, centres))
    for values in (activation, probability, most_probable):
        if values.shape != shape:
            raise ValueError(f"expected readings of {shape} positions, got {values.shape}")
    if projection is not None:
        _check_picture(projection, photo.shape[:2])
    winners, counts = np.unique(most_probable, return_counts=True)
    order = winners[np.argsort(-counts, kind="stable")].tolist()
    shown = order if len(order) <= _CLASSES else order[: _CLASSES - 1]
    paints = [matplotlib.colormaps["tab10"](i) for i in (0, 1, 2, 4, 6, 8, 9, 5)][: len(shown)]
    words = [_wrapped(names[index], 28) for index in shown]
    if len(shown) < len(order):
        paints.append((0.35, 0.35, 0.35, 1.0))
        words.append(f"{len(order) - len(shown)} others")
    rank = np.full(most_probable.shape, len(shown))
    for i, index in enumerate(shown):
        rank[most_probable == index] = i

    height, width = photo.shape[:2]
    unit = _PANEL / max(height, width)
    side = max(width * unit, 3.2)
    figure = _figure((3 * side + 2.6, 2 * max(height * unit, 2.6) + 1.7), padding=0.1)
    *panels, rest = figure.subplots(2, 3).ravel()
    rest.set_axis_off()
    panels[0].imshow(photo, interpolation="antialiased")
    if projection is not None:
        panels[2].imshow(_shades(projection), interpolation="antialiased")
    edges = [_edges(np.asarray(places, float)) for places in (centres[1], centres[0])]
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
        panel.set_title(_wrapped(head, 30), fontsize=10)
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


def projections(
    photo: npt.NDArray[np.uint8],
    boxes: Sequence[Sequence[int]],
    pictures: Sequence[npt.NDArray[np.floating[Any]]],
    *,
    labels: Sequence[str],
    title: str,
    note: str = "",
) -> Figure:
    """Units projected back to the pixels of one photo, a row each: the photo with the pixels that
    the unit sees outlined, those pixels, and the unit's projection.

    A projection's gray is 0; its strongest hundredth is as bright or as dark as can be.

    Args:
        photo: ``(H, W, 3)`` uint8 RGB.
        boxes: for each unit top, left, bottom, right of what it sees (half-open, pixels).
        pictures: for each unit its projection on that box, ``(bottom - top, right - left, 3)`` RGB
            of any float dtype and unit. A box without pixels is shown as an empty tile.
        labels: one line above each row.
        title: one line above all.
        note: smaller text below.

    Raises:
        ValueError: the shapes do not fit, or a projection holds a NaN or an infinity.
        ImportError: matplotlib is not installed.
    """
    _check_photo(photo)
    if not len(boxes) == len(pictures) == len(labels) > 0:
        raise ValueError(
            "expected as many boxes, pictures and labels, one at least, got"
            f" {len(boxes)}, {len(pictures)} and {len(labels)}"
        )
    height, width = photo.shape[:2]
    for (top, left, bottom, right), picture in zip(boxes, pictures, strict=True):
        if not (0 <= top <= bottom <= height and 0 <= left <= right <= width):
            raise ValueError(
                f"expected boxes within the photo of {height} x {width}, got"
                f" {(top, left, bottom, right)}"
            )
        _check_picture(picture, (bottom - top, right - left))
    scale = min(_ROW / height, 2 * _ROW / width)
    # A line of text needs some room where the photo is narrow.
    first = max(width * scale, 2.2)
    sheet = _Sheet(first + 2 * _ROW + 4 * _GAP, title)
    columns = (_GAP, first + 2 * _GAP, first + _ROW + 3 * _GAP)
    for head, left, room in zip(
        ("photo", "what the unit sees", "projection"), columns, (first, _ROW, _ROW), strict=True
    ):
        sheet.write(left + room / 2, head, 9, ha="center")
    sheet.down(0.22)
    for box, picture, label in zip(boxes, pictures, labels, strict=True):
        top, left, bottom, right = box
        sheet.write(_GAP, label, 10)
        sheet.down(0.24)
        x, y = sheet.put(photo, columns[0], first, _ROW)
        scale = min(first / width, _ROW / height)
        sheet.outline(
            x + left * scale, y + top * scale, (right - left) * scale, (bottom - top) * scale
        )
        sheet.put(photo[top:bottom, left:right], columns[1], _ROW, _ROW)
        sheet.put(_shades(picture), columns[2], _ROW, _ROW)
        sheet.down(_ROW + 2 * _GAP)
    return sheet.figure(note)


def units(
    crops: Sequence[Sequence[npt.NDArray[np.uint8]]],
    pictures: Sequence[Sequence[npt.NDArray[np.floating[Any]]]],
    *,
    labels: Sequence[str],
    title: str,
    note: str = "",
) -> Figure:
    """Figure 2 of Zeiler & Fergus (arXiv:1311.2901): what excites each channel most.

    A row a channel and a column a picture: the pixels that excite it, and right below them their
    projection, whose gray is 0 and whose strongest hundredth is as bright or as dark as can be.

    Args:
        crops: for each channel the crops, strongest first, each ``(h, w, 3)`` uint8 RGB. Channels
            may have fewer than others; crops without pixels are shown as empty tiles.
        pictures: for each crop its projection, ``(h, w, 3)`` RGB of any float dtype and unit.
        labels: for each channel what to call it; lines of about 14 characters fit.
        title: one line above all.
        note: smaller text below.

    Raises:
        ValueError: the shapes do not fit, or a projection holds a NaN or an infinity.
        ImportError: matplotlib is not installed.
    """
    if not len(crops) == len(pictures) == len(labels) > 0:
        raise ValueError(
            "expected as many rows of crops, of pictures and labels, one at least, got"
            f" {len(crops)}, {len(pictures)} and {len(labels)}"
        )
    for seen, sent in zip(crops, pictures, strict=True):
        if len(seen) != len(sent):
            raise ValueError(f"expected a picture for each crop, got {len(sent)} for {len(seen)}")
        for crop, picture in zip(seen, sent, strict=True):
            _check_photo(crop)
            _check_picture(picture, crop.shape[:2])
    columns = max(1, *map(len, crops))
    margin, step = 1.15, _TILE + _GAP
    sheet = _Sheet(max(margin + columns * step + _GAP, 4.0), title)
    nothing = np.zeros((0, 0, 3))
    for seen, sent, label in zip(crops, pictures, labels, strict=True):
        sheet.write(_GAP, label, 9, down=_TILE, va="center")
        for column in range(columns):
            left, shown = margin + column * step, column < len(seen)
            upper = seen[column] if shown else nothing
            lower = _shades(sent[column]) if shown else nothing
            # Close together, also where a crop ends at the photo's edge and is no square.
            sheet.put(upper, left, _TILE, _TILE, lie=1.0)
            sheet.put(lower, left, _TILE, _TILE, lie=0.0, down=_TILE + _GAP / 3)
        sheet.down(2 * _TILE + 3 * _GAP)
    return sheet.figure(note)


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
    matplotlib = _matplotlib()
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
    figure = _figure((width, top))
    figure.set_layout_engine("none")
    axes: Any = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    axes.set(xlim=(0, width), ylim=(top, 0))
    axes.text(width / 2, 0.12, title, fontsize=11, ha="center", va="top")
    for table, x, y in placed:
        axes.text(x, y + 0.24, table.title, fontsize=9, ha="left", va="bottom")
        for i, (texts, colors) in enumerate(zip(table.texts, table.colors, strict=True)):
            for j, (text, color) in enumerate(zip(texts, colors, strict=True)):
                hue = "white" if color < 0 else hues[(color - 1) % 10] if color else str(_EMPTY)
                corner = (x + j * _CELL, y + 0.28 + i * _CELL)
                axes.add_patch(Rectangle(corner, _CELL, _CELL, fc=hue, ec="0.6", lw=0.6))
                size = 8 if len(text) < 4 else 26 / len(text)
                middle = (corner[0] + _CELL / 2, corner[1] + _CELL / 2)
                axes.text(*middle, text, fontsize=size, ha="center", va="center")
    return figure


class _Sheet:
    """Pictures and lines of text on one page, measured in inches from its left and upper edges.

    One pair of axes holds them all: hundreds of axes would take matplotlib minutes to lay out.
    """

    def __init__(self, width: float, title: str) -> None:
        _matplotlib()
        self._width = width
        self._at = 0.12  # how far down the page is filled
        self._figure = _figure((width, 1.0))
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
            picture = np.full((1, 1, 3), _EMPTY)
            rows, columns = 1, 1
        scale = min(width / columns, height / rows)
        x = left + (width - columns * scale) / 2
        y = self._at + down + (height - rows * scale) * lie
        extent = (x, x + columns * scale, y + rows * scale, y)
        self._axes.imshow(picture, extent=extent, aspect="auto", vmin=0, vmax=1)
        return x, y

    def outline(self, left: float, top: float, width: float, height: float) -> None:
        _outline(self._axes, left, top, width, height)

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


def _shades(picture: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """A signed picture in 0..1, with 0 in the middle.

    A few dots are many times stronger than all the rest, which would be lost in gray beside them:
    the strongest hundredth of what is not 0 is cut off.
    """
    values = picture.astype(np.float64)
    strength = np.abs(values[values != 0])
    most = np.quantile(strength, 1 - _CUT) if strength.size else 1.0
    shades: npt.NDArray[np.float64] = 0.5 + np.clip(values / most, -1.0, 1.0) / 2
    return shades


def _outline(axes: Any, left: float, top: float, width: float, height: float) -> None:
    """A box in black within white, which stands out from any photo."""
    from matplotlib.patches import Rectangle

    for line, color in ((3.0, "white"), (1.4, "black")):
        box = Rectangle((left, top), width, height, fill=False, edgecolor=color, lw=line)
        axes.add_patch(box)


def _edges(centres: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Where the cells around rising centres end, in the coordinates of pixels' centres."""
    between = (centres[1:] + centres[:-1]) / 2
    first = centres[0] - (between[0] - centres[0] if len(between) else 0.5)
    last = centres[-1] + (centres[-1] - between[-1] if len(between) else 0.5)
    edges: npt.NDArray[np.float64] = np.array([first, *between, last]) - 0.5
    return edges


def _wrapped(name: str, width: int = 16, lines: int = 2) -> str:
    """A name for a narrow legend."""
    return "\n".join(textwrap.wrap(name, width, max_lines=lines, placeholder=" ..."))


def _matplotlib() -> Any:
    try:
        import matplotlib
        import matplotlib.figure
    except ImportError as error:
        raise ImportError(
            'figures need matplotlib: pip install "backsight[cli]"', name="matplotlib"
        ) from error
    return matplotlib


def _figure(size: tuple[float, float], padding: float = 0.04) -> Figure:
    """An empty figure of so many inches, with so many around each panel and what belongs to it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=110)
    figure.set_layout_engine("constrained", w_pad=padding, h_pad=padding)
    FigureCanvasAgg(figure)
    return figure


def _check_photo(photo: npt.NDArray[np.uint8]) -> None:
    if photo.ndim != 3 or photo.shape[2] != 3 or photo.dtype != np.uint8:
        raise ValueError(f"expected a (H, W, 3) uint8 photo, got {photo.shape} of {photo.dtype}")


def _check_picture(picture: npt.NDArray[Any], size: tuple[int, ...]) -> None:
    if picture.shape != (*size, 3):
        raise ValueError(f"expected a projection of {(*size, 3)}, got {picture.shape}")
    if not np.isfinite(picture).all():
        raise ValueError("expected a finite projection, got one with a NaN or an infinity")


def png(figure: Figure) -> bytes:
    """The figure as the bytes of a PNG file; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
