"""heatmap against copy bandwidth: scores read and maps written are the bytes that must move."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from backsight import ops
from harness import MEBI, QUICK, Copy, Report, alternate
from oracle import grid

# Outputs, map, window, stride, dtype, and the share of copy bandwidth to reach. A grid of stride 1
# has as many boxes as pixels: adding up its scores, not writing the map, is the work.
CASES = [
    (1000, 512, 32, 16, torch.float32, 0.8),
    (64, 1024, 32, 8, torch.float32, 0.8),
    (1000, 512, 32, 16, torch.bfloat16, 0.8),
    (500, 512, 32, 16, torch.float64, 0.8),
    (1, 8192, 64, 32, torch.float32, 0.8),
    (256, 512, 32, 1, torch.float32, 0.8),
]


def scattered(scores: Tensor, boxes: Tensor, size: tuple[int, int], k: int) -> Tensor:
    """The mean map of one output the plain way: a slice per box."""
    total, count = torch.zeros(size), torch.zeros(size)
    column = scores[:, k].float()
    for n, (top, left, bottom, right) in enumerate(boxes.tolist()):
        total[top:bottom, left:right] += column[n]
        count[top:bottom, left:right] += 1
    return total / count.clamp(min=1)


@pytest.mark.parametrize(("outputs", "side", "window", "stride", "dtype", "target"), CASES)
def test_heatmap(
    outputs: int,
    side: int,
    window: int,
    stride: int,
    dtype: torch.dtype,
    target: float,
    benchmark: Any,
    report: Report,
) -> None:
    size = (side, side)
    boxes = grid(size, (window, window), (stride, stride))
    scores = torch.randn(len(boxes), outputs, generator=torch.Generator().manual_seed(0)).to(dtype)
    out = torch.zeros(outputs, *size, dtype=dtype)
    moved = (scores.numel() + out.numel()) * out.element_size()
    assert moved >= 256 * MEBI
    copy = Copy(moved // 2)
    stats = alternate(
        {
            "ours": lambda: ops.heatmap(scores, boxes, size, "mean", out=out),
            "copy": copy,
        },
        rounds=3 if QUICK else 11,
        benchmark=benchmark,
    )
    if len(boxes) < 20_000:
        expected = scattered(scores, boxes, size, outputs // 2)
        eps = torch.finfo(dtype).eps if dtype != torch.float64 else 1e-6
        torch.testing.assert_close(out[outputs // 2].float(), expected, rtol=eps, atol=1e-5)
    name = f"heatmap {outputs} of {side}², {window}/{stride}, {str(dtype).removeprefix('torch.')}"
    report.bandwidth(name, moved, stats, copy, target)
