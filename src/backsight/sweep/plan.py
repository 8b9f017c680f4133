"""What a sweep will do, before it does it: windows, groups, batches, work and memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from math import ceil, prod
from typing import Any

import numpy as np
import torch

from ..geometry import Whole
from ..graph import Graph, Node, is_aside, is_fixed, projective_fields, window_reads
from ..graph.fields import Cells
from ..graph.kinds import Barrier
from .grid import Grid
from .groups import Cost, group
from .tail import Tail, head_of, linear_tail

#: Null occlusions per sweep at least; more ride along wherever a batch has room.
NULLS = 4


@dataclass(frozen=True)
class Machine:
    """Rough rates that decide how positions are grouped. Constants, so that a plan does not change
    from run to run.

    A batch has at most `rows` rows, and fewer where they would hold more than `cache` bytes.
    """

    flops: float
    bandwidth: float
    launch: float
    rows: int
    cache: int = 1 << 40

    @classmethod
    def of(cls, device: torch.device, dtype: torch.dtype) -> Machine:
        if device.type == "cpu":
            scale = 0.5 if dtype == torch.float64 else 1.0
            threads = torch.get_num_threads()
            return cls(60e9 * scale * threads, 8e9, 12e-6, 64, 64 << 20)
        return cls(30e12 if dtype != torch.float64 else 20e12, 2e12, 8e-6, 1024)


@dataclass(frozen=True)
class Window:
    """Windows of one size; `entry` of the group's coordinates holds their global origins."""

    entry: int
    size: tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """One node of one group.

    `reads` says which windows of each input map it needs; an input of the same window is taken as
    it stands in the batch. `whole`: all inputs are whole, and the original operation runs. `free`:
    values that nobody reads later.
    """

    node: int
    whole: bool
    reads: dict[int, Window]
    free: tuple[int, ...]


@dataclass(frozen=True)
class Group:
    """Positions that run in batches of one shape.

    `coordinates` is (entries, positions, D): the global origins that the windows refer to.
    `windows` holds, for each map, the windows that are computed; `whole`, for each map that the
    head reads, the whole of it.
    """

    positions: Cells
    windows: dict[int, Window]
    whole: dict[int, Window]
    steps: tuple[Step, ...]
    coordinates: Cells
    batch: int
    batches: int
    flops: int
    item_bytes: int


@dataclass(frozen=True)
class Head:
    """What follows the last map: the same for every position, in batches of its own."""

    nodes: frozenset[int]
    frontier: tuple[int, ...]
    steps: tuple[Step, ...]
    batch: int
    item_bytes: int


