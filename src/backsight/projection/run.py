"""Batches of units on their way back to the pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from math import prod

import numpy as np
import torch
from torch import Tensor

from .. import ops
from ..graph import Graph, Node
from ..graph.fields import Cells
from .record import (
    Record,
    constants,
    has_own_step,
    is_linear,
    pooled_convolutions,
    record,
    rectified_pools,
    sources,
)
from .route import Route, Windows, whole
from .rules import Rule, norms
from .steps import Signal, Steps

#: Bytes of a batch's largest signals: more would not lie in a CPU's last cache.
CACHE = 32 << 20
#: Units of a batch at most.
ROWS = 256


class Projector:
    """Sends signals at a graph's output back to its input, by one rule.

    Args:
        graph: whose output is the layer.
    """

    def __init__(self, graph: Graph, rule: Rule) -> None:
        self.graph = graph
        self.rule = rule
        self.fixed = constants(graph)
        self.passed = norms(graph) if rule.lrn == "pass" else {}
        # On a deconvnet's way back a ReLU asks for nothing of the way forward.
        self.fused = rectified_pools(graph) if rule.name == "deconvnet" else {}
        self.joined = pooled_convolutions(graph, self.fused)
        self.reached = self._reached()
        self.keep = self._kept()

    @property
    def output(self) -> Node:
        return self.graph.nodes[self.graph.output]

    def record(self, images: Tensor, sides: Sequence[Tensor]) -> Record:
        """Run the graph on images, keeping what the way back asks for."""
        return record(self.graph, images, sides, self.keep, self.fused)

    def _reached(self) -> frozenset[int]:
        """The nodes that a signal comes by."""
        reached = {self.graph.output}
        for node in reversed(self.graph.nodes):
            if node.index in reached:
                inputs = self.passed.get(node.index)
                varying = (i for i in node.inputs if self.graph.nodes[i].varies)
                reached.update(varying if inputs is None else (inputs,))
        return frozenset(reached)

    def _kept(self) -> frozenset[int]:
        """The nodes whose values the way back asks for."""
        kept: set[int] = set()
        for node in self.graph.nodes:
            if node.index not in self.reached or has_own_step(node, self.passed):
                continue
            linear = is_linear(self.graph, node)
            kept.update(
                i for i in sources(self.graph, node) if not (linear and self.graph.nodes[i].varies)
            )
        return frozenset(kept)

    # ------------------------------------------------------------------ units of one record

    @cached_property
    def route(self) -> Route:
        """Where the signals of single cells of the output go, if that is a map."""
        return Route(self.graph, self.passed)

    def everywhere(self, units: int) -> dict[int, Windows]:
        """Whole maps."""
        spatial = (self.graph.nodes[i] for i in self.reached if self.graph.nodes[i].spatial)
        return {node.index: whole(units, node.extent) for node in spatial}

    @cached_property
    def image_bytes(self) -> int:
        """What the forward pass of one image takes, at most."""

        def size(node: Node) -> int:
            return prod(node.shape) * node.dtype.itemsize

        nodes = [n for n in self.graph.nodes if n.batched and n.varies]
        masks = sum(prod(n.shape) for n in nodes if has_own_step(n, self.passed))
        kept = sum(size(self.graph.nodes[i]) for i in self.keep)
        return kept + masks + 4 * max(map(size, nodes))

    def batch(self, windows: Mapping[int, Windows]) -> int:
        """How many units to send back at a time."""
        largest = 1
        for i in self.reached:
            node = self.graph.nodes[i]
            cells = prod(windows[i].size) if node.spatial else 1
            values = node.shape[0] * cells if node.spatial else prod(node.shape)
            largest = max(largest, values * max(4, node.dtype.itemsize))
        return int(min(ROWS, max(1, CACHE // largest)))

    def back(
        self,
        found: Record,
        image: Tensor,
        start: Signal,
        windows: Mapping[int, Windows],
    ) -> Tensor:
        """The signals in the image's windows (units, channels, *size).

        Args:
            found: the forward pass of some images.
            image: (units,) which of them each unit is of.
            start: the signals at the output.
            windows: where the units' signals lie in each map.
        """
        nodes = self.graph.nodes
        steps = Steps(
            *(self.graph, found, self.fixed, self.passed, self.fused, self.joined, self.rule, image)
        )
        last = self.graph.output
        signals = {last: start}
        for node in reversed(nodes):
            if node.index == self.graph.input or node.index not in signals:
                continue
            signal = signals.pop(node.index)
            if signal.windows is not None and not node.kind.local:
                signal = self._placed(signal, windows[node.index], node)
            for i, part in steps.back(node, signal, windows):
                if i not in self.reached:
                    continue
                there = windows.get(i)
                part = part if there is None else self._placed(part, there, nodes[i])
                if i in signals:
                    before = signals[i]
                    part = Signal(before.value + part.value, there, before.clean and part.clean)
                signals[i] = part
        last = self.graph.input
        if last not in signals:  # nothing of the output depends on the image
            shape = (len(image), nodes[last].shape[0], *windows[last].size)
            return start.value.new_zeros(shape)
        return signals[last].value

    def _placed(self, signal: Signal, there: Windows, node: Node) -> Signal:
        """The same signal in the windows `there`, zero where it is not known."""
        here = signal.windows
        assert here is not None
        if here.size == there.size and np.array_equal(here.at, there.at):
            return signal
        value = signal.value
        offsets = here.at - there.at
        if (offsets == offsets[:1]).all():
            return Signal(_moved(value, offsets[0], there.size), there, signal.clean)
        zeros = value.new_zeros(1).expand(1, value.shape[1], *node.extent)
        first = torch.zeros(len(value), dtype=torch.int64, device=value.device)
        at, to = (torch.from_numpy(w.at).to(value.device) for w in (here, there))
        none = (0,) * len(there.size)
        value = ops.splice(zeros, first, none, node.extent, value, at, to, there.size)
        return Signal(value, there)


def _moved(value: Tensor, offset: Cells, size: Sequence[int]) -> Tensor:
    """Windows cut, or filled up with zeros, to `size`, their first cell going to `offset`."""
    pads: list[int] = []
    for axis, n in enumerate(size):
        before, length = int(offset[axis]), value.shape[2 + axis]
        pads = [before, n - before - length, *pads]
        if before >= n or before + length <= 0:
            return value.new_zeros(*value.shape[:2], *size)
    return torch.nn.functional.pad(value, pads)  # negative ones cut
