"""Rotation: how far a score follows an image that is turned.

Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", arXiv:1311.2901
(figure 5).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ..models.call import Model
from ..models.precision import alone
from ..models.subject import Subject
from ..models.targets import Target
from ..plots import Line, Panel, curves
from ..results import Result, array
from ..zoo.network import Network
from .backdrop import Baseline, backdrop
from .readings import Reader

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Rotation", "rotated", "rotation"]

_SHOWN = 5  # so many classes are drawn
_TURNED = 8  # at most so many turned photos are kept for the figure


@dataclass(frozen=True)
class Rotation(Result):
    """What `rotation` finds.

    Attributes:
        angles: (angles,) float64, degrees counterclockwise.
        scores: (images, angles) of the targets.
        outputs: (images, angles, outputs), of all classes; maps of dense outputs count by their
            means.
        pictures: (images, turned, H, W, 3) uint8, photos at the angles `shown`.
        shown: (turned,) int64, which of the angles the pictures are of.
        targets: for each image what its target is called.
        classes: for each image the index and the name of the largest outputs at any angle, the
            largest first.
        probability: "softmax" or "sigmoid", what the outputs were turned into; None: the scores.
    """

    angles: Tensor
    scores: Tensor
    outputs: Tensor
    pictures: Tensor
    shown: Tensor
    targets: tuple[str, ...]
    classes: tuple[tuple[tuple[int, str], ...], ...]
    probability: str | None

    def plot(self, image: int = 0) -> Figure:
        """The turned photo above the scores of the strongest classes against the angle."""
        angles = array(self.angles)
        target = self.targets[image]
        lines = [Line(angles, array(self.scores[image]), target, strong=True)]
        for index, name in self.classes[image]:
            if name != target:
                lines.append(Line(angles, array(self.outputs[image, :, index]), name))
        turned = zip(self.shown.tolist(), self.pictures[image], strict=True)
        shown = [Panel(array(photo), f"{angles[i]:.4g}°") for i, photo in turned if photo.numel()]
        return curves(
            lines[: _SHOWN + 1],
            title=f"{target}, turned",
            x="angle in degrees, counterclockwise",
            y="score" if self.probability is None else "probability",
            shown=shown,
            step=45,
        )

    def summary(self) -> str:
        rows = zip(self.targets, self.scores.double(), strict=True)
        return ", ".join(
            f"{name}: {float(s.min()):.4g} at {float(self.angles[s.argmin()]):.4g}° to"
            f" {float(s.max()):.4g} at {float(self.angles[s.argmax()]):.4g}°"
            for name, s in rows
        )

    def report(self) -> dict[str, Any]:
        return {
            "targets": list(self.targets),
            "probability": self.probability,
            "angles": self.angles.tolist(),
            "scores": self.scores.tolist(),
            "classes": [dict(pairs) for pairs in self.classes],
        }


def rotation(
    model: Model | Network,
    images: Tensor,
    target: Target = None,
    *,
    angles: Sequence[float] | Tensor = tuple(range(0, 360, 15)),
    baseline: Baseline = "mean",
    probability: str | None = "softmax",
    batch_size: int = 32,
    show_progress: bool = False,
    device: torch.device | str | None = None,
) -> Rotation:
    """Turn images about their middle and watch the scores of their classes.

    At angle 0 the image is as it is, and multiples of 90 degrees move pixels without changing them
    (of images that are not square, those of 90 and 270 only where the sides differ by an even
    number); other angles interpolate bilinearly.

    Args:
        model: a zoo.Network, or a module (or function) from images to scores (images, classes) or
            maps of them, in evaluation mode. It is not changed.
        images: (images, channels, H, W), floating point.
        target: a class by index or name, or (channel, *position) of dense outputs, whose channels
            count by their mean; a list of one for each image; or a function of the outputs (images,
            ...), as `probability` turns them, that returns (images,) numbers. Default: the
            strongest class of each image as it is.
        angles: degrees, counterclockwise.
        baseline: what the corners are filled with, as in `backsight.occlusion` but for "inpaint".
        probability: "softmax" or "sigmoid", what the outputs are turned into; None: the scores.
        batch_size: images that run at a time.
        show_progress: show a progress bar on stderr.
        device: where to compute; default: where the model is.

    Returns:
        A `Rotation`; its tensors on that device.

    Raises:
        ValueError: an argument does not fit; the sentence says what was expected and what came.
    """
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"expected a positive batch_size, got {batch_size!r}")
    subject = Subject.of(model, device)
    images = subject.take(images)
    if images.ndim != 4:
        raise ValueError(f"expected images (images, channels, H, W), got {tuple(images.shape)}")
    degrees = [float(angle) for angle in angles]
    if not degrees or not all(map(math.isfinite, degrees)):
        raise ValueError(f"expected finite angles, one at least, got {degrees}")
    count = min(len(degrees), _TURNED)
    shown = [i * len(degrees) // count for i in range(count)]
    with torch.no_grad(), alone(images.device):
        blank = backdrop(baseline, images)
        reader = Reader(subject, images, target, probability, batch_size)
        index = torch.arange(len(images))
        scores, outputs = [], []
        pictures = []
        with tqdm(total=len(images) * len(degrees), unit="image", disable=not show_progress) as bar:
            for i, angle in enumerate(degrees):
                turned = rotated(images, angle, blank)
                if i in shown:
                    pictures.append(subject.pictures(turned))
                found = [reader.run(some.clone()) for some in turned.split(batch_size)]
                whole = torch.cat(found)
                scores.append(reader.read(whole, index))
                outputs.append(whole.flatten(2).mean(2) if whole.ndim > 2 else whole)
                bar.update(len(images))
    values = torch.stack(outputs, 1)
    best = values.amax(1).topk(min(_SHOWN, values.shape[2]), 1).indices.tolist()
    names = [tuple((k, subject.label(k, values.shape[2])) for k in row) for row in best]
    return Rotation(
        torch.tensor(degrees, dtype=torch.float64),
        torch.stack(scores, 1),
        values,
        torch.stack(pictures, 1),
        torch.tensor(shown),
        reader.aim.labels,
        tuple(names),
        probability,
    )


def rotated(images: Tensor, angle: float, blank: Tensor) -> Tensor:
    """Images turned about their middle, counterclockwise, with `blank` where none of them lies.

    Args:
        images: (images, channels, H, W).
        angle: in degrees.
        blank: broadcasts to the images.
    """
    height, width = images.shape[2:]
    quarters, rest = divmod(angle, 90)
    quarters = int(quarters) % 4
    if rest == 0 and (quarters % 2 == 0 or (height - width) % 2 == 0):
        return _centred(torch.rot90(images, quarters, (2, 3)), blank.expand_as(images))
    turn = math.radians(angle)
    cos, sin = math.cos(turn), math.sin(turn)
    # affine_grid's coordinates go from -1 to 1 along each axis, so turns of other than squares
    # stretch.
    matrix = [[cos, -sin * height / width, 0.0], [sin * width / height, cos, 0.0]]
    theta = torch.tensor([matrix], dtype=torch.float64, device=images.device)
    lattice = F.affine_grid(theta, [1, 1, height, width], align_corners=False)
    wide = torch.promote_types(images.dtype, torch.float32)
    lattice = lattice.to(wide).expand(len(images), -1, -1, -1)
    whole = torch.cat([images.to(wide), images.new_ones(len(images), 1, height, width).to(wide)], 1)
    turned = F.grid_sample(whole, lattice, mode="bilinear", align_corners=False)
    covered = turned[:, -1:].clamp(max=1)
    return (turned[:, :-1] + (1 - covered) * blank.to(wide)).to(images.dtype)


def _centred(pictures: Tensor, blank: Tensor) -> Tensor:
    """Pictures of another size in the middle of blank ones, cut off where they are larger."""
    if pictures.shape == blank.shape:
        return pictures
    found = blank.clone()
    here, there = [], []
    for inner, outer in zip(pictures.shape[2:], blank.shape[2:], strict=True):
        less, margin = max(0, (inner - outer) // 2), max(0, (outer - inner) // 2)
        here.append(slice(margin, margin + min(inner, outer)))
        there.append(slice(less, less + min(inner, outer)))
    found[:, :, here[0], here[1]] = pictures[:, :, there[0], there[1]]
    return found
