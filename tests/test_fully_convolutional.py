"""Classifiers that slide: each cell against the classifier on its crop, and the heads of published
networks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import backsight
from architectures import alexnet, mobilenet_v2, resnet18
from backsight.zoo import Network, Preprocessing
from digits import digits, placed, small_net, trained
from nets import calibrate, random_images, seeded


def unpadded() -> nn.Sequential:
    """Sees 20 x 20, in steps of 4; three fully connected layers over maps of 2 x 2."""
    body = [nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(6, 8, 3)]
    head = [nn.Flatten(), nn.Dropout(), nn.Linear(32, 12), nn.BatchNorm1d(12), nn.ReLU()]
    model = nn.Sequential(*body, nn.ReLU(), *head, nn.Linear(12, 7), nn.Tanh(), nn.Linear(7, 5))
    return calibrate(model, random_images((3, 20, 20), 16))  # type: ignore[return-value]


def test_each_cell_is_the_classifier_on_its_crop() -> None:
    model = seeded(unpadded).eval().double()
    image = random_images((3, 45, 61)).double()
    found = backsight.prediction_maps(model, image, shape=(3, 20, 20))
    assert found.scores.shape == (1, 5, 7, 11)
    assert found.field == ((19, 4, 0), (19, 4, 0))
    size = found.field[0][0] + 1  # the classifier takes one pixel more than it looks at
    crops = [
        image[:, :, 4 * r : 4 * r + size, 4 * c : 4 * c + size] for r in range(7) for c in range(11)
    ]
    with torch.no_grad():
        expected = torch.cat([model(crop) for crop in crops]).T.view(1, 5, 7, 11)
    assert expected.std((2, 3)).min() > 1e-2
    torch.testing.assert_close(found.scores, expected, rtol=0, atol=1e-12)
    assert torch.equal(found.best, expected.argmax(1))
    for k in range(5):
        peak = expected[0, k].max()
        row, column = found.at[0, k].tolist()
        assert found.scores[0, k, row, column] == found.peaks[0, k]
        assert found.peaks[0, k] == pytest.approx(float(peak))
        box = [4 * row, 4 * column, 4 * row + 19, 4 * column + 19]
        assert found.boxes[0, k].tolist() == box


def test_only_pixels_of_the_box_move_a_detection() -> None:
    model = seeded(unpadded).eval().double()
    image = random_images((3, 45, 61)).double()
    found = backsight.prediction_maps(model, image, 2, shape=(3, 20, 20))
    top, left, bottom, right = found.boxes[0, 2].tolist()
    row, column = found.at[0, 2].tolist()
    dense = backsight.fully_convolutional(model, (3, 20, 20))
    outside, inside = random_images((3, 45, 61), seed=5).double(), image.clone()
    outside[..., top:bottom, left:right] = image[..., top:bottom, left:right]
    inside[..., top:bottom, left:right] += 1
    with torch.no_grad():
        peak, same, other = (dense(x)[0, 2, row, column] for x in (image, outside, inside))
    assert abs(float(same - peak)) < 1e-12
    assert abs(float(other - peak)) > 1e-3


@pytest.mark.parametrize(("build", "side"), [(alexnet, 95), (resnet18, 64), (mobilenet_v2, 64)])
def test_heads_of_published_networks(build: Callable[[], nn.Module], side: int) -> None:
    model = seeded(build).eval()
    shape = (3, side, side)
    if build is alexnet:  # whose pool is for maps of 6 x 6: smaller ones, and a smaller head
        model.avgpool = nn.AdaptiveAvgPool2d(2)
        model.classifier[1] = nn.Linear(256 * 4, 32)
        model.classifier[4] = nn.Linear(32, 32)
        model.classifier[6] = nn.Linear(32, 10)
    model = calibrate(model, random_images(shape, 2))
    dense = backsight.fully_convolutional(model, shape)
    images = random_images(shape, 2)
    with torch.no_grad():
        scores, maps = model(images), dense(images)
        larger = dense(random_images((3, side + 64, side + 32), 1))
    assert scores.std() > 1e-3
    torch.testing.assert_close(maps.mean((2, 3)), scores, rtol=1e-4, atol=1e-4)
    assert tuple(larger.shape[2:]) == (maps.shape[2] + 2, maps.shape[3] + 1)


class Functional(nn.Module):
    """A head of functions: pool, view by the batch's size, softmax over the last axis."""

    def __init__(self, pool: str) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(2, 4, 3), nn.Linear(4, 3)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        if self.pool == "mean":
            x = x.mean([-2, -1])
        elif self.pool == "adaptive":
            x = F.adaptive_avg_pool2d(x, 1)
            x = x.view(x.size(0), -1)
        else:
            x = torch.mean(x, (2, 3), keepdim=True).squeeze(-1).squeeze(-1)
        return F.softmax(self.fc(F.dropout(x, training=self.training)), dim=-1)


@pytest.mark.parametrize("pool", ["mean", "adaptive", "squeeze"])
def test_heads_of_functions(pool: str) -> None:
    model = seeded(lambda: Functional(pool)).eval()
    dense = backsight.fully_convolutional(model, (2, 8, 8))
    images = random_images((2, 9, 12), 2)
    with torch.no_grad():
        maps = dense(images)
        crop = images[:, :, 3:6, 5:8]
        expected = model(crop)
    assert maps.shape == (2, 3, 7, 10)
    torch.testing.assert_close(maps.sum(1), torch.ones(2, 7, 10))
    torch.testing.assert_close(maps[:, :, 3, 5], expected)
    assert expected.std() > 1e-3


