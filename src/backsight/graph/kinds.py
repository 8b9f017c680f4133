"""The table of node kinds: for each, its axis rules, how it runs on windows, and whether it is
linear.

A kind answers five questions about an operation on maps (batch, channels, *spatial):

- `rules`: which cells of each input a cell of the output reads (geometry.py), or None when there is
no window rule; - `outside`: what an input reads beyond the edge of the map (the padding value);
- `whole`: the original operation, on whole maps;
- `windows`: the same operation on windows that already hold their padding;
- `is_linear` with `difference`: the operation's linear part, for carrying differences to the
  output.

Whatever stands in no entry is a `Barrier`: run as the original operation on whole maps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..geometry import Adaptive, AxisRule, Identity, Rules, Sliding, Whole
from .node import Node, Ref, substitute

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
MAX_POOLS = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
AVG_POOLS = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


#: Values of nodes by index: tensors, sizes, constants.
Values = Mapping[int, Any]


@dataclass(frozen=True)
class Where:
    """Where a batch of windows lies in its map: the global origin of each (batch, D) int64, and
    their common size.
    """

    at: Tensor
    size: tuple[int, ...]


class Kind:
    """Defaults: an operation without a window rule."""

    name = "barrier"
    # Whether windows of the output can be computed from windows of the inputs; if not, it is always
    # computed whole.
    local = False
    # Reads a map as base + difference: the output is the base output plus the linear part of what
    # changed.
    by_difference = False

    def rules(self, node: Node, nodes: Sequence[Node]) -> tuple[Rules | None, ...]:
        """One set of axis rules per input; Whole where nothing better is known."""
        return tuple(
            whole_rules(
                nodes[i].extent, node.extent if node.spatial else (1,) * len(nodes[i].extent)
            )
            if nodes[i].spatial
            else None
            for i in node.inputs
        )

    def outside(self, node: Node) -> float:
        return 0.0

    def whole(self, node: Node, values: Values) -> Any:
        return node.call(values.__getitem__)

    def windows(self, node: Node, values: Values, reads: Mapping[int, Where], out: Where) -> Any:
        return node.call(values.__getitem__)

    def is_linear(self, node: Node, nodes: Sequence[Node]) -> bool:
        return False

    def difference(
        self,
        node: Node,
        nodes: Sequence[Node],
        values: Values,
        reads: Mapping[int, Where],
        out: Where | None,
    ) -> Any:
        """The linear part on differences; by default the operation itself, which adds nothing.

        `values` also holds constants, in the differences' dtype. `out` is None where whole values
        are asked for (inputs are whole too).
        """
        return self.windows(node, values, reads, out) if out else self.whole(node, values)

    def flops(self, node: Node, nodes: Sequence[Node]) -> int:
        """Floating-point operations of one output cell (all channels), a multiply-add being two; 0
        for cheap kinds.
        """
        return 0

    def workspace(self, node: Node) -> float:
        """The bytes that it takes on the way, over those of what it reads."""
        return 0.0


def whole_rules(size_in: Sequence[int], size_out: Sequence[int]) -> Rules:
    return tuple(Whole(i, o) for i, o in zip(size_in, size_out, strict=True))


class Input(Kind):
    name = "input"


class Constant(Kind):
    """A parameter, a buffer, or anything computed from them alone."""

    name = "constant"

    def whole(self, node: Node, values: Values) -> Any:
        return node.value


class Size(Kind):
    """The batch size, or a number computed from it."""

    name = "size"


class Barrier(Kind):
    """Anything global: the original operation on whole maps."""


class Pointwise(Kind):
    """One map in, one of the same size out, cell by cell."""

    local = True

    def __init__(self, name: str, linear: bool = False) -> None:
        self.name = name
        self.linear = linear

    def rules(self, node: Node, nodes: Sequence[Node]) -> tuple[Rules | None, ...]:
        return tuple(
            tuple(Identity(s) for s in nodes[i].extent) if nodes[i].spatial else None
            for i in node.inputs
        )

    def is_linear(self, node: Node, nodes: Sequence[Node]) -> bool:
        return self.linear


class Channels(Pointwise):
    """Picks or reorders channels, the same at every place."""

    def __init__(self) -> None:
        super().__init__("channels", linear=True)


class Cast(Pointwise):
    """A change of dtype. Its linear part rounds nothing: differences stay in fp64."""

    def __init__(self) -> None:
        super().__init__("cast")

    def is_linear(self, node: Node, nodes: Sequence[Node]) -> bool:
        source = nodes[node.inputs[0]]
        return source.dtype.is_floating_point and node.dtype.is_floating_point

    def difference(
        self,
        node: Node,
        nodes: Sequence[Node],
        values: Values,
        reads: Mapping[int, Where],
        out: Where | None,
    ) -> Any:
        return values[node.inputs[0]]


class BatchNorm(Pointwise):
    """Batch norm with running statistics: arguments (x, weight, bias, mean, var, eps)."""

    def __init__(self) -> None:
        super().__init__("batch_norm", linear=True)

    @staticmethod
    def inference(
        x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float
    ) -> Tensor:
        return F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)

    def difference(
        self,
        node: Node,
        nodes: Sequence[Node],
        values: Values,
        reads: Mapping[int, Where],
        out: Where | None,
    ) -> Any:
        x, weight, _, mean, var, eps = node.args
        zero = torch.zeros_like(values[mean.index])
        return self.inference(
            values[x.index],
            None if weight is None else values[weight.index],
            zero,
            zero,
            values[var.index],
            eps,
        )


class Join(Kind):
    """A pointwise operation on several maps (add, mul, cat, ...), broadcasting included.

    `linear` tells from the number of inputs that depend on the image whether the operation is
    linear in them.
    """

    local = True

    def __init__(self, name: str, linear: Callable[[Node, list[int]], bool] | None = None) -> None:
        self.name = name
        self.linear = linear

    def rules(self, node: Node, nodes: Sequence[Node]) -> tuple[Rules | None, ...]:
        def of(size_in: int, size_out: int) -> AxisRule:
            return Identity(size_in) if size_in == size_out else Whole(size_in, size_out)

        return tuple(
            tuple(map(of, nodes[i].extent, node.extent)) if nodes[i].spatial else None
            for i in node.inputs
        )

    def is_linear(self, node: Node, nodes: Sequence[Node]) -> bool:
        varying = [i for i in node.inputs if nodes[i].varies]
        return self.linear is not None and self.linear(node, varying)


class Sum(Join):
    """add and sub: an operand that does not depend on the image has no difference."""

    def __init__(self, name: str) -> None:
        super().__init__(name, lambda node, varying: True)

    def difference(
        self,
        node: Node,
        nodes: Sequence[Node],
        values: Values,
        reads: Mapping[int, Where],
        out: Where | None,
    ) -> Any:
        def part(arg: Any) -> Any:
            if not isinstance(arg, Ref):
                return 0.0
            value = values[arg.index]
            return value if nodes[arg.index].varies else torch.zeros_like(value)

        assert node.target is not None
        left, right, *rest = node.args
        return node.target(part(left), part(right), *rest, **node.kwargs)


def _one_varying(node: Node, varying: list[int]) -> bool:
    return (
        len(varying) == 1 and sum(isinstance(a, Ref) and a.index in varying for a in node.args) == 1
    )


def _numerator_varies(node: Node, varying: list[int]) -> bool:
    return (
        node.kwargs.get("rounding_mode") is None
        and _one_varying(node, varying)
        and isinstance(node.args[0], Ref)
        and node.args[0].index in varying
    )


class Convolution(Kind):
    """Arguments (x, weight, bias, stride, padding, dilation, groups, activation).

    Padding per axis, or "same" or "valid"; `activation` is one that follows and was fused
    (graph/lower.py).
    """

    name = "conv"
    local = True

    @staticmethod
    def of(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: list[int],
        padding: list[int] | str,
        dilation: list[int],
        groups: int,
        activation: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        out = _CONV[len(stride)](x, weight, bias, stride, padding, dilation, groups)
        return activation(out) if activation else out

    def rules(self, node: Node, nodes: Sequence[Node]) -> tuple[Rules | None, ...]:
        x, weight, _, stride, padding, dilation, *_ = node.args
        kernel = nodes[weight.index].value.shape[2:]
        sizes = nodes[x.index].extent
        if isinstance(padding, str):
            # torch puts the odd cell of `same` padding behind.
            padding = [
                (d * (k - 1)) // 2 if padding == "same" else 0
                for k, d in zip(kernel, dilation, strict=True)
            ]
        rules = tuple(map(Sliding, sizes, node.extent, kernel, stride, padding, dilation))
        return tuple(rules if i == x.index else None for i in node.inputs)

    def windows(self, node: Node, values: Values, reads: Mapping[int, Where], out: Where) -> Any:
        return self._run(node, values, 0)

    def _run(self, node: Node, values: Values, padding: int) -> Any:
        """The operation with another padding."""
        assert node.target is not None
        x, weight, bias, stride, _, *rest = substitute(node.args, values.__getitem__)
        return node.target(x, weight, bias, stride, [padding] * len(stride), *rest)

    def is_linear(self, node: Node, nodes: Sequence[Node]) -> bool:
        return not any(node.args[7:])

    def difference(
        self,
        node: Node,
        nodes: Sequence[Node],
        values: Values,
        reads: Mapping[int, Where],
        out: Where | None,
    ) -> Any:
        x, weight, _, stride, padding, *rest = substitute(node.args, values.__getitem__)
        return self.of(
            x, weight, None, stride, padding if out is None else [0] * len(stride), *rest
        )

    def flops(self, node: Node, nodes: Sequence[Node]) -> int:
        return 2 * int(nodes[node.args[1].index].value.numel())

    def workspace(self, node: Node) -> float:
        # oneDNN has none for fp64: torch lays out what every output cell reads.
        (rules,) = (rules for rules in node.rules if rules is not None)
        return prod(rule.span(1) for rule in rules) if node.dtype == torch.float64 else 0.0


class MaxPool(Kind):
    """Arguments (x, kernel, stride, padding, dilation, ceil_mode)."""

    name = "max_pool"
    local = True

    def rules(self, node: Node, nodes: Sequence[Node]) -> tuple[Rules | None, ...]:
        x, kernel, stride, padding, dilation, _ = node.args
        sizes = nodes[x.index].extent
        return (tuple(map(Sliding, sizes, node.extent, kernel, stride, padding, dilation)),)

    def outside(self, node: Node) -> float:
        return -torch.inf

    def workspace(self, node: Node) -> float:
        return 1.0  # the maxima along the first axis

    def windows(self, node: Node, values: Values, reads: Mapping[int, Where], out: Where) -> Any:
        x, kernel, stride, _, dilation, _ = node.args
        if values[x.index].is_cpu and max(kernel) <= 3 and values[x.index].numel():
            return separable_max(values[x.index], kernel, stride, dilation)
        return MAX_POOLS[len(kernel)](values[x.index], kernel, stride, 0, dilation)


def separable_max(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """Maxima axis by axis: the bits of torch's pool, which keeps indices too, in less time."""
    for axis, (k, s, d) in enumerate(zip(kernel, stride, dilation, strict=True)):
        dim = 2 + axis
        span = (x.shape[dim] - d * (k - 1) - 1) // s * s + 1
        index = (slice(None),) * dim
        parts = [x[(*index, slice(j * d, j * d + span, s))] for j in range(k)]
        if k > 1:
            parts[1] = torch.maximum(parts[0], parts[1])
        for part in parts[2:]:
            torch.maximum(parts[1], part, out=parts[1])
        x = parts[min(1, k - 1)]
    return x


