"""Operations that act on each cell of a map alone, in whatever layout the model holds the map."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from . import kinds
from .aten import Operation
from .kinds import Kind, Pointwise, Values, Where
from .layouts import InLayout, Layout
from .node import Node, Ref


@dataclass(frozen=True)
class Operand:
    """A node that a call refers to, and its layout where it is a map."""

    index: int
    layout: Layout | None


@dataclass(frozen=True)
class OnOperands(Operation):
    """An operation in whose arguments Ref(k) stands for its k-th operand.

    `shape` is the result's in the model, batch left out; None where the result is no tensor with
    the batch in front, or is several of them: `parts` then holds the shape of the first.
    """

    operands: tuple[Operand, ...]
    shape: tuple[int, ...] | None
    dtype: torch.dtype | None
    parts: tuple[int, ...] | None = None

    def node(self, operand: Operand) -> Node:
        return self.nodes[operand.index]

    def fixed(self, argument: Any) -> bool:
        """Whether an argument is a constant tensor (or None)."""
        return argument is None or self.is_constant(self.operands[argument.index])

    def is_constant(self, operand: Operand) -> bool:
        return isinstance(self.node(operand).kind, kinds.Constant)

    @property
    def map(self) -> Layout | None:
        """The layout of the only map among the operands, where it is the first argument and the
        rest are constants.
        """
        if not self.operands or not self.args or self.args[0] != Ref(0):
            return None
        rest = self.operands[1:]
        return self.operands[0].layout if all(map(self.is_constant, rest)) else None

    @property
    def extent(self) -> tuple[int, ...]:
        return self.node(self.operands[0]).extent


@dataclass(frozen=True)
class Entry:
    """What a call becomes: a node that reads `inputs`, indices or what is to become nodes first.

    `args` holds Ref(k) for the k-th of them. `layout` is that of the result, None for what is no
    map; `extent` its spatial sizes.
    """

    kind: Kind
    target: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: tuple[int | Entry | Tensor, ...]
    layout: Layout | None
    extent: tuple[int, ...] = ()


class PixelLinear(Pointwise):
    """A linear layer on the channels of each cell: arguments (x, weight) or (x, weight, bias)."""

    def __init__(self) -> None:
        super().__init__("linear", linear=True)

    def difference(
        self,
        node: Node,
        nodes: Sequence[Node],
        values: Values,
        reads: Mapping[int, Where],
        out: Where | None,
    ) -> Any:
        assert node.target is not None
        x, weight, *bias = (values[a.index] for a in node.args)
        return node.target(x, weight, *map(torch.zeros_like, bias))

    def flops(self, node: Node, nodes: Sequence[Node]) -> int:
        return 2 * int(nodes[node.args[1].index].value.numel())


PIXEL_LINEAR = PixelLinear()
_CAT = kinds.Join("cat", lambda node, varying: len(varying) == len(node.args))
_LINEAR_PAD, _LINEAR_POOL = Pointwise("pad", linear=True), Pointwise("avg_pool", linear=True)
_LINEAR_REDUCTIONS = {n: Pointwise(n, linear=True) for n in ("mean", "sum", "cumsum")}

# fmt: off
#: Operations along the dimensions of their argument `dim`, all of which must be channels'.
_ALONG = frozenset((
    "mean", "sum", "cumsum", "softmax", "_softmax", "log_softmax", "_log_softmax", "softmin",
    "amax", "amin", "var", "std", "norm", "linalg_vector_norm", "logsumexp", "prod", "cumprod",
    "glu", "all", "any",
))
#: The same, which pick or reorder values.
_CHOOSE = frozenset((
    "split", "split_with_sizes", "chunk", "unbind", "select", "slice", "narrow", "index_select",
    "flip", "roll",
))
_VIEWS = frozenset((
    "view", "_unsafe_view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze",
    "contiguous", "clone", "alias", "detach", "lift_fresh_copy", "view_as", "reshape_as",
))
# fmt: on
#: Reductions of one map that are pointwise operations on two.
_OF_TWO = frozenset(("max", "min"))
_PERMUTES = frozenset(("permute", "transpose", "movedim", "moveaxis", "swapaxes", "swapdims"))
_ALL = torch.iinfo(torch.int64).max


def relayout(call: OnOperands) -> Layout | None:
    """The layout of the result where a call leaves the map as the table holds it: views that keep
    each spatial axis a dimension of its own, permutations, slices that take everything.
    """
    if not call.operands or call.args[:1] != (Ref(0),) or call.shape is None:
        return None
    source, layout = call.node(call.operands[0]), call.operands[0].layout
    if layout is None or call.dtype != (torch.bool if layout.truth else source.dtype):
        return None
    if call.name in _VIEWS:
        return layout.viewed(source.extent, call.shape)
    if call.name in _PERMUTES:
        order = _order(call, layout)
        return layout.permuted(order) if order and layout.keeps_channels(order) else None
    if call.name in ("slice", "expand", "expand_as") and call.shape == layout.shape(source.extent):
        b = call.bound()
        if call.name == "slice" and b["dim"] == 0:
            everything = b["start"] in (0, None) and b["end"] in (None, _ALL) and b["step"] == 1
            return layout if everything else None
        return layout
    return None


def _order(call: OnOperands, layout: Layout) -> list[int] | None:
    """A permutation's dimensions, the batch first; None where it does not stay there."""
    # Where each dimension went, found on a tensor that has as many, of sizes 1, 2, 3, ...
    sizes = range(1, len(layout.axes) + 2)
    moved = call.target(torch.empty(tuple(sizes), device="meta"), *call.args[1:], **call.kwargs)
    order = [n - 1 for n in moved.shape]
    return order if order[0] == 0 else None