@dataclass(frozen=True)
class Plan:
    """What a sweep does. `str(plan)` is a table; `as_dict()` is plain data.

    Attributes:
        windows: whether windows are used; if not, `reason` says why the model runs whole for every
            position.
        positions, images: how many there are.
        outputs: how many drops are kept per position.
        flops, plain_flops: floating-point operations per image of this plan and of plain occlusion.
        base_bytes: activations of the unoccluded images that windows read.
        batch_bytes: the largest batch's working memory; within `memory`.
        pass_bytes: what the pass over an unoccluded image takes at its peak beside `base_bytes`.
        weight_bytes: weights with batch norms folded in, in the memory layout of the sweep.
        barriers: the operations that need whole maps, by name.
    """

    grid: Grid
    images: int
    shape: tuple[int, ...]
    outputs: int
    dtype: torch.dtype
    device: torch.device
    memory: int
    reason: str | None = None
    graph: Graph | None = field(default=None, repr=False)
    tail: Tail | None = field(default=None, repr=False)
    groups: tuple[Group, ...] = field(default=(), repr=False)
    head: Head | None = field(default=None, repr=False)
    keep: tuple[int, ...] = field(default=(), repr=False)
    flops: int = 0
    plain_flops: int = 0
    base_bytes: int = 0
    batch_bytes: int = 0
    pass_bytes: int = 0
    weight_bytes: int = 0
    batch: int = 0
    chunk: int = 1
    barriers: tuple[str, ...] = ()

    @property
    def windows(self) -> bool:
        return self.graph is not None

    @property
    def positions(self) -> int:
        return len(self.grid.boxes)

    @property
    def flop_ratio(self) -> float:
        """Operations of plain occlusion over operations of this plan."""
        return self.plain_flops / self.flops if self.flops else 1.0

    @property
    def score_bytes(self) -> int:
        """The result: drops, and the largest output at each position."""
        itemsize = 8 if self.dtype == torch.float64 else 4
        return self.images * self.positions * (self.outputs * itemsize + 8)

    @property
    def peak_bytes(self) -> int:
        """At most this much memory beyond the model and the images: what the batches leave of
        `memory` may hold weights packed for them.
        """
        work = max(self.pass_bytes, self.memory if self.windows else self.batch_bytes)
        return self.weight_bytes + self.base_bytes + work + self.score_bytes

    @cached_property
    def seconds(self) -> float:
        """Estimated time for all images, from a convolution timed on this device."""
        from .rate import flop_rate

        if not self.windows:
            return float("nan")
        batches = sum(g.batches * len(g.steps) for g in self.groups)
        launch = Machine.of(self.device, self.dtype).launch
        return self.flops * self.images / flop_rate(self.device, self.dtype) + batches * launch

    def as_dict(self) -> dict[str, Any]:
        """The plan as plain data (numbers, strings, lists)."""
        return {
            "method": "windows" if self.windows else "plain",
            "reason": self.reason,
            "images": self.images,
            "positions": self.positions,
            "grid": None if self.grid.shape is None else list(self.grid.shape),
            "image_shape": list(self.shape),
            "outputs": self.outputs,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "flops": self.flops,
            "plain_flops": self.plain_flops,
            "flop_ratio": self.flop_ratio,
            "groups": len(self.groups),
            "batches": sum(g.batches for g in self.groups),
            "largest_batch": max((g.batch for g in self.groups), default=self.batch),
            "memory": self.memory,
            "batch_bytes": self.batch_bytes,
            "base_bytes": self.base_bytes,
            "pass_bytes": self.pass_bytes,
            "weight_bytes": self.weight_bytes,
            "peak_bytes": self.peak_bytes,
            "score_bytes": self.score_bytes,
            "seconds": None if not self.windows else self.seconds,
            "barriers": list(self.barriers),
        }

    def __str__(self) -> str:
        data = self.as_dict()
        rows = [
            ("images", f"{self.images} x {tuple(self.shape)} {data['dtype']} on {data['device']}"),
            (
                "positions",
                f"{self.positions}"
                + (f" ({' x '.join(map(str, self.grid.shape))})" if self.grid.shape else ""),
            ),
            ("outputs", f"{self.outputs}"),
            ("method", "exact windows" if self.windows else f"plain occlusion: {self.reason}"),
        ]
        if self.windows:
            rows += [
                (
                    "work per image",
                    f"{self.flops / 1e9:.2f} GFLOP, plain {self.plain_flops / 1e9:.2f} GFLOP",
                ),
                ("FLOP ratio", f"{self.flop_ratio:.1f}"),
                (
                    "batches",
                    f"{data['batches']} of at most {data['largest_batch']} positions,"
                    f" {len(self.groups)} shapes",
                ),
                ("estimated time", f"{self.seconds:.2f} s"),
                ("weights laid out", told_bytes(self.weight_bytes)),
                (
                    "base activations",
                    f"{told_bytes(self.base_bytes)}, and {told_bytes(self.pass_bytes)} on the way",
                ),
            ]
        rows += [
            (
                "batch memory",
                f"{told_bytes(self.batch_bytes)} of {told_bytes(self.memory)}",
            ),
            ("scores", told_bytes(self.score_bytes)),
            ("peak beyond the model", f"at most {told_bytes(self.peak_bytes)}"),
            ("barriers", ", ".join(self.barriers) or "none"),
        ]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def told_bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def plan_plain(
    grid: Grid,
    images: int,
    shape: tuple[int, ...],
    outputs: int,
    dtype: torch.dtype,
    device: torch.device,
    memory: int,
    reason: str,
) -> Plan:
    """A plan that runs the model whole on occluded copies."""
    copy = prod(shape) * dtype.itemsize
    # A network's activations take some tens of times the image; without a graph nothing better is
    # known.
    batch = max(1, min(len(grid.boxes), 32, memory // (copy * 64)))
    return Plan(
        grid,
        images,
        shape,
        outputs,
        dtype,
        device,
        memory,
        reason,
        batch=batch,
        batch_bytes=batch * copy * 64,
    )


def plan_windows(
    graph: Graph,
    grid: Grid,
    images: int,
    outputs: int,
    dtype: torch.dtype,
    device: torch.device,
    memory: int,
) -> Plan:
    """A plan that runs windows of the captured `graph` and keeps so many `outputs`."""
    nodes = graph.nodes
    axes = graph.axes
    tail = linear_tail(graph)
    boxes = grid.boxes.numpy()
    fields = {
        i: _computed(nodes[i], s, e)
        for i, (s, e) in projective_fields(graph, boxes[:, :axes], boxes[:, axes:]).items()
    }
    maps = sorted(fields)
    sizes = np.stack([fields[i][1] - fields[i][0] for i in maps], 1)
    machine = Machine.of(device, dtype)
    head, frontier = head_of(graph, tail)
    label, windows = group(sizes, _cost(graph, maps, machine, head))
    groups = []
    # Small sweeps of many images share their batches; larger ones run image by image.
    chunk = min(images, ceil(machine.rows / len(boxes)))
    counts = np.bincount(label, minlength=len(windows))
    largest = int(counts.argmax())
    for g in range(len(windows)):
        positions = np.flatnonzero(label == g)
        window = {i: tuple(map(int, windows[g, k])) for k, i in enumerate(maps)}
        items = len(positions) * chunk + (NULLS if g == largest else 0)
        groups.append(
            _group(graph, tail, head, frontier, fields, positions, window, items, memory, machine)
        )
    last_part = (
        _head(graph, tail, head, frontier, len(boxes) * chunk + NULLS, memory, machine)
        if head
        else None
    )
    keep = {graph.input, *tail.boundary}
    keep.update(i for n in nodes if n.varies for i in n.inputs if is_aside(nodes[i]))
    for g_ in groups:
        keep.update(i for i, window_ in g_.whole.items() if window_ != g_.windows.get(i))
        for step in g_.steps:
            if step.node in tail.nodes:
                continue
            keep.update(i for i, window_ in step.reads.items() if window_ != g_.windows.get(i))
            if nodes[step.node].kind.by_difference:
                keep.update((step.node, *step.reads))
    return Plan(
        grid,
        images,
        nodes[graph.input].shape,
        outputs,
        dtype,
        device,
        memory,
        graph=graph,
        tail=tail,
        groups=tuple(groups),
        head=last_part,
        keep=tuple(sorted(keep)),
        flops=sum(g.flops * len(g.positions) for g in groups) + graph_flops(graph),
        plain_flops=graph_flops(graph) * len(boxes),
        base_bytes=chunk * sum(prod(nodes[i].shape) * dtype.itemsize for i in keep),
        batch_bytes=max(g.item_bytes * g.batch for g in groups)
        + (last_part.item_bytes * last_part.batch if last_part else 0),
        pass_bytes=_pass_bytes(graph, keep, dtype),
        weight_bytes=weight_bytes(graph),
        chunk=chunk,
        barriers=_barriers(graph, tail, head),
    )


def _computed(node: Node, start: Cells, stop: Cells) -> tuple[Cells, Cells]:
    """What is computed of a map: what changes, but the whole map where there is no window rule, and
    at least one cell.

    Computing an unchanged cell does no harm, and so every batch has one shape.
    """
    if not node.kind.local and node.kind.name != "input":
        return np.zeros_like(start), np.zeros_like(stop) + np.array(node.extent)
    start = np.minimum(start, np.array(node.extent) - 1)
    return start, np.maximum(stop, start + 1)


def _pass_bytes(graph: Graph, keep: set[int], dtype: torch.dtype) -> int:
    """The most that one image's pass holds of maps that are not kept."""
    live: dict[int, int] = {}
    peak = 0
    drop = graph.last_use(tuple(keep))
    for node in graph.nodes:
        if not is_fixed(node) and node.index not in keep:
            live[node.index] = prod(node.shape) * dtype.itemsize
        peak = max(peak, sum(live.values()))
        for i in drop[node.index]:
            live.pop(i, None)
    return peak


def weight_bytes(graph: Graph) -> int:
    return sum(n.value.nbytes for n in graph.nodes if n.own and isinstance(n.value, torch.Tensor))


def _barriers(graph: Graph, tail: Tail, head: frozenset[int]) -> tuple[str, ...]:
    """The operations where windows end. A head of fully connected layers is none: it ends the
    network.
    """
    connected = all(not isinstance(graph.nodes[h].kind, Barrier) for h in head)
    skip = head if connected else frozenset()
    return tuple(
        n.label for n in graph.nodes if n.index not in skip and _is_barrier(n, graph, tail)
    )


def _is_barrier(node: Node, graph: Graph, tail: Tail) -> bool:
    """Whether a map that could have been read in windows is read, or made, whole here."""
    nodes = graph.nodes
    if not node.varies or node.index in tail.nodes or node.kind.by_difference:
        return False
    if node.kind.local:  # a join with something that has changed as a whole
        return any(
            isinstance(rule, Whole) and rule.size_out > 1
            for rules in node.rules
            for rule in rules or ()
        )
    return any(
        nodes[i].varies and nodes[i].spatial and prod(nodes[i].extent) > 1 for i in node.inputs
    )


def graph_flops(graph: Graph, window: dict[int, tuple[int, ...]] | None = None) -> int:
    """Operations for one sample: of whole maps, or of a position's windows."""
    return sum(
        n.kind.flops(n, graph.nodes) * prod((window or {}).get(n.index, n.extent))
        for n in graph.nodes
        if window is None or n.varies
    )


def _cost(graph: Graph, maps: list[int], machine: Machine, head: frozenset[int]) -> Cost:
    nodes = graph.nodes
    per_cell, per_batch = [], 0.0
    for i in maps:
        node = nodes[i]
        channels = node.shape[0]
        itemsize = node.dtype.itemsize
        # Each cell is written once and read back about once.
        per_cell.append(
            node.kind.flops(node, nodes) / machine.flops
            + 2 * channels * itemsize / machine.bandwidth
        )
    for node in nodes:
        if not is_fixed(node) and node.index not in head:
            weights = sum(
                nodes[j].value.numel() * nodes[j].value.element_size()
                for j in node.inputs
                if nodes[j].kind.name == "constant" and isinstance(nodes[j].value, torch.Tensor)
            )
            per_batch += 2 * machine.launch + weights / machine.bandwidth
    return Cost(np.array(per_cell), per_batch, machine.rows)


def _group(
    graph: Graph,
    tail: Tail,
    head: frozenset[int],
    frontier: tuple[int, ...],
    fields: dict[int, tuple[Cells, Cells]],
    positions: Cells,
    window: dict[int, tuple[int, ...]],
    items: int,
    memory: int,
    machine: Machine,
) -> Group:
    nodes = graph.nodes
    axes = graph.axes
    coordinates: list[Cells] = []

    def place(at: Cells, size: tuple[int, ...]) -> Window:
        coordinates.append(at)
        return Window(len(coordinates) - 1, size)

    origin = {
        i: np.clip(fields[i][0][positions], 0, np.array(nodes[i].extent) - window[i])
        for i in window
    }
    windows = {i: place(origin[i], window[i]) for i in window}
    last: dict[int, int] = {i: n.index for n in nodes for i in n.inputs} | dict.fromkeys(
        tail.boundary, len(nodes)
    )
    steps: list[Step] = []
    for node in nodes:
        if not node.varies or node.index == graph.input or node.index in head:
            continue
        whole = not node.spatial or window[node.index] == node.extent
        needs = {} if whole else window_reads(node, origin[node.index], window[node.index])
        reads: dict[int, Window] = {}
        maps = [i for i in node.inputs if nodes[i].spatial]
        for i in maps:
            if node.kind.by_difference:
                # What it reads beside the changed map, it reads in the same windows.
                (reads[i],) = (windows[j] for j in maps if j in windows)
                continue
            at, size = needs.get(i, (np.zeros((len(positions), axes), np.int64), nodes[i].extent))
            same = i in windows and size == window[i] and np.array_equal(at, origin[i])
            reads[i] = windows[i] if same else place(at, size)
        free = tuple(i for i in node.inputs if last[i] == node.index and nodes[i].varies)
        steps.append(Step(node.index, whole, reads, free))
    wholes = {
        i: windows[i]
        if window[i] == nodes[i].extent
        else place(np.zeros_like(origin[i]), nodes[i].extent)
        for i in frontier
        if i in windows
    }
    item = _item_bytes(graph, tail, steps, window)
    # Half of the memory is left to the head, where there is one.
    room = min(machine.cache, memory // (2 if head else 1))
    most = max(1, min(machine.rows, room // max(item, 1)))
    batches = ceil(items / most)
    return Group(
        positions,
        windows,
        wholes,
        tuple(steps),
        np.stack(coordinates),
        ceil(items / batches),
        batches,
        graph_flops(graph, window),
        item,
    )


def _head(
    graph: Graph,
    tail: Tail,
    head: frozenset[int],
    frontier: tuple[int, ...],
    items: int,
    memory: int,
    machine: Machine,
) -> Head:
    nodes = graph.nodes
    last = {i: n.index for n in nodes for i in n.inputs} | dict.fromkeys(tail.boundary, len(nodes))
    steps = tuple(
        Step(
            h,
            True,
            {},
            tuple(i for i in nodes[h].inputs if last[i] == h and nodes[i].varies),
        )
        for h in sorted(head)
    )
    # Frontier values are held while they are collected, and once more as the batch they are put
    # into.
    item = 2 * sum(prod(nodes[i].shape) * nodes[i].dtype.itemsize for i in frontier)
    item += sum(prod(nodes[h].shape) * 8 for h in head)
    most = max(1, min(4 * machine.rows, memory // (2 * item)))
    return Head(head, frontier, steps, ceil(items / ceil(items / most)), item)


def _item_bytes(
    graph: Graph, tail: Tail, steps: list[Step], window: dict[int, tuple[int, ...]]
) -> int:
    """Peak memory of one position of a batch: what is live at each step, and the windows it
    reads.
    """
    nodes = graph.nodes

    def size(i: int, cells: tuple[int, ...] | None = None) -> int:
        node = nodes[i]
        itemsize = 8 if i in tail.nodes else node.dtype.itemsize
        if not node.spatial:
            return prod(node.shape) * itemsize
        return node.shape[0] * prod(window[i] if cells is None else cells) * itemsize

    live = {graph.input: size(graph.input)}
    peak = live[graph.input]
    for step in steps:
        spliced = sum(size(i, r.size) for i, r in step.reads.items() if r.size != window.get(i))
        live[step.node] = size(step.node)
        peak = max(peak, sum(live.values()) + spliced)
        for i in step.free:
            live.pop(i, None)
    # At the boundary a window, its base and their fp64 difference stand side by side.
    return max(
        peak, sum(size(i) + 2 * 8 * size(i) // nodes[i].dtype.itemsize for i in tail.boundary)
    )
