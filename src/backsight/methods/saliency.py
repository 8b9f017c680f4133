"""Saliency: how much each pixel would change a score, to first order.

Simonyan, Vedaldi and Zisserman, "Deep Inside Convolutional Networks: Visualising Image
Classification Models and Saliency Maps", arXiv:1312.6034.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..models.call import Model
from ..models.gradient import target_gradients
from ..models.subject import Subject
from ..models.targets import Target
from ..plots import Panel, panels
from ..results import Result, array
from ..zoo.network import Network

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Saliency", "saliency"]


@dataclass(frozen=True)
class Saliency(Result):
    """What `saliency` finds.

    Attributes:
        maps: (images, *spatial), the largest |dS/dx| over the channels; at least 0.
        masks: (images, *spatial) bool, the strongest pixels: a rough segmentation.
        scores: (images,) the scores S of the targets, before any softmax.
        pictures: (images, H, W, 3) uint8, the photos.
        targets: for each image what its target is called.
        threshold: the share of each image's pixels that lie outside its mask.
    """

    maps: Tensor
    masks: Tensor
    scores: Tensor
    pictures: Tensor
    targets: tuple[str, ...]
    threshold: float

    def plot(self, image: int = 0) -> Figure:
        """The photo, its map, and the photo within the mask."""
        photo, strength = array(self.pictures[image]), array(self.maps[image])
        inside = array(self.masks[image])
        share = f"strongest {100 * (1 - self.threshold):.3g}% of the pixels"
        return panels(
            [
                Panel(photo, "photo"),
                Panel(
                    strength,
                    "saliency",
                    # A few pixels are many times stronger than all the rest.
                    limits=(0.0, float(np.quantile(strength, 0.99)) or 1.0),
                    bar="largest |dS/dx| over the channels; 1% is beyond",
                ),
                Panel(np.where(inside[..., None], photo, np.uint8(255)), share),
            ],
            title=f"Saliency of {self.targets[image]}",
            note=f"score {float(self.scores[image]):.4g}, before any softmax",
        )

    def summary(self) -> str:
        found = zip(self.targets, self.scores.tolist(), strict=True)
        return ", ".join(f"saliency of {name}, score {score:.4g}" for name, score in found)

    def report(self) -> dict[str, Any]:
        return {
            "targets": list(self.targets),
            "scores": self.scores.tolist(),
            "largest": self.maps.flatten(1).amax(1).tolist(),
        }


def saliency(
    model: Model | Network,
    images: Tensor,
    target: Target = None,
    *,
    threshold: float = 0.95,
    batch_size: int = 32,
    show_progress: bool = False,
    device: torch.device | str | None = None,
) -> Saliency:
    """The gradient of a score with respect to the pixels: |dS/dx|, the largest over the channels.

    S is the model's own output: give it scores before the softmax, whose gradient also says how to
    lower the other classes. For a linear model the map is max |w|, whatever the image.

    Args:
        model: a zoo.Network, or a module (or function) from images to scores (images, classes) or
            maps of them, in evaluation mode. It is not changed.
        images: (images, channels, *spatial), one to three spatial axes, floating point.
        target: a class by index or name, or (channel, *position) of dense outputs, whose channels
            count by their mean; a list of one for each image; or a function of the outputs (images,
            ...) that returns (images,) scores. Default: each image's strongest class.
        threshold: the share of an image's pixels that its mask leaves out, in [0, 1).
        batch_size: images that are differentiated at a time.
        show_progress: show a progress bar on stderr.
        device: where to compute; default: where the model is.

    Returns:
        A `Saliency`; its tensors on that device.

    Raises:
        ValueError: an argument does not fit; the sentence says what was expected and what came.
    """
    if not 0 <= threshold < 1:
        raise ValueError(f"expected a threshold in [0, 1), got {threshold!r}")
    subject = Subject.of(model, device)
    images = subject.take(images)
    found = target_gradients(
        subject, images, target, batch_size=batch_size, show_progress=show_progress
    )
    maps = found.gradients.abs().amax(1)
    flat = maps.flatten(1)
    kept = max(1, round((1 - threshold) * flat.shape[1]))
    least = flat.topk(kept, 1, sorted=False).values.amin(1, keepdim=True)
    masks = ((flat >= least) & (flat > 0)).view_as(maps)
    pictures = subject.pictures(images)
    return Saliency(maps, masks, found.scores, pictures, found.labels, threshold)