def entry(call: OnOperands) -> Entry | None:
    """The entry for a call that acts on each cell alone; None for all others."""
    if not any(o.layout for o in call.operands):
        return None
    if any(_is_unsafe(call, o) for o in call.operands):
        return None
    if call.name in ("cat", "stack"):
        return _cat(call)
    several = len(call.operands) > 1 and (call.name in kinds.POINTWISE or call.name in _OF_TWO)
    if call.name in kinds.JOINS or several:
        return _join(call)
    if call.name in ("expand", "expand_as"):
        return _expand(call)
    layout = call.map
    if layout is None or not (call.dtype is None or _can_hold(call.dtype)):
        return None
    if call.name in kinds.POINTWISE:
        return _pointwise(call, layout)
    if call.name in ("mean", "sum"):
        found = _over_space(call, layout)
        if found is not None:
            return found
    known = _UNARY.get(call.name)
    kind = known(call, layout) if known else None
    if kind is None:
        return None
    shape = call.shape if call.parts is None else call.parts
    if shape is None:
        return None
    after = _behind(call, layout, shape)
    if after is None or after.shape(call.extent) != shape:
        return None
    truth = layout.truth
    if call.dtype is not None:
        truth = call.node(call.operands[0]).dtype if call.dtype == torch.bool else None
    after = Layout(after.axes, after.channels, truth)
    return _entry(call, kind, after)


def _is_unsafe(call: OnOperands, operand: Operand) -> bool:
    """A map that windows cannot be spliced from."""
    node = call.node(operand)
    return node.spatial and not node.dtype.is_floating_point


def _can_hold(dtype: torch.dtype) -> bool:
    """Whether the table has a form for maps of this dtype: floating point, or as booleans."""
    return dtype.is_floating_point or dtype == torch.bool


def _entry(call: OnOperands, kind: Kind, out: Layout) -> Entry:
    """The operation as it is, between the operands' layouts and `out`."""
    target = InLayout(call.target, call.args, call.kwargs, [o.layout for o in call.operands], out)
    refs = tuple(Ref(k) for k in range(len(call.operands)))
    inputs = tuple(o.index for o in call.operands)
    return Entry(kind, target, refs, {}, inputs, out, call.extent)


