"""Fold batch norms into the convolutions in front of them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from . import kinds
from .node import Graph, Node, Ref, substitute


def fold_batch_norms(graph: Graph) -> Graph:
    """`graph` with each batch norm that is a convolution's only consumer folded into that
    convolution.

    The new weights are computed in fp64 and rounded once. The model itself keeps its own.
    """
    consumers = graph.consumers()
    folded: dict[int, int] = {}  # convolution -> batch norm
    for node in graph.nodes:
        if isinstance(node.kind, kinds.BatchNorm) and node.spatial:
            source = graph.nodes[node.args[0].index]
            bias = source.args[2] if isinstance(source.kind, kinds.Convolution) else None
            if (
                isinstance(source.kind, kinds.Convolution)
                and consumers[source.index] == [node.index]
                and source.index != graph.output
                and (bias is None or isinstance(graph.nodes[bias.index].kind, kinds.Constant))
            ):
                folded[source.index] = node.index
    if not folded:
        return graph
    nodes: list[Node] = []
    to: dict[int, int] = {}

    def add(node: Node, **fields: object) -> int:
        nodes.append(replace(node, index=len(nodes), **fields))  # type: ignore[arg-type]
        return len(nodes) - 1

    absorbed = {bn: conv for conv, bn in folded.items()}
    for node in graph.nodes:
        if node.index in absorbed:
            to[node.index] = to[absorbed[node.index]]
            continue
        args = substitute(node.args, lambda i: Ref(to[i]))
        if node.index in folded:
            batch_norm = graph.nodes[folded[node.index]]
            weight, bias = _folded(graph, node, batch_norm)
            constants = [
                add(
                    Node(
                        0,
                        f"{node.name}_{name}",
                        kinds.CONSTANT,
                        value=value,
                        dtype=value.dtype,
                        varies=False,
                        own=True,
                    )
                )
                for name, value in (("weight", weight), ("bias", bias))
            ]
            args = (args[0], Ref(constants[0]), Ref(constants[1]), *args[3:])
            inputs = (args[0].index, *constants)
            to[node.index] = add(node, args=args, inputs=inputs, rules=(node.rules[0], None, None))
            continue
        kwargs = substitute(node.kwargs, lambda i: Ref(to[i]))
        to[node.index] = add(
            node, args=args, kwargs=kwargs, inputs=tuple(to[i] for i in node.inputs)
        )
    sides = tuple(to[i] for i in graph.sides)
    return Graph(nodes, to[graph.input], to[graph.output], graph.axes, sides).without_unused()


def _folded(graph: Graph, conv: Node, batch_norm: Node) -> tuple[Tensor, Tensor]:
    def value(ref: Ref | None, default: float) -> Tensor:
        if ref is None:
            return torch.full((channels,), default, dtype=torch.float64, device=like.device)
        known: Tensor = graph.nodes[ref.index].value.double()
        return known

    weight = graph.nodes[conv.args[1].index].value
    like, channels = weight.double(), weight.shape[0]
    _, gamma, beta, mean, var, eps = batch_norm.args
    scale = value(gamma, 1.0) * torch.rsqrt(value(var, 1.0) + eps)
    shift = value(beta, 0.0) + (value(conv.args[2], 0.0) - value(mean, 0.0)) * scale
    scaled = like * scale.view(-1, *[1] * (weight.ndim - 1))
    return scaled.to(weight.dtype), shift.to(weight.dtype)
