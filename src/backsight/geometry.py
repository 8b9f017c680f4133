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
import numpy.typing as npt

# An int or an integer numpy array; numpy's own scalar protocol makes the two interchangeable below.
Cells = Any
Interval = tuple[Cells, Cells]
Integers = npt.NDArray[np.int64]
#: Row k of such a table holds the least (or largest) value of each run of 2^k neighbours.
Tables = npt.NDArray[np.int64]


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
class _Kernel:
    size_in: int
    size_out: int
    kernel: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1

    @property
    def reach(self) -> int:
        """Cells from the first to the last of the cells under a kernel."""
        return (self.kernel - 1) * self.dilation + 1


@dataclass(frozen=True)
class Sliding(_Kernel):
    """Output cell o reads inputs o·stride - padding + j·dilation for j < kernel (convolutions and
    pools).

    `padding` is what stands before the first cell; what follows the last one is implied by
    `size_out`, so that `same` padding of even kernels and ceil_mode need nothing of their own.
    """

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


class Intervals:
    """Output cell o reads inputs [low, high) = cell(o), in any order and not beyond the map.

    `forward`, `backward` and `span` look up tables made once per rule, in time that does not depend
    on the length of an interval.
    """

    size_in: int
    size_out: int

    def cell(self, index: Cells) -> Interval:
        """The inputs of output `index`."""
        raise NotImplementedError

    def forward(self, start: Cells, stop: Cells) -> Interval:
        first, last = self._readers
        some = np.asarray(stop > start)
        start = np.clip(start, 0, self.size_in - 1)
        stop = np.clip(stop, start + 1, self.size_in)
        # An input that nothing reads has its first reader behind the last output.
        opened, closed = _over(np.minimum, first, start, stop), _over(np.maximum, last, start, stop)
        return opened, np.where(some, closed, opened)

    def backward(self, start: Cells, stop: Cells) -> Interval:
        """As AxisRule's; an output beyond the map reads what the nearest one inside does."""
        low, high = self._reads
        start = np.clip(start, 0, self.size_out - 1)
        stop = np.clip(stop, start + 1, self.size_out)
        return _over(np.minimum, low, start, stop), _over(np.maximum, high, start, stop)

    @cached_property
    def _reads(self) -> tuple[Tables, Tables]:
        low, high = self.cell(np.arange(self.size_out))
        return _tables(np.minimum, low), _tables(np.maximum, high)

    @cached_property
    def _readers(self) -> tuple[Tables, Tables]:
        """The first output that reads each input, and what follows the last one."""
        low, high = self.cell(np.arange(self.size_out))
        out = np.arange(self.size_out)
        none = np.full(self.size_in, self.size_out)
        first = _spread(np.minimum, none, low, high, out)
        last = _spread(np.maximum, np.zeros_like(none), low, high, out + 1)
        return _tables(np.minimum, first), _tables(np.maximum, last)

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
        """As AxisRule's; what is read lies inside the map."""
        low, _ = self.backward(start, start + size)
        return np.minimum(low, self.size_in - self.span(size))


def _tables(extreme: np.ufunc, values: Integers) -> Tables:
    rows = [np.asarray(values, np.int64)]
    for k in range(len(values).bit_length() - 1):
        above, half = rows[-1], 1 << k
        # Runs that would leave the axis are never looked up.
        rows.append(above.copy())
        rows[-1][:-half] = extreme(above[:-half], above[half:])
    return np.stack(rows)


def _over(extreme: np.ufunc, tables: Tables, start: Cells, stop: Cells) -> Cells:
    """The least (or largest) value of each [start, stop): two runs of a power of two cover it."""
    level = _level(stop - start)
    return extreme(tables[level, start], tables[level, stop - (1 << level)])


def _level(length: Cells) -> Cells:
    """The largest k with 2^k <= length; exact, as a float holds the exponent itself."""
    return np.frexp(np.asarray(length, np.float64))[1].astype(np.int64) - 1


def _spread(
    extreme: np.ufunc,
    values: Integers,
    low: Integers,
    high: Integers,
    by: Integers,
) -> Integers:
    """`values`, each lowered (or raised) to the `by` of all intervals [low, high) that hold it."""
    rows = np.repeat(values[None], len(values).bit_length(), 0)
    some = high > low
    low, high, by = low[some], high[some], by[some]
    level = _level(high - low)
    extreme.at(rows, (level, low), by)
    extreme.at(rows, (level, high - (1 << level)), by)
    for k in range(len(rows) - 1, 0, -1):
        half = 1 << (k - 1)
        rows[k - 1] = extreme(rows[k - 1], rows[k])
        rows[k - 1][half:] = extreme(rows[k - 1][half:], rows[k][:-half])
    return np.asarray(rows[0])


@dataclass(frozen=True)
class Adaptive(Intervals):
    """Output cell o reads inputs [⌊o·in/out⌋, ⌈(o+1)·in/out⌉): adaptive pooling, sizes that do not
    divide included.
    """

    size_in: int
    size_out: int

    def cell(self, index: Cells) -> Interval:
        stop = -((-(index + 1) * self.size_in) // self.size_out)
        return index * self.size_in // self.size_out, stop


class Listed(Intervals):
    """Output cell o reads inputs [low[o], high[o]), as listed (interpolation, padding by
    reflection).

    Args:
        size_in: cells of the input.
        low, high: (size_out,) int64, inside the input; high > low.
    """

    def __init__(self, size_in: int, low: Integers, high: Integers) -> None:
        self.size_in = size_in
        self.size_out = len(low)
        self.low = low
        self.high = high

    def cell(self, index: Cells) -> Interval:
        return self.low[index], self.high[index]


@dataclass(frozen=True)
class Transposed(_Kernel):
    """Input cell i is read by outputs i·stride - padding + j·dilation for j < kernel (transposed
    convolutions).

    Output padding is implied by `size_out`. Holes of a dilated kernel count as read. Where the
    stride exceeds the kernel's reach, outputs between two kernels read nothing.
    """

    @property
    def tile(self) -> int:
        """`reach`, and the outputs behind it that read nothing."""
        return max(self.reach, self.stride)

    def forward(self, start: Cells, stop: Cells) -> Interval:
        # The first and the last of the inputs that any output of the map reads.
        start = np.maximum(start, -((self.reach - 1 - self.padding) // self.stride))
        stop = np.minimum(stop, (self.size_out - 1 + self.padding) // self.stride + 1)
        first = np.clip(start * self.stride - self.padding, 0, self.size_out)
        last = (stop - 1) * self.stride - self.padding + self.reach
        return first, np.where(stop > start, np.minimum(last, self.size_out), first)

    def backward(self, start: Cells, stop: Cells) -> Interval:
        first = -((self.reach - 1 - self.padding - start) // self.stride)
        return first, (stop - 1 + self.padding) // self.stride + 1

    def span(self, size: int) -> int:
        return -(-(size + self.tile - 1) // self.stride)

    def origin(self, start: Cells, size: int) -> Cells:
        return -((self.tile - 1 - self.padding - start) // self.stride)

    def written(self, at: Cells) -> Cells:
        """The first output that a window of inputs from `at` on writes."""
        return at * self.stride - self.padding


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
