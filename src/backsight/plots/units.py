"""Units projected back to the pixels, beside the pixels that excite them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .canvas import check_photo, check_picture, shades
from .sheet import GAP, Sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["projections", "units"]

_TILE = 1.15  # inches, the side of a tile in a sheet of units
_ROW = 2.6  # inches, the height of a row of projections


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
    check_photo(photo)
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
        check_picture(picture, (bottom - top, right - left))
    scale = min(_ROW / height, 2 * _ROW / width)
    # A line of text needs some room where the photo is narrow.
    first = max(width * scale, 2.2)
    sheet = Sheet(first + 2 * _ROW + 4 * GAP, title)
    columns = (GAP, first + 2 * GAP, first + _ROW + 3 * GAP)
    for head, left, room in zip(
        ("photo", "what the unit sees", "projection"), columns, (first, _ROW, _ROW), strict=True
    ):
        sheet.write(left + room / 2, head, 9, ha="center")
    sheet.down(0.22)
    for box, picture, label in zip(boxes, pictures, labels, strict=True):
        top, left, bottom, right = box
        sheet.write(GAP, label, 10)
        sheet.down(0.24)
        x, y = sheet.put(photo, columns[0], first, _ROW)
        scale = min(first / width, _ROW / height)
        sheet.outline(
            x + left * scale, y + top * scale, (right - left) * scale, (bottom - top) * scale
        )
        sheet.put(photo[top:bottom, left:right], columns[1], _ROW, _ROW)
        sheet.put(shades(picture), columns[2], _ROW, _ROW)
        sheet.down(_ROW + 2 * GAP)
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
            check_photo(crop)
            check_picture(picture, crop.shape[:2])
    columns = max(1, *map(len, crops))
    margin, step = 1.15, _TILE + GAP
    sheet = Sheet(max(margin + columns * step + GAP, 4.0), title)
    nothing = np.zeros((0, 0, 3))
    for seen, sent, label in zip(crops, pictures, labels, strict=True):
        sheet.write(GAP, label, 9, down=_TILE, va="center")
        for column in range(columns):
            left, shown = margin + column * step, column < len(seen)
            upper = seen[column] if shown else nothing
            lower = shades(sent[column]) if shown else nothing
            # Close together, also where a crop ends at the photo's edge and is no square.
            sheet.put(upper, left, _TILE, _TILE, lie=1.0)
            sheet.put(lower, left, _TILE, _TILE, lie=0.0, down=_TILE + GAP / 3)
        sheet.down(2 * _TILE + 3 * GAP)
    return sheet.figure(note)