class AvgPool(Kind):
    """Arguments (x, kernel, stride, padding, ceil_mode, count_include_pad, divisor_override)."""

    name = "avg_pool"
    local = True

    @staticmethod
    def of(
        x: Tensor,
        kernel: list[int],
        stride: list[int],
        padding: list[int],
        ceil_mode: bool,
        include_pad: bool,
        divisor: int | None,
    ) -> Tensor:
        """avg_pool1d takes no divisor."""
        more = () if len(kernel) == 1 else (divisor,)
        pool = AVG_POOLS[len(kernel)]
        return pool(x, kernel, stride, padding, ceil_mode, include_pad, *more)

    def rules(self, node: Node, nodes: Sequence[Node]) -> tuple[Rules | None, ...]:
        x, kernel, stride, padding, *_ = node.args
        sizes = nodes[x.index].extent
        return (tuple(map(Sliding, sizes, node.extent, kernel, stride, padding)),)

    def windows(self, node: Node, values: Values, reads: Mapping[int, Where], out: Where) -> Any:
        x, kernel, stride, padding, ceil_mode, include_pad, divisor = node.args
        means = AVG_POOLS[len(kernel)](values[x.index], kernel, stride)
        if divisor is not None:
            return means.mul_(prod(kernel) / divisor)
        if not ceil_mode and (include_pad or not any(padding)):
            return means
        # The divisor depends on how far a window hangs over the edge, so on where it lies.
        assert node.rules[0] is not None
        scale: Tensor | float = float(prod(kernel))
        for axis, (rule, k, p) in enumerate(zip(node.rules[0], kernel, padding, strict=True)):
            first, _ = rule.backward(_cells(out, axis), 0)
            last = (first + k).clamp(max=rule.size_in + p)
            if not include_pad:
                first, last = first.clamp(min=0), last.clamp(max=rule.size_in)
            scale = scale / _along((last - first).to(means.dtype), axis, len(kernel))
        return means.mul_(scale)

    def is_linear(self, node: Node, nodes: Sequence[Node]) -> bool:
        return True


