"""preactivation: batch norm and ReLU in front of a convolution, over joined maps, in one pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from backsight.ops._launch import KEYS, launch
from backsight.ops._schemas import (
    DTYPES,
    LIBRARY,
    check_out,
    check_preactivation,
    empty_like_format,
    is_dense,
)


def _preactivation(
    maps: Sequence[Tensor], scale: Tensor, shift: Tensor, *, out: Tensor | None = None
) -> Tensor:
    shape = check_preactivation(maps, scale, shift)
    first = maps[0]
    if out is not None:
        check_out("preactivation", out, shape, "maps[0]", first)
    dense = out if out is not None and is_dense(out) else empty_like_format(first, shape)
    scale = scale.contiguous()  # named: the copies live until the kernel has run
    shift = shift.contiguous()
    launch(
        "preactivation",
        first,
        DTYPES[first.dtype],
        [x.data_ptr() for x in maps],
        [x.shape for x in maps],
        [x.stride() for x in maps],
        scale.data_ptr(),
        shift.data_ptr(),
        dense.data_ptr(),
        dense.shape,
        dense.stride(),
    )
    return dense if out is None or out is dense else out.copy_(dense)


for _key in KEYS:
    LIBRARY.impl("preactivation", _preactivation, _key)
    LIBRARY.impl("preactivation.out", _preactivation, _key)


def preactivation(
    maps: Sequence[Tensor], scale: Tensor, shift: Tensor, *, out: Tensor | None = None
) -> Tensor:
    """Batch norm and ReLU over maps joined along the channels, in one pass over memory.

    With x the maps' channels one map after the other, channel c of the result is
    ``max(x[:, c] * scale[c] + shift[c], 0)``: what stands in front of a convolution in networks of
    pre-activation (He et al., "Identity Mappings in Deep Residual Networks", 2016; Huang et al.,
    "Densely Connected Convolutional Networks", 2017). Maps of float64 are computed in float64, all
    others in float32; product and sum are each rounded there, and the result once to the maps'
    dtype. NaN stays NaN.

    Args:
        maps: one or more of (N, C_i, *S), of one dtype (float64, float32, float16 or bfloat16), any
            strides. Fast when all are channels last or all contiguous.
        scale: (C,) float64 for maps of float64, else float32; C is the sum of all C_i.
        shift: (C,), likewise.
        out: (N, C, *S) to write to. Must not overlap the inputs.

    Returns:
        (N, C, *S) in the memory format of the first map, or `out`.

    Raises:
        TypeError, ValueError: a wrong dtype, or a wrong shape or device.
        RuntimeError: a gradient is asked for; preactivation is inference-only.
    """
    maps = list(maps)
    if out is None:
        result: Tensor = torch.ops.backsight.preactivation.default(maps, scale, shift)
    else:
        result = torch.ops.backsight.preactivation.out(maps, scale, shift, out=out)
    return result
