"""Where activations live: one way to read them, whole maps or tiles.

A window is read through `Maps.read`, which gives a `Tile`: a tensor with the global coordinates of
its first cell. Whether the tile is the whole map or was computed for the purpose makes no
difference to who reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from . import ops
from .graph import Graph, Node, window_reads
from .graph.fields import Cells
from .graph.kinds import Constant, Where

#: Half-open intervals, one per spatial axis, in global coordinates.
Box = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Tile:
    """A part of a map: data (images, channels, *tile size), the global origin `at`, the whole map's
    size `extent`.
    """

    data: Tensor
    at: tuple[int, ...]
    extent: tuple[int, ...]


@dataclass(frozen=True)
class Strip:
    """A part of a map of one image in two pieces: rows kept of what was computed before, and those
    computed now, which follow them.
    """

    kept: Tile
    new: Tile


class Maps(Protocol):
    """The activations of some unoccluded images."""

    def prepare(self, boxes: Callable[[], Mapping[int, Box]]) -> None:
        """Announce what will be read next: for each node, a box that holds all of it."""

    def read(self, node: int) -> Tile:
        """A tile of map `node` for all images that holds what was announced, as far as that lies
        inside the map.
        """

    def value(self, node: int) -> Any:
        """The whole value of a node: a map, or a value that is no map."""


def clip(box: Box, extent: Sequence[int]) -> Box:
    """The part of `box` inside the map; its nearest cell where that is none (padding alone)."""
    starts = [min(max(s, 0), n - 1) for (s, _), n in zip(box, extent, strict=True)]
    stops = [min(e, n) for (_, e), n in zip(box, extent, strict=True)]
    return tuple((s, max(e, s + 1)) for s, e in zip(starts, stops, strict=True))


class WholeMaps:
    """Keeps the whole maps of the nodes that windows read; everything else is freed at once."""

    def __init__(
        self, graph: Graph, images: Tensor, keep: Sequence[int], sides: Sequence[Tensor] = ()
    ) -> None:
        self.graph = graph
        # One image at a time: what an image's maps hold must not depend on its neighbours in the
        # batch.
        parts = [
            graph.replay(image[None], keep, [side[i : i + 1] for side in sides])
            for i, image in enumerate(images)
        ]
        self.values = {
            i: torch.cat([p[i] for p in parts]) if len(parts) > 1 else parts[0][i]
            for i in {*keep, graph.output} - {graph.input}
        }
        self.values[graph.input] = images

    def prepare(self, boxes: Callable[[], Mapping[int, Box]]) -> None:
        """Nothing to do: all is here."""

    def read(self, node: int) -> Tile:
        return Tile(self.values[node], (0,) * self.graph.axes, self.graph.nodes[node].extent)

    def value(self, node: int) -> Any:
        return self.values[node]


class TiledMaps:
    """Computes tiles when they are announced, each with the halo that the layers below need, and
    keeps nothing else.

    What is no map (the values after a flatten or a global pool) is computed once and kept.
    """

    def __init__(
        self, graph: Graph, images: Tensor, keep: Sequence[int], sides: Sequence[Tensor] = ()
    ) -> None:
        self.graph = graph
        self.images = images
        self.given = dict(zip((graph.input, *graph.sides), (images, *sides), strict=True))
        self.index = torch.arange(len(images), device=images.device)
        self.tiles: dict[int, Tile] = {}
        self.flat: dict[int, Any] = {}

    def prepare(self, boxes: Callable[[], Mapping[int, Box]]) -> None:
        self.tiles = self._run(
            {i: clip(box, self.graph.nodes[i].extent) for i, box in boxes().items()}
        )

    def read(self, node: int) -> Tile:
        return self.tiles[node]

    def value(self, node: int) -> Any:
        if self.graph.nodes[node].spatial:
            return self._run({node: whole(self.graph.nodes[node])})[node].data
        if node not in self.flat:
            self._run({node: None})
        return self.flat[node]

    def needed(
        self, wanted: Mapping[int, Box | None]
    ) -> tuple[dict[int, Box | None], dict[int, int]]:
        """What has to be computed for the wanted boxes (None: the whole value of what is no map),
        by node; and which node reads each for the last time.
        """
        needed = dict(wanted)
        last: dict[int, int] = {}
        for node in reversed(self.graph.nodes):
            if node.index not in needed or node.index in self.flat:
                continue
            if node.spatial and not node.kind.local and not self.is_given(node):
                needed[node.index] = whole(node)
            for i, box in self.reads(node, needed[node.index]).items():
                held = needed.get(i)
                needed[i] = box if box is None or held is None else hull(held, box)
                last.setdefault(i, node.index)
        return needed, last

    def peak(self, wanted: Mapping[int, Box | None]) -> int:
        """The most bytes that maps take while the wanted boxes are computed."""
        needed, last = self.needed(wanted)
        live: dict[int, int] = {}
        peak = 0
        for node in self._computed(needed):
            live[node.index] = node_bytes(node, needed[node.index])
            peak = max(peak, sum(live.values()) + self.beside(node, needed[node.index], needed))
            for i in node.inputs:
                if last.get(i) == node.index and i not in wanted:
                    live.pop(i, None)
        return peak

    def flops(self, wanted: Mapping[int, Box | None]) -> int:
        """The operations that computing the wanted boxes takes."""
        needed, _ = self.needed(wanted)
        nodes = self.graph.nodes
        return sum(
            node.kind.flops(node, nodes) * cells(needed[node.index] or whole(node))
            for node in self._computed(needed)
        )

    def _computed(self, needed: Mapping[int, Box | None]) -> Iterator[Node]:
        """The nodes of those needed that are not there, in order."""
        for node in self.graph.nodes:
            there = node.index in self.flat or isinstance(node.kind, Constant)
            if node.index in needed and not there:
                yield node

    def beside(self, node: Node, box: Box | None, held: Mapping[int, Box | None]) -> int:
        """The bytes that a part of a map takes while it is computed, beside itself and its inputs:
        what it reads once more where that is put together, and what its operation needs.
        """
        if not node.spatial or box is None or self.is_given(node):
            return 0
        found = 0.0
        for i, span in self._spans(node, box).items():
            if node.kind.local:
                read = node_bytes(self.graph.nodes[i], span)
                found += read * ((span != held.get(i)) + node.kind.workspace(node))
        return round(found)

    def make_room(self, node: Node, box: Box | None) -> None:
        """A part of a map, or a value that is no map, is about to be computed."""

    def _run(self, wanted: Mapping[int, Box | None]) -> dict[int, Tile]:
        """Tiles of the wanted boxes, through one pass over the graph; None asks for a value that is
        no map.
        """
        nodes = self.graph.nodes
        needed, last = self.needed(wanted)
        tiles: dict[int, Tile] = {}
        for node in nodes:
            if node.index not in needed or node.index in self.flat:
                continue
            box = needed[node.index]
            self.make_room(node, box)
            if node.spatial:
                assert box is not None
                tiles[node.index] = Tile(
                    self._map(node, box, tiles), tuple(s for s, _ in box), node.extent
                )
            else:
                self.flat[node.index] = self._whole(node, tiles)
            for i in node.inputs:
                if last.get(i) == node.index and i not in wanted:
                    tiles.pop(i, None)
        return tiles

    def reads(self, node: Node, box: Box | None) -> dict[int, Box | None]:
        """What `node` reads to compute `box` (None: its whole value)."""
        reads: dict[int, Box | None] = {}
        for i, rules in zip(node.inputs, node.rules or (None,) * len(node.inputs), strict=True):
            source = self.graph.nodes[i]
            if not source.spatial:
                reads[i] = None
            elif rules is None or box is None or box == whole(node):
                reads[i] = whole(source)
            else:
                reads[i] = clip(self._spans(node, box)[i], source.extent)
        return reads

    def _spans(self, node: Node, box: Box) -> dict[int, Box]:
        """The boxes that a part of a map reads of other maps, padding included."""
        spans = {}
        for i, rules in zip(node.inputs, node.rules, strict=True):
            if rules is not None:
                parts = [
                    (int(rule.origin(start, stop - start)), rule.span(stop - start))
                    for rule, (start, stop) in zip(rules, box, strict=True)
                ]
                spans[i] = tuple((at, at + size) for at, size in parts)
        return spans

    def is_given(self, node: Node) -> bool:
        """Whether the whole value of a map is there."""
        return node.index in self.given or isinstance(node.kind, Constant)

    def _map(self, node: Node, box: Box, tiles: Mapping[int, Tile]) -> Tensor:
        if self.is_given(node):
            data = self.given.get(node.index, node.value)
            data = data.expand(len(self.images), *data.shape[1:])
            return cut(Tile(data, (0,) * len(box), node.extent), box).data
        if box == whole(node):
            result: Tensor = self._whole(node, tiles)
            return result
        return self._window(node, box, tiles)

    def _window(self, node: Node, box: Box, tiles: Mapping[int, Tile | Strip]) -> Tensor:
        """A part of a map from what it reads of its inputs."""
        at = np.tile(np.array([start for start, _ in box]), (len(self.images), 1))
        size = tuple(stop - start for start, stop in box)
        values: dict[int, Any] = {}
        reads = window_reads(node, at, size)
        where = {i: place(*read, self.images.device) for i, read in reads.items()}
        for i in node.inputs:
            if i in reads:
                origin, span = reads[i]
                tile, there = tiles[i], tuple(map(int, origin[0]))
                new = tile.new if isinstance(tile, Strip) else tile
                if (new.at, new.data.shape[2:]) == (there, span):
                    values[i] = new.data
                else:
                    values[i] = splice_base(tile, self.index, where[i], node.kind.outside(node))
            else:
                values[i] = self.flat[i]
        out: Tensor = node.kind.windows(node, values, where, place(at, size, self.images.device))
        return out

    def _whole(self, node: Node, tiles: Mapping[int, Tile]) -> Any:
        if node.index in self.given:
            return self.given[node.index]
        nodes = self.graph.nodes
        return node.kind.whole(
            node, {i: tiles[i].data if nodes[i].spatial else self.flat[i] for i in node.inputs}
        )


def node_bytes(node: Node, box: Box | None) -> int:
    """Of one image's part of a map, or of its value that is no map."""
    size = prod(node.extent) if box is None else cells(box)
    return node.shape[0] * size * node.dtype.itemsize if node.shape else 0


