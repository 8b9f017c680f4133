"""max_gather: what the switches of pooling windows point to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from backsight.ops._launch import KEYS, is_plain
from backsight.ops._schemas import LIBRARY, check_max_gather, check_max_gather_out
from backsight.ops._switched import launch_switched


def _max_gather(
    x: Tensor,
    switches: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    size: Sequence[int],
    mode: str = "add",
    base_index: Tensor | None = None,
    y_at: Tensor | None = None,
    window_at: Tensor | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    pool, places = (kernel, stride, padding, dilation), (base_index, y_at, window_at)
    shape = check_max_gather(x, switches, *pool, size, mode, *places)
    return launch_switched("max_gather", x, switches, pool, shape, mode, False, places, out)


def _max_gather_out(*args: Any, out: Tensor) -> Tensor:
    check_max_gather_out(*args, out=out)
    return _max_gather(*args, out=out)


for _key in KEYS:
    LIBRARY.impl("max_gather", _max_gather, _key)
    LIBRARY.impl("max_gather.out", _max_gather_out, _key)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, switches, *pool, _, mode, base_index, y_at, window_at = inputs
    ctx.save_for_backward(switches, base_index, y_at, window_at)
    ctx.geometry = (*pool, x.shape[2:], mode)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    switches, *places = ctx.saved_tensors
    result = torch.ops.backsight.max_unpool.default(grad, switches, *ctx.geometry, False, *places)
    return result, *[None] * 10


torch.library.register_autograd(
    "backsight::max_gather", _backward, setup_context=_setup_context, lib=LIBRARY
)


def max_gather(
    x: Tensor,
    switches: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    size: Sequence[int],
    mode: str = "add",
    base_index: Tensor | None = None,
    y_at: Tensor | None = None,
    window_at: Tensor | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """The cells of `x` that the switches of pooling windows point to: of the map that was pooled
    its maxima, of any other the values at the same places.

    The adjoint of `max_unpool` with the same arguments: with "set" a window is 0 if a later one in
    raster order points to the same cell. With base_index, x holds B windows of the pool's input and
    the result B windows of its output, as y of `max_unpool` does; what lies outside of x, and
    pooling windows outside of the map's, are 0. Differentiable in `x`, any number of times; with
    `out` it is not.

    Args:
        x: (B, C, *S) with D spatial axes; float64, float32, float16 or bfloat16. Fast in the memory
            format of the switches.
        switches: (B, C, *O) as `max_pool` returns them, or (M, C, *O) for windows; uint8, int16 or
            int32.
        kernel, stride, padding, dilation: D ints each, as for `max_pool`.
        size: D ints, size of the result: that of the switches for whole maps.
        mode: "add" or "set".
        base_index: (B,) int64, the map each window belongs to.
        y_at: (B, D) int64, the pooling window that each row of the result begins with.
        window_at: (B, D) int64, the cell that each row of x begins with.
        out: (B, C, *size) to write to. Must not overlap the inputs.

    Returns:
        (B, C, *size) in the memory format of the switches and the dtype of x, or `out`.

    Raises:
        TypeError, ValueError: a wrong dtype, shape, device or mode; a switch beyond its window, or,
            for whole maps, outside of the map; a base_index of no map. On CUDA the last two fail a
            device-side assertion, which the next synchronisation reports.
        RuntimeError: a gradient with `out` is asked for.
    """
    args = (
        *(x, switches, kernel, stride, padding, dilation, size, mode),
        *(base_index, y_at, window_at),
    )
    if out is not None:
        result: Tensor = torch.ops.backsight.max_gather.out(*args, out=out)
    elif is_plain(x) and type(switches) is Tensor:
        result = _max_gather(*args)
    else:
        result = torch.ops.backsight.max_gather.default(*args)
    return result
