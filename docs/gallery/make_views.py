"""Draws the views of one photo beside it: ``python docs/gallery/make_views.py``."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

from drawing import COFFEE, draw, network
from torch import Tensor

import backsight
from backsight.io import read_image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ESPRESSO = 967


@cache
def coffee() -> Tensor:
    return network().prepare(read_image(COFFEE))[0]


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
    draw(VIEWS)
