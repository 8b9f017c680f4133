"""rectify against copy bandwidth and torch's threshold_backward; whole maps and windows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from backsight import ops
from harness import MEBI, QUICK, Copy, Report, alternate
from test_relu import CASES, TARGET, against_torch


@pytest.mark.parametrize(("memory_format", "shape", "dtype"), CASES)
def test_rectify(
    memory_format: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    benchmark: Any,
    report: Report,
) -> None:
    rng = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(shape, generator=rng).to(dtype) for _ in range(2))
    if memory_format == "channels_last":
        x, grad = (t.contiguous(memory_format=torch.channels_last) for t in (x, grad))
    y, bits = ops.relu(x)
    out, theirs = torch.zeros_like(grad), torch.zeros_like(grad)
    moved = 2 * grad.nbytes + bits.nbytes
    assert moved >= 192 * MEBI
    copy = Copy(moved // 2)
    backward = torch.ops.aten.threshold_backward.grad_input
    stats = alternate(
        {
            "ours": lambda: ops.rectify(grad, bits, "guided", out=out),
            "copy": copy,
            "torch": lambda: backward(grad, y, 0, grad_input=theirs),
        },
        rounds=3 if QUICK else 11,
        benchmark=benchmark,
    )
    assert torch.equal(out, theirs.clamp_min(0))
    name = f"rectify {memory_format} {'x'.join(map(str, shape))}, "
    report.bandwidth(name + str(dtype).removeprefix("torch."), moved, stats, copy, TARGET)


@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("channels", "side", "window"), [(64, 224, 20), (256, 56, 14)])
def test_windows(
    memory_format: str, channels: int, side: int, window: int, benchmark: Any, report: Report
) -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(1, channels, side, side, generator=rng)
    count = 160 * MEBI // (4 * channels * window**2)
    grad = torch.randn(count, channels, window, window, generator=rng)
    if memory_format == "channels_last":
        x, grad = (t.contiguous(memory_format=torch.channels_last) for t in (x, grad))
    y, bits = ops.relu(x)
    index = torch.zeros(count, dtype=torch.int64)
    at = torch.randint(0, side - window + 1, (count, 2), generator=rng)
    out = torch.zeros_like(grad)
    # Of the bits, which lie in a cache, no byte need come from memory.
    moved = 2 * grad.nbytes
    copy = Copy(moved // 2)
    stats = alternate(
        {
            "ours": lambda: ops.rectify(grad, bits, "guided", index, at, [side, side], out=out),
            "copy": copy,
        },
        rounds=3 if QUICK else 11,
        benchmark=benchmark,
    )
    n = count // 2
    top, left = at[n].tolist()
    passes = y[0, :, top : top + window, left : left + window] > 0
    assert torch.equal(out[n], grad[n].clamp_min(0) * passes)
    name = f"rectify {memory_format} {count} windows of {window}² x {channels}, float32"
    report.bandwidth(name, moved, stats, copy, TARGET)


@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
def test_against_torch(memory_format: str, benchmark: Any, report: Report) -> None:
    def pair(x: torch.Tensor) -> tuple[Callable[[], Any], Callable[[], Any]]:
        (y, bits), grad = ops.relu(x), x.cos()
        backward = torch.ops.aten.threshold_backward.default
        assert torch.equal(ops.rectify(grad, bits, "gradient"), backward(grad, y, 0))
        return lambda: ops.rectify(grad, bits, "gradient"), lambda: backward(grad, y, 0)

    against_torch("rectify", memory_format, pair, benchmark, report)
