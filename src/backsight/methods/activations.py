"""The maps of a layer as tiles, and which of its channels are ever active over a data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..models.call import Model
from ..models.dataset import batches, length
from ..models.precision import alone
from ..models.stem import stem
from ..models.subject import Subject
from ..plots import Tile, tiles
from ..results import Result, array
from ..zoo.network import Network

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Activations", "activations"]

_DRAWN = 256  # so many channels fit in a figure


@dataclass(frozen=True)
class Activations(Result):
    """What `activations` finds. A healthy layer is sparse, and its maps differ.

    Attributes:
        maps: (shown, channels, *positions), the layer's output for the first images.
        pictures: (shown, H, W, 3) uint8, those photos.
        active: (channels,) float64, the share of a channel's units, over all images, that are
            active: larger than the threshold.
        largest: (channels,) the largest activation over all images.
        means: (channels,) float64, the mean activation over all images.
        dead: (channels,) bool, never active.
        images: how many images were looked at.
        layer: the name of the layer.
        threshold: what an activation must exceed to be active.
    """

    maps: Tensor
    pictures: Tensor
    active: Tensor
    largest: Tensor
    means: Tensor
    dead: Tensor
    images: int
    layer: str
    threshold: float

    def plot(self, image: int = 0) -> Figure:
        """The photo, and the maps of its channels on one scale; dead channels are framed."""
        maps = array(self.maps[image].float())[:_DRAWN]
        maps = maps.reshape(len(maps), *([1] * (3 - maps.ndim)), *maps.shape[1:])
        if maps.ndim == 4:  # of three axes the middle slice
            maps = maps[:, maps.shape[1] // 2]
        least = min(0.0, float(maps.min()))
        # A few units are many times stronger than all the rest.
        most = float(np.quantile(maps, 0.999)) or float(maps.max()) or 1.0
        grays = ((maps - least) / (most - least)).clip(0, 1)
        dead = self.dead[: len(maps)].tolist()
        shown = [
            Tile(gray, str(i), "dead" if gone else "")
            for i, (gray, gone) in enumerate(zip(grays, dead, strict=True))
        ]
        channels, cut = len(self.dead), ""
        if channels > len(maps):
            cut = f", the first {len(maps)}"
        photo = array(self.pictures[image])
        images = "1 image" if self.images == 1 else f"{self.images} images"
        return tiles(
            shown,
            title=f"Maps of {channels} channels of {self.layer}{cut}",
            note=f"black is {least:.3g}, white {most:.3g} and more; over {images}"
            f" {100 * float(self.active.mean()):.3g}% of the units are active; channels that never"
            f" are: {int(self.dead.sum())}",
            photo=photo if photo.size else None,
        )

    def summary(self) -> str:
        return (
            f"{len(self.dead)} channels of {self.layer}: {100 * float(self.active.mean()):.3g}% of"
            f" the units active, {int(self.dead.sum())} channels never"
        )

    def report(self) -> dict[str, Any]:
        return {
            "layer": self.layer,
            "images": self.images,
            "channels": len(self.dead),
            "active": float(self.active.mean()),
            "dead": self.dead.nonzero()[:, 0].tolist(),
        }


def activations(
    model: Model | Network,
    images: Any,
    *,
    layer: str,
    shown: int = 1,
    threshold: float = 0.0,
    batch_size: int = 32,
    show_progress: bool = False,
    device: torch.device | str | None = None,
) -> Activations:
    """The maps of a layer for some images, and how often its units are active over all of them.

    The images are looked at once; only the first ones' maps are kept.

    Args:
        model: a zoo.Network, or a module in evaluation mode. It is not changed.
        images: images (images, channels, *spatial); or a data set of single images (channels,
            *spatial), by index; or a DataLoader or any other iterable of batches of images. Images
            may come with more, as the first of a tuple or list. A data set may give None for an
            image that it cannot read. All that are shown have one size.
        layer: a module's name; it puts out (images, channels, ...). Of one that runs several times
            the last run counts.
        shown: keep the maps of so many images.
        threshold: what an activation must exceed to be active; 0 for what a ReLU puts out.
        batch_size: images at a time, where the data set gives single ones.
        show_progress: show a progress bar on stderr.
        device: where to compute; default: where the model is.

    Returns:
        An `Activations`; its tensors on that device.

    Raises:
        ValueError: an argument does not fit; the sentence says what was expected and what came.
    """
    for name, value in (("batch_size", batch_size), ("shown", shown)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"expected a positive {name}, got {value!r}")
    subject = Subject.of(model, device)
    tally = _Tally(threshold)
    maps: list[Tensor] = []
    first: list[Tensor] = []
    kept = 0
    run = None
    bar = tqdm(total=length(images), unit="image", disable=not show_progress)
    with torch.no_grad(), alone(subject.device), bar:
        for given, index in batches(images, batch_size, 0):
            if given is not None:
                batch = subject.take(given)
                run = run or stem(subject, layer, batch)
                found = run(batch.clone())  # which the model may change
                tally.add(found, layer)
                if kept < shown:
                    maps.append(found[: shown - kept])
                    first.append(batch[: shown - kept])
                    kept += len(first[-1])
            bar.update(len(index))
    if tally.largest is None:
        raise ValueError("expected at least one image, got none")
    if len({tuple(one.shape[1:]) for one in first}) > 1:
        raise ValueError("expected images of one size where several are shown, got several sizes")
    assert tally.active is not None
    assert tally.total is not None
    return Activations(
        torch.cat(maps),
        subject.pictures(torch.cat(first)),
        tally.active / tally.units,
        tally.largest,
        tally.total / tally.units,
        tally.largest <= threshold,
        tally.images,
        layer,
        threshold,
    )


class _Tally:
    """What the units of each channel have done so far."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.images = self.units = 0
        self.active: Tensor | None = None
        self.total: Tensor | None = None
        self.largest: Tensor | None = None

    def add(self, found: Tensor, layer: str) -> None:
        if found.ndim < 2 or not found.is_floating_point():
            raise ValueError(
                f"expected a layer that puts out (images, channels, ...), and {layer} puts out"
                f" {tuple(found.shape)} of {found.dtype}"
            )
        rows = found.flatten(2) if found.ndim > 2 else found[:, :, None]
        if bool(rows.isnan().any()):
            raise ValueError(f"expected activations that are numbers, got NaN in {layer}")
        active = (rows > self.threshold).sum((0, 2)).double()
        total = rows.sum(2, dtype=torch.float64).sum(0)
        largest = rows.amax((0, 2))
        if self.active is None or self.total is None or self.largest is None:
            self.active, self.total, self.largest = active, total, largest
        elif len(active) != len(self.active):
            raise ValueError(
                f"expected {len(self.active)} channels of {layer}, as before, got {len(active)}"
            )
        else:
            self.active = self.active + active
            self.total = self.total + total
            self.largest = torch.maximum(self.largest, largest)
        self.images += len(rows)
        self.units += rows.shape[0] * rows.shape[2]
