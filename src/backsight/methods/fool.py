"""Fooling and adversarial images: what little makes a network decide otherwise.

Goodfellow, Shlens and Szegedy, "Explaining and Harnessing Adversarial Examples", arXiv:1412.6572
(FGSM); Madry, Makelov, Schmidt, Tsipras and Vladu, "Towards Deep Learning Models Resistant to
Adversarial Attacks", arXiv:1706.06083 (PGD); Nguyen, Yosinski and Clune, "Deep Neural Networks are
Easily Fooled", arXiv:1412.1897 (from noise).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..models.call import Call, Model
from ..models.gradient import gradient
from ..models.pixels import Pixels, check_steps, usual_shape, wide
from ..models.subject import Subject
from ..models.targets import Target, aim
from ..plots import Panel, panels
from ..results import Result, array
from ..zoo.network import Network

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Fool", "fool"]

_METHODS = ("pgd", "fgsm")
_NORMS = ("linf", "l2")
_HALVINGS = 8  # of the range in which the smallest change is sought


@dataclass(frozen=True)
class Fool(Result):
    """What `fool` makes of images.

    Changes are in levels of 0..255; in the model's own units where the range of its pixels is not
    known.

    Attributes:
        images: (images, channels, *spatial) the changed images, as the model takes them.
        changes: (images, channels, *spatial) what was added.
        distances: (images,) float64, the norms of the changes.
        reached: (images,) bool, whether the wanted confidence was.
        before: (images, classes) the probabilities of the images as they were.
        after: (images, classes) those of the changed images.
        photos: (images, H, W, 3) uint8, the images as they were.
        pictures: (images, H, W, 3) uint8, the changed images, rounded to whole levels to be shown.
        names: for each image what its strongest class was called, and is called now.
        targets: for each image what its target is called; None without targets.
        norm: "linf", the largest change of a value, or "l2", the root of the sum of squares.
        epsilon: the bound of the norm; None: none but the range of pixels.
        confidence: the wanted probability.
    """

    images: Tensor
    changes: Tensor
    distances: Tensor
    reached: Tensor
    before: Tensor
    after: Tensor
    photos: Tensor
    pictures: Tensor
    names: tuple[tuple[str, str], ...]
    targets: tuple[str, ...] | None
    norm: str
    epsilon: float | None
    confidence: float

    def plot(self, image: int = 0) -> Figure:
        """Before, what was added, and after."""
        was, now = self.names[image]
        shares = [float(each[image].max()) for each in (self.before, self.after)]
        # Over the channels, whose order is the network's own.
        change = array(self.changes[image]).mean(0)
        most = float(np.quantile(np.abs(change), 0.99)) or 1.0
        length = {"linf": "largest change of a value", "l2": "norm of the change"}[self.norm]
        bound = "" if self.epsilon is None else f", at most {self.epsilon:g}"
        return panels(
            [
                Panel(array(self.photos[image]), f"{was}, {100 * shares[0]:.1f}%"),
                Panel(change, "what was added, much enlarged", limits=(-most, most)),
                Panel(array(self.pictures[image]), f"{now}, {100 * shares[1]:.1f}%"),
            ],
            title=f"{was} becomes {now}" if was != now else f"{was} stays",
            note=f"{length} {float(self.distances[image]):.4g}{bound}, in levels of 0..255",
        )

    def summary(self) -> str:
        return ", ".join(
            f"{was} {'becomes' if done else 'does not change enough, is'} {now}"
            f" ({float(share.max()):.1%}) by a change of {distance:.4g} ({self.norm})"
            for (was, now), done, share, distance in zip(
                self.names, self.reached.tolist(), self.after, self.distances.tolist(), strict=True
            )
        )

    def report(self) -> dict[str, Any]:
        return {
            "targets": None if self.targets is None else list(self.targets),
            "names": [dict(zip(("before", "after"), each, strict=True)) for each in self.names],
            "confidences": self.after.amax(1).tolist(),
            "reached": self.reached.tolist(),
            "distances": self.distances.tolist(),
            "norm": self.norm,
            "epsilon": self.epsilon,
        }


def fool(
    model: Model | Network,
    images: Tensor | None,
    target: Target = None,
    *,
    confidence: float = 0.9,
    method: str = "pgd",
    norm: str = "linf",
    epsilon: float | None = None,
    smallest: bool = False,
    steps: int = 40,
    step: float | None = None,
    shape: Sequence[int] | None = None,
    limits: tuple[float, float] | None = None,
    seed: int = 0,
    batch_size: int = 16,
    show_progress: bool = False,
    device: torch.device | str | None = None,
) -> Fool:
    """Change images, or noise, little by little until a network takes them for something else.

    Each step goes along the gradient of the log odds of the target (without one, against those of
    the class that is strongest at first), which has the direction of the cross-entropy's: by its
    signs ("linf") or along itself ("l2"). The change stays within `epsilon` and the pixels within
    their range, both exactly. An image that has reached the wanted confidence is left as it is.

    As an explanation, ask for the smallest change: what is between the two classes. It says nothing
    of the network's other mistakes, and it may be lost when the picture is rounded to whole levels.

    Args:
        model: a zoo.Network, or a module (or function) from images to scores (images, classes), two
            at least, in evaluation mode. It is not changed.
        images: (images, channels, *spatial), floating point, normalised as the model takes them;
            None: uniform noise, one image for each target.
        target: the class to be taken for, by index or name, or a list of one for each image; None:
            any other than now.
        confidence: the wanted probability (softmax of the scores) of that class, which is the
            strongest then; 0: it need but be the strongest.
        method: "pgd": many steps; "fgsm": one of length `epsilon`.
        norm: "linf": the largest change of a value; "l2": the root of the sum of their squares.
        epsilon: how large the norm of the change may be, in levels of 0..255; in the model's own
            units where the range of its pixels is not known; None: as large as it takes.
        smallest: halve `epsilon` again and again for the smallest change that reaches the
            confidence.
        steps: steps of "pgd", at most.
        step: how far each goes, in units of `epsilon`; None: 2.5 epsilon / steps, and without
            `epsilon` 1 for each value ("l2": in the root mean square).
        shape: (channels, *spatial) of the noise; None: a Network's usual size.
        limits: the least and greatest value of a bare model's pixels; a Network knows its own.
        seed: of the noise, which all images share.
        batch_size: images that are changed at a time.
        show_progress: show a progress bar on stderr.
        device: where to compute; default: where the model is.

    Returns:
        A `Fool`; its tensors on that device.

    Raises:
        ValueError: an argument does not fit; the sentence says what was expected and what came.
    """
    check_steps(steps=steps, batch_size=batch_size)
    for option, value, words in (("method", method, _METHODS), ("norm", norm, _NORMS)):
        if value not in words:
            raise ValueError(f"expected {option} as one of {', '.join(words)}, got {value!r}")
    if not 0 <= confidence < 1:
        raise ValueError(f"expected a confidence in [0, 1), got {confidence!r}")
    for option, length in (("epsilon", epsilon), ("step", step)):
        if length is not None and not 0 < length < math.inf:
            raise ValueError(f"expected a positive {option}, got {length!r}")
    if method == "fgsm" and epsilon is None and not smallest:
        raise ValueError('expected an epsilon, which is the length of the step of "fgsm", got none')
    if callable(target):
        raise ValueError("expected a target as a class that has a probability, got a function")
    subject = Subject.of(model, device)
    if images is None:
        like = subject.take(torch.zeros(1, *usual_shape(subject, shape), dtype=subject.dtype))
        count = len(target) if isinstance(target, list | Tensor) else 1
        noise = Pixels.of(subject, like, limits).noise(like.shape[1:], seed)
        images = noise.to(like.dtype).expand(count, *like.shape[1:])
    images = subject.take(images)
    run = Call(subject.model, (), images)
    before = torch.cat([_scores(run, some) for some in images.split(batch_size)])
    wanted = aim(subject, target, before)
    assert wanted.units is not None
    classes = torch.tensor([unit[0] for unit in wanted.units], device=before.device)
    goal = _Goal(classes, target is None, confidence)
    pixels = Pixels.of(subject, images.double(), limits)
    path = _Path(run, pixels, norm, 1 if method == "fgsm" else steps, step)
    made, reached = [], []
    with tqdm(total=len(images), unit="image", disable=not show_progress) as bar:
        for first in range(0, len(images), batch_size):
            some = slice(first, first + batch_size)
            search = _smallest if smallest else _once
            found, done = search(path, images[some], goal.of(some), epsilon)
            made.append(found)
            reached.append(done)
            bar.update(len(found))
    found = torch.cat(made)
    after = torch.cat([_scores(run, some) for some in found.split(batch_size)])
    winners = torch.stack([before.argmax(1), after.argmax(1)], 1).tolist()
    changes = path.change(images, found)
    return Fool(
        found,
        changes.to(wide(images.dtype)),
        _norm(changes, norm),
        torch.cat(reached),
        before.softmax(1),
        after.softmax(1),
        pixels.pictures(images),
        pixels.pictures(found),
        tuple(
            (subject.label(was, after.shape[1]), subject.label(now, after.shape[1]))
            for was, now in winners
        ),
        None if target is None else wanted.labels,
        norm,
        epsilon,
        confidence,
    )


@torch.no_grad()
def _scores(run: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """(images, classes), of a precision for probabilities."""
    found = run(images)
    if found.ndim != 2 or found.shape[1] < 2:
        raise ValueError(
            "expected a model of scores (images, classes) of two classes at least, got"
            f" {tuple(found.shape)}"
        )
    return found.to(wide(found.dtype))


@dataclass(frozen=True)
class _Goal:
    """What images shall be taken for.

    Attributes:
        classes: (images,) int64.
        away: for anything but that.
        confidence: with this probability.
    """

    classes: Tensor
    away: bool
    confidence: float

    def of(self, images: slice | Tensor) -> _Goal:
        return _Goal(self.classes[images], self.away, self.confidence)

    def score(self, scores: Tensor) -> Tensor:
        """(images,) the log odds of the class, or against it: unlike the cross-entropy, whose
        gradient has the same direction, these do not flatten out where a network is sure.
        """
        scores = scores.to(wide(scores.dtype))
        # A copy, for callers in inference mode, whose tensors autograd refuses.
        column = self.classes.clone()[:, None]
        odds = scores.gather(1, column)[:, 0] - scores.scatter(1, column, -math.inf).logsumexp(1)
        return -odds if self.away else odds

    def reached(self, scores: Tensor) -> Tensor:
        """(images,) bool."""
        most, winners = scores.to(wide(scores.dtype)).softmax(1).max(1)
        return ((winners == self.classes) != self.away) & (most >= self.confidence)


class _Path:
    """Steps of images within a distance of where they were, in levels; see `fool`."""

    def __init__(
        self,
        run: Callable[[Tensor], Tensor],
        pixels: Pixels,
        norm: str,
        steps: int,
        step: float | None,
    ) -> None:
        self.run, self.pixels, self.norm, self.steps, self.step = run, pixels, norm, steps, step

    def change(self, images: Tensor, found: Tensor) -> Tensor:
        """float64, in levels."""
        return (found.double() - images.double()) / self.pixels.level

    def unit(self, images: Tensor) -> float:
        """A change of 1 level of each value."""
        return 1.0 if self.norm == "linf" else math.sqrt(images[0].numel())

    def follow(self, images: Tensor, goal: _Goal, bound: Tensor) -> tuple[Tensor, Tensor]:
        """The images changed until they reach the goal, and whether they did, (images,) bool.

        Args:
            bound: (images,) float64, of the norms; infinity: none.
        """
        axes = (-1, *(1,) * (images.ndim - 1))
        free = torch.full_like(bound, self.unit(images))
        length = torch.where(bound.isinf(), free, bound * min(1.0, 2.5 / self.steps))
        if self.step is not None:
            length = torch.full_like(bound, self.step)
        found, done = (
            images.clone(),
            torch.zeros(len(images), dtype=torch.bool, device=images.device),
        )
        change = torch.zeros_like(images, dtype=torch.float64)
        for k in range(self.steps + 1):
            left = (~done).nonzero()[:, 0]
            if not len(left):
                break
            part = goal.of(left)
            seen: list[Tensor] = []

            def score(output: Tensor, part: _Goal = part, seen: list[Tensor] = seen) -> Tensor:
                seen.append(output.detach())
                return part.score(output)

            if k == self.steps:
                done[left] = part.reached(_scores(self.run, found[left]))
                break
            _, g = gradient(self.run, found[left], score)
            arrived = part.reached(seen[0])
            done[left] = arrived
            left, g = left[~arrived], g[~arrived]
            if not len(left):
                break
            moved = change[left] + length[left].view(axes) * self._direction(g)
            found[left], change[left] = self._placed(images[left], moved, bound[left])
        return found, done

    def _direction(self, g: Tensor) -> Tensor:
        """The change of norm 1 along which a score rises fastest."""
        g = g.double()
        if self.norm == "linf":
            return g.sign()
        g = g * self.pixels.level
        size = _norm(g, "l2").view(-1, *(1,) * (g.ndim - 1))
        return torch.where(size > 0, g / size, 0.0)

    def _placed(self, images: Tensor, change: Tensor, bound: Tensor) -> tuple[Tensor, Tensor]:
        """The images with a change as much of which as is allowed, and that change, unrounded."""
        here, level = images.double(), self.pixels.level
        low, high = self.pixels.low, self.pixels.high
        axes = (-1, *(1,) * (images.ndim - 1))
        limit = bound.view(axes)
        if self.norm == "linf":
            change = change.clamp(-limit, limit)
        else:
            size = _norm(change, "l2").view(axes)
            change = torch.where(size > limit, change * (limit / size), change)
        there = here + change * level
        if low is not None and high is not None:
            # A pixel that lies outside already need not come in: that could be a long way.
            there = there.clamp(torch.minimum(here, low), torch.maximum(here, high))
        while True:
            found = there.to(images.dtype)
            far = (found.double() - here).abs() > (there - here).abs()
            found = torch.where(far, found.nextafter(images), found)
            over = _norm(self.change(images, found), self.norm) > bound
            if not bool(over.any()):
                return found, (there - here) / level
            # the last bits of float64
            there = torch.where(over.view(axes), here + (there - here) * (1 - 2**-40), there)


def _norm(changes: Tensor, norm: str) -> Tensor:
    """(images,)"""
    flat = changes.flatten(1)
    return flat.abs().amax(1) if norm == "linf" else flat.norm(dim=1)


def _once(path: _Path, images: Tensor, goal: _Goal, epsilon: float | None) -> tuple[Tensor, Tensor]:
    bound = math.inf if epsilon is None else epsilon
    bounds = torch.full((len(images),), bound, dtype=torch.float64, device=images.device)
    return path.follow(images, goal, bounds)


def _smallest(
    path: _Path, images: Tensor, goal: _Goal, epsilon: float | None
) -> tuple[Tensor, Tensor]:
    """The closest images that are found to reach the goal, by halving how far they may be."""
    most = 256 * path.unit(images) if epsilon is None else epsilon
    bound = path.unit(images) if epsilon is None else epsilon
    high = torch.full((len(images),), bound, dtype=torch.float64, device=images.device)
    low = torch.zeros_like(high)
    found, done = path.follow(images, goal, high)
    while not bool(done.all()) and bound < most:
        bound *= 2
        left = (~done).nonzero()[:, 0]
        low[left], high[left] = high[left], bound
        found[left], done[left] = path.follow(images[left], goal.of(left), high[left])
    for _ in range(_HALVINGS):
        here = done.nonzero()[:, 0]
        if not len(here):
            break
        high[here] = _norm(path.change(images[here], found[here]), path.norm)
        middle = (low + high)[here] / 2
        closer, arrived = path.follow(images[here], goal.of(here), middle)
        found[here[arrived]], done[here[arrived]] = closer[arrived], True
        low[here[~arrived]] = middle[~arrived]
    return found, done
