"""Boxes on a grid, or anywhere: what an occlusion covers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..graph.kinds import Where

EDGES = ("clip", "inside", "drop", "overhang")


@dataclass(frozen=True)
class Grid:
    """What each position covers, and how many positions stand along each axis.

    Attributes:
        boxes: (positions, 2·D) int64, starts then ends along the spatial axes; of a position with
            several boxes, the smallest that holds them all.
        shape: None for boxes that are no grid.
        channels: (positions, 2) int64, the channels that are covered; None for all.
        parts: (positions, boxes, 2·D) int64, the boxes of each position (empty ones cover nothing);
            None where each has one.
    """

    boxes: Tensor
    shape: tuple[int, ...] | None
    channels: Tensor | None = None
    parts: Tensor | None = None

    @property
    def table(self) -> Tensor:
        """The boxes as they are told to users: the channels' interval first, where there is one."""
        if self.parts is not None:
            return self.parts
        if self.channels is None:
            return self.boxes
        axes = self.boxes.shape[1] // 2
        first, last = self.channels.split(1, 1)
        return torch.cat([first, self.boxes[:, :axes], last, self.boxes[:, axes:]], 1)

    @classmethod
    def of_table(cls, table: Tensor, axes: int, shape: tuple[int, ...] | None) -> Grid:
        """What `table` was made of, for images of so many spatial axes."""
        if table.ndim == 3:
            return cls(_hulls(table, _empty(table)), shape, parts=table)
        whole = cls(table, shape)
        return whole if table.shape[1] == 2 * axes else with_channels(whole)

    @property
    def empty(self) -> Tensor:
        """(positions,) bool: which cover nothing."""
        return _empty(self.boxes if self.channels is None else self.table)

    def covers(self, rows: Tensor, where: Where, channels: int) -> Tensor:
        """Which cells of windows lie in the boxes of some positions.

        Args:
            rows: (batch,) positions, on the CPU.
            where: the windows, one for each of them.
            channels: how many channels the windows have.

        Returns:
            (batch, 1 or channels, *size) bool.
        """
        axes, device = len(where.size), where.at.device
        boxes = (self.boxes[:, None] if self.parts is None else self.parts)[rows].to(device)
        inside = torch.zeros((), dtype=torch.bool, device=device)
        for part in boxes.unbind(1):
            here = torch.ones((), dtype=torch.bool, device=device)
            for d in range(axes):
                cells = where.at[:, d : d + 1] + torch.arange(where.size[d], device=device)
                along = (cells >= part[:, d : d + 1]) & (cells < part[:, axes + d : axes + d + 1])
                here = here & along.view(len(along), 1, *[-1 if k == d else 1 for k in range(axes)])
            inside = inside | here
        if self.channels is not None:
            first, last = self.channels[rows].to(device).split(1, 1)
            channel = torch.arange(channels, device=device)
            chosen = (channel >= first) & (channel < last)
            inside = inside & chosen.view(len(rows), channels, *[1] * axes)
        return inside


def _empty(boxes: Tensor) -> Tensor:
    axes = boxes.shape[-1] // 2
    return (boxes[..., axes:] <= boxes[..., :axes]).any(-1)


def per_axis(value: int | Sequence[int], axes: int, name: str) -> tuple[int, ...]:
    """One positive integer per axis, or one more for the channels; a single one serves all."""
    values = tuple(value) if isinstance(value, Sequence) else (value,) * axes
    if len(values) not in (axes, axes + 1) or not all(
        isinstance(v, int | np.integer) and v > 0 for v in values
    ):
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
    axes = lines(size, window, stride, edge)
    shape = tuple(len(start) for start, _ in axes)
    starts = np.meshgrid(*(start for start, _ in axes), indexing="ij")
    stops = np.meshgrid(*(stop for _, stop in axes), indexing="ij")
    boxes = np.stack([a.ravel() for a in (*starts, *stops)], 1)
    return Grid(torch.from_numpy(boxes), shape)


def lines(
    size: Sequence[int], window: Sequence[int], stride: Sequence[int], edge: str
) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Where the boxes of a grid start and stop along each axis."""
    if edge not in EDGES:
        raise ValueError(f"expected edge to be one of {', '.join(EDGES)}, got {edge!r}")
    for n, w in zip(size, window, strict=True):
        if w > n:
            raise ValueError(
                f"expected a window no larger than the image {tuple(size)}, got {tuple(window)}"
            )
    return [_axis(*nws, edge) for nws in zip(size, window, stride, strict=True)]


def with_channels(whole: Grid) -> Grid:
    """A grid whose first axis is the channels', as one over the spatial axes."""
    axes = whole.boxes.shape[1] // 2
    channels = whole.boxes[:, [0, axes]]
    spatial = [d for d in range(2 * axes) if d not in (0, axes)]
    return Grid(whole.boxes[:, spatial].contiguous(), whole.shape, channels)


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


