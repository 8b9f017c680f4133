"""Receptive fields: how much of the image a unit of each layer sees.

Araujo, Norris and Sim, "Computing Receptive Fields of Convolutional Neural Networks", Distill 2019.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..models.call import Call, Model
from ..models.layers import Layer, layers_of
from ..models.precision import alone
from ..models.subject import Subject
from ..plots import fields
from ..results import Result, array
from ..zoo.network import Network

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ReceptiveField", "receptive_field"]

_DRAWN = 8  # so many boxes are drawn over each other


@dataclass(frozen=True)
class ReceptiveField(Result):
    """What `receptive_field` finds; layers in the order in which they are done.

    Unit u along an axis sees the pixels from u * stride + offset on, as many as the field's size;
    those outside the image are padding.

    Attributes:
        layers: their names.
        types: the classes of their modules.
        shapes: for each layer (channels, *positions) of its output.
        sizes, strides, offsets: (layers, D) int64, in pixels along each spatial axis; 0 where
            `seen` is False.
        seen: (layers,) bool, whether the field is known; False where a unit sees the image as a
            whole, or lies in a part that has no windows.
        units: (layers, D) int64, the unit whose box is told: the one nearest to the position.
        boxes: (layers, 2·D) int64, the pixels it sees, cut off at the image's edge, half-open,
            starts then ends; the whole image where `seen` is False.
        picture: (H, W, 3) uint8, the photo.
        reason: why no field is known, where the model cannot be captured; None otherwise.
    """

    layers: tuple[str, ...]
    types: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    sizes: Tensor
    strides: Tensor
    offsets: Tensor
    seen: Tensor
    units: Tensor
    boxes: Tensor
    picture: Tensor
    reason: str | None

    def plot(self) -> Figure:
        """The photo with what one unit of each of some layers sees."""
        chosen = self._drawn()
        labels = []
        for i in chosen:
            size = " x ".join(map(str, self.sizes[i].tolist()))
            labels.append(f"{self.layers[i]}: {size}" if bool(self.seen[i]) else self.layers[i])
        return fields(
            array(self.picture),
            [self.boxes[i].tolist() for i in chosen],
            labels=labels,
            title="What a unit of each layer sees",
            note="pixels, down x right; what lies beyond the photo is padding",
        )

    def summary(self) -> str:
        rows: list[tuple[str, ...]] = [("layer", "type", "field", "stride", "offset")]
        for i, (name, kind) in enumerate(zip(self.layers, self.types, strict=True)):
            tables = (self.sizes, self.strides, self.offsets)
            told = [" x ".join(map(str, t[i].tolist())) for t in tables]
            rows.append((name, kind, *(told if bool(self.seen[i]) else ["-"] * 3)))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ("  ".join(w.ljust(n) for w, n in zip(row, widths, strict=True)) for row in rows)
        told = [] if self.reason is None else [f"no field is known: {self.reason}"]
        return "\n".join(["receptive fields", *(line.rstrip() for line in lines), *told])

    def report(self) -> dict[str, Any]:
        return {
            "layers": [
                {
                    "name": name,
                    "type": self.types[i],
                    "shape": list(self.shapes[i]),
                    "size": self.sizes[i].tolist() if bool(self.seen[i]) else None,
                    "stride": self.strides[i].tolist() if bool(self.seen[i]) else None,
                    "offset": self.offsets[i].tolist() if bool(self.seen[i]) else None,
                    "unit": self.units[i].tolist(),
                    "box": self.boxes[i].tolist(),
                }
                for i, name in enumerate(self.layers)
            ],
            "uncaptured": self.reason,
        }

    def _drawn(self) -> list[int]:
        """Layers of different fields, the first of each; spread evenly where there are many."""
        first: dict[tuple[int, ...], int] = {}
        for i, size in enumerate(self.sizes.tolist()):
            if bool(self.seen[i]) and max(size) > 1:
                first.setdefault(tuple(size), i)
        found = sorted(first.values(), key=lambda i: self.sizes[i].tolist())
        found = found or list(range(len(self.layers)))[-1:]
        count = min(len(found), _DRAWN)
        return [found[round(k * (len(found) - 1) / max(1, count - 1))] for k in range(count)]


def receptive_field(
    model: Model | Network,
    images: Tensor,
    *,
    layers: Sequence[str] | None = None,
    position: Sequence[int] | None = None,
    device: torch.device | str | None = None,
) -> ReceptiveField:
    """How much of the image a unit of each layer sees: size, stride and offset, through branches.

    Computed from kernels, strides, paddings and dilations alone: the images' pixels do not count,
    and a trained unit may hang on the middle of its field only.

    Args:
        model: a zoo.Network, or a module in evaluation mode. It is not changed.
        images: (images, channels, *spatial), one to three spatial axes, floating point; the first
            one's size counts, and it is drawn.
        layers: names of modules that put out maps; default: all of them.
        position: the pixel (*spatial) around which units are looked for; default: the middle.
        device: where to compute; default: where the model is.

    Returns:
        A `ReceptiveField`; its tensors on the CPU.

    Raises:
        ValueError: an argument does not fit, or the model has no layers with maps; the sentence
            says what was expected and what came.
    """
    subject = Subject.of(model, device)
    images = subject.take(images)[:1]
    size = tuple(images.shape[2:])
    at = [n // 2 for n in size] if position is None else list(position)
    if len(at) != len(size) or not all(0 <= a < n for a, n in zip(at, size, strict=True)):
        raise ValueError(f"expected a position within {size}, got {tuple(at)}")
    with torch.no_grad(), alone(images.device):
        found, reason = layers_of(subject.module, images)
    if layers is not None:
        for name in layers:
            Call(subject.model, (), images, None, name)  # refuses unknown names
            if name not in {layer.name for layer in found}:
                raise ValueError(f"expected layers that put out maps, and {name} puts out none")
        found = [layer for layer in found if layer.name in layers]
    if not found:
        raise ValueError("expected a model with layers that put out maps, got none")
    units = [_unit(layer, at, size) for layer in found]
    sizes, strides, offsets = (
        torch.tensor(
            [[getattr(axis, name) for axis in one.field or ()] or [0] * len(size) for one in found]
        )
        for name in ("size", "stride", "offset")
    )
    return ReceptiveField(
        tuple(layer.name for layer in found),
        tuple(layer.type for layer in found),
        tuple(layer.shape for layer in found),
        sizes,
        strides,
        offsets,
        torch.tensor([layer.field is not None for layer in found]),
        torch.tensor(units),
        torch.tensor([_box(one, unit, size) for one, unit in zip(found, units, strict=True)]),
        subject.pictures(images)[0],
        reason,
    )


def _unit(layer: Layer, at: Sequence[int], size: Sequence[int]) -> list[int]:
    """The unit whose field has its middle nearest to a pixel."""
    cells = layer.shape[1:]
    if layer.field is None:
        return [a * count // n for a, count, n in zip(at, cells, size, strict=True)]
    found = []
    for axis, a, count in zip(layer.field, at, cells, strict=True):
        nearest = round((a - axis.offset - (axis.size - 1) / 2) / axis.stride)
        found.append(min(max(nearest, 0), count - 1))
    return found


def _box(layer: Layer, unit: Sequence[int], size: Sequence[int]) -> list[int]:
    if layer.field is None:
        return [*[0] * len(size), *size]
    starts = [u * axis.stride + axis.offset for u, axis in zip(unit, layer.field, strict=True)]
    stops = [start + axis.size for start, axis in zip(starts, layer.field, strict=True)]
    inside = [min(stop, n) for stop, n in zip(stops, size, strict=True)]
    return [*(max(start, 0) for start in starts), *inside]
