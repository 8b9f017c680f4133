"""The judge itself, checked against captum and by hand."""

from __future__ import annotations

import itertools

import pytest
import torch

from nets import NETS, Shape
from oracle import grid, occluded, oracle
from random_graphs import seeded_case

captum_attr = pytest.importorskip("captum.attr")


@pytest.mark.parametrize(
    ("size", "window", "stride"),
    [((33, 25), (8, 8), (8, 8)), ((33, 25), (7, 5), (4, 3)), ((24, 40), (24, 9), (1, 9))],
)
def test_oracle_matches_captum(
    size: tuple[int, int], window: tuple[int, int], stride: tuple[int, int]
) -> None:
    """Position by position, and as captum's map: the mean over covering boxes of the drops."""
    case = NETS["densenet"]
    shape: Shape = (3, *size)
    model = case.build(shape).double()
    images = case.images(shape, count=2, seed=5).double()
    boxes = grid(size, window, stride, "clip")
    base, drops = oracle(model, images, boxes, baseline=0.25)
    assert drops.abs().max() > 1e-3

    seen: list[torch.Tensor] = []

    def record(x: torch.Tensor) -> torch.Tensor:
        seen.append(model(x).detach())
        return seen[-1]

    theirs = captum_attr.Occlusion(record).attribute(
        images,
        sliding_window_shapes=(3, *window),
        strides=(3, *stride),
        baselines=0.25,
        target=1,
        perturbations_per_eval=1,
    )
    torch.testing.assert_close(base, seen[0], rtol=0, atol=1e-12)
    # Captum walks the first axis fastest.
    steps = [len(grid((n,), (w,), (s,))) for n, w, s in zip(size, window, stride, strict=True)]
    per_box = (seen[0] - torch.stack(seen[1:])).reshape(steps[1], steps[0], *base.shape)
    per_box = per_box.transpose(0, 1).flatten(0, 1).transpose(0, 1)
    torch.testing.assert_close(drops, per_box, rtol=0, atol=1e-12)

    total = torch.zeros(2, *size, dtype=torch.float64)
    count = torch.zeros(size, dtype=torch.float64)
    for position, (top, left, bottom, right) in enumerate(boxes.tolist()):
        total[:, top:bottom, left:right] += drops[:, position, 1, None, None]
        count[top:bottom, left:right] += 1
    ours = (total / count).float()[:, None].expand_as(theirs)  # captum's map is fp32
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-7)


def test_oracle_of_a_weighted_sum_is_the_box_sum() -> None:
    """For f(x) = sum(w * x) the drop is the box sum of w * (x - baseline)."""

    class WeightedSum(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            generator = torch.Generator().manual_seed(0)
            self.weight = torch.nn.Parameter(torch.randn(2, 9, 7, generator=generator))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x * self.weight).sum((1, 2, 3))[:, None]

    model = WeightedSum()
    images = NETS["linear"].images((2, 9, 7), count=3)
    baseline = images.mean((2, 3), keepdim=True)
    boxes = grid((9, 7), (4, 3), (2, 3), "overhang")
    _, drops = oracle(model, images, boxes, baseline)
    moved = (model.weight * (images - baseline)).detach().double()
    for image, (position, box) in itertools.product(range(3), enumerate(boxes.tolist())):
        top, left, bottom, right = box
        expected = moved[image, :, top:bottom, left:right].sum()
        assert abs(drops[image, position, 0] - expected) < 1e-5


def test_occluded_leaves_the_image_alone_and_fills_only_the_box() -> None:
    image = NETS["linear"].images((3, 6, 5))[0]
    before = image.clone()
    result = occluded(image, (1, 2, 4, 5), 7.0)
    assert torch.equal(image, before)
    inside = torch.zeros(6, 5, dtype=torch.bool)
    inside[1:4, 2:5] = True
    assert (result[:, inside] == 7.0).all()
    assert torch.equal(result[:, ~inside], image[:, ~inside])


def test_grid_by_hand() -> None:
    def spans(edge: str, n: int, w: int, s: int) -> list[tuple[int, ...]]:
        return [tuple(row) for row in grid((n,), (w,), (s,), edge).tolist()]

    assert spans("clip", 10, 4, 4) == [(0, 4), (4, 8), (8, 10)]
    assert spans("inside", 10, 4, 4) == [(0, 4), (4, 8), (6, 10)]
    assert spans("drop", 10, 4, 4) == [(0, 4), (4, 8)]
    assert spans("overhang", 10, 4, 4) == [(0, 2), (2, 6), (6, 10)]
    assert spans("overhang", 9, 3, 4) == [(0, 2), (3, 6), (7, 9)]
    assert spans("clip", 10, 10, 3) == [(0, 10)]
    # A stride larger than the window: the last box may lie outside, and is empty.
    assert spans("clip", 10, 2, 5) == [(0, 2), (5, 7), (10, 10)]
    assert spans("clip", 9, 2, 5) == [(0, 2), (5, 7), (9, 9)]
    assert spans("drop", 10, 2, 5) == [(0, 2), (5, 7)]
    assert grid((5, 7), (2, 3), (3, 4)).tolist() == [
        [0, 0, 2, 3],
        [0, 4, 2, 7],
        [3, 0, 5, 3],
        [3, 4, 5, 7],
    ]


def test_random_graphs_are_healthy() -> None:
    """What the generator draws runs, is finite, and moves its scores in almost every case."""
    still = []
    for seed in range(60):
        case = seeded_case(seed)
        base, drops = oracle(case.model, case.images, case.boxes, case.baseline)
        assert base.isfinite().all()
        assert drops.isfinite().all()
        if drops.abs().max() < 1e-3 * base.abs().max():
            still.append(seed)
    assert len(still) <= 2
