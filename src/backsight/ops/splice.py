"""splice: windows of base maps with patches pasted over, in one pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from backsight.ops._launch import KEYS, launch
from backsight.ops._schemas import (
    DTYPES,
    LIBRARY,
    check_out,
    check_splice,
    empty_like_format,
    is_dense,
)


def _splice(
    base: Tensor,
    base_index: Tensor,
    base_at: Sequence[int],
    extent: Sequence[int],
    patch: Tensor,
    patch_at: Tensor,
    window_at: Tensor,
    size: Sequence[int],
    outside: float = 0.0,
    *,
    out: Tensor | None = None,
) -> Tensor:
    shape = check_splice(base, base_index, base_at, extent, patch, patch_at, window_at, size)
    if out is not None:
        check_out("splice", out, shape, "base", base)
    dense = out if out is not None and is_dense(out) else empty_like_format(base, shape)
    base_index = base_index.contiguous()  # named: the copies live until the kernel has run
    patch_at = patch_at.contiguous()
    window_at = window_at.contiguous()
    launch(
        "splice",
        base,
        DTYPES[base.dtype],
        base.data_ptr(),
        base.shape,
        base.stride(),
        base_index.data_ptr(),
        base_at,
        extent,
        patch.data_ptr(),
        patch.shape,
        patch.stride(),
        patch_at.data_ptr(),
        window_at.data_ptr(),
        outside,
        dense.data_ptr(),
        dense.shape,
        dense.stride(),
    )
    return dense if out is None or out is dense else out.copy_(dense)


for _key in KEYS:
    LIBRARY.impl("splice", _splice, _key)
    LIBRARY.impl("splice.out", _splice, _key)


def splice(
    base: Tensor,
    base_index: Tensor,
    base_at: Sequence[int],
    extent: Sequence[int],
    patch: Tensor,
    patch_at: Tensor,
    window_at: Tensor,
    size: Sequence[int],
    outside: float = 0.0,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """B windows of base maps, with B patches pasted over, in one pass.

    The cell of window b at global coordinate g is, for every channel, the first of

    - ``outside``, if g lies outside ``[0, extent)`` on any axis,
    - ``patch[b, :, g - patch_at[b]]``, if g lies in the patch,
    - ``base[base_index[b], :, g - base_at]``, if g lies in the tile and the index is in [0, M),
    - NaN: the caller promised that the tile holds what the windows read.

    Args:
        base: (M, C, *T) a tile of each of M maps, any strides; float64, float32, float16 or
            bfloat16. Fast when contiguous or channels last along its channels or its last axis.
        base_index: (B,) int64, the map each window reads.
        base_at: D ints, global coordinate of the tile's first cell.
        extent: D ints, size of the whole map.
        patch: (B, C, *P), dtype of base. P may be 0 on any axis: then there is no patch.
        patch_at: (B, D) int64, global coordinate of each patch's first cell.
        window_at: (B, D) int64, global coordinate of each window's first cell.
        size: D ints, size of every window.
        outside: the value outside the map, rounded to the dtype.
        out: (B, C, *size) to write to. Must not overlap the inputs.

    Returns:
        (B, C, *size) in the memory format of base, or `out`.

    Raises:
        TypeError, ValueError: a wrong dtype, or a wrong shape or device.
        RuntimeError: a gradient is asked for; splice is inference-only.
    """
    args = (base, base_index, base_at, extent, patch, patch_at, window_at, size, outside)
    if out is None:
        result: Tensor = torch.ops.backsight.splice.default(*args)
    else:
        result = torch.ops.backsight.splice.out(*args, out=out)
    return result
