"""The layer whose units are asked for: what it puts out, which units there are, what is told of
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from backsight.cli.words import by
from backsight.models.call import Call
from backsight.projection.rules import RULES
from backsight.results import array
from backsight.zoo import Network

__all__ = [
    "NAMED_RULES",
    "SHADES",
    "check_channels",
    "check_position",
    "described",
    "order",
    "picture",
    "place",
    "put_out",
]

#: How the figures show a projection.
SHADES = "gray: 0, brightest or darkest: the strongest hundredth of each picture"

#: The rules, the one first that is used unless told.
NAMED_RULES = ("deconvnet", *(rule for rule in RULES if rule != "deconvnet"))


def put_out(model: nn.Module, layer: str, image: Tensor) -> Tensor:
    """What a layer puts out for an image: (1, channels, height, width), or (1, channels).

    Raises:
        ValueError: there is no such layer, or it puts out something else.
    """
    call = Call(model, (), image, None, layer, total=False)
    with torch.no_grad():
        found: Tensor = call(image)
    if found.ndim not in (2, 4) or len(found) != 1 or not found.is_floating_point():
        raise ValueError(
            "expected a layer that puts out (1, channels, height, width) or (1, channels), and"
            f" {layer} puts out {tuple(found.shape)} of {found.dtype}"
        )
    return found


def check_channels(layer: str, maps: Tensor, channels: Sequence[int]) -> None:
    """Refuse channels that a layer does not have."""
    count = maps.shape[1]
    for channel in channels:
        if not 0 <= channel < count:
            raise ValueError(f"expected a channel of {layer} in 0..{count - 1}, got {channel}")


def check_position(layer: str, maps: Tensor, position: tuple[int, int]) -> None:
    """Refuse a position that is not in a layer's maps."""
    size = tuple(maps.shape[2:])
    if not size:
        raise ValueError(f"expected no --position: {layer} puts out numbers, not maps")
    if not all(0 <= at < n for at, n in zip(position, size, strict=True)):
        raise ValueError(
            f"expected --position within the maps of {layer} of {by(size)} (rows 0..{size[0] - 1},"
            f" columns 0..{size[1] - 1}), got {position[0]},{position[1]}"
        )


def picture(network: Network, signal: Tensor) -> npt.NDArray[Any]:
    """A signal (3, h, w) in the network's order of channels as (h, w, 3) RGB."""
    values = array(signal).transpose(1, 2, 0)
    return values[..., ::-1] if network.preprocessing.bgr else values


def order(network: Network) -> str:
    """The network's order of channels."""
    return "BGR" if network.preprocessing.bgr else "RGB"


def described(
    position: Sequence[int], activation: float, box: Sequence[int], shown: npt.NDArray[Any]
) -> dict[str, Any]:
    """What a report says about a unit of which `shown` is the projection."""
    at = dict(zip(("row", "column"), position, strict=True)) if len(position) else None
    return {
        "position": at,
        "activation": activation,
        "box": dict(zip(("top", "left", "bottom", "right"), box, strict=True)),
        "largest": float(np.abs(shown).max(initial=0.0)),
    }


def place(unit: dict[str, Any]) -> str:
    """Where a described unit is, and what it sees, in words."""
    at, box = unit["position"], unit["box"]
    head = "" if at is None else f"at row {at['row']}, column {at['column']}, "
    return (
        f"{head}sees rows {box['top']} to {box['bottom']}, columns {box['left']} to {box['right']}"
    )
