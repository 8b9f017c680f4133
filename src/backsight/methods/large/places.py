"""Which boxes of a large image are swept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...sweep.grid import Grid, explicit, grid, lines, per_axis

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
    if roi is None:
        return grid(size, sizes, strides, edge)
    axis = lines(size, sizes, strides, edge)
    chosen = _inside([(start + stop) // 2 for start, stop in axis], roi, size)
    if not len(chosen):
        raise ValueError("expected regions of interest with a box's centre, got none")
    at = np.unravel_index(chosen, [len(start) for start, _ in axis])
    starts = [start[i] for i, (start, _) in zip(at, axis, strict=True)]
    stops = [stop[i] for i, (_, stop) in zip(at, axis, strict=True)]
    return Grid(torch.from_numpy(np.stack([*starts, *stops], 1)), None)


def _inside(
    centres: list[npt.NDArray[np.int64]], roi: Any, size: Sequence[int]
) -> npt.NDArray[np.int64]:
    """The positions of a grid, by their numbers, whose centres lie in regions of interest. Those of
    the whole grid, of which there may be very many, are never made.
    """
    values = np.asarray(roi.cpu() if isinstance(roi, Tensor) else roi)
    axes = len(size)
    if values.dtype == np.bool_:
        if values.ndim != axes:
            raise ValueError(f"expected a mask of {axes} axes, got {values.shape}")
        cells = [
            np.minimum(centre * np.array(k / n), k - 1).astype(np.int64)
            for centre, k, n in zip(centres, values.shape, size, strict=True)
        ]
        return np.flatnonzero(values[np.ix_(*cells)])
    # It refuses what is no box within the image.
    table = explicit(torch.as_tensor(values), (1, *size)).boxes.numpy()
    found = [
        np.ravel_multi_index(
            np.ix_(
                *(
                    np.flatnonzero((centre >= start) & (centre < stop))
                    for centre, start, stop in zip(centres, box[:axes], box[axes:], strict=True)
                )
            ),
            [len(centre) for centre in centres],
        ).ravel()
        for box in table
    ]
    return np.unique(np.concatenate(found))
