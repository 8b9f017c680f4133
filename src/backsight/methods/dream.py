"""Deep dreams: a photo changed so that a layer sees more of what it sees already.

Mordvintsev, Olah and Tyka, "Inceptionism: Going Deeper into Neural Networks", Google Research
Blog, 2015, and the program that came with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ..models.call import Model
from ..models.gradient import gradient
from ..models.pixels import Pixels, check_steps, in_dtype, wide
from ..models.stem import Mixture, stems, weights_of
from ..models.subject import Subject
from ..plots import Panel, panels
from ..results import Result, array
from ..zoo.network import Network

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Dream", "dream"]

_STEP = 1.5  # levels of 0..255, the mean change of a step


@dataclass(frozen=True)
class Dream(Result):
    """What `dream` makes of photos.

    Attributes:
        images: (images, channels, H, W), in the model's units.
        pictures: (images, H, W, 3) uint8, the same to look at.
        photos: (images, H, W, 3) uint8, what was dreamt of.
        before: (images,) half the weighted sum of the photos' squared activations.
        after: (images,) that of the dreams.
        layers: the layers and their weights.
    """

    images: Tensor
    pictures: Tensor
    photos: Tensor
    before: Tensor
    after: Tensor
    layers: dict[str, float]

    def plot(self, image: int = 0) -> Figure:
        """The photo and the dream."""
        photo, dreamt = array(self.photos[image]), array(self.pictures[image])
        return panels(
            [Panel(photo, "photo"), Panel(dreamt, "dream")],
            title=f"Dream of {_mixture(self.layers)}",
            note="what the layer sees in the photo, made more",
        )

    def summary(self) -> str:
        found = zip(self.before.tolist(), self.after.tolist(), strict=True)
        of = _mixture(self.layers)
        return ", ".join(f"dream of {of}, activity from {a:.4g} to {b:.4g}" for a, b in found)

    def report(self) -> dict[str, Any]:
        return {
            "layers": self.layers,
            "before": self.before.tolist(),
            "after": self.after.tolist(),
        }


def dream(
    model: Model | Network,
    images: Tensor,
    *,
    layer: Mixture,
    steps: int = 10,
    step: float | None = None,
    octaves: int = 4,
    scale: float = 1.4,
    jitter: int = 32,
    limits: tuple[float, float] | None = None,
    seed: int = 0,
    batch_size: int = 8,
    show_progress: bool = False,
    device: torch.device | str | None = None,
) -> Dream:
    """Change photos so that layers are more active: at a layer the gradient is the activation.

    The photo is dreamt of at the smallest of several sizes first. What that added, and no more, is
    scaled up and laid over the photo at the next size. Each step shifts the picture around its
    edges at random, goes along the gradient, and shifts it back. Low layers give edges and
    textures, high ones parts of things. The model runs only as far as its last layer named here.

    Args:
        model: a zoo.Network, or a module that takes images of any size, in evaluation mode. It is
            not changed.
        images: (images, channels, H, W), floating point, normalised as the model takes them.
        layer: the layer, by name; several; or {name: weight}, a mixture.
        steps: steps at each size.
        step: how far each goes, as the mean change of an image's values in levels of 0..255, or in
            the model's own units where the range of its pixels is not known; None: 1.5 levels, or
            0.023.
        octaves: how many sizes.
        scale: from each size to the next, above 1.
        jitter: the shifts are up to so many pixels each way; 0: none.
        limits: the least and greatest value of a bare model's pixels, which are kept between them;
            a Network knows its own.
        seed: of the shifts, which all images of a call share.
        batch_size: images that are dreamt of at a time.
        show_progress: show a progress bar on stderr.
        device: where to compute; default: where the model is.

    Returns:
        A `Dream`; its tensors on that device, float32 for models of half precision.

    Raises:
        ValueError: an argument does not fit; the sentence says what was expected and what came.
    """
    check_steps(steps=steps, octaves=octaves, batch_size=batch_size)
    if (
        (step is not None and not step > 0)
        or not scale > 1
        or isinstance(jitter, bool)
        or not jitter >= 0
    ):
        raise ValueError(
            "expected a positive step, a scale above 1 and a jitter of at least 0, got step"
            f" {step}, scale {scale}, jitter {jitter}"
        )
    subject = Subject.of(model, device)
    images = subject.take(images)
    if images.ndim != 4:
        raise ValueError(f"expected images (images, channels, H, W), got {tuple(images.shape)}")
    pixels = Pixels.of(subject, images, limits)
    length = pixels.usual(_STEP) if step is None else step
    layers = weights_of("layer", layer)
    run = in_dtype(stems(subject, list(layers), images), images.dtype)
    photos = images.to(wide(images.dtype))

    def activity(images: Tensor) -> Tensor:
        """(images,): its gradient with respect to an activation is that, times the weight."""
        return _energy(run(images), list(layers.values()))

    sizes = [tuple(max(1, round(n / scale**i)) for n in images.shape[2:]) for i in range(octaves)][
        ::-1
    ]
    _check_smallest(activity, photos[:1], sizes[0])

    def dreamt(photos: Tensor, bar: tqdm) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        added = torch.zeros_like(photos)
        for size in sizes:
            base = _resized(photos, size)
            x = base + _resized(added, size)
            for _ in range(steps):
                shift = torch.randint(-jitter, jitter + 1, (2,), generator=generator).tolist()
                x = torch.roll(x, shift, (2, 3)) if any(shift) else x
                _, g = gradient(activity, x, lambda activity: activity)
                x = x + pixels.step(g, length)
                x = torch.roll(x, [-n for n in shift], (2, 3)) if any(shift) else x
                x = pixels.kept(x)
                bar.update(len(x))
            added = x - base
        return x

    made, before, after = [], [], []
    with tqdm(total=len(images) * octaves * steps, unit="step", disable=not show_progress) as bar:
        for some in photos.split(batch_size):
            made.append(dreamt(some, bar))
            with torch.no_grad():
                before.append(activity(some))
                after.append(activity(made[-1]))
    found = torch.cat(made)
    return Dream(
        found,
        pixels.pictures(found),
        pixels.pictures(images),
        torch.cat(before),
        torch.cat(after),
        layers,
    )


def _energy(outputs: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """(images,): half the squares of the activations, summed with weights."""
    squares = [
        weight * found.to(wide(found.dtype)).square().flatten(1).sum(1)
        for found, weight in zip(outputs, weights, strict=True)
    ]
    return torch.stack(squares).sum(0) / 2


def _resized(images: Tensor, size: Sequence[int]) -> Tensor:
    if images.shape[2:] == tuple(size):
        return images
    smaller = size[0] < images.shape[2]
    return F.interpolate(images, list(size), mode="bilinear", antialias=smaller)


def _check_smallest(activity: Any, image: Tensor, size: Sequence[int]) -> None:
    """Refuse, before the work, what no photo is large enough for."""
    try:
        with torch.no_grad():
            activity(_resized(image, size))
    except RuntimeError as error:
        cause = str(error).splitlines()[0]
        raise ValueError(
            f"expected images large enough for all octaves, and the model cannot take the"
            f" smallest, {size[0]} x {size[1]}: {cause}"
        ) from error


def _mixture(layers: Mapping[str, float]) -> str:
    even = len(set(layers.values())) == 1
    return " + ".join(name if even else f"{w:.3g} {name}" for name, w in layers.items())
