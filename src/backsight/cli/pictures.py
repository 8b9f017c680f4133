"""Pictures that are made without a photo, and from photos in a row."""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backsight._version import __version__
from backsight.cli.files import check_folder, write_all
from backsight.cli.photos import each, expanded, names
from backsight.cli.reader import Photo, Reader, Source
from backsight.methods.dream import Dream
from backsight.results import array
from backsight.store import write_bytes

__all__ = ["dream_of_frames", "mixture", "units"]


def units(texts: Sequence[str]) -> list[Any]:
    """``"4,2,3"`` as the neuron (4, 2, 3); all else is a class or channel by name or index."""
    whole = re.compile(r"\s*\d+(\s*,\s*\d+)+\s*")
    return [
        tuple(int(part) for part in text.split(",")) if whole.fullmatch(text) else text
        for text in texts
    ]


def mixture(option: str, texts: Sequence[str]) -> dict[str, float] | list[str]:
    """``["fire5", "fire8"]`` as they are, ``["fire5=1", "fire8=0.5"]`` as their weights."""
    parts = [text.partition("=") for text in texts]
    if not any(equals for _, equals, _ in parts):
        return list(texts)
    try:
        return {name: float(weight) if equals else 1.0 for name, equals, weight in parts}
    except ValueError:
        raise ValueError(
            f"expected {option} as NAME or NAME=WEIGHT, got {', '.join(texts)}"
        ) from None


def dream_of_frames(
    frames: Sequence[Path],
    source: Source,
    make: Callable[[Reader, Tensor], Dream],
    carry: float,
    *,
    output: Path,
    as_json: bool,
) -> int:
    """Write the dream of each frame as NAME.dream.png: the picture alone, for a video.

    Args:
        make: dreams of an image.
        carry: the share of the last dream in what the next one, of a frame of the same size, starts
            from.

    Returns:
        The exit code: 2 where some of several frames could not be done, 0 otherwise.

    Raises:
        ValueError: bad input, in one sentence.
        ImportError: something that is not installed, in one sentence.
    """
    if not 0 <= carry < 1:
        raise ValueError(f"expected --carry in [0, 1), got {carry}")
    check_folder(output)
    named = names(expanded(frames))
    last: Tensor | None = None

    def do(reader: Reader, photo: Photo, started: float) -> None:
        nonlocal last
        image = photo.image
        if last is not None and last.shape == image.shape:
            image = torch.lerp(image, last.to(image), carry)
        found = make(reader, image)
        last = found.images
        path = output / f"{named[photo.path]}.dream.png"
        report = {
            "backsight": __version__,
            "photo": str(photo.path),
            "model": reader.network.name,
            **found.report(),
            "seconds": {"dream": time.perf_counter() - started},
            "files": {"png": str(path)},
        }
        picture = _png(array(found.pictures[0]))
        write_all(output, {path: lambda path: write_bytes(path, picture)})
        if as_json:
            print(json.dumps(report, ensure_ascii=False, allow_nan=False), flush=True)
        else:
            print(f"{photo.path.name}: {found.summary()}\npng: {path}", flush=True)

    return each(list(named), lambda: Reader(source), do)


def _png(pixels: Any) -> bytes:
    """The bytes of a PNG file of (H, W, 3) uint8 RGB."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png")
    return buffer.getvalue()
