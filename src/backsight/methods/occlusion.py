"""Occlusion sensitivity (Zeiler & Fergus 2013), from windows only.

Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", arXiv:1311.2901.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from .. import baselines
from ..models.call import Call, Model, Output, check_images
from ..models.precision import alone
from ..models.prepare import Prepared, check_fit, forget, prepare, verify
from ..models.subject import Subject
from ..sweep.allocator import give_back, reuse
from ..sweep.content import Content, Inpainting, Picture
from ..sweep.grid import Grid, explicit, grid, per_axis, with_channels
from ..sweep.plain import run_plain
from ..sweep.plan import Plan, plan_plain, plan_windows
from ..sweep.readout import Readout, Score
from ..sweep.result import Occlusion
from ..sweep.run import run_windows
from ..zoo.network import Network

Baseline = float | str | Sequence[float] | Tensor
Sizes = int | Sequence[int]

#: Working memory of a sweep's batches unless the caller says otherwise.
MEMORY = 1 << 30

#: Baselines by name.
_NAMED: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": baselines.mean,
    "blur": baselines.blur,
    "noise": baselines.noise,
}


def occlusion(
    model: Model | Network,
    images: Tensor,
    *,
    window: Sizes | None = None,
    stride: Sizes | None = None,
    baseline: Baseline = 0.0,
    edge: str = "clip",
    boxes: Tensor | Sequence[Any] | None = None,
    additional_forward_args: Sequence[Any] = (),
    output: Output | None = None,
    layer: str | None = None,
    region: Tensor | str | None = None,
    probability: str | None = None,
    score: Score | None = None,
    targets: Sequence[int] | None = None,
    top: int | None = None,
    memory: int | None = None,
    show_progress: bool = False,
    device: torch.device | str | None = None,
) -> Occlusion:
    """Occlude each box of each image and measure how far every score drops.

    The model is captured once and run once on each unoccluded image; for each position only the
    windows that the box can change are computed, exactly. A model that cannot be captured runs
    whole on occluded copies; `plan` tells.

    Args:
        model: a zoo.Network, or a module (or function) from images to scores (images, ...), in
            evaluation mode. It is not changed.
        images: (images, channels, *spatial), one to three spatial axes, floating point, as the
            model takes them.
        window: size of the occluding box in pixels, one number or one per axis; with one more, the
            first, that many channels at a time are occluded.
        stride: pixels between positions, one number or one per axis of the window; default: the
            window's size.
        baseline: what stands in the box, in the units of `images`: a number, one per channel, a
            tensor that broadcasts to `images`, or by name: "mean" (each image's mean colour),
            "blur" and "noise" (see `backsight.baselines`), "inpaint" (filled in from the pixels
            around the box).
        edge: what happens where windows do not fit: "clip" (the last box is cut off; Captum),
            "inside" (the last box is moved inside; MONAI), "drop" (whole boxes only), "overhang"
            (centres on the grid).
        boxes: (positions, 2·D) integers, half-open, starts then ends, in place of window and
            stride; (positions, 2·D + 2) with the channels' interval first; (positions, boxes, 2·D)
            to occlude several boxes at a time (empty ones fill up).
        additional_forward_args: what the model takes after the images. A tensor with one entry per
            image goes along with its image and is never occluded.
        output: which output of a model that returns several: a key, an attribute or an index.
            Default: the first of a tuple; "logits" or "out" of a dict or dataclass.
        layer: the name of a module: what drops is then the total activation of each of its channels
            (summed over space; of the unit itself where it has no space) instead of the scores.
        region: for dense outputs (images, channels, *spatial): each channel's mean over the region
            is the score. A mask of the output's size (one for all images or one each; weights
            count), "all", or "predicted": for each class the pixels where it is the largest of the
            unoccluded image.
        probability: "softmax" or "sigmoid" to measure probabilities; default: the outputs as they
            are, logits for most models.
        score: a function from outputs (batch, ...), in fp64, to numbers (batch,) or (batch,
            scores), each of its own image alone.
        targets: keep the drops of these outputs only.
        top: keep the drops of each image's largest outputs only, this many.
        memory: bytes that a batch of windows may take; default 1 GiB.
        show_progress: show a progress bar on stderr.
        device: where to compute; default: where the model and the images are.

    Returns:
        An `Occlusion`: drops (images, positions, outputs), original minus occluded, and what can be
        made of them.

    Raises:
        ValueError: an argument does not fit; the sentence says what was expected and what came.
    """
    request = Request(**locals())  # all that is here so far: the arguments
    found = Task(request).run()
    subject = Subject.of(model)
    # What is not the model's own scores has no classes.
    found.shows(subject.pictures(images), None if layer or score else subject.network)
    return found


def plan(model: Model | Network, images: Tensor, **arguments: Any) -> Plan:
    """What `occlusion` with the same arguments would do: windows, work, memory and time. Prints as
    a table.
    """
    return Task(Request(model, images, **arguments)).plan()


@dataclass(frozen=True)
class Request:
    """The arguments of `occlusion`, with its defaults."""

    model: Model | Network
    images: Tensor
    _: KW_ONLY
    window: Sizes | None = None
    stride: Sizes | None = None
    baseline: Baseline = 0.0
    edge: str = "clip"
    boxes: Tensor | Sequence[Any] | None = None
    additional_forward_args: Sequence[Any] = ()
    output: Output | None = None
    layer: str | None = None
    region: Tensor | str | None = None
    probability: str | None = None
    score: Score | None = None
    targets: Sequence[int] | None = None
    top: int | None = None
    memory: int | None = None
    show_progress: bool = False
    device: torch.device | str | None = None


class Task:
    """A request, checked, in the forms that a sweep takes."""

    @torch.no_grad()
    def __init__(self, request: Request) -> None:
        images, memory, top = request.images, request.memory, request.top
        probability, score = request.probability, request.score
        check_images(images)
        model = request.model
        if request.device is not None:
            subject = Subject.of(model, request.device)
            model, images = subject.model, images.to(subject.device)
        self.images = images
        self.positions = _positions(
            images.shape[1:], request.window, request.stride, request.edge, request.boxes
        )
        self.content = content_of(request.baseline, images)
        self.memory = MEMORY if memory is None else memory
        if not isinstance(self.memory, int) or self.memory <= 0:
            raise ValueError(f"expected memory to be a positive number of bytes, got {memory!r}")
        if probability not in (None, "softmax", "sigmoid"):
            raise ValueError(
                f"expected probability to be None, 'softmax' or 'sigmoid', got {probability!r}"
            )
        if request.targets is not None and top is not None:
            raise ValueError("expected either targets or top, got both")
        if score is not None and not callable(score):
            raise ValueError(f"expected score to be a function, got {score!r}")
        if top is not None and (not isinstance(top, int) or isinstance(top, bool) or top < 1):
            raise ValueError(f"expected top to be a positive integer, got {top!r}")
        chosen = None if request.targets is None else _targets(request.targets)
        others = _arguments(request.additional_forward_args)
        self.call = Call(model, others, images, request.output, request.layer)
        if self.call.owner is not None:
            check_fit(self.call.owner, images)
        if request.region is not None:
            self.call.in_region(_weights(request.region, self.call, images), probability)
            probability = None
        self.readout = Readout(probability, score, chosen, top)
        self.show_progress = request.show_progress
        self._prepared: Prepared | None = None

    def prepared(self) -> Prepared:
        """The model made ready, once."""
        if self._prepared is None:
            with torch.no_grad(), alone(self.images.device):
                self._prepared = prepare(self.call, self.images)
        return self._prepared

    def keep(self, targets: Sequence[int]) -> None:
        """Keep the drops of these outputs only."""
        self.readout = replace(self.readout, targets=_targets(targets))

    def run(self) -> Occlusion:
        """Sweep."""
        images, call = self.images, self.call
        with torch.no_grad(), alone(images.device), reuse():
            if not verify(self.prepared(), call, images):
                forget(call)
                self._prepared = None
                verify(self.prepared(), call, images)
            give_back()
            prepared = self.prepared()
            todo = self._plan(prepared)
            _check_fits(todo)
            boxes = len(images) * todo.positions
            with tqdm(total=boxes, unit="box", disable=not self.show_progress) as bar:
                if prepared.graph is None:
                    found = run_plain(todo, call, images, self.content, self.readout, bar.update)
                else:
                    # A quarter of what the batches leave of the memory may hold weights packed for
                    # them: as much again is free memory between blocks in use.
                    prepared.packs.limit = max(0, todo.memory - todo.batch_bytes) // 4
                    found = run_windows(
                        todo, images, call.sides, self.content, self.readout, bar.update
                    )
            found.drops[:, todo.grid.empty.to(found.drops.device)] = 0
            return Occlusion.of(found, todo.grid, images.shape[1:], todo)

    def plan(self) -> Plan:
        """What `run` would do."""
        with torch.no_grad(), alone(self.images.device):
            return self._plan(self.prepared())

    def _plan(self, prepared: Prepared) -> Plan:
        images, positions, memory = self.images, self.positions, self.memory
        outputs = prod(prepared.shape)
        columns = self.readout.columns(outputs)
        key = (
            positions.table.numpy().tobytes(),
            positions.table.shape,
            positions.shape,
            len(images),
            memory,
            columns,
            torch.get_num_threads(),
        )
        known: Plan | None = prepared.plans.get(key)
        if known is not None:
            return known
        count, dtype, device = len(images), images.dtype, images.device
        if prepared.graph is None:
            shape, reason = tuple(images.shape[1:]), prepared.reason or ""
            made = plan_plain(positions, count, shape, columns, dtype, device, memory, reason)
        else:
            made = plan_windows(prepared.graph, positions, count, columns, dtype, device, memory)
        prepared.plans.clear()
        prepared.plans[key] = made
        return made


def _check_fits(plan: Plan) -> None:
    """Refuse a result that is larger than the machine's memory."""
    if plan.device.type == "cpu" and hasattr(os, "sysconf"):
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if plan.score_bytes > there:
            raise ValueError(
                f"expected a result that fits in {there >> 30} GiB of memory, got"
                f" {plan.score_bytes >> 30} GiB of drops: choose targets, top, a region, or fewer"
                " positions"
            )


