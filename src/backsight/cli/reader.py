"""The network that the options name, and photos as it takes them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backsight.cli import parse
from backsight.io import read_image
from backsight.zoo import TRAINED, Network, imagenet_classes, load

__all__ = ["Photo", "Reader", "Source"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


@dataclass(frozen=True, kw_only=True)
class Source:
    """The options that say which network and how it gets its photos, as they were given; None
    where they were not.
    """

    model: str
    weights: str | None = None
    classes: str | None = None
    size: int | None = None
    full: bool = False
    short_side: int | None = None
    crop: int | None = None
    mean: str | None = None
    std: str | None = None
    dtype: str = "float32"
    device: str = "cpu"


@dataclass(frozen=True)
class Photo:
    """A photo as the network takes it, and as it was: (H, W, 3) uint8 both."""

    path: Path
    pixels: Any
    image: Tensor
    original: tuple[int, int]


class Reader:
    """The network, on its device and in its dtype; it reads photos.

    Raises:
        ValueError: an option does not fit; one sentence.
        ImportError: a package that the network needs is not installed.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.dtype = _DTYPES[parse.one_of("--dtype", source.dtype, tuple(_DTYPES))]
        self.device = _device(source.device)
        self.network = _network(source)
        self.network.model.to(self.device, self.dtype)

    def open(self, path: Path) -> Photo:
        """Read a photo and prepare it for the network.

        Raises:
            ValueError: it is no photo, or too small.
        """
        photo = read_image(path)
        image, pixels = self.network.prepare(photo, size=self.source.size, full=self.source.full)
        return Photo(path, pixels, image.to(self.device, self.dtype), photo.shape[:2])


def _network(source: Source) -> Network:
    given = {
        "short_side": source.short_side,
        "crop": source.crop,
        "mean": None if source.mean is None else parse.floats("--mean", source.mean),
        "std": None if source.std is None else parse.floats("--std", source.std),
    }
    given = {name: value for name, value in given.items() if value is not None}
    names = _class_names(source.classes)
    if source.model in TRAINED and (given or names):
        option = "classes" if names else next(iter(given)).replace("_", "-")
        raise ValueError(
            f"--{option} is for a network of your own; {source.model} has its own preprocessing "
            "and class names"
        )
    network = load(source.model, source.weights)
    return replace(
        network,
        preprocessing=replace(network.preprocessing, **given),  # type: ignore[arg-type]
        classes=names or network.classes,
    )


def _class_names(source: str | None) -> tuple[str, ...] | None:
    if source is None:
        return None
    if source == "imagenet":
        return imagenet_classes()
    try:
        lines = Path(source).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the class names {source}: {error}") from error
    names = tuple(line.strip() for line in lines)
    if not names or not all(names):
        raise ValueError(f"expected one class name a line in {source}, and there is an empty one")
    return names


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"expected --device as cpu, cuda or cuda:N, got {name!r}") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"--device {name} asks for a GPU, and torch sees {torch.cuda.device_count()} of them"
        )
    return device