def _behind(call: OnOperands, layout: Layout, shape: tuple[int, ...]) -> Layout | None:
    """The layout of the result of an operation on each cell."""
    if len(shape) == len(layout.axes):
        return layout.resized(shape) if call.name not in _PERMUTES else _permuted(call, layout)
    dims = call.bound().get("dim")
    if dims is None or len(shape) > len(layout.axes):
        return None
    return layout.without([dims] if isinstance(dims, int) else dims, shape)


def _permuted(call: OnOperands, layout: Layout) -> Layout | None:
    order = _order(call, layout)
    return layout.permuted(order) if order else None


# ---------------------------------------------------------------------- several maps


def _join(call: OnOperands) -> Entry | None:
    """A pointwise operation on maps and constants: in the table's form, where all broadcast
    alike.
    """
    layouts = [o.layout for o in call.operands if o.layout is not None]
    axes = layouts[0].axes
    shape = call.shape
    if shape is None or len(shape) != len(axes) or any(la.axes != axes for la in layouts):
        return None
    truths = [la.truth for la in layouts if la.truth is not None]
    if call.dtype == torch.bool:
        truths.append(next(call.node(o).dtype for o in call.operands if o.layout))
    out = Layout(axes, (), truths[-1] if call.dtype == torch.bool else None).resized(shape)
    assert out is not None
    extent = out.extent(shape)
    inputs: list[int | Entry | Tensor] = []
    held: list[Layout | None] = []
    for operand in call.operands:
        layout, node = operand.layout, call.node(operand)
        if layout is None:
            value = _constant(call, operand, out, extent)
            if value is None:
                return None
            inputs.append(operand.index if value is node.value else value)
            truth = value.dtype if node.value.dtype == torch.bool != value.dtype else None
            held.append(None if truth is None else Layout.standard(1, call.axes, truth))
            continue
        if layout.channels != out.channels and prod(layout.channels) > 1:
            inputs.append(_widened(call, operand, Layout(axes, out.channels, layout.truth)))
        else:
            inputs.append(operand.index)
        truth = layout.truth
        held.append(None if truth is None else Layout.standard(1, call.axes, truth))
    if not any(held) and out.truth is None:
        kind = kinds.JOINS.get(call.name) or kinds.Join(call.name)
        return Entry(kind, call.target, call.args, call.kwargs, tuple(inputs), out, extent)
    form = Layout.standard(prod(out.channels), call.axes, out.truth)
    target = InLayout(call.target, call.args, call.kwargs, held, form)
    refs = tuple(Ref(k) for k in range(len(inputs)))
    return Entry(kinds.Join(call.name), target, refs, {}, tuple(inputs), out, extent)


def _expand(call: OnOperands) -> Entry | None:
    """Channels broadcast to more, each cell staying where it is."""
    layout = call.operands[0].layout
    out = layout.resized(call.shape) if layout is not None and call.shape is not None else None
    if out is None or call.args[0] != Ref(0) or out.shape(call.extent) != call.shape:
        return None
    return _widened(call, call.operands[0], out)


def _widened(call: OnOperands, operand: Operand, out: Layout) -> Entry:
    target = InLayout(_Expand(out), (Ref(0),), {}, [operand.layout], out)
    extent = call.node(operand).extent
    return Entry(kinds.CHANNELS, target, (Ref(0),), {}, (operand.index,), out, extent)


class _Expand:
    """Broadcasts channels to the sizes of a layout."""

    def __init__(self, layout: Layout) -> None:
        channels = iter(layout.channels)
        self.sizes = [-1 if a is not None else next(channels) for a in layout.axes]

    def __call__(self, x: Tensor, *_: Any) -> Tensor:
        return x.expand(-1, *self.sizes)


