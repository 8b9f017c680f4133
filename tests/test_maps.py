"""Whole maps and tiles are two providers of the same values."""

from __future__ import annotations

import pytest
import torch

from backsight.graph import capture, fold_batch_norms
from backsight.maps import Box, TiledMaps, WholeMaps, cut
from nets import NETS

CPU = torch.device("cpu")
NAMES = [name for name, case in NETS.items() if case.capture]


@pytest.mark.parametrize("name", NAMES)
def test_tiles_are_parts_of_whole_maps(name: str) -> None:
    case = NETS[name]
    shape = case.shapes[0]
    graph = fold_batch_norms(capture(case.build().double(), shape, torch.float64, CPU))
    images = case.images(count=2).double()
    maps = [n.index for n in graph.nodes if n.spatial]
    with torch.no_grad():
        whole, tiled = WholeMaps(graph, images, maps), TiledMaps(graph, images, maps)
        for share in ((0.0, 0.3), (0.4, 0.7), (0.8, 1.2), (-0.3, 1.3)):
            boxes: dict[int, Box] = {
                i: tuple(
                    (int(share[0] * n), max(int(share[1] * n), int(share[0] * n) + 1))
                    for n in graph.nodes[i].extent
                )
                for i in maps
            }
            tiled.prepare(lambda boxes=boxes: boxes)
            for i, box in boxes.items():
                extent = graph.nodes[i].extent
                inside = tuple(
                    (max(s, 0), min(e, n)) for (s, e), n in zip(box, extent, strict=True)
                )
                a, b = cut(whole.read(i), inside).data, cut(tiled.read(i), inside).data
                assert a.numel()
                assert (a - b).abs().max() <= 1e-12 * whole.read(i).data.abs().max()
        a, b = whole.value(graph.output), tiled.value(graph.output)
        assert (a - b).abs().max() <= 1e-12 * a.abs().max()


def test_a_tile_holds_only_what_was_asked_for() -> None:
    case = NETS["vgg16_gap"]
    graph = capture(case.build(), case.shapes[0], torch.float32, CPU)
    first = next(n for n in graph.nodes if n.kind.name == "conv")
    maps = TiledMaps(graph, case.images(), [first.index])
    with torch.no_grad():
        maps.prepare(lambda: {first.index: ((20, 30), (5, 9))})
    tile = maps.read(first.index)
    assert tile.at == (20, 5)
    assert tuple(tile.data.shape[2:]) == (10, 4)
    assert tile.extent == first.extent


def test_a_box_in_the_padding_alone() -> None:
    """The outermost cells of a padded 1 x 1 convolution read no cell of the map."""
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Conv2d(4, 4, 1, padding=2)
    )
    graph = capture(model, (3, 9, 8), torch.float32, CPU)
    images = torch.randn(1, 3, 9, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole, tiled = (kind(graph, images, [graph.output]) for kind in (WholeMaps, TiledMaps))
        for box in (((0, 1), (0, 2)), ((12, 13), (3, 5)), ((0, 2), (10, 12))):
            tiled.prepare(lambda box=box: {graph.output: box})
            a, b = cut(whole.read(graph.output), box).data, cut(tiled.read(graph.output), box).data
            assert a.abs().max() > 0
            assert torch.allclose(a, b, atol=1e-6)


def test_whole_maps_do_not_depend_on_the_batch() -> None:
    case = NETS["resnet18"]
    graph = capture(case.build(), case.shapes[0], torch.float32, CPU)
    images = case.images(count=3)
    with torch.no_grad():
        together = WholeMaps(graph, images, [graph.output])
        alone = WholeMaps(graph, images[1:2], [graph.output])
    assert torch.equal(together.value(graph.output)[1:2], alone.value(graph.output))
