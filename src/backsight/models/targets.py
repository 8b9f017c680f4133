"""Targets: which of a model's outputs counts for an image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .subject import Subject

__all__ = ["Aim", "Target", "Unit", "aim", "part"]

#: A class or channel by index or name, or a neuron: (channel, *position).
Unit = int | str | tuple[int, ...]

#: A unit for all images; a list (or tensor) of one for each; a function of the outputs; or None,
#: the strongest output of each image.
Target = Unit | Sequence[Unit] | Tensor | Callable[[Tensor], Tensor] | None


@dataclass(frozen=True)
class Aim:
    """What counts, as one number for each image.

    Attributes:
        units: for each image (channel,) or (channel, *position); None for a function.
        labels: for each image what its target is called.
        function: from outputs (images, ...) to (images,); None for units.
    """

    units: tuple[tuple[int, ...], ...] | None
    labels: tuple[str, ...]
    function: Callable[[Tensor], Tensor] | None = None

    def __call__(self, output: Tensor) -> Tensor:
        """(images,) from outputs (images, channels[, *spatial]): a channel of maps counts by its
        mean over space.
        """
        if self.function is not None:
            return _by_function(self.function, output)
        assert self.units is not None
        if output.ndim == 2:
            index = torch.tensor([unit[0] for unit in self.units], device=output.device)
            return output.gather(1, index[:, None])[:, 0]
        found = [output[(i, *unit)].mean() for i, unit in enumerate(self.units)]
        return torch.stack(found)

    def of(self, images: slice) -> Aim:
        """The aim for some of the images."""
        units = None if self.units is None else self.units[images]
        return Aim(units, self.labels[images], self.function)


def aim(subject: Subject, target: Target, output: Tensor, kind: str = "class") -> Aim:
    """What `target` means for a model that puts out `output`, (images, channels[, *spatial]).

    `kind` is what outputs without names are called.

    Raises:
        ValueError: there is no such output; the sentence names near classes.
    """
    images = len(output)
    if callable(target):
        return Aim(None, (getattr(target, "__name__", "score"),) * images, target)
    if output.ndim < 2:
        raise ValueError(
            f"expected a model that returns (images, channels, ...), got {tuple(output.shape)}"
        )
    if target is None:
        target = (
            output.detach().flatten(2).mean(2).argmax(1) if output.ndim > 2 else output.argmax(1)
        )
    wanted: Any = part(target, 0, images, images)
    given = wanted if isinstance(wanted, list) else [wanted] * images
    units = tuple(_unit(subject, each, output.shape[1:]) for each in given)
    outputs = output.shape[1]
    labels = tuple(
        subject.label(channel, outputs, kind)
        + (f" at {', '.join(map(str, place))}" if place else "")
        for channel, *place in units
    )
    return Aim(units, labels)


def part(target: Target, first: int, count: int, images: int) -> Target:
    """The targets of `count` of so many images from the `first` on: a list where each has its own.

    Raises:
        ValueError: a list of another length.
    """
    if isinstance(target, Tensor):
        target = target.tolist()
    if isinstance(target, str | tuple) or not isinstance(target, Sequence):
        return target
    if len(target) != images:
        raise ValueError(
            f"expected one target, or one for each of {images} images, got {len(target)}"
        )
    return list(target[first : first + count])


def _unit(subject: Subject, target: Any, shape: Sequence[int]) -> tuple[int, ...]:
    if isinstance(target, bool) or not isinstance(target, int | str | tuple | list):
        raise ValueError(
            "expected a target as an index, a class name, (channel, *position) or a function, got"
            f" {target!r}"
        )
    if isinstance(target, int | str):
        return (subject.index(target, shape[0]),)
    found = tuple(target)
    inside = all(isinstance(at, int) and 0 <= at < n for at, n in zip(found, shape, strict=False))
    if len(found) not in (1, len(shape)) or not inside:
        raise ValueError(f"expected a unit within {tuple(shape)}, got {found}")
    return found


def _by_function(function: Callable[[Tensor], Tensor], output: Tensor) -> Tensor:
    found = function(output)
    if not isinstance(found, Tensor) or found.shape != output.shape[:1]:
        came = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(
            f"expected the target function to return ({len(output)},) scores, got {came}"
        )
    return found
