"""max_unpool: values put back where their switches point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from backsight.ops._launch import KEYS, is_plain
from backsight.ops._schemas import LIBRARY, check_max_unpool, check_max_unpool_out
from backsight.ops._switched import launch_switched


def _max_unpool(
    y: Tensor,
    switches: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    size: Sequence[int],
    mode: str = "add",
    relu: bool = False,
    base_index: Tensor | None = None,
    y_at: Tensor | None = None,
    window_at: Tensor | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    pool, places = (kernel, stride, padding, dilation), (base_index, y_at, window_at)
    shape = check_max_unpool(y, switches, *pool, size, mode, relu, *places)
    return launch_switched("max_unpool", y, switches, pool, shape, mode, relu, places, out)


def _max_unpool_out(*args: Any, out: Tensor) -> Tensor:
    check_max_unpool_out(*args, out=out)
    return _max_unpool(*args, out=out)


for _key in KEYS:
    LIBRARY.impl("max_unpool", _max_unpool, _key)
    LIBRARY.impl("max_unpool.out", _max_unpool_out, _key)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    y, switches, *pool, _, mode, relu, base_index, y_at, window_at = inputs
    ctx.save_for_backward(switches, base_index, y_at, window_at, output if relu else None)
    ctx.geometry = (*pool, y.shape[2:], mode)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    switches, *places, output = ctx.saved_tensors
    if output is not None:  # as at torch's relu
        grad = grad.masked_fill(output <= 0, 0)
    result = torch.ops.backsight.max_gather.default(grad, switches, *ctx.geometry, *places)
    return result, *[None] * 11


torch.library.register_autograd(
    "backsight::max_unpool", _backward, setup_context=_setup_context, lib=LIBRARY
)


def max_unpool(
    y: Tensor,
    switches: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    size: Sequence[int],
    mode: str = "add",
    relu: bool = False,
    base_index: Tensor | None = None,
    y_at: Tensor | None = None,
    window_at: Tensor | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Values of pooling windows put back in the cells that their switches point to (Zeiler &
    Fergus, "Visualizing and Understanding Convolutional Networks", 2014).

    - "add": a cell is the sum of the values of all windows whose switch points to it, 0 if there
      are none. This is the gradient of `max_pool`, the exact adjoint of `max_gather`. Sums run in
      raster order of the windows, in float32 for 16 bits, and are rounded once.
    - "set": of several windows that point to a cell the last in raster order counts, as in
      ``torch.nn.functional.max_unpool2d`` on the CPU; the others get the gradient 0.

    With base_index, y holds B windows of the pool's output, and the result B windows of its input:
    value w of row b is the one of pooling window ``y_at[b] + w`` of map ``base_index[b]``, and cell
    i of the result is cell ``window_at[b] + i`` of that map. Pooling windows outside of the map's
    are none; cells that no window of y points to are 0, those outside of the map too.

    Every cell is computed on its own, so nothing depends on the number of threads, and nothing is
    ever written outside of the result. Differentiable in `y`, any number of times; with `out` it is
    not.

    Args:
        y: (B, C, *O), or (B, C, *W) for windows, with D spatial axes; float64, float32, float16 or
            bfloat16. Fast in the memory format of the switches.
        switches: (B, C, *O) as `max_pool` returns them, or (M, C, *O) for windows; uint8, int16 or
            int32.
        kernel, stride, padding, dilation: D ints each, as for `max_pool`.
        size: D ints, size of what was pooled, or of the windows of it.
        mode: "add" or "set".
        relu: take max(x, 0) of the result; NaN stays. With unpooling that is how a deconvnet goes
            back through a ReLU and a pool.
        base_index: (B,) int64, the map each window belongs to.
        y_at: (B, D) int64, the pooling window that each row of y begins with.
        window_at: (B, D) int64, the cell that each row of the result begins with.
        out: (B, C, *size) to write to. Must not overlap the inputs.

    Returns:
        (B, C, *size) in the memory format of the switches and the dtype of y, or `out`.

    Raises:
        TypeError, ValueError: a wrong dtype, shape, device or mode; a switch beyond its window, or,
            for whole maps, outside of the map; a base_index of no map. On CUDA the last two fail a
            device-side assertion, which the next synchronisation reports.
        RuntimeError: a gradient with `out` is asked for.
    """
    args = (
        *(y, switches, kernel, stride, padding, dilation, size, mode, relu),
        *(base_index, y_at, window_at),
    )
    if out is not None:
        result: Tensor = torch.ops.backsight.max_unpool.out(*args, out=out)
    elif is_plain(y) and type(switches) is Tensor:
        result = _max_unpool(*args)
    else:
        result = torch.ops.backsight.max_unpool.default(*args)
    return result
