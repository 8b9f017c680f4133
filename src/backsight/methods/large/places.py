"""Which boxes of a large image are swept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...sweep.grid import Grid, explicit, grid, per_axis

__all__ = ["positions"]


def positions(
    size: Sequence[int],
    window: int | Sequence[int],
    stride: int | Sequence[int] | None,
    edge: str,
    roi: Any,
) -> Grid:
    """The grid, or of it the boxes whose centres lie in a region of interest."""
    axes = len(size)
    sizes = per_axis(window, axes, "window")
    strides = sizes if stride is None else per_axis(stride, axes, "stride")
    if len(sizes) != axes or len(strides) != axes:
        raise ValueError(
            f"expected a window and a stride of {axes} axes, got {window!r}, {stride!r}"
        )
    every = grid(size, sizes, strides, edge)
    if roi is None:
        return every
    boxes = every.boxes.numpy()
    centres = (boxes[:, :axes] + boxes[:, axes:]) // 2
    inside = _inside(centres, roi, size)
    if not inside.any():
        raise ValueError("expected regions of interest with a box's centre, got none")
    return Grid(torch.from_numpy(np.ascontiguousarray(boxes[inside])), None)


def _inside(centres: npt.NDArray[np.int64], roi: Any, size: Sequence[int]) -> npt.NDArray[np.bool_]:
    values = np.asarray(roi.cpu() if isinstance(roi, Tensor) else roi)
    axes = len(size)
    if values.dtype == np.bool_:
        if values.ndim != axes:
            raise ValueError(f"expected a mask of {axes} axes, got {values.shape}")
        scale = np.array(values.shape) / np.array(size)
        cells = np.minimum((centres * scale).astype(np.int64), np.array(values.shape) - 1)
        found: npt.NDArray[np.bool_] = values[tuple(cells.T)]
        return found
    table = explicit(
        torch.as_tensor(values), (1, *size)
    ).boxes.numpy()  # refuses what is no box within the image
    found = np.zeros(len(centres), np.bool_)
    for box in table:
        found |= ((centres >= box[:axes]) & (centres < box[axes:])).all(1)
    return found
