"""Activations that a convolution applies as it writes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from .aten import bind
from .node import Node


@dataclass(frozen=True)
class Activation:
    """An activation by oneDNN's name, with its numbers and its algorithm."""

    name: str
    numbers: tuple[float, ...] = ()
    algorithm: str = ""

    def __call__(self, x: Tensor) -> Tensor:
        """Applied to a tensor that nobody else reads: in place where torch can."""
        return _APPLIED[self.name](x, *self.numbers, *([self.algorithm] if self.algorithm else []))


_APPLIED: dict[str, Callable[..., Tensor]] = {
    "relu": Tensor.relu_,
    "sigmoid": Tensor.sigmoid_,
    "tanh": Tensor.tanh_,
    "swish": lambda x: F.silu(x, inplace=True),
    "hardswish": lambda x: F.hardswish(x, inplace=True),
    "leaky_relu": lambda x, slope: F.leaky_relu(x, slope, inplace=True),
    "hardtanh": lambda x, low, high: F.hardtanh(x, low, high, inplace=True),
    "gelu": lambda x, algorithm: F.gelu(x, approximate=algorithm),
}


def activation_of(node: Node) -> Activation | None:
    """The activation that `node` is of its input, if it is one that a convolution can apply."""
    make = _KNOWN.get(node.kind.name)
    bound = bind(node.target, node.args, node.kwargs)
    return make(bound) if make and bound else None


_KNOWN: dict[str, Callable[[dict[str, Any]], Activation]] = {
    "relu": lambda b: Activation("relu"),
    "relu6": lambda b: Activation("hardtanh", (0.0, 6.0)),
    "hardtanh": lambda b: Activation("hardtanh", (float(b["min_val"]), float(b["max_val"]))),
    "leaky_relu": lambda b: Activation("leaky_relu", (float(b["negative_slope"]),)),
    "silu": lambda b: Activation("swish"),
    "hardswish": lambda b: Activation("hardswish"),
    "sigmoid": lambda b: Activation("sigmoid"),
    "tanh": lambda b: Activation("tanh"),
    "gelu": lambda b: Activation("gelu", algorithm=b["approximate"]),
}
