"""Which window of each map a unit's signal lies in on its way back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..geometry import AxisRule, Identity, Sliding
from ..graph import Graph, Node, receptive_fields
from ..graph.fields import Cells


@dataclass(frozen=True)
class Windows:
    """Windows of one size in a map, one for each unit: `at` (units, D) int64 is where each
    begins, also outside the map.
    """

    at: Cells
    size: tuple[int, ...]

    def part(self, rows: slice) -> Windows:
        return Windows(np.ascontiguousarray(self.at[rows]), self.size)

    def is_inside(self, extent: tuple[int, ...]) -> bool:
        return bool((self.at >= 0).all() and (self.at + self.size <= extent).all())

    def is_whole(self, extent: tuple[int, ...]) -> bool:
        return self.size == extent and not self.at.any()


def whole(units: int, extent: tuple[int, ...]) -> Windows:
    return Windows(np.zeros((units, len(extent)), np.int64), extent)


class Route:
    """The windows of each map that the signals of a graph's output reach.

    All units' windows of a map have one size, so that they share a batch. Along an axis where that
    is not smaller than the map it is the map's; elsewhere a window may overhang, because then what
    a layer reads lies at the same place in all of them. The image's windows lie inside it.

    Args:
        graph: whose output is a map.
        passed: for some nodes, the only input that signals go to.
    """

    def __init__(self, graph: Graph, passed: Mapping[int, int]) -> None:
        nodes, extent = graph.nodes, graph.nodes[graph.output].extent
        # Axes are independent of each other: a unit's coordinate along each picks its row there.
        each = np.arange(max(extent))[:, None]
        at = np.minimum(each, np.array(extent) - 1)
        self._start: dict[int, Cells] = {}
        self._size: dict[int, tuple[int, ...]] = {}
        for i, (start, stop) in receptive_fields(graph, at, at + 1, passed, clip=False).items():
            limit = np.array(nodes[i].extent)
            size = (stop - start).max(0, initial=1)
            slides = all(isinstance(r, Sliding | Identity) for r in _rules(nodes[i]))
            if not nodes[i].kind.local and i != graph.input:
                size = limit
            elif not slides or i == graph.input:
                # A user cuts pictures out of images, and other rules know the map's cells alone.
                size = np.minimum(size, limit)
                start = np.clip(start, 0, limit - size)
            large = size >= limit
            self._start[i] = np.where(large, 0, start)
            self._size[i] = tuple(map(int, np.where(large, limit, size)))
        start, stop = receptive_fields(graph, at, at + 1, passed, clip=True)[graph.input]
        self._field = start, np.maximum(start, stop)

    def windows(self, at: Cells) -> dict[int, Windows]:
        """Those of the cells `at` (units, D) of the output, by node."""
        return {i: Windows(_picked(s, at), self._size[i]) for i, s in self._start.items()}

    def boxes(self, at: Cells) -> Cells:
        """Their receptive fields in the image: (units, 2·D), half-open, starts then ends."""
        return np.concatenate([_picked(edge, at) for edge in self._field], 1)


def _rules(node: Node) -> list[AxisRule]:
    return [rule for rules in node.rules if rules is not None for rule in rules]


def _picked(table: Cells, at: Cells) -> Cells:
    return np.stack([table[at[:, d], d] for d in range(table.shape[1])], 1)
