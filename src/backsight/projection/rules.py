"""What happens to a signal at a rectifier, at an overlapping pool and at a local response norm."""

from __future__ import annotations

from dataclasses import dataclass

from ..graph import Graph, Node, Ref
from ..graph.aten import bind
from ..graph.layouts import InLayout

#: The rules, and whether each takes the forward mask, and clamps the signal at zero.
RULES = ("gradient", "deconvnet", "guided")

# Activations that are not zero below zero: they go back by their own derivative.
_SMOOTH = frozenset((
    "leaky_relu", "elu", "selu", "celu", "silu", "gelu", "mish", "sigmoid", "tanh", "hardswish",
    "hardsigmoid", "softplus", "softsign", "log_sigmoid", "hardtanh", "clamp", "threshold",
))  # fmt: skip


@dataclass(frozen=True)
class Rule:
    """One way back.

    Attributes:
        name: with R the signal and f what was rectified: "gradient" R where f > 0, "deconvnet"
            max(R, 0), "guided" max(R, 0) where f > 0.
        unpool: "add", the adjoint of max pooling, or "set", the last of several that fall together.
        lrn: "pass" local response norms by, or take their "gradient".
    """

    name: str
    unpool: str
    lrn: str

    @property
    def clamps(self) -> bool:
        """Whether the signal is clamped at zero."""
        return self.name != "gradient"


def is_relu(node: Node) -> bool:
    """Whether a node computes max(x, 0)."""
    return node.kind.name == "relu" or (
        node.kind.name in ("clamp", "clamp_min", "threshold") and _bounds(node) == (0.0, None)
    )


def is_rectifier(node: Node) -> bool:
    """Whether a node is zero below zero and the identity above it, up to a bound: ReLU, ReLU6."""
    if node.kind.name in ("relu6", "hardtanh", "clamp"):
        low, high = _bounds(node)
        return low == 0 and (high is None or high > 0)
    return is_relu(node)


def is_activation(node: Node) -> bool:
    """Whether a node is an activation function."""
    return is_rectifier(node) or node.kind.name in _SMOOTH


def _bounds(node: Node) -> tuple[float | None, float | None]:
    """What a node clamps between, where that is numbers."""
    held = node.target  # in the model's own layout it holds its arguments itself
    call = (held.target, held.args, held.kwargs) if isinstance(held, InLayout) else None
    bound = bind(*(call or (held, node.args, node.kwargs)))
    name = node.kind.name
    if name == "relu6":
        return 0.0, 6.0
    if name == "threshold":
        zero = bound.get("threshold") == bound.get("value") == 0
        return (0.0 if zero else None), None
    low, high = (
        bound.get(k) for k in (("min_val", "max_val") if name == "hardtanh" else ("min", "max"))
    )
    numbers = (None if x is None or isinstance(x, Ref) else float(x) for x in (low, high))
    low, high = numbers
    return low, high


#: What the denominator of a local response norm is made of.
_NORM = frozenset(("pow", "add", "mul", "avg_pool", "pad", "square"))


def norms(graph: Graph) -> dict[int, int]:
    """The local response norms of a graph: the division that ends each, and the map it divides.

    In the table such a norm is x / (k + alpha * mean over channels of x²) ** beta.
    """
    found = {}
    for node in graph.nodes:
        if node.kind.name != "div" or len(node.inputs) != 2 or not node.spatial:
            continue
        numerator, denominator = node.inputs
        if graph.nodes[denominator].kind.name == "pow" and _is_norm(graph, numerator, denominator):
            found[node.index] = numerator
    return found


def _is_norm(graph: Graph, x: int, denominator: int) -> bool:
    """Whether a power is made of averages over the channels of a map's squares alone."""
    averaged, at = False, denominator
    while True:
        node = graph.nodes[at]
        varying = [i for i in node.inputs if graph.nodes[i].varies]
        if len(varying) != 1 or node.kind.name not in _NORM:
            return False
        averaged = averaged or node.kind.name == "avg_pool"
        if varying == [x]:
            squares = node.kind.name == "square" or node.args == (Ref(x), Ref(x))
            return averaged and (squares or (node.kind.name == "pow" and node.args[1:] == (2,)))
        (at,) = varying