@pytest.mark.parametrize("axes", [1, 3])
def test_signals_and_volumes(axes: int) -> None:
    convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
    model = nn.Sequential(convolution(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 4**axes, 3))
    model = model.eval().double()
    images = random_images((2, *[9] * axes)).double()
    found = backsight.prediction_maps(model, images, shape=(2, *[6] * axes))
    assert found.scores.shape == (1, 3, *[4] * axes)
    crop = images[(slice(None), slice(None), *[slice(2, 8)] * axes)]
    torch.testing.assert_close(found.scores[(0, slice(None), *[2] * axes)], model(crop)[0])
    assert found.segmentation.shape == (1, *[9] * axes)


def test_digits_are_found_where_they_are() -> None:
    images, labels = digits()
    canvas, ink = placed(images[:40], 24, seed=2)
    dense = backsight.fully_convolutional(trained(), (1, 8, 8))
    small = images[:40]
    with torch.no_grad():
        # a mean, then one layer: the mean over the cells is the classifier's score
        torch.testing.assert_close(
            dense(small).mean((2, 3)), trained()(small), atol=1e-4, rtol=1e-4
        )
    found = backsight.prediction_maps(trained(), canvas, labels[:40], shape=(1, 8, 8))
    peaks = found.boxes[torch.arange(40), labels[:40]]
    middle = (peaks[:, :2] + peaks[:, 2:]) // 2
    near = F.max_pool2d(ink[:, None].float(), 5, 1, 2)[:, 0] > 0
    assert near.float().mean() < 0.25
    assert near[torch.arange(40), middle[:, 0], middle[:, 1]].float().mean() > 0.9


def test_the_copy_shares_nothing_and_the_model_is_left_alone() -> None:
    model = seeded(unpadded).eval()
    before = copy.deepcopy(model.state_dict())
    dense = backsight.fully_convolutional(model, (3, 20, 20))
    for parameter in dense.parameters():
        parameter.data.zero_()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert isinstance(model[7], nn.Linear)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert any(isinstance(m, nn.Dropout) for m in dense.modules())
    assert not dense.training


def test_segmentation_takes_the_nearest_cell_of_each_pixel() -> None:
    model = seeded(unpadded).eval()
    found = backsight.prediction_maps(model, random_images((3, 45, 61)), shape=(3, 20, 20))
    assert len(found.best.unique()) > 1
    for row, column in ((0, 0), (9, 9), (20, 33), (44, 60)):
        cell = [min(max(round((at - 9) / 4), 0), n) for at, n in ((row, 6), (column, 10))]
        assert found.segmentation[0, row, column] == found.best[0, cell[0], cell[1]]


def test_networks_that_put_out_maps_are_taken_as_they_are() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 1)).eval()
    images = random_images((3, 12, 14), 2)
    found = backsight.prediction_maps(model, images)
    torch.testing.assert_close(found.scores, model(images).detach())


def test_targets_by_name() -> None:
    names = tuple(f"digit {i}" for i in range(10))
    wrapped = nn.Sequential(nn.Conv2d(3, 1, 1, bias=False), *trained()).eval()
    network = Network("digits", wrapped, Preprocessing(crop=8, short_side=8), names)
    found = backsight.prediction_maps(network, random_images((3, 20, 20), 2), "digit 3")
    assert found.targets.tolist() == [3, 3]
    assert found.detections(1, 2)[0][0].startswith("digit ")
    with pytest.raises(ValueError, match="near names: digit"):
        backsight.prediction_maps(network, random_images((3, 20, 20)), "digot")


@pytest.mark.parametrize(
    ("model", "shape", "sentence"),
    [
        (small_net(), None, "the shape .* got none"),
        (small_net(), (1, 0, 8), "positive sizes"),
        (small_net(), (3, 8, 8), "1 channels, but got 3"),
        (
            nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.LayerNorm(72), nn.Linear(72, 2)),
            (1, 8, 8),
            "expected a head of .* got LayerNorm",
        ),
        (nn.Sequential(nn.Flatten(), nn.ReLU()), (1, 8, 8), "a layer with weights"),
    ],
)
def test_bad_input_gets_a_sentence(model: nn.Module, shape: object, sentence: str) -> None:
    with pytest.raises((ValueError, RuntimeError), match=sentence):
        backsight.fully_convolutional(model.eval(), shape)


def test_is_drawn_and_saved(tmp_path) -> None:
    pytest.importorskip("matplotlib", reason="figures need matplotlib")
    model = seeded(unpadded).eval()
    found = backsight.prediction_maps(model, random_images((3, 45, 61)), 1, shape=(3, 20, 20))
    found.save(tmp_path / "maps.npz")
    with np.load(tmp_path / "maps.npz") as arrays:
        np.testing.assert_array_equal(arrays["scores"], found.scores.numpy())
    found.save(tmp_path / "maps.png")
    figure = found.plot()
    shown = figure.axes[1].collections[0].get_array()
    np.testing.assert_allclose(shown, found.scores[0].double().softmax(0)[1])
