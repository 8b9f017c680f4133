"""Axis rules against brute force: perturb a cell of a real operation and see what moves."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from backsight.geometry import (
    Adaptive,
    AxisRule,
    Identity,
    Listed,
    Sliding,
    Transposed,
    Whole,
    hull,
)

sizes = st.integers(1, 14)


def reads(rule: AxisRule) -> np.ndarray:
    """(size_out, size_in) bool: which inputs each output reads, from `backward` of single cells."""
    table = np.zeros((rule.size_out, rule.size_in), bool)
    for o in range(rule.size_out):
        start, stop = rule.backward(o, o + 1)
        table[o, max(0, int(start)) : max(0, int(stop))] = True
    return table


def gradient(operation: Callable[[torch.Tensor], torch.Tensor], size_in: int) -> np.ndarray:
    """(size_out, size_in) bool: which inputs each output depends on, from autograd."""
    x = torch.zeros(1, 1, size_in, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: operation(x)[0, 0], x)
    return (jacobian[:, 0, 0] != 0).numpy()


def check_kernel(rule: Sliding | Transposed, true: np.ndarray) -> None:
    table = reads(rule)
    assert (table >= true).all()  # holes of a dilated kernel count as read
    if rule.dilation == 1:
        assert (table == true).all()
    check_forward(rule, table)
    check_windows(rule)


@settings(deadline=None, max_examples=200)
@given(
    size=sizes,
    kernel=st.integers(1, 5),
    stride=st.integers(1, 6),
    padding=st.integers(0, 3),
    dilation=st.integers(1, 3),
)
def test_sliding_is_what_conv1d_reads(
    size: int, kernel: int, stride: int, padding: int, dilation: int
) -> None:
    reach = (kernel - 1) * dilation + 1
    assume(size + 2 * padding >= reach)
    weight = torch.ones(1, 1, kernel, dtype=torch.float64)
    true = gradient(lambda x: F.conv1d(x, weight, None, stride, padding, dilation), size)
    rule = Sliding(size, len(true), kernel, stride, padding, dilation)
    check_kernel(rule, true)


@settings(deadline=None, max_examples=100)
@given(size_in=sizes, size_out=sizes)
def test_adaptive_is_what_the_pool_reads(size_in: int, size_out: int) -> None:
    rule = Adaptive(size_in, size_out)
    table = reads(rule)
    assert (table == gradient(lambda x: F.adaptive_avg_pool1d(x, size_out), size_in)).all()
    check_forward(rule, table)
    check_windows(rule)


@settings(deadline=None, max_examples=200)
@given(
    size=sizes,
    kernel=st.integers(1, 5),
    stride=st.integers(1, 6),
    padding=st.integers(0, 4),
    dilation=st.integers(1, 3),
    extra=st.integers(0, 5),
)
def test_transposed_is_what_conv_transpose1d_reads(
    size: int, kernel: int, stride: int, padding: int, dilation: int, extra: int
) -> None:
    assume(extra < max(stride, dilation))
    assume((size - 1) * stride - 2 * padding + (kernel - 1) * dilation + 1 + extra > 0)
    weight = torch.ones(1, 1, kernel, dtype=torch.float64)
    true = gradient(
        lambda x: F.conv_transpose1d(x, weight, None, stride, padding, extra, 1, dilation), size
    )
    rule = Transposed(size, len(true), kernel, stride, padding, dilation)
    check_kernel(rule, true)


@settings(deadline=None, max_examples=200)
@given(size=sizes, cells=st.lists(st.tuples(st.integers(0, 13), st.integers(1, 9)), min_size=1))
def test_listed_intervals_in_any_order(size: int, cells: list[tuple[int, int]]) -> None:
    low = np.array([min(at, size - 1) for at, _ in cells])
    high = np.minimum(low + [length for _, length in cells], size)
    rule = Listed(size, low, high)
    table = (np.arange(size) >= low[:, None]) & (np.arange(size) < high[:, None])
    check_forward(rule, table)
    check_windows(rule)
    for s in range(rule.size_out):
        for e in range(s + 1, rule.size_out + 1):
            read = np.flatnonzero(table[s:e].any(0))
            assert tuple(map(int, rule.backward(s, e))) == (read[0], read[-1] + 1)
            at = rule.origin(s, e - s)
            assert 0 <= at <= size - rule.span(e - s)


def test_listed_intervals_of_a_large_axis() -> None:
    """A million intervals over a hundred thousand cells, some checked one by one."""
    size, rng = 100_000, np.random.default_rng(0)
    low = rng.integers(0, size, size)
    rule = Listed(size, low, np.minimum(low + rng.integers(1, 50, size), size))
    start = rng.integers(0, size, 1_000_000)
    stop = np.minimum(start + rng.integers(1, 2000, len(start)), size)
    first, last = rule.forward(start, stop)
    begin, end = rule.backward(start, stop)
    for k in range(0, len(start), 50_021):
        s, e = start[k], stop[k]
        moved = np.flatnonzero((rule.low < e) & (rule.high > s))
        assert (first[k], last[k]) == (moved[0], moved[-1] + 1)
        assert (begin[k], end[k]) == (rule.low[s:e].min(), rule.high[s:e].max())


@pytest.mark.parametrize("rule", [Identity(5), Whole(5, 3), Whole(1, 4)])
def test_simple_rules(rule: AxisRule) -> None:
    check_forward(rule, reads(rule))
    check_windows(rule)


def check_forward(rule: AxisRule, table: np.ndarray) -> None:
    """`forward` is the tightest interval of outputs that read any changed input, for all intervals
    at once too.
    """
    pairs = [(s, e) for s in range(rule.size_in) for e in range(s + 1, rule.size_in + 1)]
    start, stop = rule.forward(*np.array(pairs).T)
    for (s, e), first, last in zip(pairs, start, stop, strict=True):
        moved = np.flatnonzero(table[:, s:e].any(1))
        if len(moved):
            assert (first, last) == (moved[0], moved[-1] + 1)
        else:
            assert last <= first
        one, other = rule.forward(s, e)
        assert (int(one), int(other)) == (first, last)
    s, e = rule.forward(2, 2)
    assert e <= s  # nothing changed, nothing changes


def check_windows(rule: AxisRule) -> None:
    """`origin` and `span` cover what any window of outputs reads."""
    for size in range(1, rule.size_out + 1):
        for at in range(rule.size_out - size + 1):
            start, stop = rule.backward(at, at + size)
            origin = rule.origin(at, size)
            assert origin <= start
            assert stop <= origin + rule.span(size)


def test_hull_ignores_empty_intervals() -> None:
    start, stop = hull([(np.array([3, 5]), np.array([4, 5])), (np.array([1, 2]), np.array([1, 9]))])
    assert start.tolist() == [3, 2]
    assert stop.tolist() == [4, 9]
