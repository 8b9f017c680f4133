"""Batch norms and ReLUs in front of convolutions as one node, with concatenations before them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .. import ops
from . import kinds
from .activations import Activation, activation_of
from .fold import scale_and_shift
from .node import Graph, Node, Ref
from .rewrite import Rewrite

#: What ops.preactivation takes.
_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class PreActivation(kinds.Join):
    """Batch norm and ReLU of maps joined along the channels: arguments (maps, scale, shift)."""

    def __init__(self) -> None:
        super().__init__("preactivation")


PREACTIVATION = PreActivation()


def fuse_preactivations(graph: Graph) -> Graph:
    """`graph` with each batch norm that only a ReLU reads as one node with that ReLU, and with the
    concatenation in front of it where nothing else reads that.

    Each map is then read and written once, not once for each operation. Scale and shift are
    computed in fp64 and rounded once to what the op computes in.
    """
    consumers = graph.consumers()
    found: dict[int, tuple[Node, list[int]]] = {}  # ReLU -> batch norm, maps
    for node in graph.nodes:
        reader = _only_reader(graph, consumers, node)
        if isinstance(node.kind, kinds.BatchNorm) and node.spatial and reader is not None:
            maps = _maps(graph, consumers, node)
            every = [graph.nodes[i] for i in (graph.input, *maps, node.index, reader.index)]
            # Not where the model rounds in between (autocast).
            same = len({n.dtype for n in every}) == 1 and reader.dtype in _DTYPES
            if same and activation_of(reader) == Activation("relu"):
                found[reader.index] = node, maps
    if not found:
        return graph
    rewrite = Rewrite(graph)
    for node in graph.nodes:
        if node.index not in found:
            rewrite.keep(node)
            continue
        batch_norm, maps = found[node.index]
        wide = torch.promote_types(node.dtype, torch.float32)
        constants = [
            rewrite.constant(f"{batch_norm.name}_{name}", value.to(wide))
            for name, value in zip(
                ("scale", "shift"), scale_and_shift(graph, batch_norm), strict=True
            )
        ]
        joined = [rewrite.to[i] for i in maps]
        inputs = (*dict.fromkeys(joined), *constants)
        identity = batch_norm.rules[batch_norm.inputs.index(batch_norm.args[0].index)]
        rewrite.to[node.index] = rewrite.add(
            node,
            kind=PREACTIVATION,
            target=ops.preactivation,
            args=([Ref(i) for i in joined], *map(Ref, constants)),
            kwargs={},
            inputs=inputs,
            rules=(*[identity] * (len(inputs) - 2), None, None),
            operation="preactivation",
        )
    return rewrite.graph()


def _only_reader(graph: Graph, consumers: Sequence[Sequence[int]], node: Node) -> Node | None:
    """What reads a node, if that is one other alone."""
    readers = consumers[node.index]
    if len(readers) != 1 or node.index == graph.output:
        return None
    return graph.nodes[readers[0]]


def _maps(graph: Graph, consumers: Sequence[Sequence[int]], batch_norm: Node) -> list[int]:
    """The maps whose channels a batch norm reads, one after the other."""
    source = graph.nodes[batch_norm.args[0].index]
    whole = [source.index]
    if source.kind is not kinds.CAT or _only_reader(graph, consumers, source) is None:
        return whole
    maps = [ref.index for ref in source.args[0]]
    known = (graph.nodes[i] for i in maps)
    # A constant may stand for every image of a batch.
    fit = all(n.spatial and n.batched and not isinstance(n.kind, kinds.Constant) for n in known)
    return maps if fit else whole
