"""Classifiers as convolutions from end to end: maps of scores instead of scores.

Sermanet et al., "OverFeat", arXiv:1312.6229; Long, Shelhamer and Darrell, "Fully Convolutional
Networks for Semantic Segmentation", arXiv:1411.4038.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from .call import Call
from .subject import Subject

__all__ = ["before_classifier", "convolutional"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_POOLS = nn.modules.pooling._AdaptiveAvgPoolNd | nn.modules.pooling._AdaptiveMaxPoolNd

#: Functions of each value alone, and modules: they do to maps what they do to numbers.
_EACH_MODULE = (
    *(nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh),
    *(nn.Sigmoid, nn.Hardswish, nn.Hardsigmoid, nn.Softplus, nn.Dropout),
)
_EACH = {
    *(F.relu, torch.relu, F.relu6, F.leaky_relu, F.elu, F.gelu, F.silu, F.mish, torch.tanh, F.tanh),
    *(torch.sigmoid, F.sigmoid, F.hardswish, F.softplus, F.dropout),
    *("relu", "relu_", "tanh", "sigmoid", "contiguous"),
}
_POOL = {F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d, torch.mean, "mean"}
_FLATTEN = {torch.flatten, torch.squeeze, torch.reshape, "flatten", "view", "reshape", "squeeze"}
_SHARES = {F.softmax, F.log_softmax, torch.softmax, torch.log_softmax, "softmax", "log_softmax"}


def convolutional(subject: Subject, shape: Sequence[int]) -> fx.GraphModule:
    """A copy of a classifier whose head is made of convolutions.

    Args:
        shape: (channels, *spatial) of the images that the classifier takes.

    Raises:
        ValueError: its head is none of pools, flattening and fully connected layers.
    """
    model = copy.deepcopy(subject.module)
    images = torch.zeros(2, *shape, device=subject.device, dtype=subject.dtype)
    name, _, _ = before_classifier(Subject(model, subject.device), images)
    try:
        graph = _Tracer(model, name).trace(model)
    # A forward may raise anything when it is called with proxies.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"expected a model whose head can be traced, got one that cannot: {reason}"
        ) from error
    found = fx.GraphModule(model, graph, type(model).__name__)
    with torch.no_grad():
        shapes = _Shapes(found)
        shapes.run(images)
    _Head(found, shapes.found, len(shape) - 1).convert()
    found.graph.eliminate_dead_code()
    found.graph.lint()
    found.recompile()
    return found


def before_classifier(subject: Subject, images: Tensor) -> tuple[str, Tensor, Tensor]:
    """The name of the last layer with weights that the model runs, what it takes, and what the
    model puts out.

    Raises:
        ValueError: the model runs no layer with weights.
    """
    taken: list[tuple[str, Tensor]] = []

    def keep(name: str, module: nn.Module) -> Any:
        def look(_: nn.Module, given: tuple[Any, ...]) -> None:
            if given and isinstance(given[0], Tensor):
                taken[:] = [(name, given[0].clone())]  # what follows may change it

        return module.register_forward_pre_hook(look)

    named = subject.module.named_modules()
    weighty = [(n, m) for n, m in named if any(p is not None for p in m._parameters.values())]
    handles = [keep(name, module) for name, module in weighty]
    try:
        with torch.no_grad():
            scores: Tensor = Call(subject.model, (), images)(images)
    finally:
        for handle in handles:
            handle.remove()
    if not taken:
        raise ValueError("expected a model that runs a layer with weights, got one without")
    return *taken[0], scores


class _Tracer(fx.Tracer):
    """Enters only what leads to the head: what lies before it may do what cannot be traced."""

    def __init__(self, model: nn.Module, last: str) -> None:
        super().__init__()
        self.last = f"{last}."

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if super().is_leaf_module(m, module_qualified_name):
            return True
        if self.last.startswith(f"{module_qualified_name}."):
            return False
        return any(isinstance(inner, _CONVOLUTIONS) for inner in m.modules())


class _Shapes(fx.Interpreter):
    """Notes the shape of each node's tensor."""

    def __init__(self, model: fx.GraphModule) -> None:
        super().__init__(model)
        self.found: dict[fx.Node, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.found[n] = tuple(value.shape)
        return value


class _Head:
    """The end of a graph, from the maps on, on the way from its output back."""

    def __init__(
        self, model: fx.GraphModule, shapes: dict[fx.Node, tuple[int, ...]], axes: int
    ) -> None:
        self.model = model
        self.shapes = shapes
        self.graph = model.graph
        self.axes = axes
        self.modules = dict(model.named_modules())
        self.linears: list[fx.Node] = []
        self.norms: list[fx.Node] = []
        self.shares: list[fx.Node] = []
        self.cut: list[fx.Node] = []  # what only brings maps into one cell, or flattens them

    def convert(self) -> None:
        """Change the graph and the modules."""
        node = self._output()
        before: tuple[int, ...] | None = None  # (channels, *spatial) that are flattened
        while True:
            came = self._shape(node)
            if before is None and len(came) == self.axes + 2:
                before = came[1:]
            elif before is None and self._does(node) and node.target in _POOL:
                before = (came[1], *[1] * self.axes)
            if self._is_each(node):
                pass
            elif self._is_cut(node):
                self.cut.append(node)
            elif before is None and self._kind(node, nn.Linear):
                self.linears.append(node)
            elif before is None and self._kind(node, nn.BatchNorm1d):
                self.norms.append(node)
            elif before is None and self._is_shares(node):
                self.shares.append(node)
            elif before is not None:
                break
            else:
                raise ValueError(
                    "expected a head of pools, flattening and fully connected layers, got"
                    f" {self._called(node)} in it"
                )
            node = node.all_input_nodes[0]
        for linear in self.linears:
            self._to_convolution(linear, before if linear is self.linears[-1] else None)
        for norm in self.norms:
            self.modules[str(norm.target)].__class__ = _NORMS[self.axes - 1]
        for share in self.shares:
            self._over_channels(share)
        for node in self.cut:
            node.replace_all_uses_with(node.all_input_nodes[0])
            self.graph.erase_node(node)

    def _output(self) -> fx.Node:
        (end,) = (node for node in self.graph.nodes if node.op == "output")
        found = end.args[0]
        if not isinstance(found, fx.Node) or len(self._shape(found)) not in (2, self.axes + 2):
            raise ValueError("expected a model that returns scores (images, classes), got others")
        return found

    def _shape(self, node: fx.Node) -> tuple[int, ...]:
        return self.shapes.get(node, ())

    def _kind(self, node: fx.Node, kinds: Any) -> bool:
        return node.op == "call_module" and isinstance(self.modules[str(node.target)], kinds)

    def _is_each(self, node: fx.Node) -> bool:
        return self._kind(node, _EACH_MODULE) or (self._does(node) and node.target in _EACH)

    @staticmethod
    def _does(node: fx.Node) -> bool:
        return node.op in ("call_function", "call_method")

    def _is_shares(self, node: fx.Node) -> bool:
        return self._kind(node, nn.Softmax | nn.LogSoftmax) or (
            self._does(node) and node.target in _SHARES
        )

    def _is_cut(self, node: fx.Node) -> bool:
        """A pool to one size, or what only flattens: both keep the values of a single window."""
        if self._kind(node, _POOLS | nn.Flatten):
            return True
        if not self._does(node) or not node.all_input_nodes:
            return False
        came = self._shape(node.all_input_nodes[0])
        goes = self._shape(node)
        if node.target in _POOL:
            return len(came) == self.axes + 2 and goes[:2] == came[:2]
        # Of two images, so that none is mixed with another.
        return node.target in _FLATTEN and goes[:1] == came[:1] and prod(goes) == prod(came)

    def _called(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return f"{type(self.modules[str(node.target)]).__name__} ({node.target})"
        return str(getattr(node.target, "__name__", node.target))

    def _to_convolution(self, node: fx.Node, window: tuple[int, ...] | None) -> None:
        """A fully connected layer as a convolution with a kernel of the size of `window`,
        (channels, *spatial); None: of 1.
        """
        name = str(node.target)
        linear: Any = self.modules[name]
        if sum(1 for other in self.graph.nodes if other.target == node.target) > 1:
            raise ValueError(f"expected each layer of the head once, got {name} several times")
        sides = (1,) * self.axes if window is None else window[1:]
        channels = linear.in_features // prod(sides)
        with torch.device(linear.weight.device):
            kind: Any = _CONVOLUTIONS[self.axes - 1]
            made = kind(
                channels,
                linear.out_features,
                sides,
                bias=linear.bias is not None,
                dtype=linear.weight.dtype,
            )
        with torch.no_grad():
            made.weight.copy_(linear.weight.view(made.weight.shape))
            if linear.bias is not None:
                made.bias.copy_(linear.bias)
        for fresh, old in zip(made.parameters(), linear.parameters(), strict=True):
            fresh.requires_grad_(old.requires_grad)
        self.model.set_submodule(name, made.train(linear.training))

    def _over_channels(self, node: fx.Node) -> None:
        """A softmax over the last of two axes, over the second of more."""
        if node.op == "call_module":
            module: Any = self.modules[str(node.target)]
            module.dim = 1
            return
        node.args = node.args[:1]
        node.kwargs = {**node.kwargs, "dim": 1}
