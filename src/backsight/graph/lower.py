"""Make a graph fast where it runs: fused activations, in front of convolutions and behind them, and
weights laid out once for the library that convolves.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..ops.packs import Packs
from . import kinds
from .activations import Activation, activation_of
from .node import Graph, Node, Ref, substitute
from .preactivation import fuse_preactivations


def lower(graph: Graph, packs: Packs) -> Graph:
    """`graph` with activations fused into the convolutions or batch norms in front of them, and
    weights and constant maps laid out for the device.

    On the CPU, oneDNN gets its own weight layout and applies activations as it writes; elsewhere
    weights become channels_last. The values are those of the operations one by one. `packs` holds
    the laid-out weights.
    """
    graph = fuse_preactivations(graph)
    nodes = [replace(n) for n in graph.nodes]
    consumers = graph.consumers()
    to = {n.index: n.index for n in nodes}
    for node in nodes:
        if not (isinstance(node.kind, kinds.Convolution) and node.spatial):
            continue
        readers = [nodes[i] for i in consumers[node.index]]
        activation = activation_of(readers[0]) if len(readers) == 1 else None
        if activation is not None and node.index != graph.output:
            node.args = (*node.args[:7], activation)
            node.module, node.name = readers[0].module, node.name
            to[readers[0].index] = node.index
    redirected = [_redirect(n, to) for n in nodes]
    fused = Graph(redirected, graph.input, to[graph.output], graph.axes, graph.sides)
    for node in fused.nodes:
        if isinstance(node.kind, kinds.Convolution) and node.spatial:
            _lay_out(fused, node, packs)
        elif isinstance(node.kind, kinds.Constant) and node.spatial:
            node.value = _channels_last(node.value)
    return fused.without_unused()


def _redirect(node: Node, to: dict[int, int]) -> Node:
    return replace(
        node,
        args=substitute(node.args, lambda i: Ref(to[i])),
        kwargs=substitute(node.kwargs, lambda i: Ref(to[i])),
        inputs=tuple(to[i] for i in node.inputs),
    )


def _lay_out(graph: Graph, node: Node, packs: Packs) -> None:
    constant = graph.nodes[node.args[1].index]
    if constant.value.ndim < 4:
        return
    laid_out = _channels_last(constant.value)
    constant.own = constant.own or laid_out is not constant.value
    constant.value = laid_out
    if packs.can_hold(constant.value):
        node.target = _Packed(constant.value, packs)


def _channels_last(value: Tensor) -> Tensor:
    """Channels side by side, as the sweep's windows have them where there are two axes or three."""
    if value.ndim < 4:
        return value.contiguous()
    form = torch.channels_last if value.ndim == 4 else torch.channels_last_3d
    return value.contiguous(memory_format=form)


class _Packed:
    """A convolution in oneDNN's own weight layouts."""

    def __init__(self, weight: Tensor, packs: Packs) -> None:
        self.weight = weight
        self.packs = packs

    def __call__(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: list[int],
        padding: list[int] | str,
        dilation: list[int],
        groups: int,
        activation: Activation | None = None,
    ) -> Tensor:
        plain = kinds.Convolution.of
        if isinstance(padding, str) or not x.numel():
            return plain(x, weight, bias, stride, padding, dilation, groups, activation)
        if weight.shape[1] == 1 and stride[-1] > 1:
            reach = dilation[-1] * (weight.shape[-1] - 1) + stride[-1]
            if x.shape[-1] + 2 * padding[-1] <= reach:  # one cell comes out
                # There oneDNN reads beyond single channels that lie last (3.12, AVX-512); strides
                # that view() makes do not say that they do.
                x = x.contiguous().flatten(1).view(x.shape)
                return plain(x, weight, bias, stride, padding, dilation, groups, activation)
        fused = activation or Activation("none")
        shape = list(x.shape)
        packed = self.packs.get(
            self.weight,
            (*shape, *padding, torch.get_num_threads()),
            lambda: torch.ops.mkldnn._reorder_convolution_weight(
                self.weight, padding, stride, dilation, groups, shape
            ),
        )
        out: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x,
            packed,
            bias,
            padding,
            stride,
            dilation,
            groups,
            fused.name,
            list(fused.numbers),
            fused.algorithm,
        )
        return out