def _arguments(given: Any) -> tuple[Any, ...]:
    """As in Captum, one argument may come without a tuple around it, and None is none."""
    if given is None:
        return ()
    return tuple(given) if isinstance(given, tuple | list) else (given,)


def _targets(given: Any) -> tuple[int, ...]:
    values = given.tolist() if isinstance(given, Tensor) else given
    whole = isinstance(values, Sequence) and not isinstance(values, str)
    if not whole or not values or not all(isinstance(t, int | np.integer) for t in values):
        raise ValueError(f"expected targets as output indices, one or more, got {given!r}")
    return tuple(map(int, values))


def _positions(
    shape: Sequence[int],
    window: Sizes | None,
    stride: Sizes | None,
    edge: str,
    boxes: Tensor | Sequence[Any] | None,
) -> Grid:
    if boxes is not None:
        if window is not None or stride is not None:
            raise ValueError("expected either boxes or a window and a stride, got both")
        return explicit(boxes, shape)
    if window is None:
        raise ValueError("expected a window size or boxes, got neither")
    axes = len(shape) - 1
    sizes = per_axis(window, axes, "window")
    strides = sizes if stride is None else per_axis(stride, axes, "stride")
    if len(sizes) == axes and len(strides) == axes:
        return grid(shape[1:], sizes, strides, edge)
    if len(sizes) == axes:
        raise ValueError(f"expected {axes} strides, as many as the window's sizes, got {stride!r}")
    if len(strides) == axes:
        strides = (sizes[0], *strides)
    return with_channels(grid(shape, sizes, strides, edge))


