"""Run a plan: windows of every position, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import ops
from ..graph import Graph, Node, is_aside, is_fixed
from ..graph.fields import Cells as Ints
from ..graph.kinds import Constant, Size, Where
from ..maps import Box, Maps, WholeMaps, hull, splice_base
from ..models.scores import check_scores
from .allocator import give_back
from .content import Content
from .plan import NULLS, Group, Head, Plan, Step, Window
from .readout import Drops, Reading, Readout

#: Called with the number of positions (times images) just done.
Progress = Callable[[int], None]


def run_windows(
    plan: Plan,
    images: Tensor,
    sides: Sequence[Tensor],
    content: Content,
    readout: Readout,
    progress: Progress,
    provider: Callable[[Graph, Tensor, Sequence[int], Sequence[Tensor]], Maps] = WholeMaps,
) -> Drops:
    """Run a plan with windows.

    Args:
        plan: from `plan_windows`.
        images: (images, channels, *spatial).
        sides: the values of the graph's side inputs, one entry per image.
        content: what stands in the boxes.
        readout: what is read out of the outputs.
        progress: called with the number of positions just done.
        provider: where the unoccluded activations are read from.
    """
    assert plan.graph is not None
    if images.ndim > 3:
        # Channels side by side: what a window copies of each pixel is then one run of memory.
        form = torch.channels_last if images.ndim == 4 else torch.channels_last_3d
        images = images.contiguous(memory_format=form)
    results = []
    for first in range(0, len(images), plan.chunk):
        some = images[first : first + plan.chunk]
        last = first + len(some)
        maps = provider(plan.graph, some, plan.keep, [side[first:last] for side in sides])
        output = maps.value(plan.graph.output)
        base = output.double().reshape(len(some), -1)
        check_scores(base)
        reading = readout.of(base, output.shape[1:])
        give_back()
        sweep = Sweep(plan, maps, some, content.part(first, last), reading)
        results.append(sweep.run(progress))
    return Drops.joined(results)


class Sweep:
    """Runs the groups of one plan over the maps of some images.

    Args:
        plan: a plan with windows.
        maps: the unoccluded activations of the images.
        images: (images, channels, *spatial).
        content: what stands in the boxes.
        reading: what is read out of the outputs.
    """

    def __init__(
        self, plan: Plan, maps: Maps, images: Tensor, content: Content, reading: Reading
    ) -> None:
        assert plan.graph is not None
        assert plan.tail is not None
        self.plan = plan
        self.graph: Graph = plan.graph
        self.tail = plan.tail
        self.maps = maps
        self.images = images
        self.content = content
        self.reading = reading
        self.fixed = {
            n.index: n.value
            for n in self.graph.nodes
            if isinstance(n.kind, Constant) and is_fixed(n)
        }
        self.doubles = {
            i: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v
            for i, v in self.fixed.items()
            if any(i in self.graph.nodes[t].inputs for t in self.tail.nodes)
        }

    def reads(self) -> dict[int, Box]:
        """What all positions read of each map, as one box."""
        boxes: dict[int, Box] = {}
        for group in self.plan.groups:
            every = np.arange(len(group.positions))
            for i, box in _Batch(self, np.zeros_like(every), group, every).boxes().items():
                boxes[i] = hull(boxes[i], box) if i in boxes else box
        return boxes

    def run(self, progress: Progress) -> Drops:
        """The drops of all positions."""
        images = len(self.images)
        device = self.images.device
        found = Drops.empty(self.reading, self.plan.positions, self.images.dtype)

        def finish(rows: _Rows, change: Tensor) -> None:
            real = torch.from_numpy(np.flatnonzero(rows.position >= 0)).to(device)
            null = torch.from_numpy(np.flatnonzero(rows.position == _NULL)).to(device)
            image, position = (torch.from_numpy(a).to(device) for a in (rows.image, rows.position))
            found.put(self.reading, image, position, change, real, null)
            progress(len(real))

        head = _HeadBatches(self, self.plan.head, finish) if self.plan.head else None
        for group in self.plan.groups:
            items = images * len(group.positions)
            # Images may be fewer than the plan's chunk: whole batches then fall away.
            for first in range(0, min(group.batch * group.batches, items + NULLS), group.batch):
                item = np.arange(first, first + group.batch)
                null = item >= items
                # What is left of the last batch holds null occlusions, spread over the positions.
                item[null] = (item[null] * 7919) % items
                image, local = np.divmod(item, len(group.positions))
                rows = _Rows(image, np.where(null, _NULL, group.positions[local]))
                batch = _Batch(self, image, group, local)
                batch.occlude(int((~null).sum()))
                batch.values()
                if head is None:
                    finish(rows, batch.differences())
                else:
                    head.add(rows, batch.frontier(head.head.frontier))
        if head is not None:
            head.flush()
        return found


#: Positions of rows that occlude nothing, and of rows that only fill a batch.
_NULL, _FILL = -1, -2


@dataclass(frozen=True)
class _Rows:
    """Which image and which position each row of a batch stands for; position -1 is a null
    occlusion, -2 nothing.
    """

    image: Ints
    position: Ints


class _HeadBatches:
    """Collects what the head starts from, and runs it in batches of one size."""

    def __init__(self, sweep: Sweep, head: Head, finish: Callable[[_Rows, Tensor], None]) -> None:
        self.sweep = sweep
        self.head = head
        self.finish = finish
        self.rows: list[_Rows] = []
        self.values: list[dict[int, Tensor]] = []
        self.count = 0

    def add(self, rows: _Rows, values: dict[int, Tensor]) -> None:
        self.rows.append(rows)
        self.values.append(values)
        self.count += len(rows.image)
        while self.count >= self.head.batch:
            self._run()

    def flush(self) -> None:
        """Run what is left, filled up with copies of its first row."""
        if not self.count:
            return
        missing = self.head.batch - self.count
        first = self.rows[0]
        fill = _Rows(np.repeat(first.image[:1], missing), np.full(missing, _FILL))
        self.add(fill, {i: v[:1].expand(missing, *v.shape[1:]) for i, v in self.values[0].items()})

    def _run(self) -> None:
        rows = _Rows(
            *(
                np.concatenate(a)
                for a in zip(*((r.image, r.position) for r in self.rows), strict=True)
            )
        )
        values = {i: torch.cat([v[i] for v in self.values]) for i in self.head.frontier}
        size = self.head.batch
        now, later = (
            _Rows(rows.image[s], rows.position[s]) for s in (slice(size), slice(size, None))
        )
        self.count -= size
        self.rows = [later] if self.count else []
        self.values = [{i: v[size:].clone() for i, v in values.items()}] if self.count else []
        batch = _Batch(self.sweep, now.image)
        batch.live.update({i: v[:size] for i, v in values.items()})
        batch.values()
        self.finish(now, batch.differences())


class _Batch:
    """One batch under way: windows of a group's positions, or, without a group, the head's values.

    Args:
        image: (batch,) which image each row occludes.
        group, local: the group, and which of its positions each row occludes (batch,).
    """

    def __init__(
        self, sweep: Sweep, image: Ints, group: Group | None = None, local: Ints | None = None
    ) -> None:
        self.sweep = sweep
        self.device = sweep.images.device
        self.image = torch.from_numpy(image).to(self.device)
        self.nodes = sweep.graph.nodes
        self.windows: dict[int, Window] = {}
        self.wholes: dict[int, Window] = {}
        self.steps: tuple[Step, ...] = sweep.plan.head.steps if sweep.plan.head else ()
        if group is not None and local is not None:
            self.windows, self.wholes, self.steps = group.windows, group.whole, group.steps
            self.position = group.positions[local]
            self.coordinates = np.ascontiguousarray(group.coordinates[:, local])
            self.at = torch.from_numpy(self.coordinates).to(self.device)
        self.live: dict[int, Any] = {}
        for node in self.nodes:
            if isinstance(node.kind, Size):
                sym_size = node.target is torch.ops.aten.sym_size.int
                self.live[node.index] = len(image) if sym_size else node.kind.whole(node, self.live)

    def where(self, window: Window) -> Where:
        return Where(self.at[window.entry], window.size)

    def values(self) -> None:
        """Run the nodes in front of the linear tail."""
        sweep, nodes = self.sweep, self.nodes
        for step in self.steps:
            if step.node in sweep.tail.nodes:
                continue
            node = nodes[step.node]
            values = {i: self._value(i, step, node.kind.outside(node)) for i in node.inputs}
            if node.kind.by_difference and not self._is_whole(step):
                (source,) = (i for i in step.reads if nodes[i].varies)
                values[source] = _minus(values[source], self._base(source))
                change = node.kind.difference(node, nodes, values, {}, None)
                base = self._base(step.node)
                self.live[step.node] = (base + change).to(base.dtype)
            elif step.whole or node.kind.by_difference:
                self.live[step.node] = node.kind.whole(node, values)
            else:
                reads = {i: self.where(w) for i, w in step.reads.items()}
                out = self.where(self.windows[step.node])
                self.live[step.node] = node.kind.windows(node, values, reads, out)
            self._free(step)

    def _is_whole(self, step: Step) -> bool:
        """Whether all maps that a step reads are here whole."""
        return all(w.size == self.nodes[i].extent for i, w in step.reads.items())

    def frontier(self, nodes: Sequence[int]) -> dict[int, Tensor]:
        """The values that the head starts from; maps are put together whole."""
        return {
            i: self._windows(i, self.wholes[i], 0.0) if i in self.wholes else self.live[i]
            for i in nodes
        }

    def differences(self) -> Tensor:
        """Carry the differences at the boundary through the linear tail: (batch, outputs) in
        fp64.
        """
        sweep, nodes = self.sweep, self.nodes
        for i in sweep.tail.boundary:
            self.live[i] = _minus(self.live[i], self._base(i))
        for step in self.steps:
            if step.node not in sweep.tail.nodes:
                continue
            node = nodes[step.node]
            values = {i: self._difference(i, step) for i in node.inputs}
            reads = {i: self.where(w) for i, w in step.reads.items()}
            out = None if step.whole else self.where(self.windows[step.node])
            self.live[step.node] = node.kind.difference(node, nodes, values, reads, out)
            self._free(step)
        output = nodes[sweep.graph.output]
        result: Tensor = self.live[output.index].double()
        if output.spatial:
            result = self._in_whole_maps(result, output)
        return result.reshape(len(self.image), -1)

    def _in_whole_maps(self, changed: Tensor, node: Node) -> Tensor:
        """Differences of whole maps from those of the windows: zero elsewhere."""
        here = self.where(self.windows[node.index])
        if here.size == node.extent:
            return changed
        return self._among_zeros(changed, node, here, Where(here.at * 0, node.extent))

    def _among_zeros(self, changed: Tensor, node: Node, here: Where, there: Where) -> Tensor:
        """The windows `there` of a map that is zero outside the windows `here`."""
        zeros = changed.new_zeros(1).expand(1, *node.shape)
        first, at = torch.zeros_like(self.image), (0,) * len(node.extent)
        return ops.splice(zeros, first, at, node.extent, changed, here.at, there.at, there.size)

    def _free(self, step: Step) -> None:
        for i in step.free:
            del self.live[i]

    def _value(self, i: int, step: Step, outside: float) -> Any:
        """Input `i` of a step: windows spliced from base and batch where the step reads more than
        was computed.
        """
        if i in self.sweep.fixed:
            return self.sweep.fixed[i]
        if is_aside(self.nodes[i]):
            return self._aside(i, step, outside)
        return self._windows(i, step.reads[i], outside) if i in step.reads else self.live[i]

    def _aside(self, i: int, step: Step, outside: float) -> Tensor:
        """What no occlusion changes of input `i`."""
        if i in step.reads:
            tile, there = self.sweep.maps.read(i), self.where(step.reads[i])
            data = tile.data
            if data.is_floating_point():
                return splice_base(tile, self.image, there, outside)
            # Masks and labels: fp64 holds them all.
            windows = splice_base(replace(tile, data=data.double()), self.image, there, outside)
            return windows.to(data.dtype)
        value: Tensor = self.sweep.maps.value(i)[self.image]
        return value

    def _windows(self, i: int, window: Window, outside: float) -> Tensor:
        if window == self.windows[i]:
            as_it_stands: Tensor = self.live[i]
            return as_it_stands
        here, there = self.where(self.windows[i]), self.where(window)
        tile = self.sweep.maps.read(i)
        return ops.splice(
            tile.data,
            self.image,
            tile.at,
            tile.extent,
            self.live[i],
            here.at,
            there.at,
            there.size,
            outside,
        )

    def _difference(self, i: int, step: Step) -> Any:
        """Input `i` of a step of the tail: nothing has changed outside the windows that were
        computed.
        """
        if i in self.sweep.doubles:
            return self.sweep.doubles[i]
        if is_aside(self.nodes[i]):
            return self._aside(i, step, 0.0).double()
        changed = self.live[i]
        if not isinstance(changed, Tensor) or self.nodes[step.node].kind.by_difference:
            return changed
        changed = changed.double()
        if i not in step.reads or step.reads[i] == self.windows[i]:
            return changed
        here, there = self.where(self.windows[i]), self.where(step.reads[i])
        return self._among_zeros(changed, self.nodes[i], here, there)

    def _base(self, i: int) -> Tensor:
        """The unoccluded value of node `i` in the windows that are computed."""
        if not self.nodes[i].spatial:
            value: Tensor = self.sweep.maps.value(i)[self.image]
            return value
        return splice_base(self.sweep.maps.read(i), self.image, self.where(self.windows[i]))

    def occlude(self, occluded: int) -> None:
        """Put the baseline in each position's box. Rows from `occluded` on are null occlusions:
        nothing is changed.
        """
        self.sweep.maps.prepare(self.boxes)
        graph = self.sweep.graph
        where = self.where(self.windows[graph.input])
        grid, position = self.sweep.plan.grid, torch.from_numpy(self.position)
        inside = grid.covers(position, where, graph.nodes[graph.input].shape[0])
        inside[occluded:] = False
        boxes = grid.boxes[position].to(self.device)
        content = self.sweep.content.windows(self.image, boxes, where)
        self.live[graph.input] = torch.where(inside, content, self._base(graph.input))

    def boxes(self) -> dict[int, Box]:
        """What this batch reads of each map, as one box."""
        boxes: dict[int, Box] = {}

        def need(i: int, window: Window) -> None:
            at = self.coordinates[window.entry]
            low, high = at.min(0), at.max(0) + window.size
            box = tuple((int(a), int(b)) for a, b in zip(low, high, strict=True))
            boxes[i] = hull(boxes[i], box) if i in boxes else box

        sweep, windows = self.sweep, self.windows
        for i in (sweep.graph.input, *sweep.tail.boundary):
            if i in windows:
                need(i, windows[i])
        for i, window in self.wholes.items():
            if window != windows[i]:
                need(i, window)
        for step in self.steps:
            by_difference = self.nodes[step.node].kind.by_difference
            tail = step.node in sweep.tail.nodes
            for i, window in step.reads.items():
                aside = is_aside(self.nodes[i])
                if aside or (not tail and (by_difference or window != windows[i])):
                    need(i, window)
            if tail:
                continue
            if by_difference and step.node in windows:
                need(step.node, windows[step.node])
        return boxes


def _minus(value: Tensor, base: Tensor) -> Tensor:
    """What has changed, in fp32 at least: the subtraction of two neighbours rounds that little."""
    base = base.to(torch.promote_types(value.dtype, torch.float32))
    return torch.sub(value, base, out=base)
