"""What the options of views mean, and the view of a network without a photo."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

import backsight
from backsight.cli import parse
from backsight.cli.reader import Photo, Reader
from backsight.cli.words import by
from backsight.methods.readings import PROBABILITIES

__all__ = ["blank", "judged", "probability", "target_of", "turns"]

_WINDOW, _STRIDE = 32, 8  # of the occlusion map that is judged, in pixels


def blank(option: str, text: str, reader: Reader, photo: Photo) -> Any:
    """A baseline by name or colour, as the methods take it."""
    cover = parse.baseline(option, text, "pixel")
    if cover == "training":
        return 0.0
    if isinstance(cover, str):
        return cover
    return reader.network.preprocessing.color(cover).to(photo.image)


def probability(option: str, text: str) -> str | None:
    """What the outputs are turned into; None for nothing."""
    word = parse.one_of(option, text, (*PROBABILITIES, "none"))
    return None if word == "none" else word


def turns(option: str, step: float) -> list[float]:
    """The angles of a full turn."""
    if not (math.isfinite(step) and 0 < step <= 360):
        raise ValueError(f"expected {option} above 0 and at most 360 degrees, got {step!r}")
    return [i * step for i in range(math.ceil(360 / step))]


def target_of(target: str | None, reader: Reader, photo: Photo) -> int:
    """The index of a class of the network; unless told the photo's strongest."""
    with torch.no_grad():
        scores = reader.network.model(photo.image)
    if not isinstance(scores, Tensor) or scores.ndim != 2:
        raise ValueError(f"expected {reader.network.name} to return (1, classes) scores")
    if target is None:
        return int(scores.argmax())
    return reader.network.find(target, scores.shape[1])


def judged(option: str, text: str, index: int, reader: Reader, photo: Photo) -> Tensor:
    """The map (1, H, W) that is judged."""
    network, image = reader.network, photo.image
    if text == "occlusion":
        found = backsight.occlusion(
            network.model, image, window=_WINDOW, stride=_STRIDE, targets=[index]
        )
        return found.map(index)
    if text == "saliency":
        return backsight.saliency(network, image, index).maps
    if text == "cam":
        return backsight.cam(network, image, index).maps
    if not text.lower().endswith(".npy"):
        raise ValueError(
            f"expected {option} as occlusion, saliency, cam or a file .npy, got {text!r}"
        )
    try:
        values = np.load(text, allow_pickle=False)
    # numpy raises a dozen types for a damaged file
    except Exception as error:
        raise ValueError(f"cannot read the map {text}: {error}") from error
    size = photo.pixels.shape[:2]
    if values.shape != size or values.dtype.kind not in "biuf":
        raise ValueError(
            f"expected a map of {by(size)} numbers like the prepared photo, got {by(values.shape)}"
            f" of {values.dtype}"
        )
    return torch.from_numpy(values.astype(np.float64))[None]
