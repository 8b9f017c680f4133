"""The layers of a model that put out maps, and what their units see of the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..geometry import Field
from ..graph import CaptureError, Graph, Ref, capture, receptive_field
from .call import pick, unwrapped

__all__ = ["Layer", "layers_of"]


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
    model = unwrapped(model)  # type: ignore[assignment]
    found = _Outputs(model, images.ndim)
    with torch.no_grad():
        # Two images: what has no row for each is no map of an image.
        maps = {n: v for n, v in found.of(torch.cat([images, images])).items() if len(v) == 2}
    found.names = tuple(maps)
    fields: list[tuple[Field, ...] | None] = [None] * len(maps)
    reason = None
    try:
        graph = capture(found, tuple(images.shape[1:]), images.dtype, images.device, within="model")
        fields = _fields(graph, [tuple(v.shape[1:]) for v in maps.values()])
    # Whatever a model does that the graph has no place for, its layers have names and shapes.
    except Exception as error:
        reason = str(CaptureError.of(error))
    modules = dict(model.named_modules())
    return [
        Layer(name, type(modules[name]).__name__, tuple(value.shape[1:]), field)
        for (name, value), field in zip(maps.items(), fields, strict=True)
    ], reason


class _Outputs(nn.Module):
    """A model that puts out its layers: for each channel of each its total, side by side."""

    def __init__(self, model: nn.Module, axes: int) -> None:
        super().__init__()
        self.model = model
        self.axes = axes
        self.names: Sequence[str] = ()

    def of(self, images: Tensor) -> dict[str, Tensor]:
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
            self.model(images)
        finally:
            for handle in handles:
                handle.remove()
        return kept

    def forward(self, images: Tensor) -> Tensor:
        kept = self.of(images)
        return torch.cat([kept[name].sum(tuple(range(2, self.axes))) for name in self.names], 1)


def _fields(graph: Graph, shapes: Sequence[tuple[int, ...]]) -> list[tuple[Field, ...] | None]:
    """The receptive fields of the layers in a graph of `_Outputs`, whose shapes are known."""
    totals = [ref.index for ref in graph.nodes[graph.output].args[0] if isinstance(ref, Ref)]
    whole = _sees_all(graph)
    found: list[tuple[Field, ...] | None] = []
    for total, shape in zip(totals, shapes, strict=True):
        node = graph.nodes[graph.nodes[total].inputs[0]]
        seen = node.spatial and node.shape == shape and node.index not in whole
        found.append(receptive_field(graph, node.index) if seen else None)
    return found


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
