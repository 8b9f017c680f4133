"""Receptive fields: the published numbers, and gradients that end where a box does."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

import backsight
from backsight.models.stem import stem
from backsight.models.subject import Subject
from digits import trained
from nets import alexnet, random_images, resnet18, resnet50, seeded, squeezenet1_1, vgg16


def largest(make: Callable[[], nn.Module], layers: list[str], size: int = 96) -> list[int]:
    found = backsight.receptive_field(
        seeded(make).eval(), torch.zeros(1, 3, size, size), layers=layers
    )
    assert found.reason is None
    assert list(found.layers) == layers
    assert torch.equal(found.sizes[:, 0], found.sizes[:, 1])
    return found.sizes[:, 0].tolist()


def test_published_numbers() -> None:
    # conv3_3, conv4_3, conv5_3 and pool5
    vgg = ["features.14", "features.21", "features.28", "features.30"]
    assert largest(lambda: vgg16("gap", 10, 1 / 16), vgg) == [40, 92, 196, 212]
    assert largest(lambda: alexnet(10, 1 / 16), ["features.12"]) == [195]
    assert largest(lambda: squeezenet1_1(10, 1 / 8), ["14"]) == [207]
    assert largest(lambda: resnet18(10, 1 / 8), ["layer4"]) == [435]
    assert largest(lambda: resnet50(10, 1 / 16), ["layer4"]) == [427]
    assert largest(lambda: resnet50(10, 1 / 16, stride_first=True), ["layer4"]) == [483]


def test_boxes_are_where_the_gradient_is() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, (3, 5), stride=2, padding=1),
        nn.Softplus(),
        nn.Conv2d(4, 4, 3, dilation=2),
        nn.AvgPool2d(2, 2),
    )
    torch.manual_seed(0)
    model = model.eval().double()
    image = random_images((1, 40, 37), 1).double().requires_grad_()
    for position in ((20, 18), (0, 36)):
        found = backsight.receptive_field(model, image, position=position)
        assert found.layers == ("0", "1", "2", "3")
        for name, unit, box in zip(found.layers, found.units, found.boxes, strict=True):
            maps = stem(Subject.of(model), name, image)(image)
            (slope,) = torch.autograd.grad(maps[0, 0][tuple(unit)], image)
            rows, columns = slope[0, 0].nonzero().T
            here = [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]
            if name != "2":  # of a dilated layer the box holds gaps, but its ends are exact too
                assert len(rows) == (box[2] - box[0]) * (box[3] - box[1])
            assert torch.stack(here).tolist() == box.tolist()


def test_units_are_the_nearest_to_the_position() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 3, stride=4, padding=1)).eval()
    for at in (0, 1, 2, 3, 9, 31):
        found = backsight.receptive_field(model, torch.zeros(1, 3, 32, 32), position=(at, at))
        middles = np.arange(8) * 4  # unit u sees 4u - 1 ... 4u + 1
        assert abs(middles[found.units[0, 0]] - at) == np.abs(middles - at).min()


def test_layers_that_see_everything_or_are_not_known() -> None:
    found = backsight.receptive_field(trained(), torch.zeros(1, 1, 8, 8))
    last = found.layers.index("7")
    assert not found.seen[last]
    assert found.boxes[last].tolist() == [0, 0, 8, 8]
    assert found.seen[:last].all()

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            maps = self.conv(x)
            return maps if float(maps.sum()) > 0 else -maps

    unknown = backsight.receptive_field(Branches().eval(), torch.ones(1, 1, 8, 8))
    assert unknown.reason
    assert not unknown.seen.any()
    assert "no field is known" in unknown.summary()
    assert unknown.plot().axes


def test_bad_input_gets_a_sentence() -> None:
    image = torch.zeros(1, 1, 8, 8)
    with pytest.raises(ValueError, match=r"position within \(8, 8\), got \(8, 0\)"):
        backsight.receptive_field(trained(), image, position=(8, 0))
    with pytest.raises(ValueError, match="expected a layer of the model, such as"):
        backsight.receptive_field(trained(), image, layers=["nix"])
    with pytest.raises(ValueError, match="9 puts out none"):
        backsight.receptive_field(trained(), image, layers=["9"])
    with pytest.raises(ValueError, match="got a function"):
        backsight.receptive_field(lambda images: images, image)
    with pytest.raises(ValueError, match="layers that put out maps, got none"):
        backsight.receptive_field(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).eval(), image)


def test_is_drawn_and_saved(tmp_path) -> None:
    found = backsight.receptive_field(trained(), torch.rand(1, 1, 8, 8))
    found.save(tmp_path / "r.npz")
    with np.load(tmp_path / "r.npz") as arrays:
        np.testing.assert_array_equal(arrays["sizes"], found.sizes.numpy())
    found.save(tmp_path / "r.png")
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    legend = [text.get_text() for text in found.plot().axes[0].get_legend().get_texts()]
    assert legend == ["0: 3 x 3", "2: 5 x 5", "4: 6 x 6", "5: 10 x 10"]
    assert found.report()["layers"][0]["size"] == [3, 3]
    assert "10 x 10" in found.summary()
