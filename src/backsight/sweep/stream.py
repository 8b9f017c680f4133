"""Activations of an image that is larger than the memory: read region by region."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from math import prod

import numpy as np
import torch
from torch import Tensor

from ..graph import Graph, Node
from ..maps import (
    Box,
    Strip,
    Tile,
    TiledMaps,
    cells,
    clip,
    cut,
    node_bytes,
    place,
    splice_base,
    whole,
)
from .ahead import Ahead, Reader
from .allocator import Ceiling
from .budget import Budget
from .strips import Band, Step, bands

__all__ = ["StreamedMaps"]

#: More bytes than this are computed again rather than kept in a file.
_CARRIED = 64 << 20


class StreamedMaps(TiledMaps):
    """Maps of one image of which only regions are ever in memory.

    A region is computed when it is held, with the halo that the layers below need, and serves all
    batches until the next one is. What reads a map as a whole (a global pool, a head) is
    accumulated over regions beforehand, in fp64, and kept.

    Args:
        graph: of the model, captured for the size of the image.
        read: reads a region.
        like: any tensor of the device and dtype of the images.
        budget: of which the maps of a region may take their share on the way.
        ceiling: is told before memory is taken.
    """

    def __init__(
        self, graph: Graph, read: Reader, like: Tensor, budget: Budget, ceiling: Ceiling
    ) -> None:
        nodes = graph.nodes
        # It has the image's shape and no memory.
        super().__init__(graph, like.new_zeros(()).expand(1, *nodes[graph.input].shape), ())
        self.source = Ahead(read)
        self.budget = budget
        self.ceiling = ceiling
        #: Called with the number of the image's pixels of each region that was passed.
        self.passed: Callable[[int], None] = lambda pixels: None
        #: The region of the image that will be read after the next one, where that is known.
        self.following: Box | None = None

    def hold(self, boxes: Mapping[int, Box], following: Mapping[int, Box] | None = None) -> None:
        """Compute the regions of maps that will be read from now on, and drop the others.

        Args:
            following: what will be held after that.
        """
        self.tiles = {}
        if following is not None:
            needed, _ = self.needed(self._clipped(following))
            self.following = needed.get(self.graph.input)
        self.tiles = self._run(self._clipped(boxes))

    def close(self) -> None:
        """Let go of the regions that are held, and of the thread that reads."""
        self.tiles = {}
        self.following = None
        self.source.close()

    def _clipped(self, boxes: Mapping[int, Box]) -> dict[int, Box | None]:
        return {i: clip(box, self.graph.nodes[i].extent) for i, box in boxes.items()}

    def prepare(self, boxes: Callable[[], Mapping[int, Box]]) -> None:
        """Nothing to do: what a batch reads is held."""

    def value(self, node: int) -> object:
        """The whole value of a node; of one that is no map, or a map that `gather` has kept."""
        self.gather(node)
        if node in self.given:
            return self.given[node]
        return super().value(node)

    def once_gathered(self, boxes: Mapping[int, Box]) -> tuple[int, int]:
        """The most bytes that regions of maps take once the output has been gathered, and the
        operations that they take.
        """
        gathered = self._gathered(self.graph.output)
        with self._as_if(gathered):
            wanted = self._clipped({i: box for i, box in boxes.items() if i not in gathered})
            return self.peak(wanted), self.flops(wanted)

    def first_pass(self) -> tuple[int, int]:
        """The operations of gathering what the output depends on, and the most bytes.

        Raises:
            TooLittle: it does not fit.
        """
        nodes, flops, peak = self.graph.nodes, 0, 0
        gathered = self._gathered(self.graph.output)
        for n, index in enumerate(gathered):
            node = nodes[index]
            if node.kind.by_difference:
                (index,) = (i for i in node.inputs if nodes[i].spatial)
            elif node.kind.local:
                self._check_whole(node)
            else:
                continue
            with self._as_if(gathered[:n]):
                if not self.is_given(nodes[index]):
                    cover = bands(self, index, self.budget)
                    flops += sum(band.flops() for band in cover)
                    peak = max(peak, cover[0].peak())
        return flops, peak

    @contextmanager
    def _as_if(self, gathered: Sequence[int]) -> Iterator[None]:
        """While this lasts, as if these nodes had been gathered."""
        nodes, now = self.graph.nodes, (self.given, self.flat)
        nothing = self.images.new_zeros(())
        missing = [i for i in gathered if i not in self.given and i not in self.flat]
        self.given = self.given | {i: nothing for i in missing if nodes[i].spatial}
        self.flat = self.flat | {i: nothing for i in missing if not nodes[i].spatial}
        try:
            yield
        finally:
            self.given, self.flat = now

    def carried(self) -> bytes | None:
        """What has been gathered for the output, to be taken up by another process; None where that
        is too much to keep.
        """
        if self._carried_bytes > _CARRIED:
            return None
        values = (self.given if n.spatial else self.flat for n in self._carries)
        parts = [v[n.index].contiguous() for v, n in zip(values, self._carries, strict=True)]
        return b"".join(p.cpu().flatten().view(torch.uint8).numpy().tobytes() for p in parts)

    def carry(self, data: bytes) -> bool:
        """Take up what `carried` gave; whether it was of these maps."""
        if len(data) != self._carried_bytes:
            return False
        at = 0
        for node in self._carries:
            size = node_bytes(node, None)
            part = torch.frombuffer(bytearray(data[at : at + size]), dtype=node.dtype)
            self._keep(node, part.reshape(1, *node.shape).to(self.images.device))
            at += size
        return True

    @cached_property
    def _carries(self) -> list[Node]:
        return [self.graph.nodes[i] for i in self._gathered(self.graph.output)]

    @cached_property
    def _carried_bytes(self) -> int:
        return sum(node_bytes(node, None) for node in self._carries)

    def gather(self, target: int) -> None:
        """Accumulate what reads maps as a whole among all that `target` depends on, one after the
        other.

        Raises:
            TooLittle: a map would have to be held as a whole that does not fit.
        """
        for index in self._gathered(target):
            if index in self.given or index in self.flat:
                continue
            node = self.graph.nodes[index]
            if node.kind.by_difference:
                self._keep(node, self._accumulated(node))
            elif node.kind.local:
                self._keep(node, self._assembled(node))
            else:
                self._keep(node, self._run({index: whole(node)})[index].data)

    def _gathered(self, target: int) -> list[int]:
        """The nodes in front of `target`, or it itself, that sum up a map; the maps that a node
        without windows reads as a whole; and what such nodes make of them, where that is a map. In
        the order in which they can be computed.
        """
        nodes, found, seen = self.graph.nodes, set(), {target}
        stack = [target]
        while stack:
            node = nodes[stack.pop()]
            if node.kind.by_difference:
                found.add(node.index)
            elif not node.kind.local and node.index != self.graph.input:
                found.update(i for i in node.inputs if nodes[i].spatial and nodes[i].varies)
                if node.spatial and node.varies:
                    found.add(node.index)
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
        """The sum of a map, or its mean, strip by strip."""
        (source,) = (i for i in node.inputs if self.graph.nodes[i].spatial)
        total: Tensor | None = None
        for tile in self.strips(source, bands(self, source, self.budget)):
            part = node.kind.difference(node, self.graph.nodes, {source: tile.data}, {}, None)
            total = part if total is None else total + part
        assert total is not None
        return total.to(node.dtype)

    def _assembled(self, node: Node) -> Tensor:
        """A whole map, strip by strip."""
        self._check_whole(node)
        found: Tensor | None = None
        for tile in self.strips(node.index, bands(self, node.index, self.budget)):
            if found is None:
                found = tile.data.new_empty((1, *node.shape))
            cut(Tile(found, (0,) * len(node.extent), node.extent), _box(tile)).data.copy_(tile.data)
        assert found is not None
        return found

    def _check_whole(self, node: Node) -> None:
        """Refuse a map that is read as a whole and does not fit."""
        nodes = self.graph.nodes
        readers = [n.label for n in nodes if node.index in n.inputs and not n.kind.local]
        self.budget.check_maps(
            node_bytes(node, None), f"the map of {node.label}, which {readers[0]} reads as a whole,"
        )

    def strips(self, target: int, cover: Sequence[Band]) -> Iterator[Tile]:
        """A map by the bands that cover it, each of its cells in one of the tiles."""
        node, size = self.graph.nodes[target], self.graph.nodes[self.graph.input].extent
        for band in cover:
            for i in band.flat:
                self._run({i: None})
            kept: dict[int, Tile] = {}
            for step, following in _with_next(band.steps()):
                if following is not None and self.graph.input in following.new:
                    self.following = following.new[self.graph.input]
                yield self._strip(target, step, kept)
                self.passed(round(prod(size) * cells(step.box) / prod(node.extent)))

    def _strip(self, target: int, step: Step, kept: dict[int, Tile]) -> Tile:
        """One strip; `kept` are rows of those before, and then those for the next."""
        tiles: dict[int, Tile | Strip] = {**kept}
        found: Tile | None = None
        for i, box in step.new.items():
            node = self.graph.nodes[i]
            self.make_room(node, box)
            if i == self.graph.input:
                data = self._image(box)
            else:
                data = self._window(node, box, self._with(node, tiles))
            new, before = Tile(data, tuple(s for s, _ in box), node.extent), kept.get(i)
            follows = before is not None and _box(before)[0][1] == box[0][0]
            tiles[i] = Strip(before, new) if before is not None and follows else new
            if i == target:
                found = new
            for j in (j for j, last in step.last.items() if last == i):
                tile, keep = tiles.pop(j), step.keeps[j]
                kept.pop(j, None)
                if keep is not None:
                    kept[j] = self._from(tile, keep)
        assert found is not None
        return found

    def _with(self, node: Node, tiles: dict[int, Tile | Strip]) -> dict[int, Tile | Strip]:
        """What a node reads: tiles, and what is there as a whole."""
        found = {}
        for i in node.inputs:
            source = self.graph.nodes[i]
            if i in tiles:
                found[i] = tiles[i]
            elif source.spatial:
                data = self.given.get(i, source.value)
                found[i] = Tile(data, (0,) * len(source.extent), source.extent)
        return found

    def _from(self, tile: Tile | Strip, row: int) -> Tile:
        """The rows of a tile from one on, in memory of their own."""
        new = tile.new if isinstance(tile, Strip) else tile
        box = ((row, _box(new)[0][1]), *_box(new)[1:])
        if box == _box(new):
            return new
        size = tuple(stop - start for start, stop in box)
        at = np.array([[s for s, _ in box]])
        data = splice_base(tile, self.index, place(at, size, self.images.device))
        return Tile(data, tuple(s for s, _ in box), new.extent)

    # ------------------------------------------------------------- of what TiledMaps does

    def reads(self, node: Node, box: Box | None) -> dict[int, Box | None]:
        return {} if self.is_given(node) else super().reads(node, box)

    def _map(self, node: Node, box: Box, tiles: Mapping[int, Tile]) -> Tensor:
        if node.index == self.graph.input:
            return self._image(box)
        return super()._map(node, box, tiles)

    def beside(self, node: Node, box: Box | None, held: Mapping[int, Box | None]) -> int:
        reading = 0
        if self.graph.input in held:  # the one after it is of about its size
            reading = self._reading(held[self.graph.input])
        return super().beside(node, box, held) + reading

    def make_room(self, node: Node, box: Box | None) -> None:
        self.take(node_bytes(node, box) + self.beside(node, box, {}))

    def take(self, size: int) -> None:
        """So many bytes are about to be taken."""
        self.ceiling.make_room(size + self._reading(self.source.pending))

    def _reading(self, box: Box | None) -> int:
        """The bytes that a region of the image takes while it is read: as it lies in the file, as
        it is read, and as the network takes it.
        """
        return 0 if box is None else 3 * node_bytes(self.graph.nodes[self.graph.input], box)

    def _image(self, box: Box) -> Tensor:
        """A region of the image; the one after it is read from now on."""
        found = self.source(box)
        if self.following is not None:
            self.source.announce(self.following)
            self.following = None
        return found


def _box(tile: Tile) -> Box:
    """The cells that a tile holds."""
    return tuple((at, at + n) for at, n in zip(tile.at, tile.data.shape[2:], strict=True))


def _with_next(steps: Iterator[Step]) -> Iterator[tuple[Step, Step | None]]:
    """Each step with the one after it."""
    now, later = itertools.tee(steps)
    next(later, None)
    return itertools.zip_longest(now, later)
