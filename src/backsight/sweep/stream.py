"""Activations of an image that is larger than the memory: read region by region."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import ceil, prod

from torch import Tensor

from ..graph import Graph, Node
from ..maps import Box, Tile, TiledMaps, clip
from .plan import told_bytes

__all__ = ["Reader", "StreamedMaps", "partition"]

#: Reads a region of the image: (1, channels, *box), as the network takes it.
Reader = Callable[[Box], Tensor]


class StreamedMaps(TiledMaps):
    """Maps of one image of which only regions are ever in memory.

    A region is computed when it is held, with the halo that the layers below need, and serves all
    batches until the next one is. What reads a map as a whole (a global pool, a head) is
    accumulated over regions beforehand, in fp64, and kept.

    Args:
        graph: of the model, captured for the size of the image.
        read: reads a region.
        like: any tensor of the device and dtype of the images.
        room: bytes that the maps of a region may take on the way.
    """

    def __init__(self, graph: Graph, read: Reader, like: Tensor, room: int) -> None:
        nodes = graph.nodes
        # It has the image's shape and no memory.
        super().__init__(graph, like.new_zeros(()).expand(1, *nodes[graph.input].shape), ())
        self.source = read
        self.room = room
        #: Called with the number of the image's pixels of each region that was passed.
        self.passed: Callable[[int], None] = lambda pixels: None

    def hold(self, boxes: Mapping[int, Box]) -> None:
        """Compute the regions of maps that will be read from now on, and drop the others."""
        self.tiles = {}
        self.tiles = self._run(
            {i: clip(box, self.graph.nodes[i].extent) for i, box in boxes.items()}
        )

    def prepare(self, boxes: Callable[[], Mapping[int, Box]]) -> None:
        """Nothing to do: what a batch reads is held."""

    def value(self, node: int) -> object:
        """The whole value of a node; of one that is no map, or a map that `gather` has kept."""
        self.gather(node)
        if node in self.given:
            return self.given[node]
        return super().value(node)

    def once_gathered(self, boxes: Mapping[int, Box]) -> int:
        """The most bytes that regions of maps take once the output has been gathered."""
        nodes, now = self.graph.nodes, (self.given, self.flat)
        kept = [i for i in self._gathered(self.graph.output) if i not in self.given]
        nothing = self.images.new_zeros(())
        self.given = self.given | {i: nothing for i in kept if nodes[i].spatial}
        self.flat = self.flat | {i: nothing for i in kept if not nodes[i].spatial}
        try:
            return self.peak(
                {i: clip(b, nodes[i].extent) for i, b in boxes.items() if i not in kept}
            )
        finally:
            self.given, self.flat = now

    def gather(self, target: int) -> None:
        """Accumulate what reads maps as a whole among all that `target` depends on, one after the
        other.

        Raises:
            ValueError: a map would have to be held as a whole that does not fit.
        """
        for index in self._gathered(target):
            if index in self.given or index in self.flat:
                continue
            node = self.graph.nodes[index]
            if node.kind.by_difference:
                self._keep(node, self._accumulated(node))
            else:
                self._keep(node, self._assembled(node))

    def _gathered(self, target: int) -> list[int]:
        """The nodes in front of `target`, or it itself, that sum up a map, and the maps that are
        read as a whole by a node without windows; in the order in which they can be computed.
        """
        nodes, found, seen = self.graph.nodes, set(), {target}
        stack = [target]
        while stack:
            node = nodes[stack.pop()]
            if node.kind.by_difference:
                found.add(node.index)
            elif not node.kind.local:
                found.update(i for i in node.inputs if nodes[i].spatial and nodes[i].varies)
            for i in node.inputs:
                if i not in seen:
                    seen.add(i)
                    stack.append(i)
        return sorted(found - {self.graph.input})

    def _keep(self, node: Node, value: Tensor) -> None:
        if node.spatial:
            self.given[node.index] = value
        else:
            self.flat[node.index] = value

    def _accumulated(self, node: Node) -> Tensor:
        """The sum of a map, or its mean, region by region."""
        (source,) = (i for i in node.inputs if self.graph.nodes[i].spatial)
        total: Tensor | None = None
        for box in self._regions(source):
            tile = self._run({source: box})[source]
            part = node.kind.difference(node, self.graph.nodes, {source: tile.data}, {}, None)
            total = part if total is None else total + part
        assert total is not None
        return total.to(node.dtype)

    def _assembled(self, node: Node) -> Tensor:
        """A whole map, region by region."""
        size = prod(node.shape) * node.dtype.itemsize
        if size > self.room:
            raise ValueError(
                f"expected a model that reads no large map as a whole, got {node.label}, which"
                f" takes {told_bytes(size)}: half of the memory, {told_bytes(self.room)},"
                " is for maps"
            )
        found: Tensor | None = None
        for box in self._regions(node.index):
            tile = self._run({node.index: box})[node.index].data
            if found is None:
                found = tile.new_empty((1, *node.shape))
            part = found
            for axis, (start, stop) in enumerate(box):
                part = part.narrow(2 + axis, start, stop - start)
            part.copy_(tile)
        assert found is not None
        return found

    def _regions(self, index: int) -> Iterator[Box]:
        """Disjoint boxes of a map that fit the room."""
        node, size = self.graph.nodes[index], self.graph.nodes[self.graph.input].extent
        for box in partition(node.extent, self._side(index)):
            yield box
            self.passed(round(prod(size) * prod(e - s for s, e in box) / prod(node.extent)))

    def _side(self, index: int) -> int:
        """The side of the largest regions of a map that fit the room, a power of two."""
        extent = self.graph.nodes[index].extent
        side = 1
        while side < max(extent):
            middle = tuple(
                (max(0, n // 2 - side), min(n, max(0, n // 2 - side) + 2 * side)) for n in extent
            )
            if self.peak({index: middle}) > self.room:
                break
            side *= 2
        return side

    # ------------------------------------------------------------- of what TiledMaps does

    def _reads(self, node: Node, box: Box | None) -> dict[int, Box | None]:
        return {} if self._is_given(node) else super()._reads(node, box)

    def _map(self, node: Node, box: Box, tiles: Mapping[int, Tile]) -> Tensor:
        if node.index == self.graph.input:
            return self.source(box)
        return super()._map(node, box, tiles)


def partition(extent: Sequence[int], side: int) -> Iterator[Box]:
    """Boxes of `side` cells along each axis that cover a map, as even as can be."""
    axes = []
    for n in extent:
        count = ceil(n / side)
        edges = [n * k // count for k in range(count + 1)]
        axes.append(list(itertools.pairwise(edges)))
    return itertools.product(*axes)
