"""Class models: the picture that a unit likes best.

Simonyan, Vedaldi and Zisserman, "Deep Inside Convolutional Networks: Visualising Image
Classification Models and Saliency Maps", arXiv:1312.6034; Yosinski, Clune, Nguyen, Fuchs and
Lipson, "Understanding Neural Networks Through Deep Visualization", arXiv:1506.06579.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from .. import baselines
from ..models.call import Model
from ..models.gradient import gradient
from ..models.pixels import Pixels, check_steps, in_dtype, usual_shape, wide
from ..models.stem import stem
from ..models.subject import Subject
from ..models.targets import Aim, Target, aim
from ..plots import gallery
from ..results import Result, array
from ..zoo.network import Network

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ClassModel", "class_model"]

_LEAST_SIGMA = 0.3  # pixels; a narrower Gaussian leaves the grid of pixels as it is
_STEP = 6.0  # levels of 0..255, the mean change of a step
_NOISE = 10.0  # levels of 0..255, the deviation of what the ascent starts from


@dataclass(frozen=True)
class ClassModel(Result):
    """What `class_model` makes: a picture for each target and seed, the seeds of a target together.

    Attributes:
        images: (pictures, channels, *spatial), in the model's units; each the best that was met.
        scores: (pictures,) what the targets make of them.
        histories: (pictures, steps + 1) the score before each step, and after the last.
        pictures: (pictures, H, W, 3) uint8, to look at.
        targets: for each picture what its target is called.
        seeds: for each picture the seed of what it grew from.
        layer: whose units the targets are; None: the model's outputs.
    """

    images: Tensor
    scores: Tensor
    histories: Tensor
    pictures: Tensor
    targets: tuple[str, ...]
    seeds: tuple[int, ...]
    layer: str | None

    def plot(self) -> Figure:
        """The pictures, each with its target and score."""
        several = len(set(self.seeds)) > 1
        labels = [
            f"{name}{f', seed {seed}' if several else ''}\nscore {score:.4g}"
            for name, seed, score in zip(
                self.targets, self.seeds, self.scores.tolist(), strict=True
            )
        ]
        where = "" if self.layer is None else f" of {self.layer}"
        title = f"What excites{where or ' a class'} most"
        return gallery(list(array(self.pictures)), labels=labels, title=title)

    def summary(self) -> str:
        found = zip(self.targets, self.histories[:, 0].tolist(), self.scores.tolist(), strict=True)
        return ", ".join(f"{name}: from {start:.4g} to {end:.4g}" for name, start, end in found)

    def report(self) -> dict[str, Any]:
        return {
            "layer": self.layer,
            "targets": list(self.targets),
            "seeds": list(self.seeds),
            "scores": self.scores.tolist(),
            "starts": self.histories[:, 0].tolist(),
            "best_steps": self.histories.argmax(1).tolist(),
        }


def class_model(
    model: Model | Network,
    target: Target,
    *,
    layer: str | None = None,
    start: Tensor | None = None,
    shape: Sequence[int] | None = None,
    steps: int = 200,
    step: float | None = None,
    rate: float | None = None,
    l2: float = 0.0,
    decay: float = 0.02,
    blur: float = 1.0,
    blur_every: int = 2,
    clip_norm: float = 0.0,
    clip_contribution: float = 0.0,
    rescale: bool = False,
    limits: tuple[float, float] | None = None,
    seed: int | Sequence[int] = 0,
    batch_size: int = 4,
    show_progress: bool = False,
    device: torch.device | str | None = None,
) -> ClassModel:
    """Make the picture x that a target scores highest, by gradient ascent from noise.

    With g the gradient of the score S(x) - l2 |x|^2, each step does, in the order of Yosinski et
    al.: x += rate g; x *= 1 - decay; every `blur_every` steps x is blurred; the pixels with the
    smallest norms become 0; the pixels with the smallest contributions |sum over channels of g x|
    become 0. 0 is the mean pixel of usual networks. The last step has none of these regularisers.
    The best picture met on the way is kept. On a bare linear model with scores w x the optimum is
    w / (2 l2).

    What a picture becomes does not depend on the others of its call, but for rounding.

    Args:
        model: a zoo.Network, or a module (or function) from images to scores (images, classes), in
            evaluation mode. It is not changed.
        target: a class by index or name; with `layer`, a channel (its mean over space); or a neuron
            (channel, *position); a list of such, a picture for each; or a function of the outputs
            (images, ...) that returns (images,) scores.
        layer: whose outputs the target is in; None: the model's own.
        start: (1, channels, *spatial) or one for each target, normalised as the model takes it,
            to grow all pictures from; None: faint noise around 0, or around the middle of `limits`.
        shape: (channels, *spatial) of the pictures without `start`; None: a Network's usual size.
        steps: steps of ascent.
        step: how far each goes, as the mean change of the values in levels of 0..255, or in the
            model's own units where the range of its pixels is not known; None: 6 levels, or 0.1.
        rate: what the gradient is multiplied by, instead of what gives each step its length `step`.
        l2: Simonyan's penalty on the sum of squares, in the model's units.
        decay: the share of each value that goes at each step, in [0, 1).
        blur: sigma of a Gaussian in pixels, at least 0.3 (below it hardly does anything); 0: none.
        blur_every: it comes after every so many steps.
        clip_norm: the percentage of pixels with the smallest norm over the channels that become 0.
        clip_contribution: the same of those with the smallest contribution.
        rescale: let the values leave the range of pixels, and stretch each picture to 0..255 at the
            end; otherwise they are kept in range at every step, where the range is known.
        limits: the least and greatest value of a bare model's pixels; a Network knows its own.
        seed: of the noise that all pictures grow from; several: each target has a picture of each.
        batch_size: pictures that grow at a time.
        show_progress: show a progress bar on stderr.
        device: where to compute; default: where the model is.

    Returns:
        A `ClassModel`; its tensors on that device, float32 for models of half precision.

    Raises:
        ValueError: an argument does not fit; the sentence says what was expected and what came.
    """
    check_steps(steps=steps, blur_every=blur_every, batch_size=batch_size)
    given = [length for length in (step, rate) if length is not None]
    if not all(length > 0 for length in given) or not l2 >= 0 or not 0 <= decay < 1:
        raise ValueError(
            "expected positive step and rate, l2 of at least 0 and decay in [0, 1), got step"
            f" {step}, rate {rate}, l2 {l2}, decay {decay}"
        )
    if blur and not blur >= _LEAST_SIGMA:
        raise ValueError(f"expected blur as sigma of at least {_LEAST_SIGMA} or 0, got {blur}")
    for name, percent in (("clip_norm", clip_norm), ("clip_contribution", clip_contribution)):
        if not 0 <= percent < 100:
            raise ValueError(f"expected {name} as a percentage in [0, 100), got {percent}")
    seeds = [seed] if isinstance(seed, int) else list(seed)
    if not seeds:
        raise ValueError("expected a seed at least, got none")
    subject = Subject.of(model, device)
    first = start if start is not None else torch.zeros(1, *usual_shape(subject, shape))
    first = subject.take(first if start is not None else first.to(subject.dtype))
    pixels = Pixels.of(subject, first, limits)
    length = pixels.usual(_STEP) if step is None else step
    run = in_dtype(stem(subject, layer, first), first.dtype)
    middle = 0.0 if limits is None else sum(limits) / 2
    starts = [
        middle + pixels.usual(_NOISE) * pixels.level * _normal(first, each)
        if start is None
        else first.to(wide(first.dtype))
        for each in seeds
    ]
    units = _units(target)
    count = len(units) if isinstance(units, list) else 1
    if len(first) not in (1, count):
        raise ValueError(
            f"expected one start, or one for each of {count} targets, got {len(first)}"
        )
    order = [(i, j) for i in range(count) for j in range(len(seeds))]
    with torch.no_grad():
        output = run(first[:1])
    wanted = aim(
        subject,
        [units[i] for i, _ in order] if isinstance(units, list) else units,
        output.expand(len(order), *output.shape[1:]),
        "class" if layer is None else "channel",
    )
    grown = torch.cat([starts[j][i if len(first) > 1 else 0, None] for i, j in order])
    # The faster layout of convolutions on CPUs, and as fast on GPUs.
    grown = grown.contiguous(memory_format=torch.channels_last) if grown.ndim == 4 else grown
    blurs = _blurs(grown, blur)

    def ascend(x: Tensor, score: Aim, bar: tqdm) -> tuple[Tensor, Tensor, Tensor]:
        best, most, history = x, x.new_full((len(x),), -torch.inf), []
        for k in range(steps):
            found, g = gradient(run, x, score)
            history.append(found)
            best, most = _better(best, most, x, found)
            g = g - 2 * l2 * x if l2 else g
            x = x + (pixels.step(g, length) if rate is None else rate * g)
            if k < steps - 1:
                x = x * (1 - decay) if decay else x
                x = _blurred(x, blurs) if (k + 1) % blur_every == 0 else x
                x = _clipped(x, _norms, clip_norm)
                x = _clipped(x, functools.partial(_contributions, g), clip_contribution)
            x = x if rescale else pixels.kept(x)
            bar.update(len(x))
        with torch.no_grad():
            found = score(run(x))
        best, most = _better(best, most, x, found)
        return best, most, torch.stack([*history, found], 1)

    made = []
    with tqdm(total=len(order) * steps, unit="step", disable=not show_progress) as bar:
        for at in range(0, len(order), batch_size):
            some = slice(at, at + batch_size)
            made.append(ascend(grown[some], wanted.of(some), bar))
    images, scores, histories = (torch.cat(parts) for parts in zip(*made, strict=True))
    if not bool(torch.isfinite(scores).all()):
        raise ValueError("expected finite scores, got NaN or infinity: take smaller steps")
    images = images.contiguous()
    return ClassModel(
        images,
        scores,
        histories,
        pixels.pictures(pixels.stretched(images) if rescale else images),
        wanted.labels,
        tuple(seeds[j] for _, j in order),
        layer,
    )


def _units(target: Target) -> Any:
    """A function, or a list of a unit for each picture."""
    if target is None:
        raise ValueError("expected a target: a class or channel, a neuron, a list or a function")
    if callable(target):
        return target
    given: Any = target.tolist() if isinstance(target, Tensor) else target
    several = isinstance(given, Sequence) and not isinstance(given, str | tuple)
    units = list(given) if several else [given]
    if not units:
        raise ValueError("expected a target at least, got none")
    return units


def _normal(like: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(like.shape, generator=generator, dtype=torch.float64)
    return drawn.to(like.device, wide(like.dtype))


def _better(best: Tensor, most: Tensor, x: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
    """The best pictures and scores, with those of `x` where they are better."""
    better = found > most
    if bool(better.all()):
        return x, found
    where = better.view(-1, *(1,) * (x.ndim - 1))
    return torch.where(where, x, best), torch.where(better, found, most)


def _blurs(like: Tensor, sigma: float) -> list[Tensor]:
    """For each axis the matrix that blurs the lines that are multiplied by it."""
    if not sigma:
        return []
    impulses = [torch.eye(n, dtype=torch.float64).unsqueeze(1) for n in like.shape[2:]]
    return [baselines.blur(each, sigma)[:, 0].to(like.device, like.dtype) for each in impulses]


def _blurred(x: Tensor, blurs: Sequence[Tensor]) -> Tensor:
    for axis, matrix in enumerate(blurs, 2):
        lines: Tensor = x.movedim(axis, -1) @ matrix
        x = lines.movedim(-1, axis)
    return x


def _norms(x: Tensor) -> Tensor:
    """(images, 1, *spatial), over the channels."""
    norms: Tensor = x.norm(dim=1, keepdim=True)
    return norms


def _contributions(g: Tensor, x: Tensor) -> Tensor:
    """(images, 1, *spatial), what each pixel adds to the score or takes from it, to first order."""
    return (g * x).sum(1, keepdim=True).abs()


def _clipped(x: Tensor, size: Callable[[Tensor], Tensor], percent: float) -> Tensor:
    """The pictures with so many percent of their pixels 0, those of the smallest size."""
    count = round(percent / 100 * x[0, 0].numel())
    if not count:
        return x
    sizes = size(x)
    flat = sizes.flatten(1)
    largest = flat.kthvalue(count, 1).values.view(-1, *(1,) * (x.ndim - 1))
    clipped: Tensor = torch.where(sizes > largest, x, 0.0)
    return clipped
