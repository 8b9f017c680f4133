"""max_pool against torch's max_pool2d with indices, and against copy bandwidth: the input read, the
maxima and the switches written are the bytes that must move."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from backsight import functional, ops
from harness import QUICK, Report, alternate
from pools import CASES, FORMATS, LARGE_CASES, Case, add_mean, against_copy, against_torch, repeated

SECTION = "max_pool: maxima and where they were"


@pytest.mark.parametrize(("memory_format", "target"), [("contiguous", 8.0), ("channels_last", 1.3)])
def test_against_torch(memory_format: str, target: float, report: Report, benchmark: Any) -> None:
    ratios = []

    def run() -> None:
        for case in CASES:
            x, pool = case.image(memory_format), case.pool

            def theirs(x: Any = x, case: Case = case) -> Any:
                return F.max_pool2d(x, case.kernel, 2, case.padding, return_indices=True)

            y, switches = functional.max_pool2d_switches(x, case.kernel, 2, case.padding)
            expected, indices = theirs()
            assert torch.equal(y, expected)
            assert torch.equal(switches.indices(), indices)
            assert switches.offsets.nbytes * 8 == indices.nbytes

            def ours(x: Any = x, pool: Any = pool) -> Any:
                return ops.max_pool(x, *pool)

            ratios.append(against_torch(SECTION, case, memory_format, ours, theirs, report))

    benchmark.pedantic(run, rounds=1, iterations=1)
    add_mean(SECTION, memory_format, ratios, target, report)
    report.remark(
        SECTION,
        "torch is F.max_pool2d(return_indices=True); both return new tensors. The switches take an "
        "eighth of the memory of torch's indices.",
    )


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("case", LARGE_CASES, ids=lambda case: case.label)
def test_against_copy(case: Case, memory_format: str, report: Report, benchmark: Any) -> None:
    x = case.image(memory_format)
    y, switches = ops.max_pool(x, *case.pool)
    expected = y.clone()
    moved = x.nbytes + y.nbytes + switches.nbytes

    def run() -> None:
        ops.max_pool(x, *case.pool, out=(y, switches))

    against_copy("max_pool", case, memory_format, moved, run, report, benchmark)
    assert torch.equal(y, expected)


def test_a_call(report: Report, benchmark: Any) -> None:
    """A map so small that only what surrounds the kernel counts."""
    case = Case(1, 8, 7)
    x, pool = case.image("contiguous"), case.pool
    functions = {
        "ours": repeated(lambda: ops.max_pool(x, *pool)),
        "torch": repeated(lambda: F.max_pool2d(x, 2, 2, return_indices=True)),
    }
    rounds = 3 if QUICK else 31
    stats = alternate({k: f for k, (f, _) in functions.items()}, rounds, benchmark=benchmark)
    ours, theirs = (stats[name].times(1 / times) for name, (_, times) in functions.items())
    report.add(
        "A call of max_pool without a gradient",
        {
            "shape": case.label,
            "ours": str(ours),
            "torch": str(theirs),
            "more": f"{1e6 * (ours.median - theirs.median):.1f} µs",
            "target": "<= 4 µs",
        },
    )
