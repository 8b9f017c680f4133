"""Data sets of images: by index, or as an iterable of batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["batches", "image_of", "length"]


def length(dataset: Any) -> int | None:
    """How many images there are, if that is known."""
    if isinstance(dataset, torch.utils.data.DataLoader):
        dataset = dataset.dataset
    try:
        return len(dataset) if hasattr(dataset, "__getitem__") else None
    except TypeError:
        return None


def batches(
    dataset: Any, batch_size: int, done: int
) -> Iterator[tuple[Tensor | None, Sequence[int]]]:
    """Batches of images and their places in the data set, from image `done` on."""
    if isinstance(dataset, Tensor):
        for first in range(done, len(dataset), batch_size):
            some = dataset[first : first + batch_size]
            yield some, range(first, first + len(some))
    elif hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
        yield from _collected(dataset, batch_size, done)
    elif isinstance(dataset, Iterable):
        first = 0
        for batch in dataset:
            images = image_of(batch)
            if images is None:
                raise ValueError("expected batches of images, got None for one")
            index = range(first, first + len(images))
            first += len(images)
            if first > done:
                skip = max(0, done - index[0])
                yield images[skip:], index[skip:]
    else:
        raise ValueError(
            "expected a data set of images, by index or as an iterable of batches, got"
            f" {type(dataset).__name__}"
        )


def _collected(
    dataset: Any, batch_size: int, done: int
) -> Iterator[tuple[Tensor | None, Sequence[int]]]:
    """Single images in batches of one size."""
    held: list[Tensor] = []
    first = done

    for i in range(done, len(dataset)):
        image = image_of(dataset[i])
        if held and (image is None or image.shape != held[0].shape or len(held) == batch_size):
            yield torch.stack(held), range(first, i)
            held = []
        if image is None:
            yield None, [i]
            first = i + 1
            continue
        if not held:
            first = i
        held.append(image)
    if held:
        yield torch.stack(held), range(first, len(dataset))


def image_of(found: Any) -> Tensor | None:
    """The image, or the images, of what a data set gives."""
    if isinstance(found, tuple | list) and found:
        found = found[0]
    if found is not None and not isinstance(found, Tensor):
        raise ValueError(
            f"expected a data set of tensors, alone or first in a tuple, got {type(found).__name__}"
        )
    return found
