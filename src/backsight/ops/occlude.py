"""occlude: copies of images with a box replaced."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from backsight.ops._launch import KEYS, launch
from backsight.ops._schemas import (
    DTYPES,
    LIBRARY,
    check_occlude,
    check_occlude_out,
    empty_like_format,
    is_dense,
)


def _launch(image: Tensor, boxes: Tensor, baseline: Tensor, out: Tensor) -> Tensor:
    baseline = baseline.expand_as(image)
    boxes = boxes.contiguous()  # named: the copy lives until the kernel has run
    launch(
        "occlude",
        image,
        DTYPES[image.dtype],
        image.data_ptr(),
        image.shape,
        image.stride(),
        baseline.data_ptr(),
        baseline.stride(),
        boxes.data_ptr(),
        boxes.shape[0],
        out.data_ptr(),
        out.shape,
        out.stride(),
    )
    return out


def _occlude(image: Tensor, boxes: Tensor, baseline: Tensor) -> Tensor:
    shape = check_occlude(image, boxes, baseline)
    return _launch(image, boxes, baseline, empty_like_format(image, shape))


def _occlude_out(image: Tensor, boxes: Tensor, baseline: Tensor, *, out: Tensor) -> Tensor:
    check_occlude_out(image, boxes, baseline, out)
    dense = out if is_dense(out) else empty_like_format(image, out.shape)
    _launch(image, boxes, baseline, dense)
    return out if dense is out else out.copy_(dense)


for _key in KEYS:
    LIBRARY.impl("occlude", _occlude, _key)
    LIBRARY.impl("occlude.out", _occlude_out, _key)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    image, boxes, _ = inputs
    if ctx.needs_input_grad[2]:
        raise RuntimeError("occlude has no gradient in baseline: detach it")
    ctx.save_for_backward(boxes)
    ctx.shape = image.shape


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    """The image's gradient is the sum over boxes of `grad` outside the box, in plain torch: so it
    is differentiable itself."""
    (boxes,) = ctx.saved_tensors
    images, _, *size = ctx.shape
    dims = len(size)
    inside = torch.ones((len(boxes), *size), dtype=torch.bool, device=boxes.device)
    for d, count in enumerate(size):
        at = torch.arange(count, device=boxes.device)
        within = (boxes[:, d, None] <= at) & (at < boxes[:, d + dims, None])
        inside = inside & within.view(len(boxes), *(count if k == d else 1 for k in range(dims)))
    rows = grad.unflatten(0, (images, len(boxes)))
    return rows.masked_fill(inside.unsqueeze(1), 0).sum(1), None, None


torch.library.register_autograd(
    "backsight::occlude", _backward, setup_context=_setup_context, lib=LIBRARY
)


def occlude(image: Tensor, boxes: Tensor, baseline: Tensor, *, out: Tensor | None = None) -> Tensor:
    """N copies of each image, each with the inside of one box replaced by the baseline.

    Differentiable in `image`, twice too; with `out` it is not.

    Args:
        image: (B, C, *S), any strides; float64, float32, float16 or bfloat16.
        boxes: (N, 2 * D) int64, half-open, starts then ends, in cells; cut to the image. An empty
            box changes nothing.
        baseline: dtype and device of image, broadcastable to it.
        out: (B * N, C, *S) to write to. Must not overlap the inputs.

    Returns:
        (B * N, C, *S) in the memory format of image, or `out`: row ``b * N + n`` is image b with
        box n.

    Raises:
        TypeError, ValueError: a wrong dtype, or a wrong shape or device.
        RuntimeError: a gradient in baseline is asked for, or any with `out`.
    """
    if out is None:
        result: Tensor = torch.ops.backsight.occlude.default(image, boxes, baseline)
    else:
        result = torch.ops.backsight.occlude.out(image, boxes, baseline, out=out)
    return result
