"""Faithfulness of a map: what becomes of a score as the pixels go, or come, in the map's order.

Petsiuk, Das and Saenko, "RISE: Randomized Input Sampling for Explanation of Black-box Models",
arXiv:1806.07421.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import torch
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

__all__ = ["Faithfulness", "faithfulness"]


@dataclass(frozen=True)
class Faithfulness(Result):
    """What `faithfulness` finds. A faithful map has a low deletion curve and a high insertion
    curve.

    Attributes:
        shares: (steps + 1,) of the pixels that are deleted, or inserted; from 0 to 1.
        deletion: (images, steps + 1), what is read while the pixels go, the strongest first.
        insertion: (images, steps + 1), what is read while they come, the strongest first.
        deletion_auc: (images,) float64, the area under that curve by the trapezoid rule.
        insertion_auc: (images,) float64.
        maps: (images, *spatial), the maps.
        pictures: (images, H, W, 3) uint8, the photos.
        targets: for each image what its target is called.
        probability: "softmax" or "sigmoid", what the outputs were turned into; None: the scores.
    """

    shares: Tensor
    deletion: Tensor
    insertion: Tensor
    deletion_auc: Tensor
    insertion_auc: Tensor
    maps: Tensor
    pictures: Tensor
    targets: tuple[str, ...]
    probability: str | None

    def plot(self, image: int = 0) -> Figure:
        """The photo, the map, and both curves."""
        shares = array(self.shares)
        lines = []
        for name, values, areas in (
            ("insertion", self.insertion, self.insertion_auc),
            ("deletion", self.deletion, self.deletion_auc),
        ):
            label = f"{name}, area {float(areas[image]):.3f}"
            lines.append(Line(shares, array(values[image]), label, filled=True))
        shown = []
        if self.maps.ndim == 3:
            shown = [
                Panel(array(self.pictures[image]), "photo"),
                Panel(array(self.maps[image]), "map"),
            ]
        unit = "score" if self.probability is None else "probability"
        return curves(
            lines,
            title=f"Faithfulness of a map for {self.targets[image]}",
            x="share of the pixels, the map's strongest first",
            y=f"{unit} of {self.targets[image]}",
            shown=shown,
            note="A faithful map: deletion falls at once, insertion rises at once.",
        )

    def summary(self) -> str:
        areas = zip(
            self.targets, self.insertion_auc.tolist(), self.deletion_auc.tolist(), strict=True
        )
        return ", ".join(
            f"{name}: area {inserted:.4g} under insertion, {deleted:.4g} under deletion"
            for name, inserted, deleted in areas
        )

    def report(self) -> dict[str, Any]:
        return {
            "targets": list(self.targets),
            "probability": self.probability,
            "deletion_auc": self.deletion_auc.tolist(),
            "insertion_auc": self.insertion_auc.tolist(),
            "steps": len(self.shares) - 1,
        }


def faithfulness(
    model: Model | Network,
    images: Tensor,
    maps: Tensor,
    target: Target = None,
    *,
    steps: int = 50,
    deletion_baseline: Baseline = "mean",
    insertion_baseline: Baseline = "blur",
    probability: str | None = "softmax",
    batch_size: int | None = None,
    show_progress: bool = False,
    device: torch.device | str | None = None,
) -> Faithfulness:
    """Delete an image's pixels in the order of a map, or insert them, and watch a score.

    Both curves have both endpoints: the whole image and the baseline. Of equal values in a map the
    earlier pixel in raster order comes first. What is unlike any photo may fool the model, so the
    curves judge a map and the baseline together.

    Args:
        model: a zoo.Network, or a module (or function) from images to scores (images, classes) or
            maps of them, in evaluation mode. It is not changed.
        images: (images, channels, *spatial), one to three spatial axes, floating point.
        maps: (images, *spatial), any real dtype; large where a pixel is said to speak for the
            target. A single image's may be (*spatial).
        target: a class by index or name, or (channel, *position) of dense outputs, whose channels
            count by their mean; a list of one for each image; or a function of the outputs (images,
            ...), as `probability` turns them, that returns (images,) numbers. Default: each image's
            strongest class.
        steps: how often pixels are deleted or inserted, equally many at a time but for rounding; at
            most as many as there are pixels.
        deletion_baseline: what stands where pixels are deleted, as in `backsight.occlusion` but for
            "inpaint".
        insertion_baseline: what stands where none are inserted yet.
        probability: "softmax" or "sigmoid", what the outputs are turned into; None: the scores.
        batch_size: images that run at a time; the curves do not depend on it but for rounding.
            Default: 8 on a CPU, whose caches a larger batch overflows, 64 elsewhere.
        show_progress: show a progress bar on stderr.
        device: where to compute; default: where the model is.

    Returns:
        A `Faithfulness`; its tensors on that device.

    Raises:
        ValueError: an argument does not fit; the sentence says what was expected and what came.
    """
    subject = Subject.of(model, device)
    if batch_size is None:
        batch_size = 8 if subject.device.type == "cpu" else 64
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"expected a positive batch_size, got {batch_size!r}")
    images = subject.take(images)
    maps = _checked(maps, images)
    pixels = prod(images.shape[2:])
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= pixels:
        raise ValueError(f"expected steps in 1..{pixels}, one a pixel at most, got {steps!r}")
    with torch.no_grad(), alone(images.device):
        blanks = [backdrop(b, images) for b in (deletion_baseline, insertion_baseline)]
        order = maps.flatten(1).sort(dim=1, descending=True, stable=True).indices
        ranks = torch.empty_like(order).scatter_(
            1, order, torch.arange(pixels, device=order.device).expand_as(order)
        )
        counts = torch.arange(steps + 1, device=order.device) * pixels // steps
        read = Reader(subject, images, target, probability, batch_size)
        whole = read.read(read.outputs, torch.arange(len(images)))
        ranks = ranks.view_as(maps)
        found = []
        total = 2 * steps * len(images)
        with tqdm(total=total, unit="image", disable=not show_progress) as bar:
            for inserts, blank in enumerate(blanks):
                # The images themselves have been read: nothing deleted, all inserted.
                values = whole[:, None].repeat(1, steps + 1)
                steps_left = counts[:-1] if inserts else counts[1:]
                rows = torch.cartesian_prod(torch.arange(len(images)), torch.arange(steps))
                for some in rows.split(batch_size):
                    index, step = some.to(images.device).T
                    limit = steps_left[step].view(-1, *[1] * (images.ndim - 2))
                    # Of one image, which most often fills the batch, one copy is enough.
                    of = index if some[0, 0] != some[-1, 0] else index[:1]
                    strongest = (ranks[of] < limit)[:, None]
                    pair = (images[of], blank[of])
                    mixed = torch.where(strongest, pair[1 - inserts], pair[inserts])
                    values[index, step + (1 - inserts)] = read.read(read.run(mixed), index)
                    bar.update(len(some))
                found.append(values)
    deletion, insertion = found
    shares = counts.double() / pixels
    return Faithfulness(
        shares,
        deletion,
        insertion,
        torch.trapezoid(deletion.double(), shares),
        torch.trapezoid(insertion.double(), shares),
        maps,
        subject.pictures(images),
        read.aim.labels,
        probability,
    )


def _checked(maps: Tensor, images: Tensor) -> Tensor:
    """Maps (images, *spatial) on the images' device."""
    size = (len(images), *images.shape[2:])
    if not isinstance(maps, Tensor) or maps.is_complex():
        came = maps.dtype if isinstance(maps, Tensor) else type(maps).__name__
        raise ValueError(f"expected maps as a tensor of real numbers, got {came}")
    if len(images) == 1 and maps.shape == size[1:]:
        maps = maps[None]
    if maps.shape != size:
        raise ValueError(f"expected maps of {size} like the images, got {tuple(maps.shape)}")
    if not bool(torch.isfinite(maps).all()):
        raise ValueError("expected finite maps, got NaN or infinity")
    return maps.detach().to(images.device)
