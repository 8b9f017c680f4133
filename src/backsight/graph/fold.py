"""Fold batch norms into the convolutions in front of them, transposed ones too."""

from __future__ import annotations

import torch
from torch import Tensor

from . import kinds, resampling
from .node import Graph, Node, Ref
from .rewrite import Rewrite

_CONVOLUTIONS = (kinds.Convolution, resampling.ConvTranspose)


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
            bias = source.args[2] if isinstance(source.kind, _CONVOLUTIONS) else None
            if (
                isinstance(source.kind, _CONVOLUTIONS)
                and not _is_rounded(graph, source)
                and consumers[source.index] == [node.index]
                and source.index != graph.output
                and (bias is None or isinstance(graph.nodes[bias.index].kind, kinds.Constant))
            ):
                folded[source.index] = node.index
    if not folded:
        return graph
    rewrite = Rewrite(graph)
    to = rewrite.to
    absorbed = {bn: conv for conv, bn in folded.items()}
    for node in graph.nodes:
        if node.index in absorbed:
            to[node.index] = to[absorbed[node.index]]
            continue
        if node.index not in folded:
            rewrite.keep(node)
            continue
        weight, bias = (
            rewrite.constant(f"{node.name}_{name}", value)
            for name, value in zip(
                ("weight", "bias"),
                _folded(graph, node, graph.nodes[folded[node.index]]),
                strict=True,
            )
        )
        x, _, _, *rest = rewrite.moved(node.args)
        to[node.index] = rewrite.add(
            node,
            args=(x, Ref(weight), Ref(bias), *rest),
            inputs=(x.index, weight, bias),
            rules=(node.rules[0], None, None),
        )
    return rewrite.graph()


def _is_rounded(graph: Graph, conv: Node) -> bool:
    """Whether the model casts the weight to a narrower dtype than the image's (autocast): rounding
    it once more, scaled, would change the scores.
    """
    weight = graph.nodes[conv.args[1].index].value
    narrower: bool = weight.dtype.itemsize < graph.nodes[graph.input].dtype.itemsize
    return narrower


def _folded(graph: Graph, conv: Node, batch_norm: Node) -> tuple[Tensor, Tensor]:
    weight = graph.nodes[conv.args[1].index].value
    bias = conv.args[2]
    scale, shift = scale_and_shift(
        graph, batch_norm, None if bias is None else graph.nodes[bias.index].value
    )
    # A transposed convolution's weight is (in, out of a group, ...), the groups one after another.
    if isinstance(conv.kind, resampling.ConvTranspose):
        groups = conv.args[6]
        scale = scale.view(groups, 1, -1).expand(-1, len(weight) // groups, -1).flatten(0, 1)
    scaled = weight.double() * scale.view(*scale.shape, *[1] * (weight.ndim - scale.ndim))
    return scaled.to(weight.dtype), shift.to(weight.dtype)


def scale_and_shift(
    graph: Graph, batch_norm: Node, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What a batch norm multiplies each channel with, and what it then adds where `bias` was added
    before: (channels,) each, in fp64.
    """
    _, gamma, beta, mean, var, eps = batch_norm.args

    def value(ref: Ref | None, default: float) -> Tensor:
        known: Tensor = graph.nodes[mean.index if ref is None else ref.index].value.double()
        return torch.full_like(known, default) if ref is None else known

    scale = value(gamma, 1.0) * torch.rsqrt(value(var, 1.0) + eps)
    before = value(mean, 0.0) if bias is None else value(mean, 0.0) - bias.double()
    return scale, value(beta, 0.0) - before * scale
