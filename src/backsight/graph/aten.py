"""ATen's operations translated: which kind each is, and its arguments in one form."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..geometry import Integers
from . import kinds, resampling
from .kinds import Kind
from .node import Node, Ref, references

#: Kind, what to call, its arguments.
Translation = tuple[Kind, Callable[..., Any], tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Operation:
    """A call found in the captured graph, with Refs in its arguments."""

    name: str
    target: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    nodes: Sequence[Node]
    axes: int

    def bound(self) -> dict[str, Any]:
        """The arguments by name, defaults filled in."""
        return bind(self.target, self.args, self.kwargs)


@dataclass(frozen=True)
class OnNodes(Operation):
    """An operation whose Refs stand for nodes, of values on `device`."""

    device: torch.device

    @property
    def as_it_is(self) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
        return self.target, self.args, self.kwargs

    @property
    def source(self) -> Node | None:
        """The first argument, where that is a node."""
        first = self.args[0] if self.args else None
        return self.nodes[first.index] if isinstance(first, Ref) else None

    @property
    def on_map(self) -> bool:
        return self.source is not None and self.source.spatial

    def of(self, node: Node) -> OnNodes:
        """The call that `node` stands for."""
        assert node.target is not None
        return replace(
            self, name=node.operation, target=node.target, args=node.args, kwargs=node.kwargs
        )

    def axis(self, dim: int) -> int | None:
        """The spatial axis that dimension `dim` of a map is, if any."""
        axis = dim % (self.axes + 2) - 2
        return axis if axis >= 0 else None

    def fixed(self, argument: Any) -> bool:
        """Whether an argument is a constant (or None)."""
        return argument is None or isinstance(self.nodes[argument.index].kind, kinds.Constant)

    def sizes(self, value: int | Sequence[int]) -> list[int]:
        """A size per axis; an empty list (torch's "same as the kernel") stays empty."""
        values = [value] if isinstance(value, int) else list(value)
        return values * self.axes if len(values) == 1 else values


def operation_name(target: Any) -> str:
    """The operation's name: "relu" for aten.relu.default; a Python function's own."""
    schema = getattr(target, "_schema", None)
    if schema is None or not schema.name.startswith("aten::"):
        return str(getattr(target, "__name__", target))
    name: str = schema.name.removeprefix("aten::")
    return name


def bind(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """ATen arguments by name, defaults filled in."""
    schema = getattr(target, "_schema", None)
    if schema is None:
        return {}
    bound = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    bound |= {a.name: v for a, v in zip(schema.arguments, args, strict=False)}
    return bound | kwargs


def is_random(target: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(target, "tags", ())


def translate(call: OnNodes) -> Translation:
    """The translation of a call: a barrier for what no translator below knows or wants."""
    dimensions = re.fullmatch(r".*([123])d", call.name)
    if call.on_map and dimensions and int(dimensions[1]) != call.axes:
        # To torch this is one image without a batch.
        return (kinds.BARRIER, *call.as_it_is)
    translator = _TRANSLATORS.get(call.name.rstrip("123d") if call.on_map else call.name)
    found = translator(call) if translator else None
    if found is None and (translator := _TRANSLATORS.get(call.name)) is not None:
        found = translator(call)
    if found is None and call.name in kinds.JOINS:
        found = _join(call)
    if found is None and call.name in kinds.POINTWISE:
        one = len(references((call.args, call.kwargs))) == 1
        found = (kinds.POINTWISE[call.name], *call.as_it_is) if one else None
    if (
        found is None
        and call.name in kinds.RESHAPES
        and not (call.on_map and call.name == "expand")
    ):
        found = (kinds.FLAT, *call.as_it_is)
    return found or (kinds.BARRIER, *call.as_it_is)


#: A spatial axis, and the parts [start, stop) of it that are put side by side.
Parts = tuple[int, list[tuple[int, int]]]


def parts(call: OnNodes) -> list[Parts]:
    """For padding that wraps around and for rolls: what a map is put together from, axis by axis.

    Empty for anything else. As one operation, a window at one edge would read the other one too,
    and all between.
    """
    if call.name not in ("pad", "roll") or not call.on_map:
        return []
    assert call.source is not None
    b = call.bound()
    extent = call.source.extent
    if call.name == "roll":
        axes = [call.axis(d) for d in b["dims"]]
        shifts = [n for n in b["shifts"] if isinstance(n, int)]
        if None in axes or len(shifts) != len(axes):
            return []
        moved = [
            (a, extent[a], n % extent[a])
            for a, n in zip(axes, shifts, strict=True)
            if a is not None
        ]
        return [(a, [(size - n, size), (0, size - n)]) for a, size, n in moved if n]
    sizes = list(b["pad"])
    if b["mode"] != "circular" or not all(isinstance(n, int) for n in sizes):
        return []
    found = [
        (axis, resampling.wrapped(n, before, after))
        for axis, (n, before, after) in enumerate(
            zip(extent, sizes[::2][::-1], sizes[1::2][::-1], strict=True)
        )
        if before or after
    ]
    inside = all(0 <= a < b <= extent[axis] for axis, some in found for a, b in some)
    return found if inside else []


def _convolution(call: OnNodes) -> Translation | None:
    b = call.bound()
    if b.get("transposed"):
        return _conv_transpose(call)
    if not call.on_map or not call.fixed(b["weight"]):
        return None
    padding = b["padding"]
    args = (
        b["input"],
        b["weight"],
        b.get("bias"),
        call.sizes(b["stride"]),
        padding if isinstance(padding, str) else call.sizes(padding),
        call.sizes(b["dilation"]),
        b["groups"],
    )
    return kinds.CONVOLUTION, kinds.Convolution.of, args, {}


def _conv_transpose(call: OnNodes) -> Translation | None:
    b = call.bound()
    if not call.on_map or not call.fixed(b["weight"]) or b.get("relu"):
        return None
    args = (
        b["x"] if "x" in b else b["input"],  # of our own op, which accelerated models call
        b["weight"],
        b.get("bias"),
        *(call.sizes(b[name]) for name in ("stride", "padding", "output_padding")),
        b["groups"],
        call.sizes(b["dilation"]),
    )
    return resampling.CONV_TRANSPOSE, resampling.ConvTranspose.of, args, {}


def _batch_norm(call: OnNodes) -> Translation | None:
    b = call.bound()
    names = ("weight", "bias", "running_mean", "running_var")
    if not all(call.fixed(b[n]) for n in names) or b["running_mean"] is None:
        return None
    # The form that returns a tuple: the getitem behind it becomes the batch norm itself.
    several = call.name.startswith("_native")
    target = _batch_norm_tuple if several else kinds.BatchNorm.inference
    return kinds.BATCH_NORM, target, (b["input"], *(b[n] for n in names), b["eps"]), {}


def _batch_norm_tuple(*args: Any) -> tuple[Tensor]:
    return (kinds.BatchNorm.inference(*args),)


def _max_pool(call: OnNodes) -> Translation | None:
    if not call.on_map:
        return None
    b = call.bound()
    kernel = call.sizes(b["kernel_size"])
    stride = call.sizes(b["stride"]) or kernel
    args = (b["self"], kernel, stride, call.sizes(b["padding"]), call.sizes(b["dilation"]))
    return kinds.MAX_POOL, kinds.MAX_POOLS[call.axes], (*args, b["ceil_mode"]), {}


def _avg_pool(call: OnNodes) -> Translation | None:
    if not call.on_map:
        return None
    b = call.bound()
    kernel = call.sizes(b["kernel_size"])
    stride = call.sizes(b["stride"]) or kernel
    rest = (b["ceil_mode"], b["count_include_pad"], b.get("divisor_override"))
    args = (b["self"], kernel, stride, call.sizes(b["padding"]), *rest)
    return kinds.AVG_POOL, kinds.AvgPool.of, args, {}


def _adaptive_avg_pool(call: OnNodes) -> Translation | None:
    source = call.source
    if source is None or not call.on_map:
        return None
    sizes = call.sizes(call.bound()["output_size"])
    if all(s == 1 for s in sizes):
        return kinds.GLOBAL_MEAN, kinds.GlobalMean.of, (call.args[0], True), {}
    if sizes == list(source.extent):
        return kinds.IDENTITY, _identity, (call.args[0],), {}
    return kinds.ADAPTIVE_AVG_POOL, call.target, (call.args[0], sizes), {}


def _adaptive_max_pool(call: OnNodes) -> Translation | None:
    """The pool itself; the operation returns its switches too."""
    source = call.source
    if source is None or not call.on_map:
        return None
    sizes = call.sizes(call.bound()["output_size"])
    if all(i % o == 0 for i, o in zip(source.extent, sizes, strict=True)):
        kernel = [i // o for i, o in zip(source.extent, sizes, strict=True)]
        rest = ([0] * call.axes, [1] * call.axes, False)
        return kinds.MAX_POOL, kinds.MAX_POOLS[call.axes], (call.args[0], kernel, kernel, *rest), {}
    pool = resampling.ADAPTIVE_MAX_POOLS[call.axes]
    return resampling.ADAPTIVE_MAX_POOL, pool, (call.args[0], sizes), {}


#: Pools that return a map and its switches: what the map alone is.
_POOLS_WITH_SWITCHES: dict[str, Callable[[OnNodes], Translation | None]] = {
    **{f"adaptive_max_pool{axes}d": _adaptive_max_pool for axes in (1, 2, 3)},
    **{f"max_pool{axes}d_with_indices": _max_pool for axes in (1, 2, 3)},
}


def _mean(call: OnNodes) -> Translation | None:
    b = call.bound()
    if not call.on_map or not b.get("dim") or b.get("dtype") is not None:
        return None
    if sorted(d % (call.axes + 2) for d in b["dim"]) != list(range(2, call.axes + 2)):
        return None
    if call.name == "sum":
        return kinds.GLOBAL_SUM, kinds.GlobalSum.of, (b["self"], b["keepdim"]), {}
    return kinds.GLOBAL_MEAN, kinds.GlobalMean.of, (b["self"], b["keepdim"]), {}


def _cat(call: OnNodes) -> Translation | None:
    b = call.bound()
    if b["dim"] not in (1, -call.axes - 1):
        return _spatial_cat(call)
    return kinds.CAT, call.target, (b["tensors"], 1), {}


def _slice(call: OnNodes) -> Translation | None:
    b = call.bound()
    everything = b["start"] in (0, None) and b["step"] == 1
    if b["dim"] == 0 and everything and b["end"] in (None, torch.iinfo(torch.int64).max):
        return kinds.IDENTITY, _identity, (b["self"],), {}
    if (axis := call.axis(b["dim"])) is not None:
        return _crop(call, axis, b["start"] or 0, b["end"], b["step"])
    return _channels(call)


def _crop(call: OnNodes, axis: int, start: Any, stop: Any, step: int = 1) -> Translation | None:
    """Cells [start, stop) of a spatial axis, counted as Python does."""
    if not call.on_map or not isinstance(start, int) or not isinstance(stop, int | None):
        return None
    assert call.source is not None
    start, stop, _ = slice(start, stop).indices(call.source.extent[axis])
    args = (call.args[0], 2 + axis, start, stop, step)
    return resampling.SLICE, torch.ops.aten.slice.Tensor, args, {}


def _narrow(call: OnNodes) -> Translation | None:
    b = call.bound()
    axis = call.axis(b["dim"])
    if axis is None:
        return _channels(call)
    if not call.on_map or not isinstance(b["start"], int) or not isinstance(b["length"], int):
        return None
    assert call.source is not None
    start = b["start"] % call.source.extent[axis]
    return _crop(call, axis, start, start + b["length"])


def _part_of_axis(call: OnNodes, part: int) -> Translation | None:
    """One of the parts that `call` splits a map into, along a spatial axis."""
    b = call.bound()
    axis = call.axis(b["dim"]) if "dim" in b and call.on_map else None
    if axis is None or call.source is None:
        return None
    size = call.source.extent[axis]
    each = -(-size // b["chunks"]) if call.name == "chunk" else b.get("split_size", 0)
    lengths: list[int] = b.get("split_sizes") or [each] * (part + 1)
    start = sum(lengths[:part])
    return _crop(call, axis, start, start + lengths[part])


def _spatial_cat(call: OnNodes) -> Translation | None:
    b = call.bound()
    axis = call.axis(b["dim"])
    indices = [t.index for t in b["tensors"] if isinstance(t, Ref)]
    if axis is None or not all(call.nodes[i].spatial for i in indices):
        return None
    if len(set(indices)) < len(indices):
        return None
    return resampling.SPATIAL_CAT, call.target, (b["tensors"], 2 + axis), {}


def _pad(call: OnNodes) -> Translation | None:
    b = call.bound()
    source, sizes, axes = call.source, list(b["pad"]), call.axes
    if source is None or not call.on_map or not all(isinstance(n, int) for n in sizes):
        return None
    if b.get("mode", "constant") == "constant":
        value = float(b.get("value") or 0.0)
        sizes += [0] * (2 * axes - len(sizes))
        if any(sizes[2 * axes + 2 :]):
            return None
        return resampling.PAD, resampling.Pad.of, (b["self"], sizes[: 2 * axes + 2], value), {}
    if b["mode"] == "circular":
        return None
    cells = [
        resampling.padded(n, before, after, b["mode"])
        for n, before, after in zip(source.extent, sizes[::2][::-1], sizes[1::2][::-1], strict=True)
    ]
    return _picking(call, dict(enumerate(cells)))


def _picking(call: OnNodes, cells: dict[int, Integers]) -> Translation | None:
    """The call as it is, known to copy the input's `cells` along each of some spatial axes."""
    if not call.on_map:
        return None
    assert call.source is not None
    taps = [
        resampling.picking(n, cells[axis], call.device) if axis in cells else None
        for axis, n in enumerate(call.source.extent)
    ]
    target = resampling.Separable(call.target, taps)
    return resampling.PICK, target, call.args, call.kwargs


def _flip(call: OnNodes) -> Translation | None:
    axes = [call.axis(d) for d in call.bound()["dims"]]
    if not call.on_map or None in axes:
        return _channels(call)
    assert call.source is not None
    sizes = call.source.extent
    return _picking(call, {a: np.arange(sizes[a])[::-1] for a in axes if a is not None})


def _repeat_interleave(call: OnNodes) -> Translation | None:
    b = call.bound()
    axis = call.axis(b["dim"]) if b.get("dim") is not None else None
    if axis is None or not call.on_map or not isinstance(b.get("repeats"), int):
        return None
    assert call.source is not None
    return _picking(call, {axis: np.arange(call.source.extent[axis]).repeat(b["repeats"])})


def _index_select(call: OnNodes) -> Translation | None:
    b = call.bound()
    axis = call.axis(b["dim"])
    if axis is None:
        return _channels(call)
    if not call.on_map or not call.fixed(b["index"]):
        return None
    cells = call.nodes[b["index"].index].value.cpu().numpy()
    return _picking(call, {axis: cells})


def _interpolate(call: OnNodes) -> Translation | None:
    b = call.bound()
    source, axes = call.source, call.axes
    if source is None or not call.on_map:
        return None
    names = ("scales", "scales_d", "scales_h", "scales_w")
    scales = b["scale_factors"] if "scale_factors" in b else [b[n] for n in names if n in b]
    scales = [None] * axes if scales is None else list(scales)
    sizes = source.extent
    out = b["output_size"]
    if out is None:
        out = [math.floor(n * s) for n, s in zip(sizes, scales, strict=True)]
    if not all(isinstance(n, int) for n in out) or len(scales) != axes:
        return None
    how = resampling.Interpolation(call.name, b.get("align_corners"))
    pairs = zip(sizes, out, scales, strict=True)
    taps = [
        how.taps(axis, axes, (i, o), s, source.dtype, call.device)
        for axis, (i, o, s) in enumerate(pairs)
    ]
    target = resampling.Separable(call.target, taps, how.by_factors(sizes, out, scales))
    return resampling.INTERPOLATE, target, call.args, call.kwargs


def _pixel_shuffle(call: OnNodes) -> Translation | None:
    if call.axes != 2 or not call.on_map:
        return None
    return (resampling.PIXEL_SHUFFLE, *call.as_it_is)


def _pixel_unshuffle(call: OnNodes) -> Translation | None:
    if call.axes != 2 or not call.on_map:
        return None
    return (resampling.PIXEL_UNSHUFFLE, *call.as_it_is)


def _cast(call: OnNodes) -> Translation | None:
    return (kinds.CAST, *call.as_it_is) if len(references((call.args, call.kwargs))) == 1 else None


def _type_as(call: OnNodes) -> Translation | None:
    other = call.nodes[call.args[1].index].dtype
    return kinds.CAST, torch.ops.aten.to.dtype, (call.args[0], other), {}


def _channels(call: OnNodes) -> Translation | None:
    b = call.bound()
    dims = b.get("dims") or [b["dim"]]
    if not call.on_map or any(d not in (1, -call.axes - 1) for d in dims):
        return None
    return (kinds.CHANNELS, *call.as_it_is)


def _join(call: OnNodes) -> Translation | None:
    if any(isinstance(call.nodes[i].kind, kinds.Size) for i in references(call.args)):
        return None
    return (kinds.JOINS[call.name], *call.as_it_is)


def _linear(call: OnNodes) -> Translation | None:
    b = call.bound()
    args = (b["input"], b["weight"], b.get("bias"))
    return kinds.LINEAR, torch.nn.functional.linear, args, {}


def _view(call: OnNodes) -> Translation | None:
    if call.target not in (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default):
        return None
    # A view would depend on the memory layout, which is ours to choose.
    return kinds.FLAT, torch.ops.aten.reshape.default, call.args, call.kwargs


def _copy(call: OnNodes) -> Translation | None:
    return kinds.IDENTITY, _identity, (call.args[0],), {}


def _identity(x: Tensor) -> Tensor:
    return x


def _getitem(call: OnNodes) -> Translation | None:
    source, part = call.source, call.args[1]
    if source is None or source.target is None:
        return None
    if source.target is _batch_norm_tuple and part == 0:
        return kinds.BATCH_NORM, kinds.BatchNorm.inference, source.args, {}
    pool = _POOLS_WITH_SWITCHES.get(source.operation)
    if pool is not None and part == 0:
        return pool(call.of(source))
    if source.target is _identity and part == 0:
        return kinds.IDENTITY, _identity, source.args, {}
    if isinstance(source.kind, kinds.Channels):
        return kinds.CHANNELS, _Part(source.target, part), source.args, source.kwargs
    if source.operation in ("split", "chunk", "split_with_sizes"):
        return _part_of_axis(call.of(source), part)
    return None


class _Part:
    """One of the parts that split and its like return."""

    def __init__(self, target: Callable[..., Any], part: int) -> None:
        self.target = target
        self.part = part

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        part: Tensor = self.target(*args, **kwargs)[self.part]
        return part


#: By operation; those of one, two and three axes share an entry ("conv" for conv2d).
_TRANSLATORS: dict[str, Callable[[OnNodes], Translation | None]] = {
    "conv": _convolution,
    "convolution": _convolution,
    "batch_norm": _batch_norm,
    "cudnn_batch_norm": _batch_norm,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "adaptive_avg_pool": _adaptive_avg_pool,
    "mean": _mean,
    "sum": _mean,
    "cat": _cat,
    "slice": _slice,
    **dict.fromkeys(("split", "chunk", "split_with_sizes"), _channels),
    "index_select": _index_select,
    "narrow": _narrow,
    "flip": _flip,
    "repeat_interleave": _repeat_interleave,
    "pad": _pad,
    "constant_pad_nd": _pad,
    "conv_transpose": _conv_transpose,
    "subpixel_deconv.default": _conv_transpose,
    **dict.fromkeys(
        (
            "upsample_nearest1d",
            "upsample_nearest2d",
            "upsample_nearest3d",
            "_upsample_nearest_exact1d",
            "_upsample_nearest_exact2d",
            "_upsample_nearest_exact3d",
            "upsample_linear1d",
            "upsample_bilinear2d",
            "upsample_trilinear3d",
            "upsample_bicubic2d",
            "_upsample_bilinear2d_aa",
            "_upsample_bicubic2d_aa",
        ),
        _interpolate,
    ),
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle,
    "to": _cast,
    "_to_copy": _cast,
    "type_as": _type_as,
    "linear": _linear,
    "view": _view,
    "_unsafe_view": _view,
    "dropout": _copy,
    "feature_dropout": _copy,
    "native_dropout": _copy,
    operator.getitem.__name__: _getitem,
}
