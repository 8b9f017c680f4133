"""rectify: a signal on its way back through relu, by one of three rules."""

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
    RULES,
    check_rectify,
    check_rectify_out,
    empty_dense,
    empty_like_format,
    laid_out,
    lies,
)

Ints = tuple[int, ...]


def _launch(
    channels: bool,
    out: Tensor,
    grad: Tensor,
    bits: Tensor | None,
    rule: str,
    base_index: Tensor | None = None,
    window_at: Tensor | None = None,
    extent: Sequence[int] | None = None,
    base_at: Sequence[int] | None = None,
    tile: Sequence[int] | None = None,
) -> Tensor:
    """Writes to `out` by way of a copy where it does not lie as the kernel needs it."""
    dense = out if lies(out, channels) else empty_dense(out, out.shape, channels, out.dtype)
    grad = laid_out(grad, channels)  # named: the copies live until the kernel has run
    if rule == "deconvnet":
        bits = None
    if bits is not None:
        bits = laid_out(bits, channels)
    shape = grad.shape if grad.dim() > 2 else (*grad.shape, 1)
    extent = shape[2:] if extent is None else extent
    if base_index is not None and window_at is not None:
        base_index, window_at = base_index.contiguous(), window_at.contiguous()
    launch(
        "rectify",
        grad,
        DTYPES[grad.dtype],
        RULES[rule],
        channels,
        grad.data_ptr(),
        shape,
        0 if bits is None else bits.data_ptr(),
        0 if bits is None else bits.shape[0],
        extent if tile is None else tile,
        [0] * len(extent) if base_at is None else base_at,
        extent,
        0 if base_index is None else base_index.data_ptr(),
        0 if window_at is None else window_at.data_ptr(),
        dense.data_ptr(),
    )
    return out if dense is out else out.copy_(dense)


def _rectify(*args: Any) -> Tensor:
    channels = check_rectify(*args)
    grad = args[0]
    return _launch(channels, empty_like_format(grad, grad.shape), *args)


def _rectify_out(*args: Any, out: Tensor) -> Tensor:
    return _launch(check_rectify_out(*args, out=out), out, *args)


class _Plan(NamedTuple):
    """What the layouts of grad and of bits decide for whole maps that lie as the kernel needs."""

    stride: Ints  # of the result
    dtype: int
    rule: int
    channels: bool
    shape: Ints
    maps: int
    size: Ints
    zeros: Ints


@lru_cache(maxsize=1024)
def _plan(
    rule: str,
    dtype: torch.dtype,
    shape: Ints,
    stride: Ints,
    bits_dtype: torch.dtype | None = None,
    bits_shape: Ints = (),
    bits_stride: Ints = (),
) -> _Plan | None:
    """None where something must be copied first. Refuses bad arguments in a sentence."""
    grad = torch.empty_strided(shape, stride, dtype=dtype, device="meta")
    bits = None
    if bits_dtype is not None:
        bits = torch.empty_strided(bits_shape, bits_stride, dtype=bits_dtype, device="meta")
    channels = check_rectify(grad, bits, rule)
    if not lies(grad, channels) or (bits is not None and not lies(bits, channels)):
        return None
    stride = empty_like_format(grad, shape).stride()
    size = tuple(shape[2:]) or (1,)
    sizes, zeros = (*shape[:2], *size), (0,) * len(size)
    return _Plan(stride, DTYPES[dtype], RULES[rule], channels, sizes, shape[0], size, zeros)


def _whole(grad: Tensor, bits: Tensor | None, rule: str) -> Tensor:
    """_rectify for whole maps, at a fraction of the cost of a call."""
    layout = grad.dtype, grad.shape, grad.stride()
    plan, bits_at = None, 0
    if bits is None or rule == "deconvnet":
        plan = _plan(rule, *layout)
    elif bits.device == grad.device:
        plan = _plan(rule, *layout, bits.dtype, bits.shape, bits.stride())
        bits_at = bits.data_ptr()
    if plan is None:
        return _rectify(grad, bits, rule)
    stride, dtype, code, channels, shape, maps, size, zeros = plan
    out = torch.empty_strided(grad.shape, stride, dtype=grad.dtype, device=grad.device)
    arguments = grad.data_ptr(), shape, bits_at, maps, size, zeros, size, 0, 0, out.data_ptr()
    launch("rectify", grad, dtype, code, channels, *arguments)
    return out


