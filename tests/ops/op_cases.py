"""Random arguments for the ops, of every dtype, layout and number of axes."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor

from backsight import _C
from backsight.ops import reference
from backsight.ops._schemas import deconv_size, pooled_size

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
FORMATS = ["contiguous", "channels_last", "strided", "expanded"]


def layout(x: Tensor, memory_format: str) -> Tensor:
    """The values of `x` (B, C, *S) laid out in memory in some way."""
    if memory_format == "contiguous":
        return x.contiguous()
    if memory_format == "channels_last":
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    if memory_format == "strided":  # neither the channels nor any axis lie next to each other
        return x.transpose(0, -1).repeat_interleave(2, -1).contiguous()[..., ::2].transpose(0, -1)
    assert memory_format == "expanded"
    return (x[:1] if x.dim() == 2 else x[:1, :, ..., :1]).expand_as(x)


def noise(shape: list[int], dtype: torch.dtype, seed: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype)


def integers(shape: list[int], low: int, high: int, seed: int) -> Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


@st.composite
def occlude_cases(draw: Any, min_batch: int = 0) -> tuple[Any, ...]:
    dims = draw(st.integers(1, 3))
    size = draw(st.lists(st.integers(0, 9), min_size=dims, max_size=dims))
    batch, channels = draw(st.integers(min_batch, 3)), draw(st.integers(1, 17))
    dtype = draw(st.sampled_from(DTYPES))
    seed = draw(st.integers(0, 2**31))
    image = layout(noise([batch, channels, *size], dtype, seed), draw(st.sampled_from(FORMATS)))
    count = draw(st.integers(0, 4))
    boxes = integers([count, 2 * dims], -3, 12, seed + 1)
    if draw(st.booleans()):  # not contiguous
        boxes = boxes.t().contiguous().t()
    shape = draw(
        st.sampled_from(
            [[], [1], [channels] + [1] * dims, [batch, 1] + [1] * dims, [batch, channels, *size]]
        )
    )
    return image, boxes, noise(shape, dtype, seed + 2)


@st.composite
def splice_cases(draw: Any) -> tuple[Any, ...]:
    dims = draw(st.integers(1, 3))

    def sizes(low: int, high: int) -> list[int]:
        return draw(st.lists(st.integers(low, high), min_size=dims, max_size=dims))

    maps, windows = draw(st.integers(0, 3)), draw(st.integers(0, 4))
    channels = draw(st.integers(1, 17))
    dtype = draw(st.sampled_from(DTYPES))
    seed = draw(st.integers(0, 2**31))
    base = layout(
        noise([maps, channels, *sizes(0, 8)], dtype, seed), draw(st.sampled_from(FORMATS))
    )
    patch = layout(
        noise([windows, channels, *sizes(0, 5)], dtype, seed + 1), draw(st.sampled_from(FORMATS))
    )
    base_index = integers([windows], -1, maps + 1, seed + 2)
    patch_at = integers([windows, dims], -3, 9, seed + 3)
    window_at = integers([windows, dims], -4, 9, seed + 4)
    if draw(st.booleans()):  # not contiguous
        base_index = base_index.repeat_interleave(2)[::2]
        patch_at, window_at = patch_at.t().contiguous().t(), window_at.flip(0).flip(0)[:, :]
    base_at, extent, size = sizes(-2, 3), sizes(0, 10), sizes(0, 9)
    outside = draw(st.floats(-60000, 60000, width=32))
    return base, base_index, base_at, extent, patch, patch_at, window_at, size, outside


@st.composite
def preactivation_cases(draw: Any) -> tuple[Any, ...]:
    dims = draw(st.integers(1, 3))
    size = draw(st.lists(st.integers(0, 9), min_size=dims, max_size=dims))
    batch = draw(st.integers(0, 3))
    dtype = draw(st.sampled_from(DTYPES))
    seed = draw(st.integers(0, 2**31))
    count = st.one_of(st.integers(0, 19), st.sampled_from([16, 32, 64]))
    maps = []
    for i, channels in enumerate(draw(st.lists(count, min_size=1, max_size=5))):
        spare = draw(st.integers(0, 2))  # a slice of more channels
        wide = noise([batch, channels + spare, *size], dtype, seed + i)
        maps.append(layout(wide, draw(st.sampled_from(FORMATS)))[:, spare:])
    return maps, *affine(sum(x.shape[1] for x in maps), dtype, seed + 9)


def affine(channels: int, dtype: torch.dtype, seed: int) -> tuple[Tensor, Tensor]:
    """A scale and a shift of each channel, in what values of `dtype` are computed in."""
    wide = torch.promote_types(dtype, torch.float32)
    return noise([channels], wide, seed), noise([channels], wide, seed + 1)


SPECIAL = [float("nan"), float("inf"), float("-inf"), -0.0, 0.0, 1.0, -1.0]


def signs(shape: list[int], dtype: torch.dtype, seed: int) -> Tensor:
    """Noise in which every special value comes often."""
    x = noise(shape, dtype, seed)
    which = integers(shape, 0, 3 * len(SPECIAL), seed + 1)
    for i, value in enumerate(SPECIAL):
        x[which == i] = value
    return x


def _pool_cases(draw: Any) -> tuple[Any, ...]:
    """x, kernel, stride, padding, dilation, ceil_mode; every window has a cell inside the map."""
    dims = draw(st.integers(1, 3))

    def each(low: int, high: int) -> list[int]:
        return draw(st.lists(st.integers(low, high), min_size=dims, max_size=dims))

    # Windows of more than 256 cells, too.
    kernel = draw(st.sampled_from([[300], [17, 16], [7, 6, 7]])) if draw(st.booleans()) else []
    kernel = kernel if len(kernel) == dims else each(1, 4)
    stride, dilation = each(1, 4), each(1, 3)
    span = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    padding = [draw(st.integers(0, min(n // 2, 3))) for n in span]
    size = [
        max(1, n - 2 * p) + draw(st.integers(0, 9 if dims < 3 else 4))
        for n, p in zip(span, padding, strict=True)
    ]
    ceil_mode = draw(st.booleans())
    try:
        pooled_size("max_pool", size, kernel, stride, padding, dilation, ceil_mode)
    except ValueError:
        assume(False)
    dtype, seed = draw(st.sampled_from(DTYPES)), draw(st.integers(0, 2**31))
    shape = [draw(st.integers(0, 3)), draw(st.sampled_from([1, 2, 5, 9, 17, 40])), *size]
    values = draw(st.sampled_from([noise, signs]))(shape, dtype, seed)
    if draw(st.booleans()):  # many ties
        values = values.round()
    x = layout(values, draw(st.sampled_from(FORMATS)))
    return x, kernel, stride, padding, dilation, ceil_mode


@st.composite
def max_pool_cases(draw: Any) -> tuple[Any, ...]:
    return (*_pool_cases(draw), draw(st.booleans()))


@st.composite
def max_unpool_cases(draw: Any, windows: bool) -> tuple[Any, ...]:
    """Arguments of max_unpool without relu: y, switches, the pool, size, mode, and the places."""
    x, *pool, ceil_mode = _pool_cases(draw)
    switches = reference.max_pool(x, *pool, ceil_mode)[1]
    size, seed = list(x.shape[2:]), draw(st.integers(0, 2**31))
    shape, places = list(switches.shape), (None, None, None)
    if windows:
        dims = len(size)
        assume(len(x) > 0)
        count = draw(st.integers(0, 4))
        small = st.lists(st.integers(0, 5), min_size=dims, max_size=dims)
        shape, size = [count, x.shape[1], *draw(small)], [n + 3 for n in draw(small)]
        places = (
            integers([count], 0, len(x), seed + 2),
            integers([count, dims], -2, 6, seed + 3),
            integers([count, dims], -3, 9, seed + 4),
        )
        if draw(st.booleans()):  # not contiguous
            places = places[0].repeat_interleave(2)[::2], places[1].t().contiguous().t(), places[2]
    values = draw(st.sampled_from([noise, signs]))(shape, x.dtype, seed)
    y = layout(values, draw(st.sampled_from(FORMATS)))
    switches = layout(switches, draw(st.sampled_from(["contiguous", "channels_last", "strided"])))
    return y, switches, *pool, size, draw(st.sampled_from(["add", "set"])), *places


@st.composite
def relu_cases(draw: Any) -> Tensor:
    dims = draw(st.integers(0, 3))
    size = draw(st.lists(st.integers(0, 18), min_size=dims, max_size=dims))
    batch, channels = draw(st.integers(0, 3)), draw(st.integers(0, 18))
    dtype, seed = draw(st.sampled_from(DTYPES)), draw(st.integers(0, 2**31))
    x = signs([batch, channels, *size], dtype, seed)
    return layout(x, draw(st.sampled_from(FORMATS)))


RULES = ["gradient", "deconvnet", "guided"]


@st.composite
def rectify_cases(draw: Any) -> tuple[Tensor, Tensor, str]:
    """Whole maps; the signal may lie otherwise than the bits."""
    x = draw(relu_cases())
    grad = signs(list(x.shape), draw(st.sampled_from(DTYPES)), draw(st.integers(0, 2**31)))
    return (
        layout(grad, draw(st.sampled_from(FORMATS))),
        reference.relu(x)[1],
        draw(st.sampled_from(RULES)),
    )


@st.composite
def window_cases(draw: Any) -> tuple[Any, ...]:
    """Windows that read the bits of maps, or of tiles of them."""
    dims = draw(st.integers(1, 3))

    def sizes(low: int, high: int) -> list[int]:
        return draw(st.lists(st.integers(low, high), min_size=dims, max_size=dims))

    maps, windows = draw(st.integers(0, 3)), draw(st.integers(0, 4))
    channels = draw(st.integers(1, 18))
    seed = draw(st.integers(0, 2**31))
    extent = sizes(0, 18)
    tile, base_at = (None, None) if draw(st.booleans()) else (sizes(0, 18), sizes(-2, 5))
    x = signs([maps, channels, *(tile or extent)], torch.float32, seed)
    bits = reference.relu(layout(x, draw(st.sampled_from(FORMATS))))[1]
    grad = signs([windows, channels, *sizes(0, 18)], draw(st.sampled_from(DTYPES)), seed + 2)
    base_index = integers([windows], -1, maps + 1, seed + 3)
    window_at = integers([windows, dims], -9, 18, seed + 4)
    if draw(st.booleans()):  # not contiguous
        base_index = base_index.repeat_interleave(2)[::2]
        window_at = window_at.t().contiguous().t()
    rule = draw(st.sampled_from(RULES))
    grad = layout(grad, draw(st.sampled_from(FORMATS)))
    return grad, bits, rule, base_index, window_at, extent, base_at, tile


def deconv_case(rng: random.Random, dtype: torch.dtype | None = None) -> tuple[Any, ...]:
    """All arguments of subpixel_deconv: strides beyond the kernel, paddings beyond its reach,
    dilation together with stride, one-pixel inputs, empty batches, any layout."""
    while True:
        dims = rng.choice([1, 2, 2, 3])

        def each(low: int, high: int, dims: int = dims) -> list[int]:
            return [rng.randint(low, high) for _ in range(dims)]

        most = 6 if dims < 3 else 3
        size, kernel, stride = each(1, most), each(1, most), each(1, 5 if dims < 3 else 3)
        padding = each(0, most) if rng.random() < 0.5 else each(0, 1)
        dilation = each(1, 3) if rng.random() < 0.5 else [1] * dims
        pairs = zip(stride, dilation, strict=True)
        extra = [rng.randint(0, max(s, d) - 1) for s, d in pairs]
        found = deconv_size(size, kernel, stride, padding, extra, dilation)
        if min(found) >= 1 and math.prod(found) < 4000:
            break
    groups = rng.choice([1, 1, 2, 3, 5, 17])
    into, onto = rng.choice([(1, 1), (1, 2), (2, 1), (3, 2), (2, 4), (9, 3)])
    if groups > 3:
        into, onto = 1, rng.choice([1, 1, 2])
    dtype = dtype or rng.choice(DTYPES)
    seed = rng.randrange(2**31)
    x = noise([rng.choice([0, 1, 1, 2]), groups * into, *size], dtype, seed)
    weight = noise([groups * into, onto, *kernel], dtype, seed + 1)
    bias = noise([groups * onto], dtype, seed + 2) if rng.random() < 0.5 else None
    if len(x) > 0:
        x = layout(x, rng.choice(FORMATS))
    weight = layout(weight, rng.choice(FORMATS[:3]))
    return x, weight, bias, stride, padding, extra, groups, dilation, rng.random() < 0.3


def unpool_deconv_case(rng: random.Random) -> tuple[Any, ...]:
    """All arguments of unpool_deconv: whole maps and windows, pools that overlap or leave gaps."""
    while True:
        x, weight, bias, *geometry, _ = deconv_case(rng)
        dims = x.dim() - 2

        def each(low: int, high: int, dims: int = dims) -> list[int]:
            return [rng.randint(low, high) for _ in range(dims)]

        kernel, stride, dilation = each(1, 3), each(1, 3), each(1, 2)
        reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
        padding = [rng.randint(0, r // 2) for r in reach]
        pool = (kernel, stride, padding, dilation)
        if rng.random() < 0.8:  # else every cell is a window
            x = noise(
                [*x.shape[:2], *(n + r for n, r in zip(x.shape[2:], reach, strict=True))],
                x.dtype,
                rng.randrange(2**31),
            )
        else:
            pool = ([1] * dims, [1] * dims, [0] * dims, [1] * dims)
        size = list(x.shape[2:])
        if math.prod(deconv_size(size, weight.shape[2:], *geometry[:3], geometry[4])) < 4000:
            break
    switches = reference.max_pool(x, *pool)[1]
    switches = layout(switches, rng.choice(["contiguous", "channels_last"]))
    shape, places = list(switches.shape), (None, None, None)
    if len(x) > 0 and rng.random() < 0.5:
        count = rng.randint(0, 4)
        shape = [count, x.shape[1], *(rng.randint(1, n + 1) for n in shape[2:])]
        size = [rng.randint(1, n + 1) for n in size]
        seed = rng.randrange(2**31)
        found = deconv_size(size, weight.shape[2:], *geometry[:3], geometry[4])
        if min(found) < 1:
            return unpool_deconv_case(rng)
        places = (
            integers([count], 0, len(x), seed),
            integers([count, dims], -1, 2, seed + 1),
            integers([count, dims], -2, 3, seed + 2),
        )
    y = layout(noise(shape, x.dtype, rng.randrange(2**31)), rng.choice(FORMATS[:3]))
    mode, relu = rng.choice(["add", "set"]), rng.random() < 0.5
    return y, switches, *pool, size, weight, bias, *geometry, mode, relu, *places


@contextmanager
def vectors_of(most_bytes: int) -> Iterator[None]:
    """Pools in vectors of so many bytes at most, whatever the CPU has."""
    _C.limit_vector_bytes(most_bytes)
    try:
        yield
    finally:
        _C.limit_vector_bytes(64)


def assert_bits(got: Tensor, expected: Tensor) -> None:
    """The same bit patterns, signs of zeros too, though NaNs of any bits are the same."""
    assert_same(got, expected)
    zero = expected == 0
    assert torch.equal(got.signbit()[zero], expected.signbit()[zero])


def assert_same(got: Tensor, expected: Tensor) -> None:
    """Bit for bit the same, layout included; NaNs of any bits are the same."""
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True, check_stride=True)
