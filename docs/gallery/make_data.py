"""Draws occlusion, units, and views of many images beside it, all or some of them:
``python docs/gallery/make_data.py [NAME ...]``.

The digits are those of the tests, which train small networks on them in seconds; the page is drawn
where there is a Chromium.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

import backsight
from backsight import plots, zoo
from backsight.cli import run
from backsight.io import read_image

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "tests"))

from drawing import COFFEE, draw, network  # noqa: E402

from digits import digits, framed, held_out, train, trained  # noqa: E402


@cache
def coffee() -> torch.Tensor:
    return network().prepare(read_image(COFFEE))[0]


def occlusion() -> bytes:
    return plots.png(backsight.occlusion(network(), coffee(), window=32, stride=8).plot())


def deconv() -> bytes:
    return plots.png(backsight.project(network(), coffee(), "fire5", units=3).plot())


def guided() -> bytes:
    found = backsight.project(network(), coffee(), "fire5", units=3, rule="guided")
    return plots.png(found.plot())


def fully_convolutional() -> bytes:
    lite = zoo.load("efficientnet-lite0")
    image, _ = lite.prepare(read_image(COFFEE), full=True)
    return plots.png(backsight.prediction_maps(lite, image).plot())


@cache
def mapped() -> backsight.FeatureMap:
    images, labels = digits()
    some = held_out(len(images))
    return backsight.feature_map(trained(), images[some], labels=labels[some])


def feature_map() -> bytes:
    return plots.png(mapped().plot())


def neighbours() -> bytes:
    return plots.png(mapped().plot_neighbours(range(4)))


def leaked_labels() -> bytes:
    """The drops of a marked digit, for a network that learnt the marks and for an honest one."""
    images, labels = digits()
    marked = framed(images, labels, marked=True)
    panels = []
    for leaked, title in ((True, "learnt with marks"), (False, "learnt without")):
        torch.manual_seed(0)
        layers = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(800, 10)]
        model = train(nn.Sequential(*layers), framed(images, labels, marked=leaked), labels)
        found = backsight.occlusion(model, marked[:1], window=2, stride=1)
        heat = found.map([int(labels[0])])[0].numpy()
        limit = float(np.abs(heat).max())
        limits = (-limit, limit)
        panels.append(plots.Panel(heat, title, "RdBu_r", limits, "drop of the score"))
    digit = plots.Panel(marked[0, 0].numpy(), "a nought, its label in the top row")
    figure = plots.panels([digit, *panels], title="Which of two networks reads the label?")
    return plots.png(figure)


def report() -> bytes | None:
    """The upper part of a report in a browser."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        if run(["report", str(COFFEE), "-q", "-o", folder]):
            return None
        page, picture = Path(folder, "coffee.report.html"), Path(folder, "page.png")
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        options += ["--window-size=1280,1900", f"--screenshot={picture}", page.as_uri()]
        subprocess.run([browser, *options], check=True, capture_output=True, timeout=120)
        return picture.read_bytes()


PICTURES: tuple[Callable[[], bytes | None], ...] = (
    occlusion,
    deconv,
    guided,
    fully_convolutional,
    feature_map,
    neighbours,
    leaked_labels,
    report,
)

if __name__ == "__main__":
    draw(PICTURES)
