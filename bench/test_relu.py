"""relu against copy bandwidth, and against torch's: what is read, written and kept as bits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from backsight import ops
from backsight.sweep.allocator import reuse
from harness import MEBI, QUICK, Copy, Report, alternate, duration, timed

# Memory format, shape and dtype; the maps of common networks, 7² to 224².
CASES = [
    ("channels_last", (16, 64, 224, 224), torch.float32),
    ("channels_last", (64, 256, 56, 56), torch.float32),
    ("channels_last", (1024, 512, 14, 14), torch.float32),
    ("channels_last", (64, 256, 56, 56), torch.bfloat16),
    ("contiguous", (16, 64, 224, 224), torch.float32),
    ("contiguous", (64, 256, 56, 56), torch.float32),
    ("contiguous", (512, 512, 14, 14), torch.float32),
    ("contiguous", (2048, 512, 7, 7), torch.float32),
    ("contiguous", (64, 256, 56, 56), torch.bfloat16),
]
TARGET = 0.8

# Batch, channels and pixels a side of what ReLUs of common networks see.
SHAPES = [
    (batch, channels, side, side)
    for batch, channels, side in [
        (1, 8, 7),
        (1, 8, 224),
        (1, 32, 112),
        (1, 64, 56),
        (1, 64, 224),
        (1, 128, 112),
        (1, 256, 28),
        (1, 256, 56),
        (1, 512, 14),
        (1, 1024, 7),
        (4, 64, 112),
        (4, 96, 27),
        (8, 8, 224),
        (8, 256, 14),
        (8, 512, 28),
        (16, 64, 56),
        (16, 1024, 14),
        (32, 16, 112),
        (32, 256, 56),
        (32, 512, 7),
    ]
]
LARGE = 1 << 20  # elements
SECTION = "relu and rectify against torch's, a call with its result"


def repeated(function: Callable[[], Any], times: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(times):
            function()

    return run


def against_torch(
    op: str,
    memory_format: str,
    pair: Callable[[torch.Tensor], tuple[Callable[[], Any], Callable[[], Any]]],
    benchmark: Any,
    report: Report,
) -> None:
    """One row: `pair` makes our call and torch's for an input."""
    rng = torch.Generator().manual_seed(0)
    ratios, large, overhead = [], [], math.nan
    for shape in SHAPES:
        x = torch.randn(shape, generator=rng)
        if memory_format == "channels_last":
            x = x.contiguous(memory_format=torch.channels_last)
        ours, theirs = pair(x)
        theirs()
        times = max(1, int(4e-3 / timed(theirs)))
        calls = {"ours": repeated(ours, times), "torch": repeated(theirs, times)}
        last = shape == SHAPES[-1]
        with reuse():
            stats = alternate(calls, 3 if QUICK else 31, benchmark=benchmark if last else None)
        ratio = stats["torch"].median / stats["ours"].median
        ratios.append(ratio)
        if x.numel() >= LARGE:
            large.append((ratio, shape))
        if x.numel() == min(map(math.prod, SHAPES)):
            overhead = (stats["ours"].median - stats["torch"].median) / times
    least, shape = min(large)
    report.add(
        SECTION,
        {
            "op": f"{op} {memory_format}",
            "x torch, geometric mean": f"{math.exp(sum(map(math.log, ratios)) / len(ratios)):.2f}",
            "least of 2^20 elements and more": f"{least:.2f} ({'x'.join(map(str, shape))})",
            "target of those": ">= 0.97",
            "smallest call": f"torch's + {duration(overhead)}",
            "target of that": "<= + 4 µs",
        },
    )
    report.remark(
        SECTION,
        f"Over {len(SHAPES)} shapes, batch 1 to 32, 8 to 1024 channels, 7² to 224² pixels, fp32, "
        "without gradients; glibc keeps freed memory, for both. Torch's are relu, which leaves no "
        "bits, and threshold_backward, which reads relu's whole result.",
    )


@pytest.mark.parametrize(("memory_format", "shape", "dtype"), CASES)
def test_relu(
    memory_format: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    benchmark: Any,
    report: Report,
) -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=rng).to(dtype)
    if memory_format == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    y, theirs = torch.zeros_like(x), torch.zeros_like(x)
    bits = torch.zeros_like(ops.relu(x)[1])
    moved = 2 * x.nbytes + bits.nbytes
    assert moved >= 192 * MEBI
    copy = Copy(moved // 2)
    stats = alternate(
        {
            "ours": lambda: ops.relu(x, out=(y, bits)),
            "copy": copy,
            "torch": lambda: torch.clamp_min(x, 0, out=theirs),
        },
        rounds=3 if QUICK else 11,
        benchmark=benchmark,
    )
    assert torch.equal(y, theirs)
    name = f"relu {memory_format} {'x'.join(map(str, shape))}, "
    report.bandwidth(name + str(dtype).removeprefix("torch."), moved, stats, copy, TARGET)
    report.remark(
        "Kernels", "relu, rectify: torch is clamp_min(out=) and threshold_backward(out=)."
    )


@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
def test_against_torch(memory_format: str, benchmark: Any, report: Report) -> None:
    def pair(x: torch.Tensor) -> tuple[Callable[[], Any], Callable[[], Any]]:
        assert torch.equal(ops.relu(x)[0], torch.relu(x))
        return lambda: ops.relu(x), lambda: torch.relu(x)

    against_torch("relu", memory_format, pair, benchmark, report)
