"""How a model holds its maps: channels last, channels in groups, without a channel axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from operator import mul
from typing import Any

import torch
from torch import Tensor

from .node import substitute


@dataclass(frozen=True)
class Layout:
    """The form in which the model holds a map that the node table holds as (batch, channels,
    *spatial).

    `axes` says of each dimension after the batch which spatial axis it is, or None for one of the
    channels'; `channels` are the sizes of the latter. The table's channels are those dimensions
    flattened in their order. `truth`: the model holds booleans, the table 0 and 1 in this dtype,
    because windows of booleans cannot be spliced.
    """

    axes: tuple[int | None, ...]
    channels: tuple[int, ...]
    truth: torch.dtype | None = None

    @classmethod
    def standard(cls, channels: int, axes: int, truth: torch.dtype | None = None) -> Layout:
        """The table's own form."""
        return cls((None, *range(axes)), (channels,), truth)

    @property
    def is_standard(self) -> bool:
        return self.truth is None and self.axes == (None, *range(len(self.axes) - 1))

    def shape(self, extent: Sequence[int]) -> tuple[int, ...]:
        """The model's sizes after the batch of a map of this extent."""
        channels = iter(self.channels)
        return tuple(next(channels) if a is None else extent[a] for a in self.axes)

    def extent(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The spatial sizes of a map that has these sizes after the batch in the model."""
        sizes = {a: n for a, n in zip(self.axes, shape, strict=True) if a is not None}
        return tuple(sizes[a] for a in sorted(sizes))

    def are_channels(self, dims: Sequence[int]) -> bool:
        """Whether all these dimensions of the model's value (the batch is 0) are channels'."""
        return all(d > 0 and self.axes[d - 1] is None for d in map(self.dim, dims))

    def dim(self, dim: int) -> int:
        """A dimension counted from the front."""
        return dim % (len(self.axes) + 1)

    @property
    def spatial(self) -> list[int]:
        """The dimensions of the model's value that are spatial axes."""
        return [i + 1 for i, a in enumerate(self.axes) if a is not None]

    @property
    def _sizes(self) -> dict[int, int]:
        """The channels' sizes by their place among the dimensions after the batch."""
        places = (i for i, a in enumerate(self.axes) if a is None)
        return dict(zip(places, self.channels, strict=True))

    # ------------------------------------------------------------------ the model's operations

    def viewed(self, extent: Sequence[int], shape: Sequence[int]) -> Layout | None:
        """The layout behind a view as `shape` (batch left out); None where a spatial axis is not a
        dimension of its own any more.
        """
        before = self.shape(extent)
        if not all(before) or prod(before) != prod(shape):
            return None
        # A dimension stays itself where as many values stand before it, and its size is the same.
        outer, new_outer = ([*accumulate(s, mul, initial=1)] for s in (before, shape))
        axes: list[int | None] = [None] * len(shape)
        for i, axis in enumerate(self.axes):
            if axis is None:
                continue
            found = [
                j
                for j, size in enumerate(shape)
                if axes[j] is None and (new_outer[j], size) == (outer[i], extent[axis])
            ]
            if not found:
                return None
            # Dimensions of one cell are alike: the table's own form comes first.
            standard = len(shape) == len(extent) + 1 and axis + 1 in found
            axes[axis + 1 if standard else found[0]] = axis
        return Layout(
            tuple(axes),
            tuple(n for a, n in zip(axes, shape, strict=True) if a is None),
            self.truth,
        )

    def permuted(self, order: Sequence[int]) -> Layout:
        """The layout behind a permutation; `order` names all dimensions, the batch first."""
        sizes = self._sizes
        moved = [self.dim(d) - 1 for d in order[1:]]
        return Layout(
            tuple(self.axes[d] for d in moved),
            tuple(sizes[d] for d in moved if d in sizes),
            self.truth,
        )

    def keeps_channels(self, order: Sequence[int]) -> bool:
        """Whether a permutation leaves the channels in their order; `order` as in `permuted`."""
        moved = [self.dim(d) - 1 for d in order[1:]]
        kept = [d for d in moved if self._sizes.get(d, 1) > 1]
        return kept == sorted(kept)

    def resized(self, shape: Sequence[int]) -> Layout | None:
        """The same dimensions with the channels' sizes of `shape`."""
        if len(shape) != len(self.axes):
            return None
        channels = tuple(n for a, n in zip(self.axes, shape, strict=True) if a is None)
        return Layout(self.axes, channels, self.truth)

    def without(self, dims: Sequence[int], shape: Sequence[int]) -> Layout | None:
        """The layout without some channels' dimensions, sized like `shape`."""
        gone = {self.dim(d) - 1 for d in dims}
        axes = tuple(a for i, a in enumerate(self.axes) if i not in gone)
        return Layout(axes, (), self.truth).resized(shape)

    # ------------------------------------------------------------------ values

    def restore(self, value: Tensor) -> Tensor:
        """The model's own form of a map, or of windows of it, without copying (but for `truth`)."""
        if self.truth is not None:
            value = value != 0
        count = len(self.channels)
        if count == 0:
            value = value.squeeze(1)
        elif count > 1:
            value = value.unflatten(1, self.channels)
        channels = iter(range(1, count + 1))
        order = [next(channels) if a is None else 1 + count + a for a in self.axes]
        return value.permute(0, *order)

    def hold(self, value: Tensor) -> Tensor:
        """The table's form of a map in the model's; copies only where channels change their
        order.
        """
        channels = [i + 1 for i, a in enumerate(self.axes) if a is None]
        spatial = sorted(self.spatial, key=lambda i: self.axes[i - 1] or 0)
        if self.truth is not None:
            value = value.to(self.truth)
        if len(channels) == 1:
            return value.permute(0, *channels, *spatial)
        if not channels:
            return value.permute(0, *spatial).unsqueeze(1)
        # Stay channels last where the value is: that is the form in which windows are fast.
        inner = min(
            (i for i in (*channels, *spatial) if value.shape[i] > 1), key=value.stride, default=0
        )
        if inner in channels:
            return value.permute(0, *spatial, *channels).flatten(1 + len(spatial)).movedim(-1, 1)
        return value.permute(0, *channels, *spatial).flatten(1, len(channels))


class InLayout:
    """An operation on each cell alone, in the model's own layouts.

    Called with the operands in the table's form. `args` and `kwargs` are the operation's, with
    Ref(k) for the k-th operand; `layouts` the operands' layouts, None for what is no map; `out` is
    that of the result, or of each of several.
    """

    def __init__(
        self,
        target: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        layouts: Sequence[Layout | None],
        out: Layout | None,
    ) -> None:
        self.target = target
        self.args = args
        self.kwargs = kwargs
        self.layouts = tuple(layouts)
        self.out = out

    def __call__(self, *values: Any) -> Any:
        own = [
            v if layout is None else layout.restore(v)
            for v, layout in zip(values, self.layouts, strict=True)
        ]
        result = self.target(
            *substitute(self.args, own.__getitem__), **substitute(self.kwargs, own.__getitem__)
        )
        if self.out is None:
            return result
        if isinstance(result, Tensor):
            return self.out.hold(result)
        return [self.out.hold(part) for part in result]
