"""What max_unpool and max_gather have in common: how their arguments reach the kernels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from backsight.ops._launch import launch
from backsight.ops._schemas import (
    DTYPES,
    empty_dense,
    empty_like_format,
    is_channels_last,
    laid_out,
    lies,
)


def launch_switched(
    op: str,
    source: Tensor,
    switches: Tensor,
    pool: tuple[Sequence[int], Sequence[int], Sequence[int], Sequence[int]],
    shape: tuple[int, ...],
    mode: str,
    relu: bool,
    places: tuple[Tensor | None, Tensor | None, Tensor | None],
    out: Tensor | None,
) -> Tensor:
    """Runs `op` on what lies as the switches do, by way of copies of what does not."""
    last = is_channels_last(switches)
    if out is None:
        dense = out = empty_like_format(switches, shape, source.dtype)
    else:
        dense = out if lies(out, last) else empty_dense(out, shape, last, out.dtype)
    source = laid_out(source, last)  # named: the copies live until the kernel has run
    switches = laid_out(switches, last)
    held = [None if place is None else place.contiguous() for place in places]
    x, y = (dense, source) if op == "max_unpool" else (source, dense)
    launch(
        op,
        source,
        DTYPES[source.dtype],
        switches.element_size(),
        mode == "set",
        relu,
        *pool,
        x.data_ptr(),
        x.shape,
        x.stride(),
        y.data_ptr(),
        y.shape,
        y.stride(),
        switches.data_ptr(),
        switches.shape,
        switches.stride(),
        *(0 if place is None else place.data_ptr() for place in held),
    )
    return out if dense is out else out.copy_(dense)
