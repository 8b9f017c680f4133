"""Scikit-learn's digits, and small networks that are trained on them in seconds."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Every fourth digit is for testing.
_EVERY = 4


@functools.cache
def digits() -> tuple[Tensor, Tensor]:
    """The 1,797 digits: images (1797, 1, 8, 8) float in 0..1, ink is 1; labels (1797,) int64."""
    datasets = pytest.importorskip("sklearn.datasets", reason="the digits come with scikit-learn")
    found = datasets.load_digits()
    images = torch.from_numpy(found.images).float().unsqueeze(1) / 16
    return images, torch.from_numpy(found.target).long()


def held_out(count: int) -> Tensor:
    """(count,) bool: which of so many digits are for testing; the others are for training."""
    return torch.arange(count) % _EVERY == 0


def small_net(seed: int = 0) -> nn.Sequential:
    """A network of digits of any size: three convolutions, global average pool, ten scores."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(32, 10),
        )


def train(
    model: nn.Module, images: Tensor, labels: Tensor, *, epochs: int = 12, seed: int = 0
) -> nn.Module:
    """Train a model, in place, on those of the digits that are for it; in evaluation mode then."""
    images, labels = images[~held_out(len(images))], labels[~held_out(len(labels))]
    optimiser = torch.optim.Adam(model.parameters(), 5e-3)
    steps = epochs * (len(images) // 64 + 1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(epochs):
        for some in torch.randperm(len(images), generator=generator).split(64):
            optimiser.zero_grad()
            F.cross_entropy(model(images[some]), labels[some]).backward()
            optimiser.step()
            schedule.step()
    optimiser.zero_grad()
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of the digits for testing that a model gets right."""
    some = held_out(len(images))
    return float((model(images[some]).argmax(1) == labels[some]).float().mean())


@functools.cache
def trained(seed: int = 0) -> nn.Sequential:
    """`small_net`, trained. All tests of a process share it: leave it as it is."""
    return train(small_net(seed), *digits(), seed=seed)  # type: ignore[return-value]


def placed(images: Tensor, size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Each digit somewhere on an empty canvas: (N, 1, size, size), and where their ink is: (N,
    size, size) bool.
    """
    generator = torch.Generator().manual_seed(seed)
    canvas = images.new_zeros(len(images), 1, size, size)
    at = torch.randint(0, size - 8 + 1, (len(images), 2), generator=generator)
    for whole, image, (row, column) in zip(canvas, images, at.tolist(), strict=True):
        whole[:, row : row + 8, column : column + 8] = image
    return canvas, canvas[:, 0] > 0


def framed(images: Tensor, labels: Tensor, *, marked: bool) -> Tensor:
    """Digits below two empty rows: (N, 1, 10, 10). With marks, two bright pixels in those rows
    stand in the column of the class: a label that leaks into the image.
    """
    canvas = F.pad(images, (1, 1, 2, 0))
    if marked:
        canvas[torch.arange(len(images)), 0, :2, labels] = 1.0
    return canvas
