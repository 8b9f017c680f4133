"""Draws what the methods that make pictures make, all of it or what is named:
``python docs/gallery/make_pictures.py [NAME ...]``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import sklearn
from drawing import COFFEE, draw, network
from torch import Tensor

import backsight
from backsight import zoo
from backsight.io import read_image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FLOWER = Path(sklearn.__file__).parent / "datasets" / "images" / "flower.jpg"
CLASSES = ("goldfish", "tabby", "volcano", "espresso")


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
    draw(PICTURES)