for _key in KEYS:
    LIBRARY.impl("rectify", _rectify, _key)
    LIBRARY.impl("rectify.out", _rectify_out, _key)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, bits, rule, *windows = inputs
    if rule == "gradient":
        base_index, window_at, *ctx.windows = windows
        ctx.save_for_backward(bits, base_index, window_at)
    else:  # only what passed has a derivative, as at torch's relu; whole maps suffice for that
        ctx.windows = [None] * 3
        ctx.save_for_backward(torch.ops.backsight.relu.default(output)[1], None, None)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    bits, base_index, window_at = ctx.saved_tensors
    result = torch.ops.backsight.rectify.default(
        grad, bits, "gradient", base_index, window_at, *ctx.windows
    )
    return result, *[None] * 7


torch.library.register_autograd(
    "backsight::rectify", _backward, setup_context=_setup_context, lib=LIBRARY
)


def rectify(
    grad: Tensor,
    bits: Tensor | None,
    rule: str,
    base_index: Tensor | None = None,
    window_at: Tensor | None = None,
    extent: Sequence[int] | None = None,
    base_at: Sequence[int] | None = None,
    tile: Sequence[int] | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """A signal R on its way back through relu, whose bits say where its input f was positive.

    - "gradient": R where the bit is set, else 0; torch's own backward, bit for bit.
    - "deconvnet": max(R, 0), whatever the bit (Zeiler & Fergus 2013, arXiv:1311.2901).
    - "guided": max(R, 0) where the bit is set, else 0 (Springenberg et al. 2014, arXiv:1412.6806).

    max is torch's relu: NaN stays NaN, and -0 stays -0. A clear bit gives +0 whatever R is, also
    for NaN and infinity.

    With base_index, grad is B windows of M maps: the cell of window b at global coordinate g reads
    the bit of channel c of map ``base_index[b]`` at ``g - base_at``. It is 0 where g lies outside
    ``[0, extent)`` on any axis; inside, it is NaN where the bits do not hold g or the index is that
    of no map, which the caller promised not to happen ("deconvnet" asks for no bits).

    Differentiable in `grad`, any number of times. All rules are linear in pieces; the derivative is
    1 where R passes and 0 where it does not: at R = 0, under "deconvnet" and "guided", it is 0, as
    torch's relu has it. With `out` it is not differentiable.

    Args:
        grad: (N, C) or (N, C, *S), or (B, C, *size) for windows, with 1 to 3 spatial axes; float64,
            float32, float16 or bfloat16. Fast in the memory format of the bits.
        bits: what `relu` returned for (N, C), (N, C, *S) or (M, C, *tile); None under "deconvnet",
            which does not read them.
        rule: "gradient", "deconvnet" or "guided".
        base_index: (B,) int64, the map each window reads.
        window_at: (B, D) int64, global coordinate of each window's first cell.
        extent: D ints, size of the whole map.
        base_at: D ints, global coordinate of the first cell that the bits are of; default 0.
        tile: D ints, size of what the bits are of; default extent.
        out: of the shape of grad, to write to. Must not overlap the inputs.

    Returns:
        A tensor of the shape and in the memory format of grad, or `out`.

    Raises:
        TypeError, ValueError: a wrong dtype, or a wrong shape, device or rule.
        RuntimeError: a gradient with `out` is asked for.
    """
    args = (grad, bits, rule, base_index, window_at, extent, base_at, tile)
    no_windows = base_index is None and window_at is None and extent is None
    whole = no_windows and base_at is None and tile is None
    if whole and out is None and is_plain(grad) and (bits is None or type(bits) is Tensor):
        return _whole(grad, bits, rule)
    if out is None:
        result: Tensor = torch.ops.backsight.rectify.default(*args)
    else:
        result = torch.ops.backsight.rectify.out(*args, out=out)
    return result
