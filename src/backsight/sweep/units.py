"""Positions of a large image in units: runs of neighbours that share the region they read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..graph import Graph
from ..graph.fields import Cells
from .ahead import Reader
from .allocator import Ceiling
from .budget import Budget
from .content import Content
from .grid import Grid
from .plan import plan_windows
from .rate import flop_rate
from .readout import Drops, Reading, Readout
from .run import Progress, Sweep
from .stream import StreamedMaps

__all__ = ["Unit", "UnitSweep", "partitioned"]

#: Positions of a unit at most: what is lost where a process is killed. With fewer than `_MANY`,
#: batches and plans are too small to be fast.
_MOST, _MANY = 4096, 256

#: The smallest squares, in pixels.
_LEAST = 32

#: About as far as layers look around them, in pixels; how many units of a size are looked at.
_HALO, _SOME = 256, 3

#: Larger squares are worth it while regions take more than this of the work of windows.
_REGION = 0.05


@dataclass(frozen=True)
class Unit:
    """Some positions, by their numbers in the grid."""

    positions: Cells


@dataclass(frozen=True)
class Estimate:
    """What computing a unit takes.

    Attributes:
        window_flops, region_flops: of the windows of its positions, and of the maps around them.
        seconds: about.
        bytes, window_bytes: at the most, of all and of windows alone.
        barriers: the operations that need whole maps, by name.
    """

    positions: int
    window_flops: int
    region_flops: int
    seconds: float
    bytes: int
    window_bytes: int
    barriers: tuple[str, ...]


class UnitSweep:
    """A sweep over one image, unit by unit, in bounded memory. Each unit's drops are the same
    whichever units were computed before it, and wherever.

    Args:
        graph: of the model, captured for the image's size.
        grid: all positions.
        read: reads a region of the image.
        like: any tensor of the device and dtype of the computation.
        content: what stands in the boxes.
        readout: what is read out of the outputs.
        budget: of memory.
        ceiling: is told before memory is taken.

    Raises:
        TooLittle: not even one position fits.
    """

    def __init__(
        self,
        graph: Graph,
        grid: Grid,
        read: Reader,
        like: Tensor,
        content: Content,
        readout: Readout,
        budget: Budget,
        ceiling: Ceiling,
    ) -> None:
        self.graph, self.grid, self.content, self.readout = graph, grid, content, readout
        self.like, self.budget = like, budget
        self.maps = StreamedMaps(graph, read, like, budget, ceiling)
        #: Operations of the first pass over the image, and the most bytes it takes.
        self.pass_flops, self.pass_bytes = self.maps.first_pass()
        self.side, self.units = self._units()
        #: What is read of the image as it is; None before the first pass over it.
        self.reading: Reading | None = None
        self._next: tuple[Unit, Sweep] | None = None

    def base(self, progress: Progress | None = None) -> Reading:
        """What is read of the image as it is: one pass over it, strip by strip, the first time.

        Args:
            progress: called with the number of pixels just passed.
        """
        if self.reading is None:
            self.maps.passed = progress or self.maps.passed
            output = self.maps.value(self.graph.output)
            assert isinstance(output, Tensor)
            self.reading = self.readout.of(output.double().reshape(1, -1), tuple(output.shape[1:]))
        return self.reading

    def run(self, unit: Unit, progress: Progress, following: Unit | None = None) -> Drops:
        """The drops of a unit's positions, in their order.

        Args:
            following: the unit after it, whose region of the image is read meanwhile.
        """
        sweep = self._of(unit)
        self._next = None if following is None else (following, self._of(following))
        self.maps.hold(sweep.reads(), self._next and self._next[1].reads())
        size = sweep.plan.batch_bytes

        def done(count: int) -> None:
            self.maps.take(size)
            progress(count)

        self.maps.take(size)
        return sweep.run(done)

    def close(self) -> None:
        """Let go of the region that is held, and of what was to be read."""
        self._next = None
        self.maps.close()

    def estimate(self, unit: Unit) -> Estimate:
        """What computing a unit takes."""
        sweep = self._sweep(unit, None)
        plan = sweep.plan
        region_bytes, region_flops = self.maps.once_gathered(sweep.reads())
        whole = plan.plain_flops // plan.positions
        seconds = plan.seconds + (region_flops - whole) / flop_rate(plan.device, plan.dtype)
        return Estimate(
            len(unit.positions),
            plan.flops - whole,
            region_flops,
            seconds,
            region_bytes + plan.batch_bytes,
            plan.batch_bytes,
            plan.barriers,
        )

    def _of(self, unit: Unit) -> Sweep:
        if self._next is not None and self._next[0] is unit:
            return self._next[1]
        return self._sweep(unit, self.base())

    def _sweep(self, unit: Unit, reading: Any) -> Sweep:
        boxes = self.grid.boxes[torch.from_numpy(unit.positions)]
        plan = plan_windows(
            self.graph,
            Grid(boxes, None),
            1,
            self.readout.columns(self.graph.outputs),
            self.like.dtype,
            self.like.device,
            self.budget.windows,
        )
        return Sweep(plan, self.maps, self.maps.images, self.content, reading)

    def _units(self) -> tuple[int, list[Unit]]:
        """The positions in units, the smallest that are worth their regions, or the largest that
        fit; and their side in pixels at most.
        """
        size = self.graph.nodes[self.graph.input].extent
        best: tuple[int, list[Unit]] = 0, []
        side = _LEAST
        while not best[0] or side < 2 * max(size):
            units = partitioned(self.grid, side)
            looked_at = [self.estimate(unit) for unit in _widest(units, self.grid, size)]
            windows = max(found.window_bytes for found in looked_at)
            region = max(found.bytes - found.window_bytes for found in looked_at)
            found = looked_at[0]
            if not best[0]:
                names = ", ".join(found.barriers[:3])
                where = f", where {names} read maps as a whole," if names else ""
                self.budget.check_windows(windows, f"a window{where}")
                self.budget.check_maps(region, "the region that a few positions read")
            elif region > self.budget.maps or windows > self.budget.windows:
                break
            best = side, units
            worth = found.region_flops <= found.window_flops * _REGION
            if found.positions == len(self.grid.boxes) or (worth and found.positions >= _MANY):
                break
            side *= 2
        return best


def partitioned(grid: Grid, side: int) -> list[Unit]:
    """The positions in units: no two of a unit begin `side` pixels apart along an axis, or more.

    Parts of the image are cut in two until they are small enough: in the middle of the widest gap
    along their longest axis, where there is one, so that regions of interest that lie far apart
    come apart first; otherwise into pieces as even as can be, so that none is a sliver, whose
    region would be almost as large as a whole one's.
    """
    axes = grid.boxes.shape[1] // 2
    starts = grid.boxes[:, :axes].numpy()
    units: list[Unit] = []
    stack = [np.arange(len(starts))]
    while stack:
        part = stack.pop()
        mine = starts[part]
        low, high = mine.min(0), mine.max(0)
        axis = int((high - low).argmax())
        span = int(high[axis] - low[axis])
        if span < side and len(part) <= _MOST:
            units.append(Unit(part))
        elif span == 0:  # boxes upon each other
            units += [Unit(part[i : i + _MOST]) for i in range(0, len(part), _MOST)]
        else:
            first = mine[:, axis] < _cut(np.unique(mine[:, axis]), side)
            stack += [part[~first], part[first]]
    return units


def _cut(starts: Cells, side: int) -> float:
    """Where to cut sorted starts in two."""
    gaps = np.diff(starts)
    widest = int(gaps.argmax())
    if gaps[widest] >= max(side, 2 * np.median(gaps)):
        return float(starts[widest + 1])
    low, span = int(starts[0]), int(starts[-1] - starts[0])
    pieces = max(2, span // side + 1)
    cut = low + (span + 1) * (pieces // 2) / pieces
    # Boxes whose last start was moved inside must not make a piece of their own, nor an empty one.
    return float(starts[min(int(np.searchsorted(starts, cut)), len(starts) - 1)])


def _widest(units: Sequence[Unit], grid: Grid, size: Sequence[int]) -> list[Unit]:
    """Some of the units whose regions are likely to be the largest: far from the edges of the
    image, and of boxes that spread far.
    """
    boxes = grid.boxes.numpy()
    axes = boxes.shape[1] // 2
    order = np.concatenate([unit.positions for unit in units])
    begins = np.cumsum([0, *(len(unit.positions) for unit in units[:-1])])
    low = np.minimum.reduceat(boxes[order, :axes], begins) - _HALO
    high = np.maximum.reduceat(boxes[order, axes:], begins) + _HALO
    area = (np.minimum(high, size) - np.maximum(low, 0)).prod(1)
    return [units[i] for i in np.argsort(-area, kind="stable")[:_SOME]]
