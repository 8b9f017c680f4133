"""preactivation against copy bandwidth: maps read and output written are the bytes that must move.

The peer is torch's cat, batch_norm and relu_, one by one.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from backsight import ops
from harness import MEBI, QUICK, Copy, Report, alternate

# Memory format, batch, side, channels of the first map, further maps of 32, dtype, and the share of
# copy bandwidth due. The first four are the blocks of DenseNet-121. bfloat16 is bound by its
# conversions.
CASES = [
    ("channels_last", 64, 56, 64, 6, torch.float32, 0.8),
    ("channels_last", 128, 28, 128, 12, torch.float32, 0.8),
    ("channels_last", 256, 14, 256, 24, torch.float32, 0.8),
    ("channels_last", 256, 14, 1024, 0, torch.float32, 0.8),
    ("channels_last", 128, 56, 64, 6, torch.bfloat16, 0.5),
    ("contiguous", 64, 56, 64, 6, torch.float32, 0.8),
]


@pytest.mark.parametrize(
    ("memory_format", "batch", "side", "first", "further", "dtype", "target"), CASES
)
def test_preactivation(
    memory_format: str,
    batch: int,
    side: int,
    first: int,
    further: int,
    dtype: torch.dtype,
    target: float,
    benchmark: Any,
    report: Report,
) -> None:
    rng = torch.Generator().manual_seed(0)

    def noise(channels: int) -> Tensor:
        x = torch.randn(batch, channels, side, side, generator=rng).to(dtype)
        last = memory_format == "channels_last"
        return x.contiguous(memory_format=torch.channels_last) if last else x

    maps = [noise(channels) for channels in [first] + [32] * further]
    channels = first + 32 * further
    gamma, beta, mean = torch.randn(3, channels, generator=rng)
    var = torch.rand(channels, generator=rng) + 0.5
    scale = gamma * torch.rsqrt(var + 1e-5)
    shift = beta - mean * scale
    out = torch.zeros_like(torch.cat(maps, 1) if further else maps[0])

    def one_by_one() -> Tensor:
        x = torch.cat(maps, 1) if further else maps[0]
        return F.batch_norm(
            x, mean.to(dtype), var.to(dtype), gamma.to(dtype), beta.to(dtype)
        ).relu_()

    moved = 2 * out.nbytes
    assert moved >= 256 * MEBI
    copy = Copy(out.nbytes)
    stats = alternate(
        {
            "ours": lambda: ops.preactivation(maps, scale, shift, out=out),
            "copy": copy,
            "cat + batch_norm + relu_": one_by_one,
        },
        rounds=3 if QUICK else 11,
        benchmark=benchmark,
    )
    if dtype == torch.float32:
        torch.testing.assert_close(out, one_by_one(), rtol=1e-4, atol=1e-4)
    name = f"preactivation {memory_format} {batch} of {side}² x {first} + {further} x 32, "
    report.bandwidth(name + str(dtype).removeprefix("torch."), moved, stats, copy, target)
