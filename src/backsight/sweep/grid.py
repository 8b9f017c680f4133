"""Boxes on a grid: where an occluding window stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

EDGES = ("clip", "inside", "drop", "overhang")


@dataclass(frozen=True)
class Grid:
    """Boxes (positions, 2·D) int64, starts then ends, and how many positions stand along each axis.

    `shape` is None for boxes that are no grid.
    """

    boxes: Tensor
    shape: tuple[int, ...] | None


def per_axis(value: int | Sequence[int], axes: int, name: str) -> tuple[int, ...]:
    """One positive integer per axis; a single one serves all."""
    values = tuple(value) if isinstance(value, Sequence) else (value,) * axes
    if len(values) != axes or not all(isinstance(v, int | np.integer) and v > 0 for v in values):
        raise ValueError(
            f"expected {name} to be a positive integer or {axes} of them, got {value!r}"
        )
    return tuple(map(int, values))


def grid(size: Sequence[int], window: Sequence[int], stride: Sequence[int], edge: str) -> Grid:
    """A grid of windows over an image, row by row.

    Args:
        size, window, stride: pixels per axis.
        edge: what happens where windows do not fit. "clip": ceil((size - window) / stride) + 1
            positions, the last box cut off at the edge (Captum); "inside": the last box moved
            inside (MONAI); "drop": whole boxes only; "overhang": centres at 0, stride, 2·stride,
            ..., boxes cut off on both sides.
    """
    if edge not in EDGES:
        raise ValueError(f"expected edge to be one of {', '.join(EDGES)}, got {edge!r}")
    for n, w in zip(size, window, strict=True):
        if w > n:
            raise ValueError(
                f"expected a window no larger than the image {tuple(size)}, got {tuple(window)}"
            )
    axes = [_axis(*nws, edge) for nws in zip(size, window, stride, strict=True)]
    shape = tuple(len(start) for start, _ in axes)
    starts = np.meshgrid(*(start for start, _ in axes), indexing="ij")
    stops = np.meshgrid(*(stop for _, stop in axes), indexing="ij")
    boxes = np.stack([a.ravel() for a in (*starts, *stops)], 1)
    return Grid(torch.from_numpy(boxes), shape)


def _axis(
    size: int, window: int, stride: int, edge: str
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    if edge == "overhang":
        start = np.arange(0, size, stride) - window // 2
    else:
        over = (size - window) // stride if edge == "drop" else -((window - size) // stride)
        start = np.arange(over + 1) * stride
        if edge == "inside":
            start = np.minimum(start, size - window)
    return np.clip(start, 0, size), np.clip(start + window, 0, size)


def explicit(boxes: Tensor | Sequence[Sequence[int]], size: Sequence[int]) -> Grid:
    """Boxes of the caller's own, clipped to the image."""
    table = torch.as_tensor(boxes).detach().cpu()
    axes = len(size)
    if table.ndim != 2 or table.shape[1] != 2 * axes or table.is_floating_point() or not len(table):
        raise ValueError(
            f"expected boxes of shape (positions, {2 * axes}), integers, starts then ends,"
            f" got {tuple(table.shape)} {table.dtype}"
        )
    table = table.to(torch.int64)
    limit = torch.tensor([*size, *size])
    clipped = torch.minimum(table.clamp(min=0), limit)
    if bool((clipped[:, axes:] <= clipped[:, :axes]).any()):
        at = int((clipped[:, axes:] <= clipped[:, :axes]).any(1).nonzero()[0])
        raise ValueError(
            f"expected each box to hold a pixel of the image {tuple(size)},"
            f" got {table[at].tolist()} at {at}"
        )
    return Grid(clipped, None)
