"""Window algebra: which interval of one axis maps to which, in plain integers.

Every rule describes one axis of one operation that reads `size_in` cells and writes `size_out`.
Intervals are half-open and in global coordinates. Ints and integer numpy arrays (many intervals at
once) both work, so that one formula serves a single receptive field and a hundred thousand
occlusions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

# An int or an integer numpy array; numpy's own scalar protocol makes the two interchangeable below.
Cells = Any
Interval = tuple[Cells, Cells]


class AxisRule(Protocol):
    """How the cells of one axis of an input map to the cells of the same axis of an output."""

    @property
    def size_in(self) -> int: ...
    @property
    def size_out(self) -> int: ...

    def forward(self, start: Cells, stop: Cells) -> Interval:
        """Outputs that read any input of [start, stop), clipped to the output; may be empty (stop
        <= start).
        """

    def backward(self, start: Cells, stop: Cells) -> Interval:
        """Inputs that the outputs [start, stop) read, *not* clipped: cells beyond the input are
        padding.
        """

    def span(self, size: int) -> int:
        """The most input cells that any `size` neighbouring outputs read."""

    def origin(self, start: Cells, size: int) -> Cells:
        """Where to begin reading `span(size)` input cells so that the outputs [start, start + size)
        have theirs.
        """


@dataclass(frozen=True)
class Identity:
    """Output cell i reads input cell i (pointwise operations and joins)."""

    size_in: int

    @property
    def size_out(self) -> int:
        return self.size_in

    def forward(self, start: Cells, stop: Cells) -> Interval:
        return start, stop

    def backward(self, start: Cells, stop: Cells) -> Interval:
        return start, stop

    def span(self, size: int) -> int:
        return size

    def origin(self, start: Cells, size: int) -> Cells:
        return start


@dataclass(frozen=True)
class Sliding:
    """Output cell o reads inputs o·stride - padding + j·dilation for j < kernel (convolutions and
    pools).

    `padding` is what stands before the first cell; what follows the last one is implied by
    `size_out`, so that `same` padding of even kernels and ceil_mode need nothing of their own.
    """

    size_in: int
    size_out: int
    kernel: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1

    @property
    def reach(self) -> int:
        """Cells from the first to the last input of one output."""
        return (self.kernel - 1) * self.dilation + 1

    def forward(self, start: Cells, stop: Cells) -> Interval:
        first = -((self.reach - 1 - self.padding - start) // self.stride)
        last = (stop - 1 + self.padding) // self.stride
        first = np.clip(first, 0, self.size_out)
        # An empty interval changes nothing, though the formulas alone would say otherwise.
        return first, np.where(stop > start, np.clip(last + 1, 0, self.size_out), first)

    def backward(self, start: Cells, stop: Cells) -> Interval:
        first = start * self.stride - self.padding
        return first, (stop - 1) * self.stride - self.padding + self.reach

    def span(self, size: int) -> int:
        return (size - 1) * self.stride + self.reach

    def origin(self, start: Cells, size: int) -> Cells:
        return start * self.stride - self.padding


@dataclass(frozen=True)
class Adaptive:
    """Output cell o reads inputs [⌊o·in/out⌋, ⌈(o+1)·in/out⌉): adaptive pooling, sizes that do not
    divide included.
    """

    size_in: int
    size_out: int

    def cell(self, index: Cells) -> Interval:
        """The inputs of output `index`."""
        stop = -((-(index + 1) * self.size_in) // self.size_out)
        return index * self.size_in // self.size_out, stop

    def forward(self, start: Cells, stop: Cells) -> Interval:
        # The first output that ends after `start`, and the last one that begins before `stop`.
        first = start * self.size_out // self.size_in
        last = -(-stop * self.size_out // self.size_in)
        return first, np.where(stop > start, last, first)

    def backward(self, start: Cells, stop: Cells) -> Interval:
        return self.cell(start)[0], self.cell(stop - 1)[1]

    @cached_property
    def _spans(self) -> dict[int, int]:
        return {}

    def span(self, size: int) -> int:
        if size not in self._spans:
            at = np.arange(self.size_out - size + 1)
            start, stop = self.backward(at, at + size)
            self._spans[size] = int((stop - start).max())
        return self._spans[size]

    def origin(self, start: Cells, size: int) -> Cells:
        return np.minimum(self.cell(start)[0], self.size_in - self.span(size))


@dataclass(frozen=True)
class Whole:
    """Every output cell reads every input cell (global pools, broadcast inputs, operations without
    a window rule).
    """

    size_in: int
    size_out: int

    def forward(self, start: Cells, stop: Cells) -> Interval:
        return np.zeros_like(start), np.where(stop > start, self.size_out, 0)

    def backward(self, start: Cells, stop: Cells) -> Interval:
        return np.zeros_like(start), np.full_like(stop, self.size_in)

    def span(self, size: int) -> int:
        return self.size_in

    def origin(self, start: Cells, size: int) -> Cells:
        return np.zeros_like(start)


Rules = tuple[AxisRule, ...]


def hull(intervals: Sequence[Interval]) -> Interval:
    """The smallest interval that holds all; empty ones (stop <= start) do not count unless all are
    empty.
    """
    start, stop = intervals[0]
    for s, e in intervals[1:]:
        here, there = stop > start, e > s
        both = np.logical_and(here, there)
        start, stop = (
            np.where(both, np.minimum(start, s), np.where(there, s, start)),
            np.where(both, np.maximum(stop, e), np.where(there, e, stop)),
        )
    return start, stop


@dataclass(frozen=True)
class Field:
    """The receptive field along one axis: unit u of a layer sees inputs [u·stride + offset, … +
    size).
    """

    size: int
    stride: int
    offset: int
