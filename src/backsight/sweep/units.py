"""Positions of a large image in units: runs of neighbours that share the region they read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..graph import Graph
from ..graph.fields import Cells
from .content import Content
from .grid import Grid
from .plan import Plan, plan_windows, told_bytes
from .readout import Drops, Reading, Readout
from .run import Progress, Sweep
from .stream import Reader, StreamedMaps

__all__ = ["Unit", "UnitSweep", "partitioned"]

#: Positions of a unit at most: what is lost where a process is killed.
_MOST = 4096


@dataclass(frozen=True)
class Unit:
    """Some positions, by their numbers in the grid."""

    positions: Cells


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
        memory: bytes; half of it is for the maps of a region, a quarter for windows.

    Raises:
        ValueError: not even one position fits the memory.
    """

    def __init__(
        self,
        graph: Graph,
        grid: Grid,
        read: Reader,
        like: Tensor,
        content: Content,
        readout: Readout,
        memory: int,
    ) -> None:
        self.graph, self.grid, self.content, self.readout = graph, grid, content, readout
        self.like, self.memory = like, memory
        self.maps = StreamedMaps(graph, read, like, memory // 2)
        self.side = self._side()
        self.units = partitioned(grid, self.side)
        self._reading: Reading | None = None

    def base(self, progress: Progress | None = None) -> Reading:
        """What is read of the image as it is: one pass over it, region by region, the first time.

        Args:
            progress: called with the number of pixels just passed.
        """
        if self._reading is None:
            self.maps.passed = progress or self.maps.passed
            output = self.maps.value(self.graph.output)
            assert isinstance(output, Tensor)
            self._reading = self.readout.of(output.double().reshape(1, -1), tuple(output.shape[1:]))
        return self._reading

    def run(self, unit: Unit, progress: Progress) -> Drops:
        """The drops of a unit's positions, in their order."""
        sweep = self._sweep(unit, self.base())
        self.maps.hold(sweep.reads())
        return sweep.run(progress)

    def plan(self, unit: Unit) -> Plan:
        """How a unit is computed."""
        boxes = self.grid.boxes[torch.from_numpy(unit.positions)]
        outputs = self.readout.columns(self.graph.outputs)
        return plan_windows(
            self.graph,
            Grid(boxes, None),
            1,
            outputs,
            self.like.dtype,
            self.like.device,
            self.memory // 4,
        )

    def _sweep(self, unit: Unit, reading: Any) -> Sweep:
        return Sweep(self.plan(unit), self.maps, self.maps.images, self.content, reading)

    def _side(self) -> int:
        """The side in pixels of the largest squares whose positions make units that fit."""
        size = self.graph.nodes[self.graph.input].extent
        best, side = 0, 32
        while not best or side < 2 * max(size):
            units = partitioned(self.grid, side)
            sweep = self._sweep(max(units, key=self._spread), None)
            if not best:
                _check_windows(sweep.plan, self.memory // 4)
            peak = self.maps.once_gathered(sweep.reads())
            if peak > self.maps.room or sweep.plan.batch_bytes > self.memory // 4:
                break
            best = side
            if len(units) == 1:
                break
            side *= 2
        if not best:
            raise ValueError(
                f"expected more than {told_bytes(self.memory)} of memory: the region that a"
                f" few positions read takes {told_bytes(peak)}, and half of it is for that"
            )
        return best

    def _spread(self, unit: Unit) -> int:
        """The pixels of the smallest box around a unit's boxes."""
        boxes = self.grid.boxes.numpy()[unit.positions]
        axes = boxes.shape[1] // 2
        return int((boxes[:, axes:].max(0) - boxes[:, :axes].min(0)).prod())


def _check_windows(plan: Plan, room: int) -> None:
    """Refuse a plan whose batches of one do not fit."""
    if plan.batch_bytes <= room:
        return
    names = ", ".join(plan.barriers[:3])
    where = f", where {names} read maps as a whole" if names else ""
    raise ValueError(
        f"expected windows of at most {told_bytes(room)}, a quarter of the memory, got"
        f" {told_bytes(plan.batch_bytes)}{where}"
    )


def partitioned(grid: Grid, side: int) -> list[Unit]:
    """The positions by squares of an image, squares and positions row by row."""
    axes = grid.boxes.shape[1] // 2
    square = grid.boxes[:, :axes].numpy() // side
    order = np.lexsort((np.arange(len(square)), *square.T[::-1]))
    edges = np.flatnonzero((np.diff(square[order], axis=0) != 0).any(1)) + 1
    units = []
    for part in np.split(order, edges):
        units += [Unit(np.sort(part[i : i + _MOST])) for i in range(0, len(part), _MOST)]
    return units
