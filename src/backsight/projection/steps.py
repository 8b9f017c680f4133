"""One layer's way back: from the signal at what it puts out to the signal at what it reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import ops
from ..graph import Graph, Node, Ref, kinds, window_reads
from ..graph.kinds import Size
from ..maps import Tile, place, splice_base
from .record import Record, is_linear, is_part, sources
from .route import Windows, whole
from .rules import Rule, is_activation, is_rectifier, is_relu


@dataclass(frozen=True)
class Signal:
    """A batch of units' signals at one node.

    Attributes:
        value: (units, channels, *size) in windows of a map, or (units, ...) where that is none.
        windows: where they lie; None for what is no map.
        clean: whether it is 0 wherever a window overhangs.
    """

    value: Tensor
    windows: Windows | None
    clean: bool = True


class Steps:
    """The ways back of a graph's nodes, for one batch of units.

    Args:
        record: what the images' forward pass left.
        fixed: the values of the graph's constants.
        passed: for some nodes, the only input that the signal goes to, unchanged.
        fused: max pools that go back together with the ReLU in front, by that ReLU.
        joined: max pools that may go back together with the convolution in front too, by that.
        image: (units,) the image of each unit in the record.
    """

    def __init__(
        self,
        graph: Graph,
        record: Record,
        fixed: Mapping[int, Any],
        passed: Mapping[int, int],
        fused: Mapping[int, int],
        joined: Mapping[int, int],
        rule: Rule,
        image: Tensor,
    ) -> None:
        self.graph = graph
        self.nodes = graph.nodes
        self.record = record
        self.fixed = fixed
        self.passed = passed
        self.fused = fused
        self.joined = joined
        self.rule = rule
        self.image = image
        self.sizes: dict[int, Any] = {}
        for node in graph.nodes:
            if isinstance(node.kind, Size):
                batch = node.target is torch.ops.aten.sym_size.int
                self.sizes[node.index] = len(image) if batch else node.kind.whole(node, self.sizes)

    def back(
        self, node: Node, signal: Signal, needed: Mapping[int, Windows]
    ) -> Iterator[tuple[int, Signal]]:
        """The signals at the inputs of a node, where `needed` says that the windows of maps lie; a
        signal may still lie elsewhere.
        """
        if node.index in self.passed:
            yield self.passed[node.index], signal
        elif is_relu(node):
            yield node.inputs[0], self._rectified(node, signal)
        elif isinstance(node.kind, kinds.MaxPool):
            (x,) = node.inputs
            source = self.nodes[x].inputs[0] if node.index in self.fused else x
            if self._joins(node, signal, needed):
                convolution = self.nodes[source]
                joined = self._deconvolved(node, convolution, signal, needed)
                yield convolution.args[0].index, joined
            else:
                yield source, self._unpooled(node, signal, needed[x])
        elif is_activation(node) and self.rule.clamps:
            clamped = Signal(signal.value.relu(), signal.windows, signal.clean)
            if is_rectifier(node) and self.rule.name == "deconvnet":
                # Its bound is a mask of the way forward, which a deconvnet does not take.
                yield node.inputs[0], clamped
            else:
                yield from self._by_autograd(node, self.clean(node, clamped))
        elif isinstance(node.kind, kinds.Convolution) and node.spatial:
            yield node.args[0].index, self._convolved(node, signal, needed)
        elif node.kind is kinds.CAT and node.spatial:
            yield from self._parted(node, signal)
        elif isinstance(node.kind, kinds.Sum) and self._adds_alike(node):
            for arg in node.args:
                if isinstance(arg, Ref) and self.nodes[arg.index].varies:
                    yield arg.index, signal
        else:
            yield from self._by_autograd(node, self.clean(node, signal))

    def clean(self, node: Node, signal: Signal) -> Signal:
        """The signal with zeros where windows overhang the map."""
        windows = signal.windows
        if signal.clean or windows is None or windows.is_inside(node.extent):
            return signal
        value = signal.value
        for axis, n in enumerate(node.extent):
            cells = windows.at[:, axis : axis + 1] + np.arange(windows.size[axis])
            inside = torch.from_numpy((cells >= 0) & (cells < n)).to(value.device)
            shape = [len(cells), 1] + [1] * len(node.extent)
            shape[2 + axis] = windows.size[axis]
            value = value.masked_fill(~inside.view(shape), 0)
        return Signal(value, windows)

    def _rectified(self, node: Node, signal: Signal) -> Signal:
        bits, name = self.record.bits[node.index], self.rule.name
        if signal.windows is None:
            value = ops.rectify(signal.value, bits[self.image], name)
        else:
            at = torch.from_numpy(signal.windows.at).to(signal.value.device)
            value = ops.rectify(signal.value, bits, name, self.image, at, node.extent)
        return Signal(value, signal.windows)

    def _pooled(self, node: Node, signal: Signal, windows: Windows) -> tuple[Any, dict[str, Any]]:
        """What an op that unpools is given, by position and by name; `windows`: of the result."""
        assert signal.windows is not None
        _, *pool, _ = node.args
        device = signal.value.device
        named = {
            "mode": self.rule.unpool,
            "relu": node.index in self.fused,
            "base_index": self.image,
            "y_at": torch.from_numpy(signal.windows.at).to(device),
            "window_at": torch.from_numpy(windows.at).to(device),
        }
        return (signal.value, self.record.switches[node.index], *pool, windows.size), named

    def _unpooled(self, node: Node, signal: Signal, windows: Windows) -> Signal:
        args, named = self._pooled(node, signal, windows)
        return Signal(ops.max_unpool(*args, **named), windows)

    def _joins(self, node: Node, signal: Signal, needed: Mapping[int, Windows]) -> bool:
        """Whether a max pool goes back together with the convolution in front."""
        if node.index not in self.joined:
            return False
        convolution = self.nodes[self.joined[node.index]]
        # Where the pool's input lies, its convolution's output does.
        windows, there = needed[node.inputs[0]], needed[convolution.index]
        if windows.size != there.size or not np.array_equal(windows.at, there.at):
            return False
        _, weight, _, _, _, dilation, groups, *_ = convolution.args
        path = ops.unpool_deconv_path(
            signal.value,
            self.record.switches[node.index],
            node.args[1],
            windows.size,
            self.fixed[weight.index],
            groups,
            dilation,
            node.index in self.fused,
        )
        return path == "fused"

    def _deconvolved(
        self, node: Node, convolution: Node, signal: Signal, needed: Mapping[int, Windows]
    ) -> Signal:
        """Back through a max pool and the convolution in front; the map between is 0 outside."""
        windows = needed[node.inputs[0]]
        args, named = self._pooled(node, signal, windows)
        _, weight, _, stride, _, dilation, groups, *_ = convolution.args
        padding, more, there, clean = self._reach(convolution, windows, needed)
        named |= {
            "weight": self.fixed[weight.index],
            "deconv_stride": stride,
            "deconv_padding": padding,
            "output_padding": more,
            "groups": groups,
            "deconv_dilation": dilation,
        }
        value = ops.unpool_deconv(*args, **named)
        return Signal(value, there, clean)

    def _convolved(self, node: Node, signal: Signal, needed: Mapping[int, Windows]) -> Signal:
        signal = self.clean(node, signal)
        assert signal.windows is not None
        _, weight, _, stride, _, dilation, groups, *_ = node.args
        padding, more, there, clean = self._reach(node, signal.windows, needed)
        weights = self.fixed[weight.index]
        value = ops.subpixel_deconv(
            signal.value, weights, None, stride, padding, more, groups, dilation
        )
        return Signal(value, there, clean)

    def _reach(
        self, node: Node, windows: Windows, needed: Mapping[int, Windows]
    ) -> tuple[Sequence[int], Sequence[int], Windows, bool]:
        """For the transposed convolution of a signal that lies in `windows` of a convolution's
        output: padding and output padding, where its result lies, and whether it is clean."""
        x, _, _, stride, _, dilation, *_ = node.args
        at, size = window_reads(node, windows.at, windows.size)[x.index]
        extent = self.nodes[x.index].extent
        if windows.is_whole(node.extent) and needed[x.index].is_whole(extent):
            # The padding need not be computed.
            (rules,) = (r for r in node.rules if r is not None)
            cropped = [-int(rule.origin(0, n)) for rule, n in zip(rules, node.extent, strict=True)]
            more = [n - (s - 2 * c) for n, s, c in zip(extent, size, cropped, strict=True)]
            if all(0 <= m < max(s, d) for m, s, d in zip(more, stride, dilation, strict=True)):
                return cropped, more, needed[x.index], True
        none = [0] * len(stride)
        there = Windows(at, size)
        return none, none, there, there.is_inside(extent)

    def _parted(self, node: Node, signal: Signal) -> Iterator[tuple[int, Signal]]:
        first = 0
        for ref in node.args[0]:
            channels = self.nodes[ref.index].shape[0]
            if self.nodes[ref.index].varies:
                value = signal.value.narrow(1, first, channels)
                yield ref.index, Signal(value, signal.windows, signal.clean)
            first += channels

    def _adds_alike(self, node: Node) -> bool:
        """Whether a node is the plain sum of values of its own shape."""
        return (
            node.kind.name == "add"
            and node.kwargs.get("alpha", 1) == 1
            and len(node.args) == 2
            and all(
                not isinstance(a, Ref)
                or not self.nodes[a.index].varies
                or self.nodes[a.index].shape == node.shape
                for a in node.args
            )
        )

    # ------------------------------------------------------------------ by torch's autograd

    def _by_autograd(self, node: Node, signal: Signal) -> Iterator[tuple[int, Signal]]:
        """The node's own derivative, on windows where it has a window rule."""
        nodes, windows, device = self.nodes, signal.windows, signal.value.device
        # One of several values is computed with the others.
        first = nodes[node.inputs[0]] if is_part(node) else node
        local = (
            windows is not None
            and node.kind.local
            and first.kind.local
            and not windows.is_whole(node.extent)
        )
        reads: dict[int, Windows] = {}
        if local and windows is not None:
            found = window_reads(first, windows.at, windows.size)
            reads = {i: Windows(at, size) for i, (at, size) in found.items()}
        values: dict[int, Any] = {**self.fixed, **self.sizes}
        linear = is_linear(self.graph, node)
        leaves = {}
        with torch.enable_grad():
            for i in sources(self.graph, node):
                values[i] = self._value(first, i, reads.get(i), linear)
                if nodes[i].varies:
                    leaves[i] = values[i] = values[i].detach().requires_grad_()
            if local and windows is not None:
                where = {i: place(w.at, w.size, device) for i, w in reads.items()}
                here = place(windows.at, windows.size, device)
                out = first.kind.windows(first, values, where, here)
                out = out if first is node else node.call({first.index: out}.__getitem__)
            else:
                out = self._whole(node, values)
            grads = torch.autograd.grad(
                out, list(leaves.values()), signal.value.to(out.dtype), allow_unused=True
            )
        for i, grad in zip(leaves, grads, strict=True):
            if grad is not None:
                there = reads.get(i)
                if there is None and nodes[i].spatial:
                    there = whole(len(grad), nodes[i].extent)
                clean = there is None or there.is_inside(nodes[i].extent)
                yield i, Signal(grad.detach(), there, clean)

    def _whole(self, node: Node, values: dict[int, Any]) -> Any:
        """The whole value of a node, from those that are there."""
        for i in node.inputs:
            if i not in values:
                values[i] = self._whole(self.nodes[i], values)
        return node.kind.whole(node, values)

    def _value(self, node: Node, i: int, windows: Windows | None, linear: bool) -> Any:
        """What a node reads of its input `i`: whole, or in windows."""
        source, rows = self.nodes[i], len(self.image)
        if linear and source.varies:  # the derivative is the same everywhere
            size = source.shape if windows is None else (source.shape[0], *windows.size)
            return torch.zeros((rows, *size), dtype=source.dtype, device=self.image.device)
        base = self.record.values[i]
        if windows is None:
            return base[self.image]
        where = place(windows.at, windows.size, self.image.device)
        tile = Tile(base, (0,) * len(source.extent), source.extent)
        return splice_base(tile, self.image, where, node.kind.outside(node))
