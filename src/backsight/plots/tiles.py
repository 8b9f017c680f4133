"""Many small pictures in rows, such as filters or the maps of a layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .canvas import check_photo
from .sheet import GAP, Sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Tile", "tiles"]

_PAGE = 7.6  # inches, the width of the tiles
_PHOTO = 2.2  # inches, the longer side of the photo beside them
_LARGEST = 0.9  # inches, the side of a tile

#: What frames can be called, and their colours.
_FRAMES = {"dead": (214, 39, 40), "duplicate": (31, 119, 180), "noisy": (255, 127, 14)}
_FRAME = 0.025  # inches, how far one stands out


@dataclass(frozen=True)
class Tile:
    """A small picture.

    Attributes:
        picture: (h, w, 3) uint8 RGB, or (h, w) in 0..1.
        label: what stands below it where there is room.
        frame: "dead", "duplicate" or "noisy" for a frame in its colour; "": none.
    """

    picture: npt.NDArray[Any]
    label: str = ""
    frame: str = ""


def tiles(
    drawn: Sequence[Tile],
    *,
    title: str,
    note: str = "",
    photo: npt.NDArray[np.uint8] | None = None,
) -> Figure:
    """Small pictures in rows, all of one size, with a legend of the frames that occur.

    Args:
        drawn: the pictures, of one shape.
        title: one line above all.
        note: smaller text below.
        photo: (H, W, 3) uint8 RGB, what they belong to; it stands beside them.

    Raises:
        ValueError: there is nothing to draw, the shapes differ, or a value is NaN or infinite.
        ImportError: matplotlib is not installed.
    """
    if not drawn:
        raise ValueError("expected pictures to draw, got none")
    shape = drawn[0].picture.shape
    for tile in drawn:
        if tile.picture.shape != shape or len(shape) not in (2, 3) or not tile.picture.size:
            raise ValueError(
                f"expected pictures of one shape, got {shape} and {tile.picture.shape}"
            )
        if not np.isfinite(tile.picture).all():
            raise ValueError("expected finite pictures, got one with a NaN or an infinity")
    ratio = shape[0] / shape[1]
    columns = _columns(len(drawn), ratio)
    side = min(_LARGEST, (_PAGE + GAP) / columns - GAP)
    labelled = side >= 0.32 and any(tile.label for tile in drawn)
    step = side * ratio + GAP + 0.13 * labelled
    left = GAP
    if photo is not None:
        check_photo(photo)
        left += _PHOTO + 3 * GAP
    width = max(left + columns * (side + GAP), 6.0)
    sheet = Sheet(width, title)
    if photo is not None:
        sheet.put(photo, GAP, _PHOTO, _PHOTO, lie=0.0)
    for i, tile in enumerate(drawn):
        row, column = divmod(i, columns)
        x, y = left + column * (side + GAP), row * step
        if tile.frame:  # a larger tile of its colour, below
            frame = np.full((*shape[:2], 3), _FRAMES[tile.frame], np.uint8)
            grown = (side + 2 * _FRAME, side * ratio + 2 * _FRAME)
            sheet.put(frame, x - _FRAME, *grown, down=y - _FRAME)
        picture = tile.picture
        if picture.ndim == 2:
            picture = np.repeat(picture[..., None], 3, 2)
        sheet.put(picture, x, side, side * ratio, down=y)
        if labelled:
            at = (x + side / 2, tile.label, 6, y + side * ratio + _FRAME)
            sheet.write(*at, ha="center", color="0.4")
    rows = math.ceil(len(drawn) / columns)
    sheet.down(max(rows * step, _PHOTO if photo is not None else 0) + GAP)
    frames = [name for name in _FRAMES if any(tile.frame == name for tile in drawn)]
    for i, name in enumerate(frames):
        square = np.full((1, 1, 3), _FRAMES[name], np.uint8)
        sheet.put(square, left + i * 1.2, 0.14, 0.14)
        sheet.write(left + i * 1.2 + 0.22, name, 9)
    if frames:
        sheet.down(0.3)
    return sheet.figure(note)


def _columns(count: int, ratio: float) -> int:
    """How many tiles of a height to width stand in a row: a page a little wider than high, of whose
    last row as little as can be is empty.
    """
    usual = max(8, round(math.sqrt(count * max(ratio, 0.05) * 1.25)))
    if count <= usual:
        return count
    near = range(max(8, usual - usual // 8), usual + usual // 8 + 1)
    return min(near, key=lambda n: (-count % n, abs(n - usual)))
