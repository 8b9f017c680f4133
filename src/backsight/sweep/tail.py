"""The end of a model: where differences replace values, and where no windows are left."""

from __future__ import annotations

from dataclasses import dataclass

from ..graph import Graph


@dataclass(frozen=True)
class Tail:
    """The nodes behind the last nonlinear ones, and the nodes they start from.

    From `boundary` on, a sweep carries occluded - unoccluded in fp64 instead of values: one box
    moves the scores of a high-resolution image by less than the rounding of the scores themselves.
    """

    nodes: frozenset[int]
    boundary: tuple[int, ...]


def linear_tail(graph: Graph) -> Tail:
    nodes = graph.nodes
    consumers = graph.consumers()
    tail: set[int] = set()
    for node in reversed(nodes):
        if node.index == graph.input or not node.varies:
            continue
        varying = [nodes[i] for i in node.inputs if nodes[i].varies]
        if not all(i.batched and i.dtype.is_floating_point for i in varying):
            continue  # of what the tail starts from, rows are told apart and subtracted
        last = node.index == graph.output
        if (last or all(c in tail for c in consumers[node.index])) and node.kind.is_linear(
            node, nodes
        ):
            tail.add(node.index)
    boundary = {i for t in tail for i in nodes[t].inputs if i not in tail and nodes[i].varies} or {
        graph.output
    }
    return Tail(frozenset(tail), tuple(sorted(boundary)))


def head_of(graph: Graph, tail: Tail) -> tuple[frozenset[int], tuple[int, ...]]:
    """The nodes behind the last map, and the values they start from.

    They are the same work for every position, whatever its windows, so they run in batches of their
    own. Empty where
    the linear tail starts at a map: differences then need no more than a sum over each window.
    """
    nodes = graph.nodes
    consumers = graph.consumers()
    head: set[int] = set()
    for node in reversed(nodes):
        if node.varies and not node.spatial and all(c in head for c in consumers[node.index]):
            head.add(node.index)
    if not head - tail.nodes or not set(tail.boundary) <= head:
        return frozenset(), ()
    frontier = {i for h in head for i in nodes[h].inputs if i not in head and nodes[i].varies}
    if any(nodes[h].kind.by_difference for h in head) or not all(
        nodes[i].batched for i in frontier
    ):
        return frozenset(), ()
    return frozenset(head), tuple(sorted(frontier))