def cells(box: Box) -> int:
    """How many cells a box holds."""
    return prod(stop - start for start, stop in box)


def whole(node: Node) -> Box:
    """The box of a whole map."""
    return tuple((0, n) for n in node.extent)


def hull(a: Box, b: Box) -> Box:
    return tuple((min(p[0], q[0]), max(p[1], q[1])) for p, q in zip(a, b, strict=True))


def cut(tile: Tile, box: Box) -> Tile:
    """The part of a tile that is `box`, without copying."""
    data = tile.data
    for axis, ((start, stop), at) in enumerate(zip(box, tile.at, strict=True)):
        data = data.narrow(2 + axis, start - at, stop - start)
    return Tile(data, tuple(s for s, _ in box), tile.extent)


def splice_base(tile: Tile | Strip, index: Tensor, where: Where, outside: float = 0.0) -> Tensor:
    """Windows of a map as it is, with `outside` beyond its edges."""
    if isinstance(tile, Strip):
        kept, new, at = tile.kept, tile.new.data, where.at.new_tensor([tile.new.at])
    else:
        kept, at = tile, where.at
        new = tile.data.new_empty((len(index), tile.data.shape[1]) + (0,) * len(tile.at))
    return ops.splice(
        kept.data, index, kept.at, kept.extent, new, at, where.at, where.size, outside
    )


def place(at: Cells, size: tuple[int, ...], device: torch.device) -> Where:
    return Where(torch.from_numpy(np.ascontiguousarray(at)).to(device), size)
