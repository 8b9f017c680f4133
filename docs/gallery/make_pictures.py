"""Draws what the methods that make pictures make, all of it or what is named:
``python docs/gallery/make_pictures.py [NAME ...]``.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import skimage
import sklearn
from PIL import Image
from torch import Tensor

import backsight
from backsight import zoo
from backsight.io import read_image
from backsight.plots import png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HERE = Path(__file__).resolve().parent
COFFEE = Path(skimage.__file__).parent / "data" / "coffee.png"
FLOWER = Path(sklearn.__file__).parent / "datasets" / "images" / "flower.jpg"
CLASSES = ("goldfish", "tabby", "volcano", "espresso")
WIDTH = 700  # pixels
LARGEST = 60_000  # bytes


@cache
def network() -> zoo.Network:
    return zoo.squeezenet()


def prepared(network: zoo.Network, path: Path, size: int | None = None) -> Tensor:
    return network.prepare(read_image(path), size=size)[0]


def class_model() -> Figure:
    return backsight.class_model(network(), list(CLASSES)).plot()


def dream() -> Figure:
    photo = prepared(network(), COFFEE, 300)
    return backsight.dream(network(), photo, layer={"fire5": 1, "fire8": 20}).plot()


def style() -> Figure:
    vgg16 = zoo.vgg16_features()
    photo, painting = prepared(vgg16, COFFEE, 160), prepared(vgg16, FLOWER, 160)
    return backsight.style(vgg16, photo, painting).plot()


def fool() -> Figure:
    photo = prepared(network(), COFFEE)
    return backsight.fool(network(), photo, "volcano", norm="l2", smallest=True).plot()


PICTURES: tuple[Callable[[], Figure], ...] = (class_model, dream, style, fool)

if __name__ == "__main__":
    for make in PICTURES:
        name = make.__name__.replace("_", "-")
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        picture = Image.open(io.BytesIO(png(make()))).convert("RGB")
        height = round(picture.height * WIDTH / picture.width)
        picture = picture.resize((WIDTH, height), Image.Resampling.LANCZOS)
        path = HERE / f"{name}.jpg"
        for quality in range(85, 30, -5):
            picture.save(path, quality=quality, optimize=True)
            if path.stat().st_size <= LARGEST:
                break
        print(path, f"{path.stat().st_size / 1000:.0f} kB")
