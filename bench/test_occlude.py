"""occlude against copy bandwidth: images read once and copies written are the bytes that must move.

Nearly all of them are writes, while a copy reads half of its bytes; so the bound is the bandwidth
of stores, not of a copy.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from backsight import ops
from harness import MEBI, QUICK, Copy, Report, alternate

# Memory format, images, channels, image, boxes, dtype.
CASES = [
    ("channels_last", 1, 3, 224, 512, torch.float32),
    ("contiguous", 1, 3, 224, 512, torch.float32),
    ("channels_last", 1, 3, 1024, 32, torch.float32),
    ("contiguous", 1, 3, 1024, 32, torch.float32),
    ("channels_last", 8, 64, 112, 32, torch.bfloat16),
    ("contiguous", 8, 64, 112, 32, torch.bfloat16),
]


@pytest.mark.parametrize(("memory_format", "images", "channels", "side", "count", "dtype"), CASES)
def test_occlude(
    memory_format: str,
    images: int,
    channels: int,
    side: int,
    count: int,
    dtype: torch.dtype,
    benchmark: Any,
    report: Report,
) -> None:
    window = 32
    last = memory_format == "channels_last"
    formats = {"memory_format": torch.channels_last if last else torch.contiguous_format}
    rng = torch.Generator().manual_seed(0)
    image = torch.randn(images, channels, side, side, generator=rng).to(dtype).contiguous(**formats)
    at = torch.randint(0, side - window, (count, 2), generator=rng)
    boxes = torch.cat([at, at + window], 1)
    baseline = torch.zeros((), dtype=dtype)
    out = torch.zeros(images * count, channels, side, side, dtype=dtype).contiguous(**formats)
    moved = (image.numel() + out.numel()) * out.element_size()
    assert moved >= 256 * MEBI
    copy = Copy(moved // 2)
    stats = alternate(
        {"ours": lambda: ops.occlude(image, boxes, baseline, out=out), "copy": copy},
        rounds=3 if QUICK else 11,
        benchmark=benchmark,
    )
    n = count // 2
    top, left = at[n].tolist()
    expected = image[-1].clone()
    expected[:, top : top + window, left : left + window] = 0
    assert torch.equal(out[(images - 1) * count + n], expected)
    name = f"occlude {memory_format} {count} of {side}² x {channels}, "
    report.bandwidth(name + str(dtype).removeprefix("torch."), moved, stats, copy, 0.8)
