"""What a target reads of many variants of some images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..models.call import Call
from ..models.subject import Subject
from ..models.targets import Aim, Target, aim

__all__ = ["PROBABILITIES", "Reader", "check_probability"]

#: What outputs can be turned into before they are read.
PROBABILITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda outputs: outputs.softmax(1),
    "sigmoid": torch.sigmoid,
}


def check_probability(probability: str | None) -> None:
    if probability is not None and probability not in PROBABILITIES:
        raise ValueError(
            f"expected probability to be None, 'softmax' or 'sigmoid', got {probability!r}"
        )


class Reader:
    """Runs a model, and reads the target of each image.

    Attributes:
        outputs: (images, channels, ...) of the images themselves, turned into probabilities.
        aim: the target of each image.
    """

    def __init__(
        self,
        subject: Subject,
        images: Tensor,
        target: Target,
        probability: str | None,
        batch_size: int,
    ) -> None:
        check_probability(probability)
        self._call = Call(subject.model, (), images)
        self._probability = probability
        # A copy: the model may write into what it is given.
        self.outputs = torch.cat([self.run(some.clone()) for some in images.split(batch_size)])
        self.aim = aim(subject, target, self.outputs)

    def run(self, images: Tensor) -> Tensor:
        """The model's outputs, as probabilities where those are wanted; `images` may change."""
        outputs: Tensor = self._call(images)
        return PROBABILITIES[self._probability](outputs) if self._probability else outputs

    def read(self, outputs: Tensor, index: Tensor) -> Tensor:
        """(variants,) from the outputs for variants of the images `index`, (variants,) int64."""
        wanted: Aim = self.aim
        if wanted.units is not None:
            units = wanted.units
            wanted = replace(wanted, units=tuple(units[i] for i in index.tolist()))
        return wanted(outputs)
