"""The layers of a model that put out maps: what their units see of the image, and the graphs up to
them, captured all at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..geometry import Field
from ..graph import CaptureError, Graph, Ref, capture, receptive_field
from .call import Call, pick

__all__ = ["Layer", "LayerGraphs", "field_of", "layers_of"]


@dataclass(frozen=True)
class Layer:
    """A module whose output is maps.

    Attributes:
        name: of the module within the model.
        type: its class.
        shape: (channels, *spatial) of its output; the last one where it runs several times.
        field: the receptive field of its units, one Field per spatial axis; None where they see
            the image as a whole, or lie in a part that has no windows.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    field: tuple[Field, ...] | None


def layers_of(model: nn.Module, images: Tensor) -> tuple[list[Layer], str | None]:
    """The layers with maps, in the order in which they are done.

    Args:
        model: a module in evaluation mode. It is not changed.
        images: (1, channels, *spatial), of the size that counts.

    Returns:
        The layers; and, where the model cannot be captured and no field is known, why.
    """
    call = Call(model, (), images)
    found = _Outputs(call)
    shapes = found.shapes(images)
    reason = None
    fields: dict[str, tuple[Field, ...]] = {}
    try:
        graphs = LayerGraphs(call, images)
        whole = _sees_all(graphs.graph)
        fields = {
            name: receptive_field(graphs.graph, node)
            for name, node in graphs.nodes.items()
            if node not in whole
        }
    # Whatever a model does that the graph has no place for, its layers have names and shapes.
    except Exception as error:
        reason = str(CaptureError.of(error))
    modules = dict(found.model.named_modules())
    return [
        Layer(name, type(modules[name]).__name__, shape, fields.get(name))
        for name, shape in shapes.items()
    ], reason


def field_of(model: nn.Module, images: Tensor) -> tuple[Field, ...] | None:
    """The receptive field of the cells that a model puts out, one Field per spatial axis; None
    where they see the image as a whole, or the model cannot be captured.

    Args:
        model: a module in evaluation mode. It is not changed.
        images: (1, channels, *spatial), of the size that counts.
    """
    try:
        graph = capture(Call(model, (), images), images.shape[1:], images.dtype, images.device)
    # Whatever a model does that the graph has no place for, its cells have no known field.
    except Exception:
        return None
    output = graph.nodes[graph.output]
    if not output.spatial or graph.output in _sees_all(graph):
        return None
    return receptive_field(graph, graph.output)


class LayerGraphs:
    """A model captured once for all its layers that put out maps.

    Attributes:
        graph: of all of them.
        nodes: the node of each layer in it, by name; layers whose maps are no node of their own are
            missing.

    Raises:
        CaptureError, RefusedError: as `capture`.
    """

    def __init__(self, call: Call, images: Tensor) -> None:
        outputs = _Outputs(call)
        shapes = outputs.shapes(images)
        outputs.names = tuple(shapes)
        shape = tuple(images.shape[1:])
        self.graph = graph = capture(
            outputs, shape, images.dtype, images.device, call.sides, within="call.model"
        )
        totals = [ref.index for ref in graph.nodes[graph.output].args[0] if isinstance(ref, Ref)]
        self.nodes: dict[str, int] = {}
        for total, (name, shape) in zip(totals, shapes.items(), strict=True):
            node = graph.nodes[graph.nodes[total].inputs[0]]
            if node.spatial and node.shape == shape:
                self.nodes[name] = node.index

    def up_to(self, layer: str) -> Graph | None:
        """The graph that puts out a layer's maps."""
        if layer not in self.nodes:
            return None
        return replace(self.graph, output=self.nodes[layer]).without_unused()


class _Outputs(nn.Module):
    """A model that puts out its layers: for each channel of each its total, side by side."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call
        self.axes = call.axes + 2
        self.names: Sequence[str] = ()

    @property
    def model(self) -> nn.Module:
        if self.call.owner is None:
            raise CaptureError("a function has no layers")
        return self.call.owner

    def shapes(self, images: Tensor) -> dict[str, tuple[int, ...]]:
        """(channels, *spatial) of each layer, in the order in which they are done."""
        # Two images: what has no row for each is no map of an image.
        sides = [torch.cat([side[:1]] * 2) for side in self.call.sides]
        with torch.no_grad():
            found = self.of(torch.cat([images[:1]] * 2), *sides)
        return {name: tuple(maps.shape[1:]) for name, maps in found.items() if len(maps) == 2}

    def of(self, images: Tensor, *sides: Tensor) -> dict[str, Tensor]:
        """The layers' outputs, in the order in which they are done."""
        kept: dict[str, Tensor] = {}

        def keep(name: str, module: nn.Module) -> Any:
            def look(_: nn.Module, __: Any, out: Any) -> None:
                try:
                    value = pick(out, None)
                except ValueError:
                    return
                if value.ndim == self.axes and value.is_floating_point():
                    kept.pop(name, None)
                    kept[name] = value.clone()  # what follows may change it

            return module.register_forward_hook(look)

        handles = [keep(name, module) for name, module in self.model.named_modules() if name]
        try:
            self.call.run(images, *sides)
        finally:
            for handle in handles:
                handle.remove()
        return kept

    def forward(self, images: Tensor, *sides: Tensor) -> Tensor:
        kept = self.of(images, *sides)
        return torch.cat([kept[name].sum(tuple(range(2, self.axes))) for name in self.names], 1)


def _sees_all(graph: Graph) -> set[int]:
    """The nodes whose cells may depend on every pixel: that read, by some way, no windows."""
    found: set[int] = set()
    for node in graph.nodes:
        if not node.varies or node.index == graph.input:
            continue
        rules = node.rules or (None,) * len(node.inputs)
        for i, rule in zip(node.inputs, rules, strict=True):
            by_windows = rule is not None and node.kind.local
            if graph.nodes[i].varies and (i in found or not by_windows):
                found.add(node.index)
    return found