class AdaptiveAvgPool(Kind):
    """Arguments (x, output sizes)."""

    name = "adaptive_avg_pool"
    local = True

    def rules(self, node: Node, nodes: Sequence[Node]) -> tuple[Rules | None, ...]:
        sizes = nodes[node.args[0].index].extent

        def of(size_in: int, size_out: int) -> AxisRule:
            if size_in % size_out == 0:
                k = size_in // size_out
                return Sliding(size_in, size_out, k, k)
            return Adaptive(size_in, size_out)

        return (tuple(map(of, sizes, node.extent)),)

    def windows(self, node: Node, values: Values, reads: Mapping[int, Where], out: Where) -> Any:
        x = values[node.args[0].index]
        rules = node.rules[0]
        assert rules is not None
        if all(isinstance(r, Sliding) for r in rules):
            kernel = [r.kernel for r in rules if isinstance(r, Sliding)]
            return AVG_POOLS[len(kernel)](x, kernel, kernel)
        # Cells differ in size: one averaging matrix per window and axis.
        read = reads[node.args[0].index]
        for axis, rule in enumerate(rules):
            first, last = Adaptive(rule.size_in, rule.size_out).cell(_cells(out, axis))
            cells = _cells(read, axis)[:, None, :]
            inside = (cells >= first[:, :, None]) & (cells < last[:, :, None])
            matrix = inside.to(x.dtype) / (last - first)[:, :, None].to(x.dtype)
            x = contract(x, axis, matrix)
        return x

    def is_linear(self, node: Node, nodes: Sequence[Node]) -> bool:
        return True


