"""heatmap: per-pixel mean or sum of box scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from backsight import _C
from backsight.ops._launch import KEYS, launch
from backsight.ops._schemas import DTYPES, LIBRARY, check_heatmap, check_heatmap_out


def _launch(scores: Tensor, boxes: Tensor, size: Sequence[int], reduce: str, out: Tensor) -> Tensor:
    dense = out if out.is_contiguous() else out.new_empty(out.shape)
    scores, boxes = scores.contiguous(), boxes.contiguous()
    dtype = DTYPES[scores.dtype]
    # The CPU kernel allocates its own scratch. On CUDA its size must not depend on what the boxes
    # are, which the host does not know.
    scratch = _C.heatmap_workspace(dtype, scores.shape, size) if scores.is_cuda else 0
    workspace = scores.new_empty(scratch, dtype=torch.uint8)
    launch(
        "heatmap",
        scores,
        dtype,
        scores.data_ptr(),
        boxes.data_ptr(),
        scores.shape,
        size,
        reduce == "mean",
        dense.data_ptr(),
        workspace.data_ptr(),
    )
    return out if dense is out else out.copy_(dense)


def _heatmap(scores: Tensor, boxes: Tensor, size: Sequence[int], reduce: str) -> Tensor:
    shape = check_heatmap(scores, boxes, size, reduce)
    return _launch(scores, boxes, size, reduce, scores.new_empty(shape))


def _heatmap_out(
    scores: Tensor, boxes: Tensor, size: Sequence[int], reduce: str, *, out: Tensor
) -> Tensor:
    check_heatmap_out(scores, boxes, size, reduce, out)
    return _launch(scores, boxes, size, reduce, out)


for _key in KEYS:
    LIBRARY.impl("heatmap", _heatmap, _key)
    LIBRARY.impl("heatmap.out", _heatmap_out, _key)


def _setup_context(
    ctx: Any, inputs: tuple[Tensor, Tensor, Sequence[int], str], output: Tensor
) -> None:
    _, boxes, ctx.size, ctx.reduce = inputs
    ctx.save_for_backward(boxes)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    """The sum of `grad` over each box, from a float64 summed-area table in plain torch: so it is
    differentiable itself."""
    (boxes,) = ctx.saved_tensors
    dims = len(ctx.size)
    table = grad.double()
    if ctx.reduce == "mean":
        ones = table.new_ones((len(boxes), 1))
        count = torch.ops.backsight.heatmap.default(ones, boxes, ctx.size, "sum")
        table = table / count.clamp(min=1)
    ends = []
    for d, count in enumerate(ctx.size):
        front = [0, 0] * (dims - 1 - d) + [1, 0]
        table = torch.nn.functional.pad(table.cumsum(d + 1), front)
        lo = boxes[:, d].clamp(0, count)
        ends.append((lo, boxes[:, d + dims].clamp(0, count).maximum(lo)))
    total = table.new_zeros((grad.shape[0], len(boxes)))
    for corner in range(2**dims):
        far = [corner >> d & 1 for d in range(dims)]
        at = tuple(end[k] for end, k in zip(ends, far, strict=True))
        term = table[(slice(None), *at)]
        total = total + term if (dims - sum(far)) % 2 == 0 else total - term
    return total.t().to(grad.dtype), None, None, None


torch.library.register_autograd(
    "backsight::heatmap", _backward, setup_context=_setup_context, lib=LIBRARY
)


def heatmap(
    scores: Tensor,
    boxes: Tensor,
    size: Sequence[int],
    reduce: str = "mean",
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Heat maps of K outputs: at each pixel the mean or sum of the scores of the boxes over it.

    Exactly 0 where no box lies. NaN where a score over the pixel is NaN or infinite. The sum is
    taken exactly, in integers, and rounded once at the end (float64: it is good to about a hundred
    bits), so permuting the boxes along with their scores changes no bit of the result. A sum, or
    nothing else, can overflow to infinity in the dtype of the scores.

    Differentiable in `scores`, twice too; with `out` it is not. The gradient comes from a
    summed-area table of (K, *size) float64 numbers.

    Args:
        scores: (N, K), any strides; float64, float32, float16 or bfloat16.
        boxes: (N, 2 * D) int64, half-open, starts then ends, in pixels; cut to the map. An empty
            box covers nothing.
        size: D ints, 1 to 3, the size of the map in pixels.
        reduce: "mean" or "sum".
        out: (K, *size) to write to. Must not overlap the inputs.

    Returns:
        (K, *size) contiguous, of the dtype of scores, or `out`.

    Raises:
        TypeError, ValueError: a wrong dtype, or a wrong shape, device, size or reduce.
        RuntimeError: a gradient with `out` is asked for.
    """
    if out is None:
        result: Tensor = torch.ops.backsight.heatmap.default(scores, boxes, size, reduce)
    else:
        result = torch.ops.backsight.heatmap.out(scores, boxes, size, reduce, out=out)
    return result
