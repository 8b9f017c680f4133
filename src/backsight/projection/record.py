"""What the way forward leaves behind for the way back."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .. import ops
from ..graph import Graph, Node, is_fixed
from ..graph.kinds import Constant, Convolution, MaxPool
from ..graph.layouts import InLayout
from .rules import is_relu


@dataclass
class Record:
    """The forward pass of some images, as far as the way back asks for it.

    Attributes:
        output: what the graph puts out, (images, ...).
        bits: for each ReLU, where it passed a value (ops.relu).
        switches: for each max pool, where its maxima were (ops.max_pool).
        values: what nodes without a rule of their own read, by node.
    """

    output: Tensor
    bits: dict[int, Tensor] = field(default_factory=dict)
    switches: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Any] = field(default_factory=dict)


def rectified_pools(graph: Graph) -> dict[int, int]:
    """The max pools that alone read the ReLU in front of them, and that ReLU."""
    consumers = graph.consumers()
    found = {}
    for node in graph.nodes:
        if isinstance(node.kind, MaxPool) and node.varies:
            (x,) = node.inputs
            if is_relu(graph.nodes[x]) and consumers[x] == [node.index] and x != graph.output:
                found[node.index] = x
    return found


def pooled_convolutions(graph: Graph, rectified: Mapping[int, int]) -> dict[int, int]:
    """The max pools that alone read a convolution, and that convolution; those in `rectified` read
    it through their ReLU."""
    consumers = graph.consumers()
    found = {}
    for node in graph.nodes:
        if isinstance(node.kind, MaxPool) and node.varies:
            reader = rectified.get(node.index, node.index)
            (x,) = graph.nodes[reader].inputs
            source = graph.nodes[x]
            plain = isinstance(source.kind, Convolution) and source.spatial
            if plain and consumers[x] == [reader] and x not in (graph.output, graph.input):
                found[node.index] = x
    return found


def record(
    graph: Graph,
    images: Tensor,
    sides: Sequence[Tensor],
    keep: frozenset[int],
    fused: Mapping[int, int],
) -> Record:
    """Run a graph on images (batch, *input shape), keeping the values of the nodes in `keep`.

    `fused`: some of its `rectified_pools`, whose ReLUs need leave nothing behind.
    """
    within = set(fused.values())
    done: dict[int, Any] = {}
    found = Record(images)
    given = dict(zip((graph.input, *graph.sides), (images, *sides), strict=True))
    drop = graph.last_use()
    for node in graph.nodes:
        i = node.index
        if i in given:
            done[i] = given[i]
        elif i in within:
            done[i] = done[node.inputs[0]]
        elif is_relu(node) and node.varies:
            done[i], found.bits[i] = ops.relu(done[node.inputs[0]])
        elif isinstance(node.kind, MaxPool) and node.varies:
            x, kernel, stride, padding, dilation, ceil_mode = node.args
            done[i], found.switches[i] = ops.max_pool(
                done[x.index], kernel, stride, padding, dilation, ceil_mode, i in fused
            )
        else:
            done[i] = node.kind.whole(node, done)
        if i in keep:
            # A constant map stands for every image.
            value, is_map = done[i], isinstance(node.kind, Constant)
            found.values[i] = value.expand(len(images), *value.shape[1:]) if is_map else value
        for j in drop[i]:
            del done[j]
    found.output = done[graph.output]
    return found


def constants(graph: Graph) -> dict[int, Any]:
    return {n.index: n.value for n in graph.nodes if isinstance(n.kind, Constant) and is_fixed(n)}


def is_part(node: Node) -> bool:
    """Whether a node is one of several values of another."""
    held = node.target
    return (held.target if isinstance(held, InLayout) else held) is operator.getitem


def sources(graph: Graph, node: Node) -> list[int]:
    """The nodes by whose values a node's own derivative is taken: its inputs but for constants, or,
    for an input that does not hold one value an image, what that is made of.
    """
    found: dict[int, None] = {}
    for i in node.inputs:
        source = graph.nodes[i]
        if is_fixed(source):
            continue
        if source.batched and not is_part(node):
            found[i] = None
        else:
            found |= dict.fromkeys(sources(graph, source))
    return list(found)


def is_linear(graph: Graph, node: Node) -> bool:
    """Whether a node's derivative is the same whatever it reads."""
    inputs = (graph.nodes[i] for i in node.inputs)
    alone = not is_part(node) and all(n.batched or is_fixed(n) for n in inputs)
    return alone and node.kind.is_linear(node, graph.nodes)


def has_own_step(node: Node, passed: Mapping[int, int]) -> bool:
    """Whether a node's way back asks for no value of its inputs."""
    return is_relu(node) or isinstance(node.kind, MaxPool) or node.index in passed