def _constant(
    call: OnOperands, operand: Operand, out: Layout, extent: tuple[int, ...]
) -> Tensor | None:
    """A constant operand as it broadcasts with maps in the table's form: (channels, 1, ...) where
    it is the same at every place, else a map (1, channels, *spatial).
    """
    value = call.node(operand).value
    if not call.is_constant(operand) or not isinstance(value, Tensor):
        return None
    if value.ndim == 0:
        return value
    sizes = (1,) * (len(out.axes) + 1 - value.ndim) + tuple(value.shape)
    own = out.resized(sizes[1:])
    if own is None or sizes[0] != 1:
        return None
    full = value.reshape(sizes)
    if prod(own.channels) > 1 and own.channels != out.channels:
        full = _Expand(out)(full)
    held = Layout(out.axes, ()).hold(full)
    if all(n == 1 for n in held.shape[2:]):
        return value if held.shape[1:] == value.shape else held[0]
    if not held.is_floating_point():
        held = held.to(next(call.node(o).dtype for o in call.operands if o.layout))
    return held.expand(*held.shape[:2], *extent)


def _cat(call: OnOperands) -> Entry | None:
    b = call.bound()
    dim, shape = b["dim"], call.shape
    layouts = [o.layout for o in call.operands]
    first = layouts[0]
    if first is None or shape is None or not all(isinstance(t, Ref) for t in b["tensors"]):
        return None
    if any(la is None or (la.axes, la.truth) != (first.axes, None) for la in layouts):
        return None
    if any(call.node(o).extent != call.extent for o in call.operands):
        return None
    dim = dim % (len(shape) + 1) - 1
    axes = first.axes if call.name == "cat" else (*first.axes[:dim], None, *first.axes[dim:])
    out = Layout(axes, ()).resized(shape)
    if out is None or dim < 0 or axes[dim] is not None or out.shape(call.extent) != shape:
        return None
    outer = sum(a is None for a in axes[:dim])
    if prod(out.channels[:outer]) > 1:
        return _entry(call, _CAT, out)
    # The outermost of the channels: one after the other in the table's form too.
    inputs = tuple(o.index for o in call.operands)
    cat = torch.ops.aten.cat.default
    return Entry(kinds.CAT, cat, (b["tensors"], 1), {}, inputs, out, call.extent)


# ---------------------------------------------------------------------- one map and constants


def _pointwise(call: OnOperands, layout: Layout) -> Entry | None:
    if len(call.operands) != 1 or call.shape != layout.shape(call.extent):
        return None
    truth = call.node(call.operands[0]).dtype if call.dtype == torch.bool else None
    kind = kinds.POINTWISE[call.name] if truth is None else Pointwise(call.name)
    # In the model's layout: some operations round otherwise where memory is laid out otherwise.
    return _entry(call, kind, Layout(layout.axes, layout.channels, truth))


def _over_space(call: OnOperands, layout: Layout) -> Entry | None:
    """A mean or a sum over exactly the spatial axes."""
    b = call.bound()
    if layout.truth is not None or not b.get("dim") or b.get("dtype") is not None:
        return None
    if sorted(map(layout.dim, b["dim"])) != layout.spatial:
        return None
    keepdim = b["keepdim"]
    inputs = (call.operands[0].index,)
    if call.name == "mean" and (keepdim or len(layout.channels) == 1):
        one = (1,) * call.axes
        return Entry(
            kinds.GLOBAL_MEAN,
            kinds.GlobalMean.of,
            (Ref(0), keepdim),
            {},
            inputs,
            layout if keepdim else None,
            one if keepdim else (),
        )
    if call.name == "sum" and not keepdim and len(layout.channels) == 1:
        return Entry(kinds.GLOBAL_SUM, kinds.GlobalSum.of, (Ref(0), False), {}, inputs, None)
    return None


def _along(call: OnOperands, layout: Layout) -> Kind | None:
    b = call.bound()
    dims = b.get("dim", b.get("dims"))
    dims = [dims] if isinstance(dims, int) else dims
    if not dims or not layout.are_channels(dims):
        return None
    if call.name in _CHOOSE:
        return kinds.CHANNELS
    if b.get("dtype") is not None:
        return None
    return _LINEAR_REDUCTIONS.get(call.name) or Pointwise(call.name)


