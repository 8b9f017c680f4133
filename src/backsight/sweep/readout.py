"""Which numbers a sweep reads out of a model's output, and how they drop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

#: From a batch of outputs (batch, ...) to numbers (batch,) or (batch, scores).
Score = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Readout:
    """What is made of each output before drops are taken, and which of the numbers are kept.

    Attributes:
        probability: None for the outputs as they are, "softmax" or "sigmoid" of them (over axis 1).
        score: a function of the outputs, or None.
        targets: the numbers to keep, by index; None for all.
        top: keep this many of each image's largest; None for all.
    """

    probability: str | None = None
    score: Score | None = None
    targets: tuple[int, ...] | None = None
    top: int | None = None

    def columns(self, outputs: int) -> int:
        """How many numbers per position are kept of `outputs`."""
        return min(self.top, outputs) if self.top else len(self.targets or range(outputs))

    def of(self, base: Tensor, shape: Sequence[int]) -> Reading:
        """For images whose unoccluded outputs are `base` (images, prod(shape))."""
        return Reading(self, base, tuple(shape))

    def transformed(self, outputs: Tensor, shape: Sequence[int]) -> Tensor:
        """The numbers (batch, all) that drops are taken of, from outputs (batch, prod(shape))."""
        if self.probability is None and self.score is None:
            return outputs
        values = outputs.reshape(len(outputs), *shape)
        if self.probability == "softmax" and values.ndim < 2:
            raise ValueError(
                "expected outputs (images, classes, ...) for probability='softmax', got (images,)"
            )
        if self.probability is not None:
            values = values.softmax(1) if self.probability == "softmax" else values.sigmoid()
        if self.score is not None:
            values = self._scored(values)
        return values.reshape(len(outputs), prod(values.shape[1:]))

    def _scored(self, values: Tensor) -> Tensor:
        assert self.score is not None
        found = self.score(values.clone())  # it may work in place
        if not isinstance(found, Tensor) or found.ndim < 1 or len(found) != len(values):
            came = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"expected score to return a tensor of shape ({len(values)},) or"
                f" ({len(values)}, scores), got {came}"
            )
        if found.is_complex() or not found.numel():
            raise ValueError(
                f"expected score to return real numbers, got {found.dtype} {tuple(found.shape)}"
            )
        found = found.detach().to(values.dtype)
        if not bool(torch.isfinite(found).all()):
            raise ValueError("expected score to return finite numbers, got NaN or infinity")
        return found


class Reading:
    """A readout of some images.

    Attributes:
        base: (images, columns) fp64, what is read of the unoccluded images.
        targets: (images, columns) int64, which number each column is; None for all in their order.
        width: how many numbers there are before some are chosen.
    """

    def __init__(self, readout: Readout, base: Tensor, shape: tuple[int, ...]) -> None:
        self.readout = readout
        self.shape = shape
        self._outputs = base
        self._all = readout.transformed(base, shape)
        self.width = self._all.shape[1]
        self.targets: Tensor | None = None
        if readout.top is not None:
            self.targets = self._all.topk(min(readout.top, self.width), 1).indices
        elif readout.targets is not None:
            chosen = torch.tensor(check_targets(readout.targets, self.width), device=base.device)
            self.targets = chosen.expand(len(base), -1)
        self.base = self._all if self.targets is None else self._all.gather(1, self.targets)

    def drops(self, image: Tensor, change: Tensor) -> Tensor:
        """Original minus occluded (batch, columns), from which image each row is (batch,) and how
        its outputs changed (batch, outputs), fp64.
        """
        readout = self.readout
        if readout.probability is None and readout.score is None:
            drops = -change
        else:
            occluded = readout.transformed(self._outputs[image] + change, self.shape)
            if occluded.shape[1] != self.width:
                raise ValueError(
                    f"expected score to return {self.width} numbers per image whatever the batch,"
                    f" got {occluded.shape[1]}"
                )
            drops = self._all[image] - occluded
        return drops if self.targets is None else drops.gather(1, self.targets[image])

    def most_probable(self, image: Tensor, change: Tensor) -> Tensor:
        """Which of the model's own outputs is largest (batch,)."""
        best: Tensor = (self._outputs[image] + change).argmax(1)
        return best


def check_targets(targets: Sequence[int], width: int) -> list[int]:
    """Targets among so many outputs, counted from the first."""
    for target in targets:
        if not -width <= target < width:
            raise ValueError(f"expected targets within {width} outputs, got {target}")
    return [t % width for t in targets]


@dataclass
class Drops:
    """What a sweep fills in.

    Attributes:
        drops: (images, positions, columns).
        nulls: (any, columns), those of null occlusions.
        base: (images, columns) fp64, what was read of the unoccluded images.
        targets: (images, columns) int64 or None, see `Reading`.
        most_probable: (images, positions) int64, the model's largest output at each position.
    """

    drops: Tensor
    nulls: list[Tensor]
    base: Tensor
    targets: Tensor | None
    most_probable: Tensor

    @classmethod
    def empty(cls, reading: Reading, positions: int, dtype: torch.dtype) -> Drops:
        images, columns = reading.base.shape
        dtype = torch.float64 if dtype == torch.float64 else torch.float32
        device = reading.base.device
        return cls(
            torch.zeros(images, positions, columns, dtype=dtype, device=device),
            [],
            reading.base,
            reading.targets,
            torch.zeros(images, positions, dtype=torch.int64, device=device),
        )

    def put(
        self,
        reading: Reading,
        image: Tensor,
        position: Tensor,
        change: Tensor,
        real: Tensor | slice,
        null: Tensor | slice,
    ) -> None:
        """Enter a batch: which image and position each row is of (batch,), how the outputs changed
        (batch, outputs) fp64, and which rows are occlusions and which are null occlusions.
        """
        drops = reading.drops(image, change)
        at = image[real], position[real]
        self.drops[at] = drops[real].to(self.drops.dtype)
        self.most_probable[at] = reading.most_probable(image[real], change[real])
        self.nulls.append(drops[null])

    @staticmethod
    def joined(found: Sequence[Drops]) -> Drops:
        """Those of several images, one after the other."""
        if len(found) == 1:
            return found[0]
        targets = [f.targets for f in found if f.targets is not None]
        return Drops(
            torch.cat([f.drops for f in found]),
            [n for f in found for n in f.nulls],
            torch.cat([f.base for f in found]),
            torch.cat(targets) if targets else None,
            torch.cat([f.most_probable for f in found]),
        )

    @property
    def noise_floor(self) -> float:
        """The largest |drop| of the null occlusions."""
        return max((float(n.abs().max()) for n in self.nulls if n.numel()), default=0.0)
