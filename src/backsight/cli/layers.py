"""``backsight layers``: what can be named as a layer, and what its units see."""

from __future__ import annotations

import json
from typing import Any

import torch

from backsight._version import __version__
from backsight.cli.reader import Reader, Source
from backsight.cli.words import by
from backsight.models.layers import Layer, layers_of

__all__ = ["show_layers"]

_HEADS = ("layer", "type", "maps", "field", "stride", "offset")


def show_layers(source: Source, *, as_json: bool) -> int:
    """Print a table of the network's layers that put out maps.

    Raises:
        ValueError: bad input, in one sentence.
        ImportError: something that is not installed, in one sentence.
    """
    reader = Reader(source)
    side = _side(reader)
    image = torch.zeros(1, 3, side, side, device=reader.device, dtype=reader.dtype)
    layers, reason = layers_of(reader.network.model, image)
    if not layers:
        raise ValueError(f"expected a network with layers of maps, {reader.network.name} has none")
    if as_json:
        report = {
            "backsight": __version__,
            "model": reader.network.name,
            "image": {"height": side, "width": side},
            "layers": [_described(layer) for layer in layers],
            "uncaptured": reason,
        }
        print(json.dumps(report, ensure_ascii=False, allow_nan=False), flush=True)
        return 0
    lines = [f"{reader.network.name} at {side} x {side}; maps are channels x height x width", ""]
    rows = [_HEADS, *map(_row, layers)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines += [
        "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    lines += ["", "Unit u sees the pixels from u * stride + offset on, as many as the field has."]
    if reason is not None:
        lines.append(f"No field is known: {reason}.")
    elif any(layer.field is None for layer in layers):
        lines.append("-: sees the whole image, or lies in a part that has no windows.")
    print("\n".join(lines), flush=True)
    return 0


def _side(reader: Reader) -> int:
    """The side of a square image of the network's usual size, or of that which was asked for."""
    how, size = reader.network.preprocessing, reader.source.size
    if size is not None and size < 1:
        raise ValueError(f"expected a size of at least 1 pixel, got {size}")
    side = size or how.crop or how.short_side
    if side is None:
        raise ValueError(f"expected --size: {reader.network.name} takes photos as they are")
    return side


def _described(layer: Layer) -> dict[str, Any]:
    """What the report says about a layer; sizes go down, then right."""
    field = None
    if layer.field is not None:
        field = {
            "size": [axis.size for axis in layer.field],
            "stride": [axis.stride for axis in layer.field],
            "offset": [axis.offset for axis in layer.field],
        }
    return {"name": layer.name, "type": layer.type, "shape": list(layer.shape), "field": field}


def _row(layer: Layer) -> tuple[str, ...]:
    head = layer.name, layer.type, by(layer.shape)
    if layer.field is None:
        return *head, "-", "-", "-"
    sizes = by([axis.size for axis in layer.field])
    strides, offsets = ([getattr(a, n) for a in layer.field] for n in ("stride", "offset"))
    return *head, sizes, *(_both(values) for values in (strides, offsets))


def _both(values: list[int]) -> str:
    """One number where it holds down and right, else both."""
    return str(values[0]) if len(set(values)) == 1 else ", ".join(map(str, values))