def _reorder(call: OnOperands, layout: Layout) -> Kind | None:
    return kinds.CHANNELS if _order(call, layout) else None


def _index(call: OnOperands, layout: Layout) -> Kind | None:
    """Channels picked by a constant list."""
    indices = call.bound()["indices"]
    dims = [d for d, i in enumerate(indices) if i is not None]
    if len(dims) != 1 or not layout.are_channels(dims) or not call.fixed(indices[dims[0]]):
        return None
    value = call.node(call.operands[indices[dims[0]].index]).value
    return kinds.CHANNELS if value.ndim == 1 else None


def _repeat(call: OnOperands, layout: Layout) -> Kind | None:
    repeats = call.bound()["repeats"]
    if len(repeats) != len(layout.axes) + 1:
        return None
    dims = [d for d, n in enumerate(repeats) if n != 1]
    return kinds.CHANNELS if layout.are_channels(dims) else None


def _shuffle(call: OnOperands, layout: Layout) -> Kind | None:
    return kinds.CHANNELS if layout.are_channels([1]) else None


def _layer_norm(call: OnOperands, layout: Layout) -> Kind | None:
    b = call.bound()
    dims = range(-len(b["normalized_shape"]), 0)
    return Pointwise(call.name) if layout.are_channels(dims) else None


def _linear(call: OnOperands, layout: Layout) -> Kind | None:
    """The last dimension times a constant matrix."""
    # The operands follow the operation's arguments: x, weight, bias.
    weight = call.node(call.operands[1]).value if len(call.operands) > 1 else None
    apart = len({o.index for o in call.operands}) == len(call.operands)
    if weight is None or weight.ndim != 2 or not apart or not layout.are_channels([-1]):
        return None
    return PIXEL_LINEAR


def _prelu(call: OnOperands, layout: Layout) -> Kind | None:
    one = call.node(call.operands[1]).value.numel() == 1
    return Pointwise(call.name) if one or layout.are_channels([1]) else None


def _pad(call: OnOperands, layout: Layout) -> Kind | None:
    b = call.bound()
    if b.get("mode", "constant") != "constant":
        return None
    dims = [-1 - i // 2 for i, n in enumerate(b["pad"]) if n]
    if not layout.are_channels(dims):
        return None
    return _LINEAR_PAD if not b["value"] else Pointwise("pad")


def _pool(call: OnOperands, layout: Layout) -> Kind | None:
    """Pooling along channels: one cell at stride one along the spatial axes."""
    b = call.bound()
    count = int(call.name[-2])

    def per_dim(key: str, default: int) -> list[int]:
        value = b.get(key) or default
        values = [value] if isinstance(value, int) else list(value)
        return values * count if len(values) == 1 else values

    kernel = per_dim("kernel_size", 1)
    stride = per_dim("stride", 0)
    stride = kernel if not any(stride) else stride
    padding = per_dim("padding", 0)
    dims = range(-count, 0)
    moved = [d for d, *k in zip(dims, kernel, stride, padding, strict=True) if k != [1, 1, 0]]
    if not layout.are_channels(moved):
        return None
    return _LINEAR_POOL if call.name.startswith("avg") else Pointwise("max_pool")


_UNARY: dict[str, Callable[[OnOperands, Layout], Kind | None]] = {
    **dict.fromkeys((*_ALONG, *_CHOOSE), _along),
    **dict.fromkeys(_PERMUTES, _reorder),
    "index": _index,
    "repeat": _repeat,
    "channel_shuffle": _shuffle,
    "layer_norm": _layer_norm,
    "linear": _linear,
    "matmul": _linear,
    "prelu": _prelu,
    "pad": _pad,
    "constant_pad_nd": _pad,
    **{f"{kind}_pool{n}d": _pool for kind in ("avg", "max") for n in (1, 2, 3)},
}
