"""Draws the views of one photo beside it: ``python docs/gallery/make_views.py``."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import skimage
from PIL import Image
from torch import Tensor

import backsight
from backsight import zoo
from backsight.io import read_image
from backsight.plots import png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HERE = Path(__file__).resolve().parent
ESPRESSO = 967
WIDTH = 700  # pixels
LARGEST = 60_000  # bytes


@cache
def network() -> zoo.Network:
    return zoo.squeezenet()


@cache
def coffee() -> Tensor:
    return network().prepare(read_image(Path(skimage.__file__).parent / "data" / "coffee.png"))[0]


def saliency() -> Figure:
    return backsight.saliency(network(), coffee()).plot()


def cam() -> Figure:
    return backsight.cam(network(), coffee()).plot()


def rotation() -> Figure:
    return backsight.rotation(network(), coffee()).plot()


def faithfulness() -> Figure:
    drops = backsight.occlusion(network().model, coffee(), window=32, stride=8, targets=[ESPRESSO])
    return backsight.faithfulness(network(), coffee(), drops.map(ESPRESSO), ESPRESSO).plot()


def filters() -> Figure:
    return backsight.filters(network()).plot()


def activations() -> Figure:
    return backsight.activations(network(), coffee(), layer="fire2").plot()


def receptive_field() -> Figure:
    return backsight.receptive_field(network(), coffee()).plot()


VIEWS: tuple[Callable[[], Figure], ...] = (
    saliency,
    cam,
    rotation,
    faithfulness,
    filters,
    activations,
    receptive_field,
)

if __name__ == "__main__":
    for view in VIEWS:
        picture = Image.open(io.BytesIO(png(view()))).convert("RGB")
        height = round(picture.height * WIDTH / picture.width)
        picture = picture.resize((WIDTH, height), Image.Resampling.LANCZOS)
        path = HERE / f"{view.__name__.replace('_', '-')}.jpg"
        for quality in range(85, 30, -5):
            picture.save(path, quality=quality, optimize=True)
            if path.stat().st_size <= LARGEST:
                break
        print(path, f"{path.stat().st_size / 1000:.0f} kB")
