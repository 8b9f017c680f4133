"""relu: torch's relu, and one bit an element of where a gradient passes."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from backsight.ops._launch import KEYS, is_plain, launch
from backsight.ops._schemas import (
    DTYPES,
    LIBRARY,
    check_relu,
    check_relu_out,
    check_rule,
    empty_dense,
    empty_like_format,
    laid_out,
    lies,
    packs_channels,
)

Ints = tuple[int, ...]


class _Plan(NamedTuple):
    """What the layout of x decides. channels: the bits lie along the channels; dense: x lies so."""

    channels: bool
    dense: bool
    dtype: int
    stride: Ints  # of y
    bits_shape: Ints
    bits_stride: Ints
    rows: int
    length: int


@lru_cache(maxsize=1024)
def _plan(dtype: torch.dtype, shape: Ints, stride: Ints) -> _Plan:
    """Refuses bad arguments in a sentence."""
    x = torch.empty_strided(shape, stride, dtype=dtype, device="meta")
    packed = check_relu(x)
    channels = packs_channels(x)
    length = shape[1 if channels else -1]
    return _Plan(
        channels,
        lies(x, channels),
        DTYPES[dtype],
        empty_like_format(x, shape).stride(),
        packed,
        empty_dense(x, packed, channels, torch.uint8).stride(),
        x.numel() // length if length else 0,
        length,
    )


def _relu(x: Tensor, rule: str = "gradient") -> tuple[Tensor, Tensor]:
    check_rule("relu", rule)
    dtype, shape, device = x.dtype, x.shape, x.device
    channels, dense, code, stride, packed, packed_stride, rows, length = _plan(
        dtype, shape, x.stride()
    )
    y = torch.empty_strided(shape, stride, dtype=dtype, device=device)
    bits = torch.empty_strided(packed, packed_stride, dtype=torch.uint8, device=device)
    if not dense:
        x = laid_out(x, channels)  # named: the copy lives until the kernel has run
    launch("relu", x, code, x.data_ptr(), y.data_ptr(), bits.data_ptr(), rows, length)
    return y, bits


def empty_bits(x: Tensor) -> Tensor:
    """Uninitialised bits for x, as `relu` takes them in `out`."""
    plan = _plan(x.dtype, x.shape, x.stride())
    return torch.empty_strided(
        plan.bits_shape, plan.bits_stride, dtype=torch.uint8, device=x.device
    )


def _relu_out(
    x: Tensor, rule: str = "gradient", *, y: Tensor, bits: Tensor
) -> tuple[Tensor, Tensor]:
    check_relu_out(x, rule, y=y, bits=bits)
    plan = _plan(x.dtype, x.shape, x.stride())
    x = laid_out(x, plan.channels)
    to_y = y if lies(y, plan.channels) else empty_like_format(x, x.shape)
    to_bits = bits
    if not lies(bits, plan.channels):
        to_bits = empty_dense(x, bits.shape, plan.channels, torch.uint8)
    pointers = x.data_ptr(), to_y.data_ptr(), to_bits.data_ptr()
    launch("relu", x, plan.dtype, *pointers, plan.rows, plan.length)
    return (
        y if to_y is y else y.copy_(to_y),
        bits if to_bits is bits else bits.copy_(to_bits),
    )


for _key in KEYS:
    LIBRARY.impl("relu", _relu, _key)
    LIBRARY.impl("relu.out", _relu_out, _key)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.rule = inputs[1] if len(inputs) > 1 else "gradient"
    ctx.save_for_backward(None if ctx.rule == "deconvnet" else output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, _bits: None) -> tuple[Tensor | None, None]:
    if grad is None:
        return None, None
    (bits,) = ctx.saved_tensors
    return torch.ops.backsight.rectify.default(grad, bits, ctx.rule), None


torch.library.register_autograd(
    "backsight::relu", _backward, setup_context=_setup_context, lib=LIBRARY
)


def relu(
    x: Tensor, rule: str = "gradient", *, out: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """max(x, 0), and for each element a bit that says whether a gradient passes there.

    The bit is set where x > 0 or x is NaN. As in torch, NaN stays NaN and -0 stays -0.

    Differentiable in `x`, any number of times: a signal goes back by `rectify` with the rule, which
    for "gradient" is torch's own backward, bit for bit. The bits are all that is kept for it, 1/32
    of float32's bytes. With `out` it is not differentiable.

    Args:
        x: (N, C) or (N, C, *S) with 1 to 3 spatial axes; float64, float32, float16 or bfloat16.
            Any strides; what is neither contiguous nor channels last is copied first.
        rule: "gradient", "deconvnet" or "guided", of the backward.
        out: (y, bits) to write to; y may be x itself.

    Returns:
        y, of the shape and in the memory format of x, and bits, uint8. They lie along the channels
        where those are last in memory, where x has no spatial axes or only one position: (N,
        ceil(C / 8), *S) in the same memory format; else along the last axis: (N, C, *S[:-1],
        ceil(S[-1] / 8)). Element i of such a row is bit ``i % 8``, the lowest first, of byte
        ``i // 8``; rows are padded with zero bits.

    Raises:
        TypeError, ValueError: a wrong dtype, or a wrong shape, device or rule.
        RuntimeError: a gradient with `out` is asked for.
    """
    if out is None and is_plain(x):
        return _relu(x, rule)
    if out is None:
        result: tuple[Tensor, Tensor] = torch.ops.backsight.relu.default(x, rule)
    else:
        result = torch.ops.backsight.relu.out(x, rule, y=out[0], bits=out[1])
    return result
