"""max_pool: maxima of pooling windows, with switches of one byte."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from backsight.ops._launch import KEYS, is_plain, launch
from backsight.ops._schemas import (
    DTYPES,
    LIBRARY,
    channels_last_stride,
    check_array,
    check_max_pool,
    check_max_pool_out,
    empty_like_format,
    is_channels_last,
    is_dense,
    pooled_size,
    switch_dtype,
)


def dense_channels(x: Tensor) -> Tensor:
    """`x` (B, C, *S), copied if it counts as channels last but its channels are not dense."""
    if is_channels_last(x) and x.stride(1) != 1:
        return empty_like_format(x, x.shape).copy_(x)
    return x


@lru_cache(maxsize=1024)
def _plan(
    shape: tuple[int, ...],
    channels_last: bool,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    ceil_mode: bool,
) -> tuple[tuple[int, ...], tuple[int, ...], torch.dtype]:
    """Shape and strides of the results, and the dtype of the switches."""
    size = pooled_size("max_pool", shape[2:], kernel, stride, padding, dilation, ceil_mode)
    result = (*shape[:2], *size)
    if channels_last:
        strides = tuple(channels_last_stride(result))
    else:
        strides = torch.empty(result, device="meta").stride()
    return result, strides, switch_dtype(kernel)


def _run(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    relu: bool,
    y: Tensor,
    switches: Tensor,
) -> tuple[Tensor, Tensor]:
    x = dense_channels(x)  # named: the copy lives until the kernel has run
    launch(
        "max_pool",
        x,
        DTYPES[x.dtype],
        switches.element_size(),
        relu,
        kernel,
        stride,
        padding,
        dilation,
        x.data_ptr(),
        x.shape,
        x.stride(),
        y.data_ptr(),
        switches.data_ptr(),
        y.shape,
        y.stride(),
    )
    return y, switches


def _max_pool(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool = False,
    relu: bool = False,
) -> tuple[Tensor, Tensor]:
    check_array("max_pool", "x", x)
    shape, strides, offsets = _plan(
        x.shape,
        is_channels_last(x),
        tuple(kernel),
        tuple(stride),
        tuple(padding),
        tuple(dilation),
        ceil_mode,
    )
    y = torch.empty_strided(shape, strides, dtype=x.dtype, device=x.device)
    switches = torch.empty_strided(shape, strides, dtype=offsets, device=x.device)
    return _run(x, kernel, stride, padding, dilation, relu, y, switches)


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
    shape = check_max_pool(x, kernel, stride, padding, dilation, ceil_mode)
    check_max_pool_out(x, kernel, shape, y, switches)
    # The kernel writes both in the format of x.
    fits = all(
        is_dense(out) and (is_channels_last(out) == is_channels_last(x)) for out in (y, switches)
    )
    if fits:
        return _run(x, kernel, stride, padding, dilation, relu, y, switches)
    dense = empty_like_format(x, shape), empty_like_format(x, shape, switches.dtype)
    _run(x, kernel, stride, padding, dilation, relu, *dense)
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
