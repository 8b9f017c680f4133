"""Style transfer: the content of one picture in the style of another.

Gatys, Ecker and Bethge, "A Neural Algorithm of Artistic Style", arXiv:1508.06576.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
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

__all__ = ["CONTENT", "STYLE", "Style", "gram", "style"]

#: The layers of the paper, as VGG16's are called in the zoo; it means them behind their ReLUs.
CONTENT = "relu4_2"
STYLE = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")

_STARTS = ("content", "noise")
_HISTORY = 20  # pairs of steps that L-BFGS remembers


@dataclass(frozen=True)
class Style(Result):
    """What `style` makes of photos.

    Attributes:
        images: (images, channels, H, W), in the model's units.
        pictures: (images, H, W, 3) uint8, the same to look at.
        photos: (images, H, W, 3) uint8, the content.
        paintings: (1 or images, h, w, 3) uint8, the style.
        losses: (images, 2) of the pictures: of content and of style, each without its weight.
        starts: (images, 2) the same of what they grew from.
        style_weight: of the loss of style; the other's weight is 1.
        evaluations: for each image how often its losses were computed.
    """

    images: Tensor
    pictures: Tensor
    photos: Tensor
    paintings: Tensor
    losses: Tensor
    starts: Tensor
    style_weight: float
    evaluations: tuple[int, ...]

    def plot(self, image: int = 0) -> Figure:
        """Content, style, and the content in that style."""
        painting = self.paintings[min(image, len(self.paintings) - 1)]
        content, style = self.losses[image].tolist()
        return panels(
            [
                Panel(array(self.photos[image]), "content"),
                Panel(array(painting), "style"),
                Panel(array(self.pictures[image]), "the content in that style"),
            ],
            title="Style transfer",
            note=f"loss of content {content:.4g}, of style {style:.4g} x {self.style_weight:g}",
        )

    def summary(self) -> str:
        first, last = self.starts.tolist(), self.losses.tolist()
        return ", ".join(
            f"content from {a[0]:.4g} to {b[0]:.4g}, style from {a[1]:.4g} to {b[1]:.4g}"
            for a, b in zip(first, last, strict=True)
        )

    def report(self) -> dict[str, Any]:
        def named(losses: Tensor) -> list[dict[str, float]]:
            return [dict(zip(("content", "style"), each, strict=True)) for each in losses.tolist()]

        return {
            "style_weight": self.style_weight,
            "losses": named(self.losses),
            "starts": named(self.starts),
            "evaluations": list(self.evaluations),
        }


def style(
    model: Model | Network,
    images: Tensor,
    painting: Tensor,
    *,
    content_layer: Mixture = CONTENT,
    style_layer: Mixture = STYLE,
    style_weight: float = 1e8,
    start: str = "content",
    average_pools: bool = True,
    steps: int = 100,
    limits: tuple[float, float] | None = None,
    seed: int = 0,
    show_progress: bool = False,
    device: torch.device | str | None = None,
) -> Style:
    """Make the picture that has the content of a photo and the style of a painting, by L-BFGS.

    The loss is that of content, sum w_l sum (F - P)^2 / 2 with F and P what the layers put out for
    the picture and for the photo, plus `style_weight` times that of style,
    sum w_l sum (G / M - A / M')^2 / (4 N^2), with the Gram matrices G of the picture and A of the
    painting, N channels and M and M' positions. Painting and photo may differ in size; for M = M'
    it is the paper's. The model runs only as far as its last layer named here.

    Args:
        model: a zoo.Network ("vgg16-features" has the layers that are the defaults), or a module
            that takes images of any size, in evaluation mode. It is not changed.
        images: (images, channels, H, W), the photos, floating point, normalised as the model takes
            them.
        painting: (1 or images, channels, h, w), the style, normalised likewise.
        content_layer: a layer by name, several, or {name: weight}; equal weights of sum 1 unless
            told.
        style_layer: the same for the style.
        style_weight: what style counts for, against content.
        start: "content" (each photo) or "noise" (uniform over the range of pixels).
        average_pools: average where the model takes maxima in 2-D, which makes smoother pictures,
            while this runs; pools that are dilated or hand out their indices stay.
        steps: how often the loss and its gradient are computed, at most.
        limits: the least and greatest value of a bare model's pixels, which the pictures are cut
            off at in the end; a Network knows its own.
        seed: of the noise.
        show_progress: show a progress bar on stderr.
        device: where to compute; default: where the model is.

    Returns:
        A `Style`; its tensors on that device, float32 for models of half precision.

    Raises:
        ValueError: an argument does not fit; the sentence says what was expected and what came.
    """
    check_steps(steps=steps)
    if start not in _STARTS:
        raise ValueError(f"expected start as one of {', '.join(_STARTS)}, got {start!r}")
    if not style_weight >= 0:
        raise ValueError(f"expected a style_weight of at least 0, got {style_weight!r}")
    subject = Subject.of(model, device)
    images, painting = subject.take(images), subject.take(painting)
    if images.ndim != 4 or painting.ndim != 4 or len(painting) not in (1, len(images)):
        raise ValueError(
            "expected images (images, channels, H, W) and one painting or one for each, got"
            f" {tuple(images.shape)} and {tuple(painting.shape)}"
        )
    pixels = Pixels.of(subject, images, limits)
    contents = weights_of("content_layer", content_layer)
    styles = weights_of("style_layer", style_layer)
    run = in_dtype(stems(subject, list(contents | styles), images), images.dtype)
    first = images if start == "content" else pixels.noise(images.shape[1:], seed)

    def painted(i: int, bar: tqdm) -> tuple[Tensor, Tensor, int]:
        """The picture, its losses (2, 2) before and after, and how often they were computed."""
        photo, model_of_style = images[i, None].clone(), painting[i % len(painting), None].clone()
        losses = _Losses(run, contents, styles, photo, model_of_style)
        x = first[i % len(first), None].to(wide(images.dtype), copy=True)
        found, count = _minimised(lambda x: losses.total(x, style_weight), x, steps, bar)
        found = pixels.kept(found)
        with torch.no_grad():
            last = losses(found)
        assert losses.first is not None
        return found, torch.cat([losses.first, last]), count

    with (
        AveragePools() if average_pools else contextlib.nullcontext(),
        torch.inference_mode(False),
        tqdm(total=len(images) * steps, unit="step", disable=not show_progress) as bar,
    ):
        made = [painted(i, bar) for i in range(len(images))]
    found = torch.cat([picture for picture, _, _ in made])
    return Style(
        found,
        pixels.pictures(found),
        pixels.pictures(images),
        pixels.pictures(painting),
        torch.stack([losses[1] for _, losses, _ in made]),
        torch.stack([losses[0] for _, losses, _ in made]),
        style_weight,
        tuple(count for _, _, count in made),
    )


def gram(maps: Tensor) -> Tensor:
    """The Gram matrices (images, channels, channels) of maps (images, channels, *spatial): the
    products of each two channels, summed over the positions.
    """
    flat = maps.flatten(2)
    products: Tensor = flat @ flat.mT
    return products


class _Losses:
    """The losses of content and of style (1, 2) of a picture, each without its weight."""

    def __init__(
        self,
        run: Callable[[Tensor], list[Tensor]],
        contents: Mapping[str, float],
        styles: Mapping[str, float],
        photo: Tensor,
        painting: Tensor,
    ) -> None:
        self.run, self.contents, self.styles = run, contents, styles
        self.names = list({**contents, **styles})
        self.first: Tensor | None = None  # what the first picture's were
        with torch.no_grad():
            self.photo, self.painting = self._seen(photo), self._seen(painting)
            self.grams = {name: _mean_gram(self.painting[name]) for name in styles}

    def _seen(self, images: Tensor) -> dict[str, Tensor]:
        """What the layers put out, in a precision that can be summed."""
        found = zip(self.names, self.run(images), strict=True)
        return {name: maps.to(wide(maps.dtype)) for name, maps in found}

    def __call__(self, picture: Tensor) -> Tensor:
        found = self._seen(picture)
        content = [
            weight * (found[name] - self.photo[name]).square().sum() / 2
            for name, weight in self.contents.items()
        ]
        style = [
            weight
            * (_mean_gram(found[name]) - self.grams[name]).square().sum()
            / (4 * found[name].shape[1] ** 2)
            for name, weight in self.styles.items()
        ]
        losses = torch.stack([torch.stack(content).sum(), torch.stack(style).sum()])[None]
        if self.first is None:
            self.first = losses.detach()
        return losses

    def total(self, picture: Tensor, style_weight: float) -> Tensor:
        """(1,)"""
        losses = self(picture)
        return losses[:, 0] + style_weight * losses[:, 1]


def _mean_gram(maps: Tensor) -> Tensor:
    """(1, channels, channels), divided by the positions: pictures may differ in size."""
    return gram(maps) / maps[0, 0].numel()


def _minimised(
    loss: Callable[[Tensor], Tensor], x: Tensor, steps: int, bar: tqdm
) -> tuple[Tensor, int]:
    """A picture (1, ...) of small loss (1,), by L-BFGS from `x`; how often that was computed."""
    # torch's L-BFGS takes no other layout.
    leaf, count = x.clone(memory_format=torch.contiguous_format).requires_grad_(), 0
    optimiser = torch.optim.LBFGS(
        [leaf],
        max_iter=steps,
        max_eval=steps,
        tolerance_grad=0.0,
        tolerance_change=0.0,
        history_size=_HISTORY,
        line_search_fn="strong_wolfe",
    )

    def evaluate() -> Tensor:
        nonlocal count
        value, slope = gradient(loss, leaf, lambda loss: loss)
        leaf.grad = slope.contiguous()
        count += 1
        bar.update()
        return value[0]

    optimiser.step(evaluate)
    return leaf.detach(), count


class AveragePools(TorchFunctionMode):
    """A context in which 2-D max pools average: what they would take the maximum of, inside the
    image. Dilated pools and those that hand out indices stay as they are.
    """

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        if function in (F.max_pool2d, torch.max_pool2d):  # with indices it is another function
            found = _averaged(*args, **named)
            if found is not None:
                return found
        return function(*args, **named)


def _averaged(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | None:
    """The average, by F.max_pool2d's arguments; None where torch has none."""
    if dilation not in (1, (1, 1), [1, 1]):
        return None
    return F.avg_pool2d(
        input, kernel_size, stride or None, padding, ceil_mode, count_include_pad=False
    )
