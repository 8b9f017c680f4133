"""unpool_deconv: max_unpool and subpixel_deconv in one step, without the map between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from backsight.ops._launch import KEYS, launch
from backsight.ops._schemas import (
    DTYPES,
    LIBRARY,
    channels_last_stride,
    check_unpool_deconv,
    check_unpool_deconv_out,
    empty_dense,
    is_channels_last,
    laid_out,
    lies,
    unpool_deconv_channels_last,
)
from backsight.ops.max_unpool import _max_unpool
from backsight.ops.subpixel_deconv import (
    _geometry,
    _is_plain,
    _subpixel_deconv,
    forced_path,
    register_autocast,
)

Ints = Sequence[int]


# Cells below which the weights, which are laid out anew for each call, take longer than the rest.
_CELLS = 32
# Values of a line of taps below which most of a vector would be empty; contiguous results only.
_LINE = 8


def _fuses(
    y: Tensor,
    switches: Tensor,
    kernel: Ints,
    size: Ints,
    weight: Tensor,
    groups: int,
    dilation: Ints,
    relu: bool,
) -> bool:
    """Whether one kernel is to do both. Measured: see bench/NOTES.md."""
    forced = forced_path("unpool_deconv")
    if forced != "auto":
        return forced == "direct"
    if not y.is_cpu or switches.dtype != torch.uint8 or groups > 1:
        return False
    if dilation[-1] > 1 and weight.shape[-1] > 1:  # our kernel would go pixel by pixel
        return False
    if not relu and math.prod(kernel) == 1:  # no cell is 0
        return False
    if len(y) * math.prod(size) < _CELLS:
        return False
    narrow = weight.shape[1] * weight.shape[-1] < _LINE
    return not narrow or unpool_deconv_channels_last(switches, size, weight)


def _by_kernel(
    y: Tensor,
    switches: Tensor,
    pool: tuple[Ints, Ints, Ints, Ints],
    size: Ints,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Any,
    mode: str,
    relu: bool,
    places: tuple[Tensor | None, Tensor | None, Tensor | None],
    out: Tensor,
) -> None:
    stride, padding, _, groups, dilation = geometry
    last = is_channels_last(switches)
    y = laid_out(y, last)  # named: the copies live until the kernel has run
    switches = laid_out(switches, last)
    held = [None if place is None else place.contiguous() for place in places]
    turned = lies(weight, True)
    weight = weight if turned else weight.contiguous()
    if bias is not None:
        bias = bias.contiguous()
    onto, *taps = weight.shape[1:]
    x_shape = (*y.shape[:2], *size)
    if last:
        x_stride = channels_last_stride(x_shape)
    else:
        x_stride = [math.prod(x_shape[i + 1 :]) for i in range(len(x_shape))]
    launch(
        "unpool_deconv",
        y,
        DTYPES[y.dtype],
        switches.element_size(),
        mode == "set",
        relu,
        *pool,
        x_shape,
        x_stride,
        y.data_ptr(),
        y.shape,
        y.stride(),
        switches.data_ptr(),
        switches.shape,
        switches.stride(),
        *(0 if place is None else place.data_ptr() for place in held),
        groups,
        taps,
        stride,
        padding,
        dilation,
        weight.data_ptr(),
        weight[0].numel(),
        1 if turned else math.prod(taps),
        onto if turned else 1,
        0 if bias is None else bias.data_ptr(),
        out.data_ptr(),
        out.shape,
        out.stride(),
    )


def _unpool_deconv(
    y: Tensor,
    switches: Tensor,
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    size: Ints,
    weight: Tensor,
    bias: Tensor | None,
    deconv_stride: Ints,
    deconv_padding: Ints,
    output_padding: Ints,
    groups: int,
    deconv_dilation: Ints,
    mode: str = "add",
    relu: bool = False,
    base_index: Tensor | None = None,
    y_at: Tensor | None = None,
    window_at: Tensor | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    pool, places = (kernel, stride, padding, dilation), (base_index, y_at, window_at)
    geometry = (deconv_stride, deconv_padding, output_padding, groups, deconv_dilation)
    case: tuple[Any, ...] = (y, switches, *pool, size, weight, bias, *geometry, mode, relu, *places)
    shape = check_unpool_deconv(*case)
    if not _fuses(y, switches, kernel, size, weight, groups, deconv_dilation, relu):
        x = _max_unpool(y, switches, *pool, size, mode, relu, *places)
        return _subpixel_deconv(x, weight, bias, *geometry, False, out)
    last = unpool_deconv_channels_last(switches, size, weight)
    dense = out if out is not None and lies(out, last) else empty_dense(y, shape, last)
    _by_kernel(y, switches, pool, size, weight, bias, geometry, mode, relu, places, dense)
    return dense if out is None or dense is out else out.copy_(dense)


def _unpool_deconv_out(*args: Any, out: Tensor) -> Tensor:
    check_unpool_deconv_out(*args, out=out)
    return _unpool_deconv(*args, out=out)


for _key in KEYS:
    LIBRARY.impl("unpool_deconv", _unpool_deconv, _key)
    LIBRARY.impl("unpool_deconv.out", _unpool_deconv_out, _key)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    y, switches, *pool_size = inputs[:7]
    weight, bias, *geometry = inputs[7:14]
    # The schema's defaults are filled in.
    ctx.mode, ctx.relu, *places = inputs[14:]
    ctx.save_for_backward(y, switches, weight, *places)
    ctx.pool = pool_size
    ctx.geometry = geometry
    ctx.has_bias = bias is not None


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    y, switches, weight, *places = ctx.saved_tensors
    *pool, size = ctx.pool
    x = torch.ops.backsight.max_unpool.default(
        y, switches, *pool, size, ctx.mode, ctx.relu, *places
    )
    stride, padding, output_padding, groups, dilation = ctx.geometry
    needs = ctx.needs_input_grad
    wanted = [bool(needs[0]), bool(needs[7]), bool(needs[8])]
    of_x, of_weight, of_bias = torch.ops.aten.convolution_backward.default(
        grad,
        x,
        weight,
        [grad.shape[1]] if ctx.has_bias else None,
        stride,
        padding,
        dilation,
        True,
        output_padding,
        groups,
        wanted,
    )
    of_y = None
    if wanted[0]:
        if ctx.relu:  # as at torch's relu: nothing passes where the result is 0
            of_x = of_x.masked_fill(x <= 0, 0)
        of_y = torch.ops.backsight.max_gather.default(
            of_x, switches, *pool, y.shape[2:], ctx.mode, *places
        )
    return (
        of_y,
        *[None] * 6,
        of_weight if wanted[1] else None,
        of_bias if wanted[2] else None,
        *[None] * 10,
    )


torch.library.register_autograd(
    "backsight::unpool_deconv", _backward, setup_context=_setup_context, lib=LIBRARY
)


register_autocast("unpool_deconv", (0, 7, 8))


def unpool_deconv_path(
    y: Tensor,
    switches: Tensor,
    kernel: Ints,
    size: Ints,
    weight: Tensor,
    groups: int = 1,
    deconv_dilation: Ints | None = None,
    relu: bool = False,
) -> str:
    """How `unpool_deconv` does such a case, by shapes, dtypes and device:

    - "fused": a kernel of our own does both;
    - "composed": `max_unpool`, and then `subpixel_deconv`.

    The environment variable BACKSIGHT_DECONV forces the first ("direct"), or the second with that
    path of `subpixel_deconv` ("phase", "torch"), or leaves the choice ("auto", or not set).

    Raises:
        ValueError: a wrong value of the variable.
    """
    dilation = [1] * len(size) if deconv_dilation is None else deconv_dilation
    fuses = _fuses(y, switches, kernel, size, weight, groups, dilation, relu)
    return "fused" if fuses else "composed"


def unpool_deconv(
    y: Tensor,
    switches: Tensor,
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    size: Ints,
    weight: Tensor,
    bias: Tensor | None = None,
    deconv_stride: Ints | None = None,
    deconv_padding: Ints | None = None,
    output_padding: Ints | None = None,
    groups: int = 1,
    deconv_dilation: Ints | None = None,
    mode: str = "add",
    relu: bool = False,
    base_index: Tensor | None = None,
    y_at: Tensor | None = None,
    window_at: Tensor | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """A deconvnet's step back through a convolution, a ReLU and a max pool (Zeiler & Fergus,
    "Visualizing and Understanding Convolutional Networks", 2014): `max_unpool` of y, and
    `subpixel_deconv` of that.

    The map between them is 0 in all but one cell of a pooling window, and after the ReLU in half of
    those, so the transposed convolution of it multiplies mostly zeros. Here the map is never there:
    the channels of a cell that are not 0 are listed, and only they meet their weights. So a channel
    that is 0 counts for nothing, even where its weight is NaN or infinite; NaN and infinities of y
    go where they go in the two ops. `unpool_deconv_path` tells whether it is computed so.

    Differentiable in `y`, `weight` and `bias`, any number of times, by unpooling the map then; with
    `out` it is not. Nothing depends on the number of threads.

    Args:
        y, switches, kernel, stride, padding, dilation, size, mode, relu, base_index, y_at,
            window_at: as for `max_unpool`: y (B, in, *W), and `size`, D positive ints, that of the
            map, or of the windows of it, that is sent through the transposed convolution.
        weight: (in, out / groups, *taps), of the dtype of y.
        bias: (out,), added to every pixel, also where no tap falls.
        deconv_stride, deconv_padding, output_padding, groups, deconv_dilation: those of
            `subpixel_deconv`, whose defaults they have.
        out: (B, out, *O) to write to. Must not overlap the inputs.

    Returns:
        (B, out, *O) with O = (size - 1) * deconv_stride - 2 * deconv_padding + (taps - 1) *
        deconv_dilation + output_padding + 1, channels last where the switches or weight are, else
        contiguous; or `out`. What is 16 bits wide is added up in float32, the cells of the map are
        rounded to the dtype of y.

    Raises:
        TypeError, ValueError: as `max_unpool` and `subpixel_deconv`.
        RuntimeError: a gradient is asked for with `out`.
    """
    geometry = _geometry(y, deconv_stride, deconv_padding, output_padding, groups, deconv_dilation)
    args = (
        *(y, switches, kernel, stride, padding, dilation, size, weight, bias, *geometry),
        *(mode, relu, base_index, y_at, window_at),
    )
    if out is not None:
        result: Tensor = torch.ops.backsight.unpool_deconv.out(*args, out=out)
    elif type(switches) is Tensor and _is_plain(y, weight, bias):
        result = _unpool_deconv(*args)
    else:
        result = torch.ops.backsight.unpool_deconv.default(*args)
    return result
