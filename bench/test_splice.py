"""splice against copy bandwidth: cells read and cells written are the bytes that must move."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from backsight import ops
from harness import MEBI, QUICK, Copy, Report, alternate

# Memory format, maps, channels, map, window, patch, dtype, and the share of copy bandwidth due.
# Every map is cut into windows without overlap, so that each of its cells is read once. Contiguous
# windows narrower than a few cache lines read most of their lines in part.
CASES = [
    ("channels_last", 48, 256, 56, 14, 6, torch.float32, 0.8),
    ("channels_last", 96, 512, 28, 7, 5, torch.float32, 0.8),
    ("channels_last", 16, 64, 224, 20, 16, torch.float32, 0.8),
    ("channels_last", 96, 256, 56, 14, 6, torch.bfloat16, 0.8),
    ("contiguous", 4, 16, 1024, 512, 64, torch.float32, 0.8),
    ("contiguous", 8, 16, 1024, 512, 64, torch.bfloat16, 0.8),
    ("contiguous", 12, 64, 224, 112, 16, torch.float32, 0.8),
    ("contiguous", 48, 256, 56, 14, 6, torch.float32, 0.8),
]


@pytest.mark.parametrize(
    ("memory_format", "maps", "channels", "side", "window", "patch", "dtype", "target"), CASES
)
def test_splice(
    memory_format: str,
    maps: int,
    channels: int,
    side: int,
    window: int,
    patch: int,
    dtype: torch.dtype,
    target: float,
    benchmark: Any,
    report: Report,
) -> None:
    def laid_out(x: Tensor) -> Tensor:
        last = memory_format == "channels_last"
        return x.contiguous(memory_format=torch.channels_last) if last else x

    rng = torch.Generator().manual_seed(0)
    base = laid_out(torch.randn(maps, channels, side, side, generator=rng).to(dtype))
    across = side // window
    count = maps * across**2
    base_index = torch.arange(count) // across**2
    place = torch.arange(count) % across**2
    window_at = torch.stack([place // across, place % across], 1) * window
    patch_at = window_at + (window - patch) // 2
    patches = laid_out(torch.randn(count, channels, patch, patch, generator=rng).to(dtype))
    out = laid_out(torch.zeros(count, channels, window, window, dtype=dtype))
    args = (base, base_index, [0, 0], [side, side], patches, patch_at, window_at, [window, window])
    moved = 2 * out.numel() * out.element_size()  # read from the base or the patch, and written
    assert moved >= 256 * MEBI
    copy = Copy(moved // 2)
    stats = alternate(
        {"ours": lambda: ops.splice(*args, out=out), "copy": copy},
        rounds=3 if QUICK else 11,
        benchmark=benchmark,
    )
    n = count // 2
    top, left = window_at[n].tolist()
    expected = base[base_index[n], :, top : top + window, left : left + window].clone()
    inner = slice((window - patch) // 2, (window - patch) // 2 + patch)
    expected[:, inner, inner] = patches[n]
    assert torch.equal(out[n], expected)
    name = f"splice {memory_format} {count} of {window}² x {channels}, patch {patch}², "
    report.bandwidth(name + str(dtype).removeprefix("torch."), moved, stats, copy, target)
