"""What comes back to images from a score of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from .stem import stem
from .subject import Subject
from .targets import Aim, Target, aim, part

__all__ = ["Slopes", "gradient", "target_gradients"]


class Slopes(NamedTuple):
    """The scores (images,) of targets, their gradients, shaped like the images, and what the
    targets are called.
    """

    scores: Tensor
    gradients: Tensor
    labels: tuple[str, ...]


def gradient(
    function: Callable[[Tensor], Tensor], images: Tensor, score: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """The scores (images,) of `score(function(images))`, and their gradients, shaped like the
    images.

    No gradient of a weight is computed, and nothing is left on the model or the images. A model
    under `torch.no_grad` or in inference mode is differentiated all the same.

    Raises:
        ValueError: the scores do not depend on the images.
    """
    with torch.inference_mode(False), torch.enable_grad():
        leaf = (images.clone() if images.is_inference() else images.detach()).requires_grad_()
        scores = score(function(leaf))
        if not scores.requires_grad:
            raise ValueError("expected scores that depend on the images by differentiable steps")
        (found,) = torch.autograd.grad(scores.sum(), leaf, allow_unused=True)
    if found is None:
        raise ValueError("expected scores that depend on the images, got scores that do not")
    return scores.detach(), found


def target_gradients(
    subject: Subject,
    images: Tensor,
    target: Target,
    *,
    layer: str | None = None,
    batch_size: int = 32,
    show_progress: bool = False,
) -> Slopes:
    """The gradients of each image's target, so many images at a time.

    Args:
        images: as `Subject.take` gives them.
        layer: whose output the target is in; None: the model's.

    Raises:
        ValueError: there is no such target or layer, or batch_size is not positive.
    """
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"expected a positive batch_size, got {batch_size!r}")
    run = stem(subject, layer, images)
    scores: list[Tensor] = []
    slopes: list[Tensor] = []
    labels: list[str] = []
    with tqdm(total=len(images), unit="image", disable=not show_progress) as bar:
        for first in range(0, len(images), batch_size):
            some = images[first : first + batch_size]
            wanted = part(target, first, len(some), len(images))
            chosen: list[Aim] = []

            def score(output: Tensor, wanted: Target = wanted, to: list[Aim] = chosen) -> Tensor:
                to.append(aim(subject, wanted, output))
                return to[-1](output)

            found, slope = gradient(run, some, score)
            scores.append(found)
            slopes.append(slope)
            labels += chosen[-1].labels
            bar.update(len(some))
    return Slopes(torch.cat(scores), torch.cat(slopes), tuple(labels))
