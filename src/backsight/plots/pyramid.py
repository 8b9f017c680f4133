"""A map as a pyramid of pictures, each half as large as the one before it; without matplotlib."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

__all__ = ["halves", "write_png"]

Floats = npt.NDArray[np.floating[Any]]

_SMALLEST = 256  # pixels, the longer side of a pyramid's last picture
_BAND = 1 << 20  # pixels that are packed at once

#: From blue to red: ColorBrewer's RdBu, the colours of `overlay`.
_HUES = (
    (5, 48, 97),
    (33, 102, 172),
    (67, 147, 195),
    (146, 197, 222),
    (209, 229, 240),
    (247, 247, 247),
    (253, 219, 199),
    (244, 165, 130),
    (214, 96, 77),
    (178, 24, 43),
    (103, 0, 31),
)


def halves(values: Floats) -> Iterator[Floats]:
    """A map and its halves, until one has at most 256 values a side.

    Args:
        values: (H, W), with NaN where there is none. Four of them become their mean, without those
            that are none.
    """
    yield values
    while max(values.shape) > _SMALLEST:
        size = [-(-n // 2) for n in values.shape]
        total, count = np.zeros(size), np.zeros(size, np.uint8)
        for top in (0, 1):
            for left in (0, 1):
                part = values[top::2, left::2]
                here = (slice(len(part)), slice(part.shape[1]))
                known = ~np.isnan(part)
                total[here] += np.where(known, part, 0)
                count[here] += known
        with np.errstate(invalid="ignore"):
            values = (total / count).astype(values.dtype)
        yield values


def write_png(file: BinaryIO, values: Floats, limit: float) -> None:
    """Write a map as a PNG of 255 colours: red where it is positive, blue where it is negative,
    transparent where there is none.

    Args:
        file: open for writing.
        values: (H, W), with NaN where there is none.
        limit: the value at the ends of the colours; those beyond it have the same.
    """
    height, width = values.shape
    file.write(b"\x89PNG\r\n\x1a\n")
    # 8 bits a pixel, of a palette.
    _put(file, b"IHDR", width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x03\0\0\0")
    _put(file, b"PLTE", _palette().tobytes())
    _put(file, b"tRNS", b"\0")
    packer = zlib.compressobj()
    rows = max(1, _BAND // width)
    for top in range(0, height, rows):
        part = np.clip(values[top : top + rows] / limit, -1, 1)
        shades = np.where(np.isnan(part), 0, 128 + np.rint(127 * part)).astype(np.uint8)
        # In front of each row stands how it is filtered: not at all.
        _put(file, b"IDAT", packer.compress(np.pad(shades, ((0, 0), (1, 0))).tobytes()))
    _put(file, b"IDAT", packer.flush())
    _put(file, b"IEND", b"")


def _palette() -> npt.NDArray[np.uint8]:
    """(256, 3): of nothing, of which the transparency is told apart, and then from blue to red."""
    at, ends = np.linspace(0, 1, 255), np.linspace(0, 1, len(_HUES))
    hues = np.stack([np.interp(at, ends, channel) for channel in np.transpose(_HUES)], 1)
    palette: npt.NDArray[np.uint8] = np.rint(np.pad(hues, ((1, 0), (0, 0)))).astype(np.uint8)
    return palette


def _put(file: BinaryIO, kind: bytes, data: bytes) -> None:
    """A chunk of a PNG."""
    file.write(len(data).to_bytes(4, "big") + kind + data)
    file.write(zlib.crc32(kind + data).to_bytes(4, "big"))