def content_of(baseline: Baseline, images: Tensor) -> Content:
    axes = images.ndim - 2
    if isinstance(baseline, str):
        if baseline == "inpaint":
            return Inpainting(images)
        if baseline not in _NAMED:
            names = ", ".join(map(repr, (*_NAMED, "inpaint")))
            raise ValueError(f"expected a baseline number, tensor or {names}, got {baseline!r}")
        return Picture(_NAMED[baseline](images).expand_as(images))
    try:
        content = torch.as_tensor(baseline, dtype=images.dtype, device=images.device).detach()
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"expected a baseline of numbers or its name, got {type(baseline).__name__}"
        ) from None
    if content.ndim == 1 and len(content) == images.shape[1]:
        content = content.view(1, -1, *[1] * axes)
    try:
        content = content.expand_as(images)
    except RuntimeError:
        raise ValueError(
            f"expected a baseline that broadcasts to images of shape {tuple(images.shape)}"
            f" (or one number per channel), got {tuple(content.shape)}"
        ) from None
    if not bool(torch.isfinite(content).all()):
        raise ValueError("expected a finite baseline, got NaN or infinity")
    return Picture(content)


def _weights(region: Tensor | str, call: Call, images: Tensor) -> Tensor:
    """What each cell of a dense output counts, (images, 1 or channels, *spatial)."""
    dense = torch.cat(
        [
            call.dense(image[None].clone(), *(side[i : i + 1] for side in call.sides))
            for i, image in enumerate(images)
        ]
    )
    if dense.ndim < 3:
        raise ValueError(
            "expected a model of dense outputs (images, channels, *spatial) for a region,"
            f" got outputs {tuple(dense.shape)}"
        )
    size = tuple(dense.shape[2:])
    if isinstance(region, str):
        if region == "predicted":
            classes = torch.arange(dense.shape[1], device=dense.device)
            best = dense.argmax(1, keepdim=True)
            mask = best == classes.view(1, -1, *[1] * len(size))
        elif region == "all":
            mask = torch.ones(len(images), 1, *size, dtype=torch.bool, device=dense.device)
        else:
            raise ValueError(f"expected region to be a mask, 'all' or 'predicted', got {region!r}")
    else:
        mask = torch.as_tensor(region, device=dense.device)
        if tuple(mask.shape) not in (size, (len(images), *size)):
            raise ValueError(
                f"expected a mask of the output's size {size}, or {(len(images), *size)},"
                f" got {tuple(mask.shape)}"
            )
        mask = mask.expand(len(images), *size)[:, None]
        if not bool((mask.double().flatten(1).sum(1) > 0).all()):
            raise ValueError(
                "expected a region that holds a pixel of each image (weights of a sum above 0),"
                " got an empty one"
            )
    # A class that is predicted nowhere keeps weights of zero.
    weights = mask.double()
    total = weights.sum(tuple(range(2, weights.ndim)), keepdim=True)
    return (weights / torch.where(total == 0, torch.ones_like(total), total)).to(images.dtype)
