"""ATen's operations as entries of the kind table: which kind, and its arguments in one form."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import kinds
from .kinds import Kind
from .node import Node, Ref, references

#: Kind, what to call, its arguments.
Entry = tuple[Kind, Callable[..., Any], tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Call:
    """A call found in the captured graph; node references stand as Ref in its arguments."""

    name: str
    target: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    nodes: Sequence[Node]
    axes: int

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

    def bound(self) -> dict[str, Any]:
        """The arguments by name, defaults filled in."""
        return bind(self.target, self.args, self.kwargs)

    def fixed(self, argument: Any) -> bool:
        """Whether an argument is a constant (or None)."""
        return argument is None or isinstance(self.nodes[argument.index].kind, kinds.Constant)

    def sizes(self, value: int | Sequence[int]) -> list[int]:
        """A size per axis; an empty list (torch's "same as the kernel") stays empty."""
        values = [value] if isinstance(value, int) else list(value)
        return values * self.axes if len(values) == 1 else values


def operation(target: Any) -> str:
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


def entry(call: Call) -> Entry:
    """The entry for a call; a barrier for what no translator below knows or wants."""
    translate = _TRANSLATORS.get(call.name.rstrip("123d") if call.on_map else call.name)
    found = translate(call) if translate else None
    if found is None and (translate := _TRANSLATORS.get(call.name)) is not None:
        found = translate(call)
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


def _convolution(call: Call) -> Entry | None:
    b = call.bound()
    if not call.on_map or b.get("transposed") or not call.fixed(b["weight"]):
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


def _batch_norm(call: Call) -> Entry | None:
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


def _max_pool(call: Call) -> Entry | None:
    if not call.on_map:
        return None
    b = call.bound()
    kernel = call.sizes(b["kernel_size"])
    stride = call.sizes(b["stride"]) or kernel
    args = (b["self"], kernel, stride, call.sizes(b["padding"]), call.sizes(b["dilation"]))
    return kinds.MAX_POOL, kinds.MAX_POOLS[call.axes], (*args, b["ceil_mode"]), {}


def _avg_pool(call: Call) -> Entry | None:
    if not call.on_map:
        return None
    b = call.bound()
    kernel = call.sizes(b["kernel_size"])
    stride = call.sizes(b["stride"]) or kernel
    rest = (b["ceil_mode"], b["count_include_pad"], b.get("divisor_override"))
    args = (b["self"], kernel, stride, call.sizes(b["padding"]), *rest)
    return kinds.AVG_POOL, kinds.AvgPool.of, args, {}


def _adaptive_avg_pool(call: Call) -> Entry | None:
    source = call.source
    if source is None or not call.on_map:
        return None
    sizes = call.sizes(call.bound()["output_size"])
    if all(s == 1 for s in sizes):
        return kinds.GLOBAL_MEAN, kinds.GlobalMean.of, (call.args[0], True), {}
    if sizes == list(source.extent):
        return kinds.IDENTITY, _identity, (call.args[0],), {}
    return kinds.ADAPTIVE_AVG_POOL, call.target, (call.args[0], sizes), {}


def _mean(call: Call) -> Entry | None:
    b = call.bound()
    if not call.on_map or not b.get("dim") or b.get("dtype") is not None:
        return None
    if sorted(d % (call.axes + 2) for d in b["dim"]) != list(range(2, call.axes + 2)):
        return None
    if call.name == "sum":
        return kinds.GLOBAL_SUM, kinds.GlobalSum.of, (b["self"], b["keepdim"]), {}
    return kinds.GLOBAL_MEAN, kinds.GlobalMean.of, (b["self"], b["keepdim"]), {}


def _cat(call: Call) -> Entry | None:
    b = call.bound()
    if b["dim"] not in (1, -call.axes - 1):
        return None
    return kinds.CAT, call.target, (b["tensors"], 1), {}


def _slice(call: Call) -> Entry | None:
    b = call.bound()
    everything = b["start"] in (0, None) and b["step"] == 1
    if b["dim"] == 0 and everything and b["end"] in (None, torch.iinfo(torch.int64).max):
        return kinds.IDENTITY, _identity, (b["self"],), {}
    return _channels(call)


def _channels(call: Call) -> Entry | None:
    b = call.bound()
    dims = b.get("dims") or [b["dim"]]
    if not call.on_map or any(d not in (1, -call.axes - 1) for d in dims):
        return None
    return (kinds.CHANNELS, *call.as_it_is)


def _join(call: Call) -> Entry | None:
    if any(isinstance(call.nodes[i].kind, kinds.Size) for i in references(call.args)):
        return None
    return (kinds.JOINS[call.name], *call.as_it_is)


def _linear(call: Call) -> Entry | None:
    b = call.bound()
    args = (b["input"], b["weight"], b.get("bias"))
    return kinds.LINEAR, torch.nn.functional.linear, args, {}


def _view(call: Call) -> Entry | None:
    if call.target not in (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default):
        return None
    # A view would depend on the memory layout, which is ours to choose.
    return kinds.FLAT, torch.ops.aten.reshape.default, call.args, call.kwargs


def _copy(call: Call) -> Entry | None:
    return kinds.IDENTITY, _identity, (call.args[0],), {}


def _identity(x: Tensor) -> Tensor:
    return x


def _getitem(call: Call) -> Entry | None:
    source, part = call.source, call.args[1]
    if source is None or source.target is None:
        return None
    if source.target is _batch_norm_tuple and part == 0:
        return kinds.BATCH_NORM, kinds.BatchNorm.inference, source.args, {}
    if source.target is _identity and part == 0:
        return kinds.IDENTITY, _identity, source.args, {}
    if isinstance(source.kind, kinds.Channels):
        return kinds.CHANNELS, _Part(source.target, part), source.args, source.kwargs
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
_TRANSLATORS: dict[str, Callable[[Call], Entry | None]] = {
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
    **dict.fromkeys(
        ("split", "chunk", "split_with_sizes", "index_select", "narrow", "flip"), _channels
    ),
    "linear": _linear,
    "view": _view,
    "_unsafe_view": _view,
    "dropout": _copy,
    "feature_dropout": _copy,
    "native_dropout": _copy,
    operator.getitem.__name__: _getitem,
}
