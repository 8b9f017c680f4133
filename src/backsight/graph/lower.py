"""Make a graph fast where it runs: fused ReLUs, weights laid out once for the library that convolves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from . import kinds
from .node import Graph, Node, Ref

_PACKED_DTYPES = (torch.float32, torch.bfloat16)


def lower(graph: Graph) -> Graph:
    """`graph` with ReLUs fused into the convolutions in front of them, and convolution weights laid out for the device.

    On the CPU, oneDNN gets its own weight layout and applies the ReLU as it writes; elsewhere weights become
    channels_last. The values are those of the operations one by one.
    """
    nodes = [replace(n) for n in graph.nodes]
    consumers = graph.consumers()
    to = {n.index: n.index for n in nodes}
    for node in nodes:
        if not (isinstance(node.kind, kinds.Convolution) and node.spatial):
            continue
        readers = [nodes[i] for i in consumers[node.index]]
        if len(readers) == 1 and readers[0].kind.name == "relu" and node.index != graph.output:
            node.args = (*node.args[:7], True)
            node.module, node.name = readers[0].module, node.name
            to[readers[0].index] = node.index
    fused = Graph([_redirect(n, to) for n in nodes], graph.input, to[graph.output], graph.axes)
    for node in fused.nodes:
        if isinstance(node.kind, kinds.Convolution) and node.spatial:
            _lay_out(fused, node)
    return fused.without_unused()


def _redirect(node: Node, to: dict[int, int]) -> Node:
    from .node import substitute

    return replace(
        node,
        args=substitute(node.args, lambda i: Ref(to[i])),
        kwargs=substitute(node.kwargs, lambda i: Ref(to[i])),
        inputs=tuple(to[i] for i in node.inputs),
    )


def _lay_out(graph: Graph, node: Node) -> None:
    weight = graph.nodes[node.args[1].index].value
    stride = node.args[3]
    if weight.ndim < 4:
        return
    if weight.device.type == "cpu" and weight.dtype in _PACKED_DTYPES and torch.backends.mkldnn.is_available():
        channels = weight.shape[1] * node.args[6]
        node.target = _Packed(weight, channels, stride, node.args[5], node.args[6])
    else:
        form = torch.channels_last if weight.ndim == 4 else torch.channels_last_3d
        node.target = _LaidOut(weight.contiguous(memory_format=form))


class _LaidOut:
    """A convolution with its weight in channels_last."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def __call__(self, x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        return kinds.Convolution.of(x, self.weight, *rest)


class _Packed:
    """A convolution in oneDNN's own weight layout, packed once."""

    def __init__(self, weight: Tensor, channels: int, stride: list[int], dilation: list[int], groups: int) -> None:
        axes = len(stride)
        # A middling window; the layout hardly depends on it, and oneDNN reorders where it does.
        size = [16, channels] + [d * (k - 1) + 8 for d, k in zip(dilation, weight.shape[2:], strict=True)]
        self.weight = torch.ops.mkldnn._reorder_convolution_weight(
            weight, [0] * axes, stride, dilation, groups, size
        )

    def __call__(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: list[int],
        padding: list[int] | str,
        dilation: list[int],
        groups: int,
        relu: bool = False,
    ) -> Tensor:
        if isinstance(padding, str):
            return kinds.Convolution.of(x, weight, bias, stride, padding, dilation, groups, relu)
        out: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self.weight, bias, padding, stride, dilation, groups, "relu" if relu else "none", [], ""
        )
        return out