def explicit(boxes: Tensor | Sequence[Sequence[int]], shape: Sequence[int]) -> Grid:
    """Boxes of the caller's own, clipped to the image.

    Args:
        boxes: (positions, 2·D); (positions, 2·D + 2) with the channels' interval first; or
            (positions, boxes, 2·D) for several per position.
        shape: (channels, *spatial) of an image.
    """
    try:
        table = torch.as_tensor(boxes).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"expected boxes as a table of integers, got {type(boxes).__name__}"
        ) from None
    axes = len(shape) - 1
    width = table.shape[-1] if table.ndim else 0
    fits = (table.ndim == 2 and width in (2 * axes, 2 * axes + 2)) or (
        table.ndim == 3 and width == 2 * axes
    )
    if not fits or table.is_floating_point() or not table.numel():
        raise ValueError(
            f"expected boxes of shape (positions, {2 * axes}), integers, starts then ends"
            f" (or (positions, {2 * axes + 2}), channels first, or (positions, boxes, {2 * axes})),"
            f" got {tuple(table.shape)} {table.dtype}"
        )
    table = table.to(torch.int64)
    size = tuple(shape) if width > 2 * axes else tuple(shape[1:])
    clipped = torch.minimum(table.clamp(min=0), torch.tensor([*size, *size]))
    empty = _empty(clipped)
    nothing = empty if table.ndim == 2 else empty.all(1)
    if bool(nothing.any()):
        at = int(nothing.nonzero()[0])
        raise ValueError(
            f"expected each box to hold a pixel of the image {size},"
            f" got {table[at].tolist()} at {at}"
        )
    return Grid.of_table(clipped, axes, None)


def _hulls(parts: Tensor, empty: Tensor) -> Tensor:
    """The smallest box (positions, 2·D) that holds a position's boxes (positions, boxes, 2·D)."""
    axes = parts.shape[2] // 2
    far = torch.iinfo(torch.int64).max
    start = parts[..., :axes].masked_fill(empty[..., None], far).amin(1)
    stop = parts[..., axes:].masked_fill(empty[..., None], 0).amax(1)
    return torch.cat([start, stop], 1)


def disjoint(parts: Tensor) -> tuple[Tensor, Tensor]:
    """The boxes (any, 2·D) that cover what the boxes (positions, boxes, 2·D) of each position
    cover, none of a position overlapping another; and (any,) whose they are.
    """
    positions, count, width = parts.shape
    axes = width // 2
    empty = _empty(parts)
    overlap = torch.zeros(positions, dtype=torch.bool)
    for i in range(count):
        for j in range(i):
            both = torch.cat(
                [
                    torch.maximum(parts[:, i, :axes], parts[:, j, :axes]),
                    torch.minimum(parts[:, i, axes:], parts[:, j, axes:]),
                ],
                1,
            )
            overlap |= ~(_empty(both) | empty[:, i] | empty[:, j])
    plain = ~(empty | overlap[:, None])
    boxes, owners = [parts[plain]], [plain.nonzero()[:, 0]]
    for position in overlap.nonzero()[:, 0].tolist():
        pieces: list[list[int]] = []
        for box in parts[position][~empty[position]].tolist():
            rest = [box]
            for held in list(pieces):
                rest = [piece for r in rest for piece in _without(r, held, axes)]
            pieces += rest
        boxes.append(torch.tensor(pieces, dtype=torch.int64))
        owners.append(torch.full((len(pieces),), position))
    return torch.cat(boxes), torch.cat(owners)


def _without(box: list[int], held: list[int], axes: int) -> list[list[int]]:
    """The parts of `box` outside `held`, as boxes."""
    if any(box[axes + d] <= held[d] or held[axes + d] <= box[d] for d in range(axes)):
        return [box]
    pieces = []
    box = list(box)
    for d in range(axes):
        for start, stop in ((box[d], held[d]), (held[axes + d], box[axes + d])):
            if start < stop:
                piece = list(box)
                piece[d], piece[axes + d] = start, stop
                pieces.append(piece)
        box[d], box[axes + d] = max(box[d], held[d]), min(box[axes + d], held[axes + d])
    return pieces
