"""Shapes of pools, and rows about them, shared by the benchmarks of max_pool and max_unpool."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness import QUICK, Copy, Report, Stats, alternate, timed

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
# Below it a call is worth less than what surrounds it.
LARGE = 1 << 20


@dataclass(frozen=True)
class Case:
    """A 2/2 pool, or a 3/2 one, with padding or without."""

    batch: int
    channels: int
    side: int
    kernel: int = 2
    padding: int = 0
    dtype: torch.dtype = torch.float32

    @property
    def label(self) -> str:
        pad = f" pad {self.padding}" if self.padding else ""
        window = f"{self.kernel}/2{pad}"
        return f"{self.batch} x {self.channels} x {self.side}², {window}, {str(self.dtype)[6:]}"

    @property
    def pool(self) -> tuple[list[int], list[int], list[int], list[int]]:
        return [self.kernel] * 2, [2, 2], [self.padding] * 2, [1, 1]

    def image(self, memory_format: str) -> Tensor:
        rng = torch.Generator().manual_seed(0)
        x = torch.randn(self.batch, self.channels, self.side, self.side, generator=rng)
        return x.to(self.dtype).contiguous(memory_format=FORMATS[memory_format])


# The pools of common networks: VGG, ResNet, GoogLeNet, AlexNet and SqueezeNet, U-Net.
CASES = [
    Case(1, 64, 224),
    Case(4, 64, 224),
    Case(32, 8, 224),
    Case(1, 128, 112),
    Case(8, 128, 112),
    Case(1, 256, 56),
    Case(16, 256, 56),
    Case(1, 512, 28),
    Case(8, 512, 28),
    Case(32, 512, 14),
    Case(8, 1024, 14),
    Case(1, 1024, 7),
    Case(1, 64, 112, 3, 1),
    Case(8, 64, 112, 3, 1),
    Case(16, 192, 56, 3),
    Case(8, 64, 55, 3),
    Case(1, 256, 27, 3),
    Case(16, 480, 28, 3, 1),
    Case(16, 832, 14, 3, 1),
    Case(32, 1024, 7, 3, 1),
]
# As many bytes as lie outside any cache.
LARGE_CASES = [
    Case(20, 64, 224),
    Case(40, 256, 56),
    Case(160, 256, 28),
    Case(320, 512, 14),
    Case(80, 64, 112, 3, 1),
    Case(320, 256, 27, 3),
    Case(1280, 1024, 7, 3, 1),
    Case(80, 256, 56, dtype=torch.bfloat16),
]


def repeated(function: Callable[[], Any]) -> tuple[Callable[[], None], int]:
    """Calls `function` for two milliseconds or so, and how often."""
    function()
    times = max(1, min(500, int(2e-3 / timed(function))))

    def run() -> None:
        for _ in range(times):
            function()

    return run, times


def against_torch(
    section: str,
    case: Case,
    memory_format: str,
    ours: Callable[[], Any],
    theirs: Callable[[], Any],
    report: Report,
) -> float:
    """Adds a row; returns how many times as fast as torch ours is."""
    functions = {"ours": repeated(ours), "torch": repeated(theirs)}
    stats = alternate({name: f for name, (f, _) in functions.items()}, 3 if QUICK else 11)
    mine, other = (stats[name].times(1 / times) for name, (_, times) in functions.items())
    ratio = other.median / mine.median
    report.add(
        section,
        {
            "shape": case.label,
            "memory format": memory_format,
            "ours": str(mine),
            "torch": str(other),
            "x torch": f"{ratio:.2f}",
            "target": ">= 0.97" if case.batch * case.channels * case.side**2 >= LARGE else "",
        },
    )
    return ratio


def add_mean(
    section: str, memory_format: str, ratios: list[float], target: float, report: Report
) -> None:
    report.add(
        section,
        {
            "shape": f"geometric mean of {len(ratios)}",
            "memory format": memory_format,
            "x torch": f"{statistics.geometric_mean(ratios):.2f}",
            "target": f">= {target:.1f}",
        },
    )


def against_copy(
    op: str,
    case: Case,
    memory_format: str,
    moved: int,
    run: Callable[[], Any],
    report: Report,
    benchmark: Any,
) -> dict[str, Stats]:
    """Adds a row of the kernel table."""
    copy = Copy(moved // 2)
    stats = alternate({"ours": run, "copy": copy}, rounds=3 if QUICK else 11, benchmark=benchmark)
    report.bandwidth(f"{op} {memory_format} {case.label}", moved, stats, copy, 0.8)
    return stats
