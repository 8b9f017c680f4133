"""Receptive and projective fields through the whole graph, branches included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ..geometry import Field, Interval, hull
from .node import Graph, Node

Cells = npt.NDArray[np.int64]


def projective_fields(graph: Graph, start: Cells, stop: Cells) -> dict[int, tuple[Cells, Cells]]:
    """For each map of the graph, the cells that change when the image changes in the boxes [start,
    stop).

    Args:
        start, stop: (boxes, D) int64, image coordinates, half-open.

    Returns:
        {node index: (start, stop)}, each (boxes, D) int64; stop <= start where nothing changes.
    """
    fields = {graph.input: (start, stop)}
    for node in graph.nodes:
        if not node.spatial or node.index == graph.input:
            continue
        parts: list[Sequence[Interval]] = []
        for i, rules in zip(node.inputs, node.rules, strict=True):
            if rules is not None and i in fields:
                s, e = fields[i]
                parts.append([rule.forward(s[:, d], e[:, d]) for d, rule in enumerate(rules)])
            elif rules is None and graph.nodes[i].varies:
                # A value that is no map has changed as a whole, and so has what is made from it.
                parts.append(
                    [(np.zeros(len(start), np.int64), np.full(len(start), n)) for n in node.extent]
                )
        if parts:
            axes = [hull([part[d] for part in parts]) for d in range(graph.axes)]
            fields[node.index] = (
                np.stack([np.asarray(s) for s, _ in axes], 1),
                np.stack([np.asarray(e) for _, e in axes], 1),
            )
    return fields


def window_reads(
    node: Node, at: Cells, size: Sequence[int]
) -> dict[int, tuple[Cells, tuple[int, ...]]]:
    """What windows of `node` read of each input map: {input: (origins (windows, D), size)}, padding
    included.
    """
    reads = {}
    for i, rules in zip(node.inputs, node.rules, strict=True):
        if rules is not None:
            origins = [rule.origin(at[:, d], size[d]) for d, rule in enumerate(rules)]
            reads[i] = (np.stack(origins, 1), tuple(map(lambda r, n: r.span(n), rules, size)))
    return reads


def is_fixed(node: Node) -> bool:
    """Whether the node's value is the same for every image."""
    return node.kind.name in ("constant", "size") and not node.spatial


def is_aside(node: Node) -> bool:
    """Whether the node's value comes with the image, or is a map, but no occlusion changes it."""
    return not (node.varies or is_fixed(node))


def receptive_fields(
    graph: Graph, start: Cells, stop: Cells, passed: Mapping[int, int] | None = None, *, clip: bool
) -> dict[int, tuple[Cells, Cells]]:
    """For each map in front of a graph's output, the cells that the output's cells in the boxes
    [start, stop) depend on.

    Args:
        start, stop: (boxes, D) int64, coordinates of the output, half-open; not used where it is no
            map and so depends on whole maps.
        passed: for some nodes, the only input through which to go on.
        clip: leave out what lies beyond a map's edge, and all that only this depends on.

    Returns:
        {node index: (start, stop)}, each (boxes, D) int64; stop <= start where there are none.
    """
    nodes, passed = graph.nodes, passed or {}
    found: dict[int, tuple[Cells, Cells]] = {}
    reached = {graph.output}
    if nodes[graph.output].spatial:
        found[graph.output] = start, stop
    for node in reversed(nodes):
        if node.index not in reached:
            continue
        if clip and node.index in found:
            s, e = found[node.index]
            found[node.index] = np.clip(s, 0, node.extent), np.clip(e, 0, node.extent)
        for i, rules in zip(node.inputs, node.rules or (None,) * len(node.inputs), strict=True):
            if not nodes[i].varies or passed.get(node.index, i) != i:
                continue
            reached.add(i)
            if not nodes[i].spatial:
                continue
            if node.index in found and rules is not None and node.kind.local:
                s, e = found[node.index]
                axes = [rule.backward(s[:, d], e[:, d]) for d, rule in enumerate(rules)]
                # What nothing reads of depends on nothing.
                here = [np.where(e[:, d] > s[:, d], b, a) for d, (a, b) in enumerate(axes)]
                axes = [(a, b) for (a, _), b in zip(axes, here, strict=True)]
            else:
                none = np.zeros(len(start), np.int64)
                axes = [(none, none + n) for n in nodes[i].extent]
            if i in found:
                s, e = found[i]
                axes = [hull([(s[:, d], e[:, d]), axis]) for d, axis in enumerate(axes)]
            found[i] = np.stack([a for a, _ in axes], 1), np.stack([b for _, b in axes], 1)
    return found


def receptive_field(graph: Graph, index: int) -> tuple[Field, ...]:
    """The receptive field of the units of map `index`, one Field per spatial axis.

    Computed on an unbounded plane: a unit near the edge sees padding for the part that lies outside
    the image. Araujo et al., "Computing Receptive Fields of Convolutional Neural Networks", Distill
    2019.
    """
    first, second = (_backward(graph, index, unit) for unit in (0, 1))
    return tuple(
        Field(int(stop - start), int(after - start), int(start))
        for (start, stop), (after, _) in zip(first, second, strict=True)
    )


def _backward(graph: Graph, index: int, unit: int) -> list[Interval]:
    """The image interval per axis that unit `unit` (on every axis) of map `index` reads, not
    clipped.
    """
    needed: dict[int, list[Interval]] = {index: [(unit, unit + 1)] * graph.axes}
    for node in reversed(graph.nodes[: index + 1]):
        if node.index not in needed:
            continue
        for i, rules in zip(node.inputs, node.rules, strict=True):
            if rules is None:
                continue
            intervals = [rule.backward(*needed[node.index][d]) for d, rule in enumerate(rules)]
            if i in needed:
                intervals = [hull(pair) for pair in zip(needed[i], intervals, strict=True)]
            needed[i] = intervals
    if graph.input not in needed:
        raise ValueError(
            f"expected a map computed from the image, got {graph.nodes[index].label!r}"
        )
    return needed[graph.input]