class GlobalSum(Kind):
    """The sum over all cells of a map, kept as a map of one cell or flattened: arguments (x,
    keepdim).
    """

    name = "global_sum"
    by_difference = True

    @staticmethod
    def of(x: Tensor, keepdim: bool) -> Tensor:
        return x.sum(dim=tuple(range(2, x.ndim)), keepdim=keepdim)

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
        x, keepdim = node.args
        changed = values[x.index]
        # Outside the window nothing changed, so the window's sum is the map's. Lines of it are
        # summed as they are: the conversion to fp64 would take longer than all sums.
        lines = changed.sum(-1, keepdim=keepdim)
        axes = tuple(range(2, lines.ndim))
        return lines.sum(dim=axes, keepdim=keepdim, dtype=torch.float64) if axes else lines.double()


class GlobalMean(GlobalSum):
    """The mean over all cells of a map, kept as a map of one cell or flattened: arguments (x,
    keepdim).
    """

    name = "global_mean"

    @staticmethod
    def of(x: Tensor, keepdim: bool) -> Tensor:
        return x.mean(dim=tuple(range(2, x.ndim)), keepdim=keepdim)

    def difference(
        self,
        node: Node,
        nodes: Sequence[Node],
        values: Values,
        reads: Mapping[int, Where],
        out: Where | None,
    ) -> Any:
        rules = node.rules[0]
        assert rules is not None
        total = super().difference(node, nodes, values, reads, out)
        return total / prod(r.size_in for r in rules)


class Flat(Kind):
    """Linear operations on values that are no maps, or that turn a map into one: views,
    permutations.
    """

    name = "reshape"

    def is_linear(self, node: Node, nodes: Sequence[Node]) -> bool:
        return True


