"""Maps strip by strip against whole maps: each row once, whatever the strips and bands."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from backsight.graph import Graph, capture, fold_batch_norms
from backsight.maps import Box, WholeMaps, cut
from backsight.sweep.allocator import Ceiling
from backsight.sweep.budget import Budget, TooLittle
from backsight.sweep.stream import StreamedMaps
from backsight.sweep.strips import Band, bands
from nets import NETS, random_images

CPU = torch.device("cpu")
NAMES = [name for name, case in NETS.items() if case.capture]
MUCH = Budget(1 << 40)


def streamed(graph: Graph, image: Tensor, reads: list[Box] | None = None) -> StreamedMaps:
    """Maps of one image (1, channels, *spatial), which is read by boxes."""

    def read(box: Box) -> Tensor:
        if reads is not None:
            reads.append(box)
        return image[(..., *(slice(s, e) for s, e in box))].clone()

    return StreamedMaps(graph, read, image, MUCH, Ceiling(1 << 40))


def check(graph: Graph, image: Tensor, target: int, rows: int, pieces: int) -> None:
    """The strips of a map are parts of it, and cover it."""
    node = graph.nodes[target]
    expected = WholeMaps(graph, image, [target]).read(target)
    maps = streamed(graph, image)
    maps.gather(target)
    edges = [[n * k // pieces for k in range(pieces + 1)] for n in node.extent[1:]]
    columns = itertools.product(*(itertools.pairwise(sorted({*axis})) for axis in edges))
    cover = [Band(maps, target, tuple(each), rows) for each in columns]
    seen = torch.zeros(node.extent)
    for tile in maps.strips(target, cover):
        box = tuple((a, a + n) for a, n in zip(tile.at, tile.data.shape[2:], strict=True))
        part = cut(expected, box).data
        assert (tile.data - part).abs().max() <= 1e-12 * expected.data.abs().max()
        seen[tuple(slice(*interval) for interval in box)] += 1
    assert bool((seen == 1).all())


@pytest.mark.parametrize("name", NAMES)
def test_strips_are_parts_of_whole_maps(name: str) -> None:
    case = NETS[name]
    graph = fold_batch_norms(capture(case.build().double(), case.shapes[0], torch.float64, CPU))
    image = case.images(count=1).double()
    with torch.no_grad():
        last = [
            n.index
            for n in graph.nodes
            if n.spatial and n.varies and n.kind.local and n.extent[0] > 1
        ]
        assert last
        for target, (rows, pieces) in zip(
            (last[-1], last[-1], last[len(last) // 2]), ((1, 1), (3, 2), (2, 1)), strict=True
        ):
            check(graph, image, target, rows, pieces)


class Backwards(nn.Module):
    """Rows in reverse order, beside themselves."""

    def forward(self, x: Tensor) -> Tensor:
        return (x + 2 * x.flip(2)).relu()


def test_rows_that_are_read_backwards() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), Backwards(), nn.Conv2d(4, 4, 3))
    graph = capture(model.double(), (3, 23, 11), torch.float64, CPU)
    image = random_images((3, 23, 11), 1).double()
    with torch.no_grad():
        for rows in (1, 4, 30):
            check(graph, image, graph.output, rows, 1)


def test_every_row_is_computed_once() -> None:
    case = NETS["resnet18"]
    graph = capture(case.build(), (3, 300, 40), torch.float32, CPU)
    last = max(n.index for n in graph.nodes if n.spatial and n.varies and n.extent[0] > 1)
    reads: list[Box] = []
    image = random_images((3, 300, 40), 1)
    maps = streamed(graph, image, reads)
    (band,) = [Band(maps, last, ((0, graph.nodes[last].extent[1]),), 1)]
    rows: Counter[tuple[int, int]] = Counter()
    for step in band.steps():
        for i, box in step.new.items():
            rows.update((i, row) for row in range(*box[0]))
    assert len(rows) > 300
    assert set(rows.values()) == {1}
    with torch.no_grad():
        assert len(list(maps.strips(last, [band]))) == graph.nodes[last].extent[0]
    assert sum(stop - start for (start, stop), _ in reads) <= 300
    assert len(reads) > 3


def test_bands_fit_the_memory_or_are_refused_with_what_would_do() -> None:
    case = NETS["vgg16_gap"]
    graph = capture(case.build(), (3, 256, 512), torch.float32, CPU)
    last = max(n.index for n in graph.nodes if n.spatial and n.varies and n.extent[0] > 1)
    maps = streamed(graph, random_images((3, 256, 512), 1))
    (whole,) = bands(maps, last, MUCH)
    thinner = bands(maps, last, Budget(whole.peak()))
    assert thinner[0].rows < whole.rows
    width = graph.nodes[last].extent[1]
    half = Band(maps, last, ((width // 2, width),), 1).peak()
    assert half < Band(maps, last, ((0, width),), 1).peak()
    room = Budget(half * 3 // 2)
    narrow = bands(maps, last, room)
    assert len(narrow) > 1
    assert all(band.peak() <= room.maps for band in narrow)
    with pytest.raises(TooLittle, match=r"a row of .* may take 3 quarters") as refused:
        bands(maps, last, Budget(1000))
    assert bands(maps, last, Budget(refused.value.needed))
