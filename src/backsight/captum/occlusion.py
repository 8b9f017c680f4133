"""captum's `Occlusion`, by windows where the model can be captured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from backsight import ops
from backsight.captum.attribution import (
    Attribution,
    Inputs,
    Target,
    as_tuple,
    forward,
    read_scores,
    read_tensors,
    select,
    unwrappable,
)
from backsight.dropin import ImagesFirst, swept, windowed
from backsight.models.prepare import close
from backsight.sweep.grid import grid

__all__ = ["Occlusion"]

Baseline = Tensor | int | float


class Occlusion(Attribution):
    """Occlusion (Zeiler & Fergus 2013, arXiv:1311.2901) with the interface of captum 0.9.0.

    Runs by windows where it can: inputs (images, channels, *spatial), floating point, with one to
    three spatial axes, and a `forward_func` that `backsight.occlusion` captures, with the other
    inputs and arguments going along. Everything else runs as captum runs it, whole, on occluded
    copies: any callable, models in training mode, integers, features, one score for the whole
    batch. Under autocast the model runs as it does there, either way.

    It differs from captum where captum is at fault. Differences of scores are summed in fp64, not
    in the dtype of the scores. What an input or a baseline holds outside a box, infinity for
    instance, does not leak into the copy. A 1-D input takes the empty tuple for a window. Strides
    below 1 are refused.

    Args:
        forward_func: a module or another callable from the inputs, followed by
            `additional_forward_args`, to scores: a tensor (examples, ...), or one score of the
            batch as a tensor or number.
    """

    def __init__(self, forward_func: Callable[..., Any]) -> None:
        self.forward_func = forward_func
        #: A module's forms with another input first: what is captured of them is kept with them.
        self._moved: dict[int, ImagesFirst] = {}

    @property
    def multiplies_by_inputs(self) -> bool:
        return True

    @unwrappable
    def attribute(
        self,
        inputs: Inputs,
        sliding_window_shapes: tuple[int, ...] | tuple[tuple[int, ...], ...],
        strides: int | tuple[int | tuple[int, ...], ...] | None = None,
        baselines: Baseline | tuple[Baseline, ...] | None = None,
        target: Target = None,
        additional_forward_args: object = None,
        perturbations_per_eval: int = 1,
        show_progress: bool = False,
    ) -> Inputs:
        """The mean, over the windows that cover an element, of original minus occluded score.

        Args:
            inputs: (examples, ...), or a tuple of such tensors. Each is occluded by itself while
                the others stay as they are.
            sliding_window_shapes: the window along each axis but the first, in elements; for a
                tuple of inputs a tuple of those.
            strides: elements between positions: one number or one per axis; for several inputs a
                tuple of those. Default 1. The last window along an axis is cut off at the edge.
            baselines: what stands in the window: a number or a tensor that broadcasts to the input;
                for several inputs a tuple of those. Default 0.
            target: which score: None for all; an index, or a tuple of indices behind the batch
                axis; or a list or tensor of indices, or a list of tuples, one for each example.
            additional_forward_args: further arguments of `forward_func`, one or a tuple. Tensors
                hold one entry per example and are repeated with them.
            perturbations_per_eval: positions in one call of `forward_func`, where it runs whole on
                occluded copies.
            show_progress: show a progress bar on stderr.

        Returns:
            A float32 tensor of the shape of each input, on its device; a tuple for a tuple. With
            several scores an example, or one for the batch, the first axis is as long as the
            flattened scores are many.

        Raises:
            AssertionError: arguments of wrong types, lengths or sizes.
            IndexError, RuntimeError: a target outside the scores; a baseline that does not fit.
        """
        tensors = read_tensors(inputs)
        steps = _strides(strides, tensors)
        windows = _windows(sliding_window_shapes, tensors)
        for window, stride, tensor in zip(windows, steps, tensors, strict=True):
            _check_fit(window, stride, tensor)
        fills = _fills(baselines, tensors)
        further = as_tuple(additional_forward_args)
        if not isinstance(perturbations_per_eval, int) or perturbations_per_eval < 1:
            raise AssertionError(
                "expected perturbations_per_eval to be an integer of at least 1,"
                f" got {perturbations_per_eval!r}"
            )
        job = _Job(self.forward_func, tensors, windows, steps, fills, target, further, self._moved)
        with torch.no_grad():
            found = job.run(perturbations_per_eval, self.get_name() if show_progress else None)
        attributions = tuple(f.to(torch.float32) for f in found)
        return attributions if isinstance(inputs, tuple) else attributions[0]


@dataclass(frozen=True)
class _Job:
    """One call of `attribute`, its arguments checked and brought to tuples of one entry per input.

    fills: what stands in each input's boxes, of the input's shape and the dtype that captum's
        arithmetic gives the occluded copy.
    """

    forward_func: Callable[..., Any]
    inputs: tuple[Tensor, ...]
    windows: tuple[tuple[int, ...], ...]
    strides: tuple[tuple[int, ...], ...]
    fills: tuple[Tensor, ...]
    target: Target
    further: tuple[Any, ...]
    moved: dict[int, ImagesFirst]

    def run(self, per_eval: int, progress: str | None) -> list[Tensor]:
        """Attributions of each input, fp32 or fp64; `progress` names the bar."""
        found = {i: self._by_windows(i, progress) for i in range(len(self.inputs))}
        plain = [i for i, attribution in found.items() if attribution is None]
        if plain:
            found |= zip(plain, self._plainly(plain, per_eval, progress), strict=True)
        return [attribution for attribution in found.values() if attribution is not None]

    # ------------------------------------------------------------------ windows

    def _by_windows(self, index: int, progress: str | None) -> Tensor | None:
        """Attributions of an input by windows; None where that cannot be."""
        images, fill = self.inputs[index], self.fills[index]
        if fill.dtype != images.dtype:
            return None
        others = (*self.inputs[:index], *self.inputs[index + 1 :], *self.further)
        # All channels at once need no axis of their own.
        first = int(self.windows[index][:1] == images.shape[1:2])
        task = windowed(
            self._with_first(index),
            images,
            window=self.windows[index][first:],
            stride=self.strides[index][first:],
            baseline=fill,
            additional_forward_args=others,
            show_progress=progress is not None,
        )
        if task is None:
            return None
        # Targets select from the scores' own indices just as they do from scores.
        shape = task.prepared().shape
        indices = torch.arange(prod(shape)).reshape(1, *shape)
        chosen = select(indices.expand(len(images), *shape), self.target)
        targets, columns = chosen.unique(return_inverse=True)
        if len(targets) < indices.numel():
            task.keep(targets.tolist())
        result = swept(task)
        if result is None:
            return None
        columns = columns.reshape(len(images), -1).to(result.drops.device)
        if others and len(images) > 1 and not self._agrees(result.base.gather(1, columns)):
            return None
        at = columns[:, None].expand(-1, len(result.boxes), -1)
        drops = result.drops.gather(2, at).permute(1, 0, 2).flatten(1)
        return _spread(drops, result.boxes.to(drops.device), images.shape[1:])

    def _with_first(self, index: int) -> nn.Module:
        """`forward_func` as a module that takes the input `index` before the others."""
        function = self.forward_func
        if not isinstance(function, nn.Module):
            return ImagesFirst(function, index)
        if not index:
            return function
        if index not in self.moved or self.moved[index].function is not function:
            self.moved[index] = ImagesFirst(function, index)
        return self.moved[index]

    def _agrees(self, base: Tensor) -> bool:
        """Whether a sweep's unoccluded scores are those of the batch as a whole.

        An argument may have as many entries as there are examples and yet belong to all of them.
        """
        own = read_scores(forward(self.forward_func, self.inputs, self.further), self.target)
        own = own.reshape(base.shape)
        return close(base.to(own), own)

    # ------------------------------------------------------------------ plain

    def _plainly(self, occluded: list[int], per_eval: int, progress: str | None) -> list[Tensor]:
        """Attributions of some of the inputs, fp64, from whole runs on occluded copies.

        Positions come in captum's order, so that a model that draws random numbers draws the same.
        """
        todo = [(i, box) for i in occluded for box in self._regions(i)]
        base = read_scores(forward(self.forward_func, self.inputs, self.further), self.target)
        before = base.reshape(1, -1).double()
        sums, counts = {}, {}
        for i in occluded:
            x = self.inputs[i]
            counts[i] = torch.zeros(x.shape[1:], dtype=torch.float64, device=x.device)
            sums[i] = counts[i].expand(before.shape[1], *x.shape[1:]).clone()
        with tqdm(total=len(todo), desc=progress, disable=progress is None) as bar:
            for first in range(0, len(todo), per_eval):
                some = todo[first : first + per_eval]
                bar.update(len(some))
                if not any(self.inputs[i].numel() for i, _ in some):
                    continue
                after = self._occluded_scores(some)
                _check_rows(after, base, len(some), per_eval)
                changes = before - after.reshape(len(some), -1).double()
                for (i, box), change in zip(some, changes, strict=True):
                    of_box = change.to(sums[i].device).view(-1, *[1] * counts[i].ndim)
                    sums[i][(slice(None), *box)] += of_box
                    counts[i][box] += 1
        return [sums[i] / counts[i] for i in occluded]

    def _regions(self, index: int) -> list[tuple[slice, ...]]:
        """Where the window stands on an input, as slices of all axes but the first; the first of
        these moves fastest.
        """
        size = self.inputs[index].shape[1:]
        if not size:
            return [()]
        backwards = (size[::-1], self.windows[index][::-1], self.strides[index][::-1])
        ends = grid(*backwards, "clip").boxes.unflatten(1, (2, -1)).flip(-1)
        return [tuple(map(slice, *box)) for box in ends.tolist()]

    def _occluded_scores(self, some: Sequence[tuple[int, tuple[slice, ...]]]) -> Tensor:
        """Scores of one copy of the batch for each position, one copy after the other."""
        copies = []
        for i, x in enumerate(self.inputs):
            mine = [(copy, (slice(None), *box)) for copy, (j, box) in enumerate(some) if j == i]
            if not mine:
                copies.append(_repeated(x, len(some)))
                continue
            fill = self.fills[i]
            batch = torch.cat([x.to(fill.dtype)] * len(some))
            parts = batch.unflatten(0, (len(some), len(x)))
            for copy, at in mine:
                parts[copy][at] = fill[at]
            copies.append(batch)
        further = tuple(
            _repeated(f, len(some)) if isinstance(f, Tensor) and f.ndim else f for f in self.further
        )
        return read_scores(
            forward(self.forward_func, tuple(copies), further), _repeated(self.target, len(some))
        )


def _spread(drops: Tensor, boxes: Tensor, shape: Sequence[int]) -> Tensor:
    """The mean of drops (positions, scores) over the boxes that cover an element: (scores, *shape),
    shape being (channels, *spatial).
    """
    channels, *size = shape
    axes = len(size)
    if boxes.shape[1] == 2 * axes:
        maps = ops.heatmap(drops, boxes, size, "mean").unsqueeze(1)
        return maps.expand(-1, channels, *size).contiguous()
    spatial = [d for d in range(2 * axes + 2) if d not in (0, axes + 1)]
    maps = drops.new_empty(drops.shape[1], *shape)
    for channel in range(channels):
        here = (boxes[:, 0] <= channel) & (channel < boxes[:, axes + 1])
        maps[:, channel] = ops.heatmap(drops[here], boxes[here][:, spatial], size, "mean")
    return maps


# ---------------------------------------------------------------------- copies of the batch


def _repeated(value: Any, times: int) -> Any:
    """What goes along with each example, for `times` copies of the batch: a tensor of more than one
    entry or a list. Anything else holds for all.
    """
    if times == 1:
        return value
    if isinstance(value, Tensor):
        return torch.cat([value] * times) if value.ndim else value
    return value * times if isinstance(value, list) else value


def _check_rows(after: Tensor, base: Tensor, copies: int, per_eval: int) -> None:
    """Refuse scores that do not grow with the batch: they cannot be told apart by position."""
    grows = after.ndim and base.ndim and len(after) == copies * len(base)
    if after.numel() != copies * base.numel() or (per_eval > 1 and not grows):
        raise AssertionError(
            f"expected forward_func to return {copies} times the scores of shape"
            f" {tuple(base.shape)} for {copies} times the examples, got {tuple(after.shape)}"
        )


# ---------------------------------------------------------------------- arguments


def _strides(strides: Any, inputs: tuple[Tensor, ...]) -> tuple[tuple[int, ...], ...]:
    """One stride per axis of each input."""
    if strides is None:
        strides = (1,) * len(inputs)
    if len(inputs) == 1 and not (isinstance(strides, tuple) and len(strides) == 1):
        strides = (strides,)
    if not isinstance(strides, tuple) or len(strides) != len(inputs):
        raise AssertionError(
            f"expected a tuple of strides, one for each of {len(inputs)} inputs, got {strides!r}"
        )
    found = []
    for stride, x in zip(strides, inputs, strict=True):
        axes = x.ndim - 1
        each = (stride,) * axes if isinstance(stride, int) else stride
        if not isinstance(each, tuple) or len(each) != axes:
            raise AssertionError(
                f"expected a stride or a tuple of {axes} for an input of shape {tuple(x.shape)},"
                f" got {stride!r}"
            )
        found.append(_integers(each, "strides"))
    return tuple(found)


def _windows(shapes: Any, inputs: tuple[Tensor, ...]) -> tuple[tuple[int, ...], ...]:
    if not isinstance(shapes, tuple):
        raise AssertionError(f"expected sliding_window_shapes as a tuple, got {shapes!r}")
    if not shapes or isinstance(shapes[0], int):
        shapes = (shapes,)
    if len(shapes) != len(inputs):
        raise AssertionError(
            f"expected a sliding window shape for each of {len(inputs)} inputs, got {shapes!r}"
        )
    found = []
    for shape, x in zip(shapes, inputs, strict=True):
        if not isinstance(shape, tuple) or len(shape) != x.ndim - 1:
            raise AssertionError(
                f"expected a sliding window shape of {x.ndim - 1} axes for an input of shape"
                f" {tuple(x.shape)}, got {shape!r}"
            )
        found.append(_integers(shape, "sliding_window_shapes"))
    return tuple(found)


def _integers(values: tuple[Any, ...], name: str) -> tuple[int, ...]:
    try:
        return tuple(v.__index__() for v in values)
    except AttributeError:
        raise TypeError(f"expected {name} of integers, got {values!r}") from None


def _check_fit(window: tuple[int, ...], stride: tuple[int, ...], x: Tensor) -> None:
    size = tuple(x.shape[1:])
    if any(not 0 <= w <= n or (w == 0 and n > 0) for w, n in zip(window, size, strict=True)):
        raise AssertionError(
            f"expected a sliding window within an input of shape {tuple(x.shape)}, got {window}"
        )
    for w, s, n in zip(window, stride, size, strict=True):
        if s < 1 or (w < n and s > w):
            raise AssertionError(
                f"expected strides from 1 to the sliding window {window} where that does not cover"
                f" the input, got {stride}"
            )


def _fills(baselines: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What stands in each input's boxes: a view of the input's shape.

    Types promote as in captum's `input * (1 - mask) + baseline * mask`.
    """
    if baselines is None:
        baselines = tuple(False if x.dtype == torch.bool else 0 for x in inputs)
    each = baselines if isinstance(baselines, tuple) else (baselines,)
    for b in each:
        if not isinstance(b, Tensor | int | float):
            raise AssertionError(f"expected a baseline tensor or number, got {type(b).__name__}")
    if len(each) < len(inputs):
        raise IndexError(f"expected a baseline for each of {len(inputs)} inputs, got {len(each)}")
    found = []
    for b, x in zip(each, inputs, strict=False):
        value = b.detach().reshape(b.shape or (1,)) if isinstance(b, Tensor) else b
        fill = value * torch.ones(1, dtype=x.dtype, device=x.device)
        while fill.ndim > x.ndim and len(fill) == 1:
            fill = fill[0]
        try:
            found.append(fill.expand(x.shape))
        except RuntimeError:
            raise RuntimeError(
                f"expected a baseline that broadcasts to an input of shape {tuple(x.shape)},"
                f" got {tuple(fill.shape)}"
            ) from None
    return tuple(found)
