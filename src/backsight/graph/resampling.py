"""Kinds that change the geometry of a map: pads, crops, interpolation, transposed convolutions.

Operations that treat each axis by itself (padding by reflection, interpolation) are described by
`Taps`: which input cells an output cell reads along one axis, and with which weights. The weights
are those of torch's own kernels, so that windows agree with whole maps to the last bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from math import ceil, prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..geometry import Adaptive, AxisRule, Identity, Integers, Listed, Rules, Sliding, Transposed
from .kinds import Join, Kind, Values, Where, _cells, contract
from .node import Node, substitute

_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
ADAPTIVE_MAX_POOLS = {
    1: F.adaptive_max_pool1d,
    2: F.adaptive_max_pool2d,
    3: F.adaptive_max_pool3d,
}


class Pad(Kind):
    """Padding with a constant, cropping where it is negative: arguments (x, sizes, value).

    `sizes` as in torch: before and after the last axis, then those of the axis before it, up to the
    channels.
    """

    name = "pad"
    local = True

    @staticmethod
    def of(x: Tensor, sizes: list[int], value: float) -> Tensor:
        return F.pad(x, sizes, value=value)

    def rules(self, node: Node, nodes: Sequence[Node]) -> tuple[Rules | None, ...]:
        x, sizes, _ = node.args
        extent = nodes[x.index].extent
        axes = zip(extent, node.extent, sizes[: 2 * len(extent) : 2][::-1], strict=True)
        return (tuple(Sliding(i, o, 1, 1, before) for i, o, before in axes),)

    def outside(self, node: Node) -> float:
        return float(node.args[2])

    def windows(self, node: Node, values: Values, reads: Mapping[int, Where], out: Where) -> Any:
        return self._channels(node, values, node.args[2])

    def _channels(self, node: Node, values: Values, value: float) -> Tensor:
        """Windows already hold what is put around the map, but not the channels put before it."""
        x, sizes, _ = node.args
        places: Tensor = values[x.index]
        beyond = sizes[2 * len(node.extent) :]
        return (
            self.of(places, [0] * 2 * len(node.extent) + beyond, value) if any(beyond) else places
        )

    def is_linear(self, node: Node, nodes: Sequence[Node]) -> bool:
        return True

    def difference(
        self,
        node: Node,
        nodes: Sequence[Node],
        values: Values,
        reads: Mapping[int, Where],
        out: Where | None,
    ) -> Any:
        x, sizes, _ = node.args
        return self._channels(node, values, 0.0) if out else self.of(values[x.index], sizes, 0.0)


class Slice(Kind):
    """Every `step`-th cell of one spatial axis: arguments (x, dim, start, stop, step), with 0 <=
    start.
    """

    name = "slice"
    local = True

    def rules(self, node: Node, nodes: Sequence[Node]) -> tuple[Rules | None, ...]:
        x, dim, start, _, step = node.args
        rules: list[AxisRule] = [Identity(n) for n in node.extent]
        size = nodes[x.index].extent[dim - 2]
        rules[dim - 2] = Sliding(size, node.extent[dim - 2], 1, step, -start)
        return (tuple(rules),)

    def windows(self, node: Node, values: Values, reads: Mapping[int, Where], out: Where) -> Any:
        x, dim, _, _, step = node.args
        return values[x.index][(slice(None),) * dim + (slice(None, None, step),)]

    def is_linear(self, node: Node, nodes: Sequence[Node]) -> bool:
        return True


class SpatialCat(Join):
    """Maps side by side along one spatial axis: arguments (tensors, dim); each input once."""

    def __init__(self) -> None:
        super().__init__("cat", lambda node, varying: len(varying) == len(node.inputs))

    def rules(self, node: Node, nodes: Sequence[Node]) -> tuple[Rules | None, ...]:
        _, dim = node.args
        found: list[Rules] = []
        at = 0
        for i in node.inputs:
            rules: list[AxisRule] = [Identity(n) for n in node.extent]
            size = nodes[i].extent[dim - 2]
            rules[dim - 2] = Sliding(size, node.extent[dim - 2], 1, 1, at)
            found.append(tuple(rules))
            at += size
        return tuple(found)

    def windows(self, node: Node, values: Values, reads: Mapping[int, Where], out: Where) -> Any:
        # Each input is zero where another one lies.
        first, *rest = (values[i] for i in node.inputs)
        return sum(rest, first)


class Taps:
    """What the cells of an output read along one axis.

    Output cell o is the sum over k of weights[o, k] times input cell first[o] + k; without weights
    it is input cell first[o]. `first` is (size_out,) int64, `weights` (size_out, taps).
    """

    def __init__(self, size_in: int, first: Tensor, weights: Tensor | None = None) -> None:
        self.size_in = size_in
        self.first = first
        self.weights = weights

    @cached_property
    def rule(self) -> AxisRule:
        low = self.first.cpu().numpy()
        if self.weights is None:
            return Listed(self.size_in, low, low + 1)
        read = (self.weights != 0).cpu().numpy()
        taps = read.shape[1]
        return Listed(self.size_in, low + read.argmax(1), low + taps - read[:, ::-1].argmax(1))

    def of(self, x: Tensor, axis: int, at: Tensor, cells: Tensor) -> Tensor:
        """The outputs `cells` (batch, size) of windows x (batch, channels, *window), whose first
        input cells along `axis` are `at` (batch,).
        """
        first = self.first[cells] - at[:, None]
        if self.weights is None:
            return pick(x, axis, first)
        tap = torch.arange(x.shape[2 + axis], device=x.device) - first[:, :, None]
        taps = self.weights.shape[1]
        weights = self.weights[cells].to(x.dtype).gather(2, tap.clamp(0, taps - 1))
        return contract(x, axis, weights.masked_fill((tap < 0) | (tap >= taps), 0.0))


def pick(x: Tensor, axis: int, cells: Tensor) -> Tensor:
    """Cells (batch, size) of each window along one spatial axis; x (batch, channels, *window)."""
    if cells.device.type == "cpu" and len(cells) and bool((cells == cells[0]).all()):
        row = cells[0]
        if bool((row.diff() == 1).all()):
            return x.narrow(2 + axis, int(row[0]), len(row))
        return x.index_select(2 + axis, row)
    shape = [1] * x.ndim
    shape[0], shape[2 + axis] = cells.shape
    to = list(x.shape)
    to[2 + axis] = cells.shape[1]
    return x.gather(2 + axis, cells.view(shape).expand(to))


#: An operation on maps of any size, and how many output cells it makes of one, per axis.
Factors = tuple[Callable[[Tensor], Tensor], tuple[int, ...]]


class Separable:
    """An operation that treats each spatial axis by itself, with its taps (None: left alone).

    `scaled`, where given, is the same operation by whole factors, on a map of any size: a window
    may then go through it at once.
    """

    def __init__(
        self,
        target: Callable[..., Any],
        taps: Sequence[Taps | None],
        scaled: Factors | None = None,
    ) -> None:
        self.target = target
        self.taps = tuple(taps)
        self.scaled = scaled

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.target(*args, **kwargs)


class Resample(Kind):
    """An operation with `Separable` as its target and a map as its first argument."""

    local = True

    def __init__(self, name: str) -> None:
        self.name = name

    def rules(self, node: Node, nodes: Sequence[Node]) -> tuple[Rules | None, ...]:
        assert isinstance(node.target, Separable)
        taps = zip(node.target.taps, node.extent, strict=True)
        rules = tuple(Identity(n) if t is None else t.rule for t, n in taps)
        # What follows the map are constants.
        return (rules, *[None] * (len(node.inputs) - 1))

    def windows(self, node: Node, values: Values, reads: Mapping[int, Where], out: Where) -> Any:
        assert isinstance(node.target, Separable)
        index = node.inputs[0]
        x, read = values[index], reads[index]
        if node.target.scaled is not None:
            scaled, factors = node.target.scaled
            start = read.at * torch.tensor(factors, device=read.at.device)
            return crop(scaled(x), out.at - start, out.size)
        for axis, taps in enumerate(node.target.taps):
            if taps is not None:
                x = taps.of(x, axis, read.at[:, axis], _cells(out, axis))
        return x

    def is_linear(self, node: Node, nodes: Sequence[Node]) -> bool:
        return True


def crop(x: Tensor, at: Tensor, size: tuple[int, ...]) -> Tensor:
    """The cells [at, at + size) of each row: x (batch, channels, *window), at (batch, D)."""
    if x.requires_grad:  # splice has no gradient
        for axis, n in enumerate(size):
            cells = at[:, axis : axis + 1] + torch.arange(n, device=x.device)
            last = x.shape[2 + axis] - 1
            shape = [len(x), 1] + [1] * len(size)
            shape[2 + axis] = n
            beyond = ((cells < 0) | (cells > last)).view(shape)
            x = pick(x, axis, cells.clamp(0, last)).masked_fill(beyond, 0.0)
        return x
    rows = torch.arange(len(x), device=x.device)
    nothing = x.new_empty((*x.shape[:2], *[0] * len(size)))
    zeros = (0,) * len(size)
    return ops.splice(x, rows, zeros, x.shape[2:], nothing, at, at, size)


class ConvTranspose(Kind):
    """Arguments (x, weight, bias, stride, padding, output_padding, groups, dilation), per axis."""

    name = "conv_transpose"
    local = True

    @staticmethod
    def of(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: list[int],
        padding: list[int],
        output_padding: list[int],
        groups: int,
        dilation: list[int],
    ) -> Tensor:
        op = _CONV_TRANSPOSE[len(stride)]
        return op(x, weight, bias, stride, padding, output_padding, groups, dilation)

    def rules(self, node: Node, nodes: Sequence[Node]) -> tuple[Rules | None, ...]:
        x, weight, _, stride, padding, _, _, dilation = node.args
        kernel = nodes[weight.index].value.shape[2:]
        sizes = nodes[x.index].extent
        rules = tuple(map(Transposed, sizes, node.extent, kernel, stride, padding, dilation))
        return tuple(rules if i == x.index else None for i in node.inputs)

    def windows(self, node: Node, values: Values, reads: Mapping[int, Where], out: Where) -> Any:
        bias = node.args[2]
        return self._run(node, values, reads, out, None if bias is None else values[bias.index])

    def _run(
        self,
        node: Node,
        values: Values,
        reads: Mapping[int, Where],
        out: Where,
        bias: Tensor | None,
    ) -> Tensor:
        x, weight, _, stride, _, _, groups, dilation = substitute(node.args, values.__getitem__)
        index = node.args[0].index
        rules = [r for r in node.rules[0] or () if isinstance(r, Transposed)]
        # Outputs behind the last kernel that read nothing are part of what is written.
        behind = [r.tile - r.reach for r in rules]
        whole = self.of(x, weight, bias, stride, [0] * len(stride), behind, groups, dilation)
        written = [r.written(reads[index].at[:, axis]) for axis, r in enumerate(rules)]
        return crop(whole, out.at - torch.stack(written, 1), out.size)

    def is_linear(self, node: Node, nodes: Sequence[Node]) -> bool:
        return True

    def difference(
        self,
        node: Node,
        nodes: Sequence[Node],
        values: Values,
        reads: Mapping[int, Where],
        out: Where | None,
    ) -> Any:
        if out is not None:
            return self._run(node, values, reads, out, None)
        x, weight, _, *rest = substitute(node.args, values.__getitem__)
        return self.of(x, weight, None, *rest)

    def flops(self, node: Node, nodes: Sequence[Node]) -> int:
        weight = nodes[node.args[1].index].value
        pairs = [_pairs(r) for r in node.rules[0] or () if isinstance(r, Transposed)]
        total: int = 2 * weight.shape[:2].numel() * prod(pairs)
        return round(total / prod(node.extent))


def _pairs(rule: Transposed) -> int:
    """How often an input cell and a tap of the kernel meet an output cell inside the map."""
    taps = np.arange(rule.kernel) * rule.dilation
    cells = rule.written(np.arange(rule.size_in))[:, None] + taps
    return int(((cells >= 0) & (cells < rule.size_out)).sum())


class PixelShuffle(Kind):
    """Channels into blocks of places: arguments (x, factor)."""

    name = "pixel_shuffle"
    local = True

    def rules(self, node: Node, nodes: Sequence[Node]) -> tuple[Rules | None, ...]:
        x, factor = node.args
        sizes = nodes[x.index].extent
        return (tuple(Transposed(n, n * factor, factor, factor) for n in sizes),)

    def windows(self, node: Node, values: Values, reads: Mapping[int, Where], out: Where) -> Any:
        x, factor = node.args
        blocks = F.pixel_shuffle(values[x.index], factor)
        return crop(blocks, out.at - reads[x.index].at * factor, out.size)

    def is_linear(self, node: Node, nodes: Sequence[Node]) -> bool:
        return True


class PixelUnshuffle(Kind):
    """Blocks of places into channels: arguments (x, factor)."""

    name = "pixel_unshuffle"
    local = True

    def rules(self, node: Node, nodes: Sequence[Node]) -> tuple[Rules | None, ...]:
        x, factor = node.args
        sizes = nodes[x.index].extent
        return (tuple(Sliding(n, n // factor, factor, factor) for n in sizes),)

    def is_linear(self, node: Node, nodes: Sequence[Node]) -> bool:
        return True


class AdaptiveMaxPool(Kind):
    """Arguments (x, output sizes), for sizes that do not divide: the others are max pools."""

    name = "adaptive_max_pool"
    local = True

    def rules(self, node: Node, nodes: Sequence[Node]) -> tuple[Rules | None, ...]:
        return (tuple(map(Adaptive, nodes[node.args[0].index].extent, node.extent)),)

    def windows(self, node: Node, values: Values, reads: Mapping[int, Where], out: Where) -> Any:
        index = node.args[0].index
        x = values[index]
        for axis, rule in enumerate(node.rules[0] or ()):
            assert isinstance(rule, Adaptive)
            first, last = rule.cell(_cells(out, axis))
            # Shorter cells read their last input again.
            taps = torch.arange(rule.span(1), device=x.device)
            cells = torch.minimum(first[:, :, None] + taps, last[:, :, None] - 1)
            cells = cells - reads[index].at[:, axis, None, None]
            parts = pick(x, axis, cells.flatten(1))
            x = parts.unflatten(2 + axis, tuple(cells.shape[1:])).amax(3 + axis)
        return x


# ---------------------------------------------------------------------- taps


def padded(size: int, before: int, after: int, mode: str) -> Integers:
    """The input cell that each cell of an axis copies, padded by mode "reflect" or "replicate"."""
    at = np.arange(size + before + after) - before
    if mode == "reflect":
        return np.asarray(size - 1 - np.abs(size - 1 - np.abs(at)))
    return np.clip(at, 0, size - 1)


def wrapped(size: int, before: int, after: int) -> list[tuple[int, int]]:
    """The parts [start, stop) of an axis that stand side by side when it is padded circularly."""
    # torch crops before it wraps.
    start, stop = max(-before, 0), size - max(-after, 0)
    parts = [(stop - before, stop), (start, stop), (start, start + after)]
    return [part for part, width in zip(parts, (before, 1, after), strict=True) if width > 0]


def picking(size: int, cells: Integers, device: torch.device) -> Taps | None:
    """Taps of an axis whose output copies input `cells`; None where that changes nothing."""
    if len(cells) == size and bool((cells == np.arange(size)).all()):
        return None
    return Taps(size, torch.from_numpy(np.ascontiguousarray(cells)).to(device))


class Interpolation:
    """An interpolation of ATen's by its name: run(x, output sizes, scales), one scale per axis.

    A scale says how many output cells there are per input cell, as the model states it; None: the
    ratio of the sizes. `align_corners` is None for nearest neighbours.
    """

    def __init__(self, name: str, align_corners: bool | None) -> None:
        self.run = getattr(torch.ops.aten, name).default
        self.align_corners = align_corners
        self.antialias = name.endswith("_aa")
        #: How far an output reads to either side of its source coordinate; 0: nearest neighbours.
        self.reach = 0 if "nearest" in name else 2 if "bicubic" in name else 1

    def __call__(self, x: Tensor, sizes: Sequence[int], scales: Sequence[float | None]) -> Tensor:
        corners = () if self.align_corners is None else (self.align_corners,)
        out: Tensor = self.run(x, sizes, *corners, *scales)
        return out

    def taps(
        self,
        axis: int,
        axes: int,
        sizes: tuple[int, int],
        scale: float | None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> Taps | None:
        """Taps of one axis, from `sizes[0]` to `sizes[1]` cells; None where nothing changes.

        Where a source coordinate falls depends on how a kernel rounds it; so the operation itself
        is run on maps with ones at every n-th cell along the axis, and zeros elsewhere.
        """
        size_in, size_out = sizes
        if size_in == size_out and scale in (None, 1):
            return None

        def along(x: Tensor) -> Tensor:
            """(maps, size_in) to (maps, size_out)."""
            # torch 2.13 antialiases maps of one column wrongly: the other axes are of two cells.
            shape, out = [2] * axes, [2] * axes
            shape[axis], out[axis] = sizes
            scales = [scale if d == axis else None for d in range(axes)]
            rows = [1] * axes
            rows[axis] = size_in
            maps = x.view(1, len(x), *rows).expand(-1, -1, *shape).contiguous()
            found = self(maps, out, scales)[0].movedim(1 + axis, 1)
            return found.reshape(len(x), size_out, -1)[..., 0]

        cells = torch.arange(size_in, device=device)
        if not self.reach:
            return Taps(size_in, along(cells[None].double())[0].long())
        ratio = 1 / scale if scale else size_in / size_out
        out = np.arange(size_out)
        corners = out * (size_in - 1) / max(size_out - 1, 1)
        centre = corners if self.align_corners else (out + 0.5) * ratio - 0.5
        reach = self.reach * (max(ratio, 1.0) if self.antialias else 1.0)
        # One cell more to either side, for coordinates that a kernel rounds.
        low = np.clip(np.floor(centre - reach).astype(np.int64) - 1, 0, size_in - 1)
        taps = torch.arange(ceil(2 * reach) + 4, device=device)
        ones = cells % len(taps) == taps[:, None]
        found = along(ones.to(torch.promote_types(dtype, torch.float32)))
        first = torch.from_numpy(low).to(device)
        tap = first[:, None] + taps
        weights = found.T.gather(1, tap % len(taps)).masked_fill(tap >= size_in, 0.0)
        return Taps(size_in, first, weights)

    def by_factors(
        self, sizes: Sequence[int], out: Sequence[int], scales: Sequence[float | None]
    ) -> Factors | None:
        """Itself on maps of any size where it enlarges by powers of two: only then do source
        coordinates not depend on where a window lies.
        """
        factors = tuple(o // i for i, o in zip(sizes, out, strict=True))
        whole = all(
            o == i * f and f & (f - 1) == 0 and s in (None, f)
            for i, o, f, s in zip(sizes, out, factors, scales, strict=True)
        )
        if not whole or self.align_corners or self.antialias:
            return None

        def enlarge(x: Tensor) -> Tensor:
            size = [n * f for n, f in zip(x.shape[2:], factors, strict=True)]
            return self(x, size, [None] * len(factors))

        return enlarge, factors


PAD, SLICE, SPATIAL_CAT, CONV_TRANSPOSE = Pad(), Slice(), SpatialCat(), ConvTranspose()
PIXEL_SHUFFLE, PIXEL_UNSHUFFLE, ADAPTIVE_MAX_POOL = (
    PixelShuffle(),
    PixelUnshuffle(),
    AdaptiveMaxPool(),
)
PICK, INTERPOLATE = Resample("pick"), Resample("interpolate")
