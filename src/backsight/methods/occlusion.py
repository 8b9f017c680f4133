"""Occlusion sensitivity (Zeiler & Fergus 2013), from windows only.

Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", arXiv:1311.2901.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..sweep.grid import Grid, explicit, grid, per_axis
from ..sweep.models import Prepared, prepare, verify
from ..sweep.plain import run_plain
from ..sweep.plan import Plan, plan_plain, plan_windows
from ..sweep.precision import full_precision
from ..sweep.result import Occlusion
from ..sweep.run import run_windows

Model = Callable[[Tensor], Tensor]
Baseline = float | str | Sequence[float] | Tensor
Sizes = int | Sequence[int]

#: Working memory of a sweep's batches unless the caller says otherwise.
MEMORY = 1 << 30


def occlusion(
    model: Model,
    images: Tensor,
    *,
    window: Sizes | None = None,
    stride: Sizes | None = None,
    baseline: Baseline = 0.0,
    edge: str = "clip",
    boxes: Tensor | Sequence[Sequence[int]] | None = None,
    memory: int | None = None,
    show_progress: bool = False,
) -> Occlusion:
    """Occlude each box of each image and measure how far every score drops.

    The model is captured once and run once on each unoccluded image; for each position only the
    windows that the box can change are computed, exactly. A model that cannot be captured runs
    whole on occluded copies; `plan` tells.

    Args:
        model: a module (or function) from images to scores (images, ...), in evaluation mode. It is
            not changed.
        images: (images, channels, *spatial), one to three spatial axes, floating point, as the
            model takes them.
        window: size of the occluding box in pixels, one number or one per axis.
        stride: pixels between positions, one number or one per axis; default: the window's size.
        baseline: what stands in the box, in the units of `images`: a number, one per channel,
            "mean" (each image's mean colour), or a tensor that broadcasts to `images`.
        edge: what happens where windows do not fit: "clip" (the last box is cut off; Captum),
            "inside" (the last box is moved inside; MONAI), "drop" (whole boxes only), "overhang"
            (centres on the grid).
        boxes: (positions, 2·D) integers, half-open, starts then ends, in place of window and
            stride.
        memory: bytes that a batch of windows may take; default 1 GiB.
        show_progress: show a progress bar on stderr.

    Returns:
        An `Occlusion`: drops (images, positions, outputs), original minus occluded, and what can be
        made of them.

    Raises:
        ValueError: an argument does not fit; the sentence says what was expected and what came.
    """
    _check_images(images)
    with torch.no_grad(), full_precision(images.device):
        content = _content(baseline, images)
        positions = _positions(images.shape[2:], window, stride, edge, boxes)
        prepared = prepare(model, images)
        verify(prepared, model, images)
        todo = _plan(prepared, positions, images, memory)
        bar = tqdm(total=len(images) * todo.positions, unit="box", disable=not show_progress)
        with bar:
            if prepared.graph is None:
                changes, nulls, base = run_plain(todo, model, images, content, bar.update)
            else:
                # Half of what the batches leave of the memory may hold weights packed for them.
                prepared.packs.limit = max(0, todo.memory - todo.batch_bytes) // 2
                changes, nulls, base = run_windows(todo, images, content, bar.update)
        axes = images.ndim - 2
        empty = (todo.grid.boxes[:, axes:] <= todo.grid.boxes[:, :axes]).any(1)
        changes[:, empty.to(changes.device)] = 0
        dtype = torch.float64 if images.dtype == torch.float64 else torch.float32
        floor = float(nulls.abs().max()) if nulls.numel() else 0.0
        return Occlusion(changes.neg_().to(dtype), base, todo.grid, images.shape[2:], floor, todo)


def plan(
    model: Model,
    images: Tensor,
    *,
    window: Sizes | None = None,
    stride: Sizes | None = None,
    baseline: Baseline = 0.0,
    edge: str = "clip",
    boxes: Tensor | Sequence[Sequence[int]] | None = None,
    memory: int | None = None,
    show_progress: bool = False,
) -> Plan:
    """What `occlusion` with the same arguments would do: windows, work, memory and time. Prints as
    a table.
    """
    _check_images(images)
    with torch.no_grad(), full_precision(images.device):
        _content(baseline, images)
        positions = _positions(images.shape[2:], window, stride, edge, boxes)
        return _plan(prepare(model, images), positions, images, memory)


def _plan(prepared: Prepared, positions: Grid, images: Tensor, memory: int | None) -> Plan:
    budget = MEMORY if memory is None else memory
    if not isinstance(budget, int) or budget <= 0:
        raise ValueError(f"expected memory to be a positive number of bytes, got {memory!r}")
    key = (
        positions.boxes.numpy().tobytes(),
        positions.shape,
        len(images),
        budget,
        torch.get_num_threads(),
    )
    known: Plan | None = prepared.plans.get(key)
    if known is not None:
        return known
    count, dtype, device = len(images), images.dtype, images.device
    if prepared.graph is None:
        shape, reason = tuple(images.shape[1:]), prepared.reason or ""
        made = plan_plain(positions, count, shape, prepared.outputs, dtype, device, budget, reason)
    else:
        made = plan_windows(prepared.graph, positions, count, dtype, device, budget)
    prepared.plans.clear()
    prepared.plans[key] = made
    return made


def _check_images(images: Any) -> None:
    if (
        not isinstance(images, Tensor)
        or not images.is_floating_point()
        or not 3 <= images.ndim <= 5
    ):
        came = (
            f"{tuple(images.shape)} {images.dtype}"
            if isinstance(images, Tensor)
            else type(images).__name__
        )
        raise ValueError(
            "expected images as a floating-point tensor (images, channels, *spatial)"
            f" with one to three spatial axes, got {came}"
        )
    if not images.numel():
        raise ValueError(f"expected at least one image, got shape {tuple(images.shape)}")
    if not bool(torch.isfinite(images).all()):
        raise ValueError("expected finite images, got NaN or infinity")


def _positions(
    size: Sequence[int],
    window: Sizes | None,
    stride: Sizes | None,
    edge: str,
    boxes: Tensor | Sequence[Sequence[int]] | None,
) -> Grid:
    if boxes is not None:
        if window is not None or stride is not None:
            raise ValueError("expected either boxes or a window and a stride, got both")
        return explicit(boxes, size)
    if window is None:
        raise ValueError("expected a window size or boxes, got neither")
    sizes = per_axis(window, len(size), "window")
    return grid(
        size, sizes, sizes if stride is None else per_axis(stride, len(size), "stride"), edge
    )


def _content(baseline: Baseline, images: Tensor) -> Tensor:
    """The baseline as a tensor that broadcasts to the images."""
    axes = images.ndim - 2
    if isinstance(baseline, str):
        if baseline != "mean":
            raise ValueError(f"expected a baseline number, tensor or 'mean', got {baseline!r}")
        return images.mean(dim=tuple(range(2, images.ndim)), keepdim=True)
    content = torch.as_tensor(baseline, dtype=images.dtype, device=images.device).detach()
    if content.ndim == 1 and len(content) == images.shape[1]:
        content = content.view(1, -1, *[1] * axes)
    try:
        content.expand_as(images)
    except RuntimeError:
        raise ValueError(
            f"expected a baseline that broadcasts to images of shape {tuple(images.shape)}"
            f" (or one number per channel), got {tuple(content.shape)}"
        ) from None
    if not bool(torch.isfinite(content).all()):
        raise ValueError("expected a finite baseline, got NaN or infinity")
    return content
