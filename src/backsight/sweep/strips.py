"""One pass over a map, strip by strip along its first axis."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..graph import Graph
from ..maps import Box, TiledMaps, cells, hull, node_bytes
from .budget import Budget

__all__ = ["Band", "Step", "bands"]

#: Rows, half-open.
Rows = tuple[int, int]

#: Rows of the image in a strip at most, and those beside which reading the weights again costs as
#: much as computing.
_THICK, _THIN = 128, 8


@dataclass(frozen=True)
class Step:
    """What is computed between two strips of the target.

    Attributes:
        box: the strip.
        new: of each map, the rows to compute, in the order in which that can be done.
        keeps: of each map, from which row on it is kept when its last reader, or it itself, has
            been computed; None where all of it can go.
        last: of each map, which of `new` reads it last; itself where none does.
    """

    box: Box
    new: dict[int, Box]
    keeps: dict[int, int | None]
    last: dict[int, int]


class Band:
    """How to compute a band of a map, all its rows and some of its columns, in strips. Every map in
    front of it is computed row after row: a row that is computed stays until nothing reads it any
    more, so that none is computed twice.

    Args:
        maps: of the graph.
        target: the map.
        columns: of the band along the axes behind the first.
        rows: of the target in a strip.
    """

    def __init__(self, maps: TiledMaps, target: int, columns: Box, rows: int) -> None:
        self.maps, self.target, self.rows = maps, target, rows
        self.graph: Graph = maps.graph
        node = self.graph.nodes[target]
        self.box: Box = ((0, node.extent[0]), *columns)
        needed, _ = maps.needed({target: self.box})
        self.whole = {i: box for i, box in needed.items() if box is not None}
        #: No maps: computed once.
        self.flat = [i for i in sorted(needed) if needed[i] is None]
        self.order = [
            i
            for i in sorted(self.whole)
            if i == self.graph.input or not maps.is_given(self.graph.nodes[i])
        ]
        self._readers: dict[int, list[int]] = {i: [] for i in self.order}
        for c in self.order:
            for i in maps.reads(self.graph.nodes[c], self.whole[c]):
                if i in self._readers:
                    self._readers[i].append(c)

    def flops(self) -> int:
        """Operations of the whole band."""
        nodes = self.graph.nodes
        return sum(nodes[i].kind.flops(nodes[i], nodes) * cells(self.whole[i]) for i in self.order)

    def peak(self) -> int:
        """The most bytes that maps take: the first strips have the most to compute."""
        nodes = self.graph.nodes
        held: dict[int, Box] = {}
        peak = 0
        for step in itertools.islice(self.steps(), 3):
            for i, box in step.new.items():
                # What was kept stays beside what is new until both have been read.
                held[i] = hull(held[i], box) if i in held else box
                beside = self.maps.beside(nodes[i], box, step.new)
                peak = max(peak, sum(node_bytes(nodes[j], b) for j, b in held.items()) + beside)
                for j in (j for j, last in step.last.items() if last == i):
                    keep = step.keeps[j]
                    if keep is None:
                        held.pop(j, None)
                    else:
                        held[j] = ((keep, held[j][0][1]), *held[j][1:])
        return peak

    def steps(self) -> Iterator[Step]:
        """Strip after strip."""
        held: dict[int, Rows] = {}
        for start in range(0, self.box[0][1], self.rows):
            strip = start, min(start + self.rows, self.box[0][1])
            yield self._step(strip, held)

    def _step(self, strip: Rows, held: dict[int, Rows]) -> Step:
        """What one strip needs beside what is held, which is brought up to date."""
        nodes = self.graph.nodes
        need: dict[int, Rows] = {self.target: strip}
        new: dict[int, Box] = {}
        last: dict[int, int] = {}
        for i in reversed(self.order):
            if i not in need:
                continue
            start, stop = need[i]
            low, high = held.get(i, (start, start))
            if low <= start <= high:
                start = high
            else:  # it was let go: read in no order, or across rows that nobody reads
                low = start
            if start >= stop:
                continue
            held[i] = low, stop
            new[i] = ((start, stop), *self.whole[i][1:])
            last.setdefault(i, i)
            for j, box in self.maps.reads(nodes[i], new[i]).items():
                if j in self._readers and box is not None:
                    need[j] = _joined(need[j], box[0]) if j in need else box[0]
                    last.setdefault(j, i)
        keeps: dict[int, int | None] = {}
        for i in sorted(last):
            keep = self._keep(i, held)
            keeps[i] = keep
            if keep is None:
                held[i] = held[i][1], held[i][1]
            else:
                held[i] = keep, held[i][1]
        return Step(
            (strip, *self.box[1:]),
            {i: new[i] for i in sorted(new)},
            keeps,
            last,
        )

    def _keep(self, i: int, held: dict[int, Rows]) -> int | None:
        """The first row of a map that its readers still need; None if they need none of it."""
        first: int | None = None
        for c in self._readers[i]:
            done = held[c][1] if c in held else self.whole[c][0][0]
            if done >= self.whole[c][0][1]:
                continue
            box = ((done, done + 1), *self.whole[c][1:])
            read = self.maps.reads(self.graph.nodes[c], box)[i]
            assert read is not None
            first = read[0][0] if first is None else min(first, read[0][0])
        low, high = held[i]
        return None if first is None or first >= high else max(first, low)


def _joined(a: Rows, b: Rows) -> Rows:
    return min(a[0], b[0]), max(a[1], b[1])


def bands(maps: TiledMaps, target: int, budget: Budget) -> list[Band]:
    """The bands that cover a map, for the least work among those whose maps fit the room.

    Raises:
        TooLittle: one row of the narrowest does not.
    """
    graph = maps.graph
    node, size = graph.nodes[target], graph.nodes[graph.input].extent
    scale = size[0] / node.extent[0]
    best: tuple[float, list[Band]] = 0.0, []
    for parts in _partitions(node.extent[1:]):
        columns = list(itertools.product(*(_pieces(n, k) for n, k in parts)))
        rows = 1 << max(1, int(_THICK / scale)).bit_length() - 1
        middle = Band(maps, target, columns[len(columns) // 2], rows)
        while (least := middle.peak()) > budget.maps and rows > 1:
            rows //= 2
            middle = Band(maps, target, middle.box[1:], rows)
        if least > budget.maps:
            continue
        # Thin strips read all weights for a few cells.
        cost = middle.flops() * len(columns) * (1 + _THIN / (rows * scale))
        if best[1] and cost >= best[0]:
            break
        best = cost, [Band(maps, target, each, rows) for each in columns]
    if not best[1]:
        budget.check_maps(least, f"a row of {node.label}, with what it is computed from,")
    return best[1]


def _partitions(extent: Sequence[int]) -> Iterator[list[tuple[int, int]]]:
    """Axes with the number of pieces of each, one piece first, then twice as many each time."""
    counts = [1] * len(extent)
    while True:
        yield list(zip(extent, counts, strict=True))
        longest = [n / k for n, k in zip(extent, counts, strict=True)]
        if not longest or max(longest) <= 1:
            return
        axis = longest.index(max(longest))
        counts[axis] = min(2 * counts[axis], extent[axis])


def _pieces(n: int, count: int) -> list[tuple[int, int]]:
    """Intervals that cover an axis, as even as can be."""
    return list(itertools.pairwise(n * k // count for k in range(count + 1)))
