"""Many pictures on one page, each above its name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from .canvas import wrapped
from .sheet import GAP, Sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["gallery"]

_TILE = 2.3  # inches, the side of a picture
_LINE = 0.17  # inches, a line of a label
_COLUMNS = 4


def gallery(
    pictures: Sequence[npt.NDArray[Any]],
    *,
    labels: Sequence[str],
    title: str,
    note: str = "",
    columns: int = _COLUMNS,
) -> Figure:
    """Pictures in rows.

    Args:
        pictures: ``(H, W, 3)`` uint8 RGB each; empty ones are shown as empty tiles.
        labels: for each picture what stands below it, in a few lines.
        title: one line above all.
        note: smaller text below.
        columns: how many pictures a row has at most.

    Raises:
        ValueError: there is no picture, or not a label for each.
        ImportError: matplotlib is not installed.
    """
    if not len(pictures) == len(labels) > 0:
        raise ValueError(
            f"expected pictures with a label each, got {len(pictures)} and {len(labels)} labels"
        )
    columns = min(columns, len(pictures))
    # As many columns as rows where the last row would be nearly empty.
    rows = math.ceil(len(pictures) / columns)
    columns = math.ceil(len(pictures) / rows)
    flat = max(1.0, *(p.shape[0] / p.shape[1] for p in pictures if p.size), 0.0)
    width = _TILE / min(flat, 2.0)
    height = min(_TILE, max([width * p.shape[0] / p.shape[1] for p in pictures if p.size] or [1.0]))
    width = max(width, 1.2)
    sheet = Sheet(max(columns * (width + GAP) + GAP, 3.6), title)
    first = (max(columns * (width + GAP) + GAP, 3.6) - columns * (width + GAP) - GAP) / 2
    texts = [
        "\n".join(wrapped(line, max(8, int(width * 12))) for line in label.splitlines())
        for label in labels
    ]
    for row in range(rows):
        some = range(row * columns, min((row + 1) * columns, len(pictures)))
        for column, i in enumerate(some):
            left = first + GAP + column * (width + GAP)
            sheet.put(pictures[i], left, width, height)
            sheet.write(left + width / 2, texts[i], 9, down=height + 0.05, ha="center")
        lines = max(texts[i].count("\n") + 1 for i in some)
        sheet.down(height + lines * _LINE + 0.14)
    return sheet.figure(note)
