"""max_unpool against torch's max_unpool2d, and against copy bandwidth: the values and the switches
read and the map written are the bytes that must move. Windows read switches that lie in a cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from backsight import ops
from backsight.functional import Switches
from harness import MEBI, QUICK, Copy, Report, alternate
from pools import CASES, FORMATS, LARGE_CASES, Case, add_mean, against_copy, against_torch

SECTION = "max_unpool: values back where the maxima were"


@pytest.mark.parametrize(("memory_format", "target"), [("contiguous", 8.0), ("channels_last", 1.3)])
def test_against_torch(memory_format: str, target: float, report: Report, benchmark: Any) -> None:
    ratios = []

    def run() -> None:
        for case in CASES:
            pool, size = case.pool, [case.side] * 2
            y, switches = ops.max_pool(case.image(memory_format), *pool)
            indices = Switches(switches, tuple(size), *map(tuple, pool)).indices()

            def theirs(y: Any = y, indices: Any = indices, case: Case = case) -> Any:
                size = [case.side] * 2
                return F.max_unpool2d(y, indices, case.kernel, 2, case.padding, size)

            def ours(y: Any = y, switches: Any = switches, case: Case = case) -> Any:
                return ops.max_unpool(y, switches, *case.pool, [case.side] * 2, "set")

            assert torch.equal(ours(), theirs())
            ratios.append(against_torch(SECTION, case, memory_format, ours, theirs, report))

    benchmark.pedantic(run, rounds=1, iterations=1)
    add_mean(SECTION, memory_format, ratios, target, report)
    report.remark(SECTION, 'torch is F.max_unpool2d; ours is mode "set". Both return new tensors.')


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("case", LARGE_CASES, ids=lambda case: case.label)
def test_against_copy(case: Case, memory_format: str, report: Report, benchmark: Any) -> None:
    out = case.image(memory_format)
    y, switches = ops.max_pool(out, *case.pool)
    size = [case.side] * 2
    moved = out.nbytes + y.nbytes + switches.nbytes

    def run() -> None:
        ops.max_unpool(y, switches, *case.pool, size, out=out)

    against_copy("max_unpool", case, memory_format, moved, run, report, benchmark)
    assert torch.equal(out[-1:], ops.max_unpool(y[-1:], switches[-1:], *case.pool, size))
    assert out[-1].any()


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(("channels", "side", "window"), [(64, 112, 10), (256, 28, 7)])
def test_windows(
    memory_format: str, channels: int, side: int, window: int, benchmark: Any, report: Report
) -> None:
    """Windows of a 2/2 pool's output and input."""
    case = Case(1, channels, 2 * side)
    _, switches = ops.max_pool(case.image(memory_format), *case.pool)
    count = 128 * MEBI // (4 * channels * 4 * window**2)
    rng = torch.Generator().manual_seed(0)
    at = torch.randint(0, side - window + 1, (count, 2), generator=rng)
    index = torch.zeros(count, dtype=torch.int64)
    y = torch.randn(count, channels, window, window, generator=rng)
    y = y.contiguous(memory_format=FORMATS[memory_format])
    args = (y, switches, *case.pool, [2 * window] * 2, "add", False, index, at, 2 * at)
    out = ops.max_unpool(*args)
    moved = out.nbytes + y.nbytes
    copy = Copy(moved // 2)
    stats = alternate(
        {"ours": lambda: ops.max_unpool(*args, out=out), "copy": copy},
        rounds=3 if QUICK else 11,
        benchmark=benchmark,
    )
    n = count // 2
    top, left = at[n].tolist()
    part = switches[:, :, top : top + window, left : left + window]
    assert torch.equal(
        out[n : n + 1], ops.max_unpool(y[n : n + 1], part, *case.pool, [2 * window] * 2)
    )
    name = f"max_unpool {memory_format} {count} windows of {2 * window}² x {channels}, 2/2, float32"
    report.bandwidth(name, moved, stats, copy, 0.8)
