"""max_pool: maxima of pooling windows, with switches of one byte."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from backsight.ops._launch import KEYS, is_plain, launch
from backsight.ops._schemas import (
    DTYPES,
    LIBRARY,
    check_max_pool,
    check_max_pool_out,
    empty_like_format,
    is_channels_last,
    lies,
    switch_dtype,
)


class _Plan(NamedTuple):
    """What does not depend on the values: worked out once for each kind of call."""

    shape: tuple[int, ...]  # of the results, and their strides
    strides: tuple[int, ...]
    switches: torch.dtype
    codes: tuple[int, int]  # of the dtype, and bytes of a switch
    fits: bool  # whether the kernel takes x as it lies


@lru_cache(maxsize=1024)
def _plan(
    dtype: torch.dtype,
    shape: tuple[int, ...],
    x_strides: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    ceil_mode: bool,
) -> _Plan:
    x = torch.empty_strided(shape, x_strides, dtype=dtype, device="meta")
    result = tuple(check_max_pool(x, kernel, stride, padding, dilation, ceil_mode))
    offsets = switch_dtype(kernel)
    strides = empty_like_format(x, result).stride()
    fits = x.stride(1) == 1 if is_channels_last(x) else x.is_contiguous()
    return _Plan(result, strides, offsets, (DTYPES[dtype], offsets.itemsize), fits)


def _max_pool(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool = False,
    relu: bool = False,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    pool = tuple(kernel), tuple(stride), tuple(padding), tuple(dilation)
    shape, strides = x.shape, x.stride()
    plan = _plan(x.dtype, shape, strides, *pool, ceil_mode)
    if out is None:
        y = x.new_empty_strided(plan.shape, plan.strides)
        switches = x.new_empty_strided(plan.shape, plan.strides, dtype=plan.switches)
    else:
        y, switches = out
    if not plan.fits:
        x = empty_like_format(x, shape).copy_(x)  # named: the copy lives until the kernel has run
        strides = x.stride()
    launch(
        "max_pool",
        x,
        *plan.codes,
        relu,
        *pool,
        x.data_ptr(),
        shape,
        strides,
        y.data_ptr(),
        switches.data_ptr(),
        plan.shape,
        plan.strides,
    )
    return y, switches


def _max_pool_out(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool = False,
    relu: bool = False,
    *,
    y: Tensor,
    switches: Tensor,
) -> tuple[Tensor, Tensor]:
    args = (x, kernel, stride, padding, dilation, ceil_mode)
    check_max_pool_out(x, kernel, check_max_pool(*args), y, switches)
    last = is_channels_last(x)  # the kernel writes both in the format of x
    if lies(y, last) and lies(switches, last):
        return _max_pool(*args, relu, (y, switches))
    dense = _max_pool(*args, relu)
    return y.copy_(dense[0]), switches.copy_(dense[1])


for _key in KEYS:
    LIBRARY.impl("max_pool", _max_pool, _key)
    LIBRARY.impl("max_pool.out", _max_pool_out, _key)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, kernel, stride, padding, dilation, _, relu = inputs
    y, switches = output
    ctx.mark_non_differentiable(switches)
    ctx.save_for_backward(switches, *([y] if relu else []))
    ctx.geometry = kernel, stride, padding, dilation, x.shape[2:]


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    switches, *rest = ctx.saved_tensors
    if rest:  # as at torch's relu: nothing passes where the result is 0, and everything where NaN
        grad = grad.masked_fill(rest[0] <= 0, 0)
    result = torch.ops.backsight.max_unpool.default(grad, switches, *ctx.geometry)
    return result, *[None] * 6


torch.library.register_autograd(
    "backsight::max_pool", _backward, setup_context=_setup_context, lib=LIBRARY
)


def max_pool(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool = False,
    relu: bool = False,
    *,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Maxima of pooling windows, and switches that say where in its window each maximum was
    (Zeiler & Fergus, "Visualizing and Understanding Convolutional Networks", 2014).

    Cell k of window o lies at ``o * stride - padding + k * dilation`` on each axis; a switch is the
    raster index of k in the window. Of equal maxima the first wins; of several NaNs the last does,
    and a window of -inf alone has the switch of its first cell inside the map: all as in torch.
    Differentiable in `x`, any number of times; with `out` it is not.

    Args:
        x: (B, C, *S) with D spatial axes, any strides; float64, float32, float16 or bfloat16.
        kernel, stride, dilation: D positive ints each, in cells.
        padding: D ints, cells of -inf before and after the map; at most half a window's span.
        ceil_mode: windows may hang over the map's end, as long as they do not begin beyond it.
        relu: take ``max(x, 0)`` first; NaN stays. A window without a positive cell then has the
            value 0 and the switch of its first cell inside the map, as relu followed by max_pool.
        out: (y, switches) to write to. Must not overlap `x`.

    Returns:
        (B, C, *O) the maxima, and (B, C, *O) the switches: uint8, or int16 where a window has more
        than 256 cells, or int32 where it has more than 32768. Both in the memory format of x, or
        `out`.

    Raises:
        TypeError, ValueError: a wrong dtype, shape or device; a map that holds no window, or a
            window that lies in the padding altogether (the dilation exceeds the map).
        RuntimeError: a gradient is asked for with `out`.
    """
    args = (x, kernel, stride, padding, dilation, ceil_mode, relu)
    if out is not None:
        y, switches = out
        result: tuple[Tensor, Tensor] = torch.ops.backsight.max_pool.out(
            *args, y=y, switches=switches
        )
    elif is_plain(x):
        result = _max_pool(*args)
    else:
        result = torch.ops.backsight.max_pool.default(*args)
    return result