class Linear(Kind):
    """Arguments (x, weight, bias)."""

    name = "linear"

    def is_linear(self, node: Node, nodes: Sequence[Node]) -> bool:
        return isinstance(nodes[node.args[1].index].kind, Constant)

    def difference(
        self,
        node: Node,
        nodes: Sequence[Node],
        values: Values,
        reads: Mapping[int, Where],
        out: Where | None,
    ) -> Any:
        return F.linear(values[node.args[0].index], values[node.args[1].index])

    def flops(self, node: Node, nodes: Sequence[Node]) -> int:
        return 2 * int(nodes[node.args[1].index].value.numel())


def _cells(where: Where, axis: int) -> Tensor:
    """The global coordinates (batch, size) of the windows' cells along one axis."""
    return where.at[:, axis : axis + 1] + torch.arange(where.size[axis], device=where.at.device)


def _along(values: Tensor, axis: int, axes: int) -> Tensor:
    """(batch, size) along spatial axis `axis` of a (batch, channels, *spatial) map."""
    shape = [values.shape[0], 1] + [1] * axes
    shape[2 + axis] = values.shape[1]
    return values.view(shape)


def contract(x: Tensor, axis: int, matrices: Tensor) -> Tensor:
    """Each row's own matrix along one spatial axis: x (batch, channels, *size), matrices (batch,
    size_out, size); computed in fp32 at least.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    rows = x.movedim(2 + axis, -1)
    flat = rows.reshape(len(x), rows.shape[1:-1].numel(), x.shape[2 + axis])
    out = torch.bmm(flat.to(wide), matrices.to(wide).mT).to(x.dtype)
    return out.view(*rows.shape[:-1], matrices.shape[1]).movedim(-1, 2 + axis)


INPUT, CONSTANT, SIZE, BARRIER = Input(), Constant(), Size(), Barrier()
CAST = Cast()
CHANNELS, BATCH_NORM, CONVOLUTION, MAX_POOL = Channels(), BatchNorm(), Convolution(), MaxPool()
AVG_POOL, ADAPTIVE_AVG_POOL, GLOBAL_MEAN = AvgPool(), AdaptiveAvgPool(), GlobalMean()
GLOBAL_SUM = GlobalSum()
FLAT, LINEAR, CAT, IDENTITY = (
    Flat(),
    Linear(),
    Join("cat", lambda n, v: len(v) == len(n.args[0])),
    Pointwise("identity", linear=True),
)

# fmt: off
_ACTIVATIONS = (
    "relu", "relu6", "hardtanh", "leaky_relu", "elu", "selu", "celu", "silu", "gelu", "mish",
    "sigmoid", "tanh", "hardswish", "hardsigmoid", "softplus", "softsign", "log_sigmoid",
    "threshold", "clamp", "clamp_min", "clamp_max", "exp", "log", "sqrt", "rsqrt", "abs", "square",
    "pow", "erf", "erfc", "exp2", "expm1", "log1p", "log2", "log10", "reciprocal", "sin", "cos",
    "tan", "sinh", "cosh", "atan", "sign", "floor", "ceil", "round", "trunc", "hardshrink",
    "softshrink", "logical_not", "isnan", "isinf", "isfinite", "nan_to_num",
    "zeros_like", "ones_like", "full_like",
)
_JOINS = (
    "where", "masked_fill", "addcmul", "addcdiv", "lerp", "fmod", "remainder", "atan2", "hypot",
    "eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "logical_xor",
    "bitwise_and", "bitwise_or", "bitwise_xor", "__and__", "__or__", "__xor__",
)
_COPIES = (
    "clone", "alias", "dropout", "feature_dropout", "contiguous", "detach", "lift_fresh_copy",
)
# fmt: on

#: Elementwise operations on one map. What stands here may be applied to any part of a map alone.
POINTWISE: dict[str, Kind] = {
    **{name: Pointwise(name) for name in _ACTIVATIONS},
    "neg": Pointwise("neg", linear=True),
    **dict.fromkeys(_COPIES, IDENTITY),
}

JOINS: dict[str, Kind] = {
    "add": Sum("add"),
    "sub": Sum("sub"),
    "mul": Join("mul", _one_varying),
    "div": Join("div", _numerator_varies),
    "maximum": Join("maximum"),
    "minimum": Join("minimum"),
    "rsub": Sum("rsub"),
    **{name: Join(name) for name in _JOINS},
}

# fmt: off
#: Operations that only rearrange values.
RESHAPES = frozenset((
    "view", "_unsafe_view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "permute",
    "transpose", "t", "expand", "clone",
))
# fmt: on
