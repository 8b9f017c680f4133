"""Activations: shares and dead channels over a data set, however it comes."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import backsight
from backsight.methods.activations import Activations
from digits import digits, trained


def crippled() -> nn.Module:
    """The digits' network with channels 3 and 20 of its second ReLU dead, and 7 nearly so."""
    model = copy.deepcopy(trained())
    with torch.no_grad():
        model[2].bias[[3, 20]] = -1e3
        before = model[:3](digits()[0])[:, 7]
        model[2].bias[7] -= before.max() * (1 - 1e-3)  # one unit or so is left
    return model


def test_dead_channels_are_never_active_and_the_others_are() -> None:
    model, images = crippled(), digits()[0]
    found = backsight.activations(model, images, layer="3", batch_size=100)
    with torch.no_grad():
        maps = model[:4](images)
    active = (maps > 0).flatten(2).double().mean((0, 2))
    dead = active == 0
    assert dead[[3, 20]].all()
    assert not dead[7]
    assert torch.equal(found.dead, dead)
    torch.testing.assert_close(found.active, active, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.means, maps.double().mean((0, 2, 3)), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found.largest, maps.amax((0, 2, 3)))
    torch.testing.assert_close(found.maps, maps[:1])
    assert found.images == len(images)
    # dead for one image is not dead for all
    assert backsight.activations(model, images[:1], layer="3").dead[7]


def test_a_data_set_may_come_in_any_way() -> None:
    model, (images, labels) = trained(), (digits()[0][:50], digits()[1][:50])
    whole = backsight.activations(model, images, layer="3")
    ways = {
        "a loader": DataLoader(TensorDataset(images, labels), batch_size=7),
        "single images": TensorDataset(images),
        "a generator": (some for some in images.split(20)),
        "some unreadable": [images[0], None, *images[1:]],
    }

    def same(found: Activations) -> bool:
        return found.images == 50 and bool((found.active - whole.active).abs().max() < 1e-3)

    assert {name for name, way in ways.items() if not same(of(model, way))} == set()
    assert whole.active.std() > 0


def of(model: nn.Module, dataset: object) -> Activations:
    return backsight.activations(model, dataset, layer="3", shown=3)


def test_threshold() -> None:
    images = digits()[0][:20]
    found = backsight.activations(trained(), images, layer="3", threshold=0.5)
    with torch.no_grad():
        maps = trained()[:4](images)
    torch.testing.assert_close(found.active, (maps > 0.5).double().mean((0, 2, 3)))
    assert torch.equal(found.dead, maps.amax((0, 2, 3)) <= 0.5)


def test_layers_without_space_and_several_shown() -> None:
    images = digits()[0][:5]
    found = backsight.activations(trained(), images, layer="9", shown=4)
    assert found.maps.shape == (4, 10)
    assert found.pictures.shape == (4, 8, 8, 3)
    assert found.plot(3).axes
    torch.manual_seed(0)
    line = backsight.activations(
        nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU()).eval(), torch.randn(3, 2, 9), layer="1"
    )
    assert line.maps.shape == (1, 4, 7)
    assert line.plot().axes


def test_leaves_everything_alone() -> None:
    class Writer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(x) + 1

    images = digits()[0][:3] - 0.5
    before = images.clone()
    model = Writer().eval()
    found = backsight.activations(model, images, layer="relu")
    assert torch.equal(images, before)
    assert 0 < found.active.mean() < 1
    assert not model.relu._forward_hooks


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"layer": "nix"}, "expected a layer of the model, such as"),
        ({"shown": 0}, "positive shown, got 0"),
        ({"batch_size": 0}, "positive batch_size"),
        ({"images": []}, "at least one image, got none"),
        ({"images": 3}, "data set of images"),
        ({"images": torch.full((1, 1, 8, 8), torch.nan)}, "finite images"),
        ({"images": [torch.zeros(1, 8, 8), torch.zeros(1, 9, 8)], "shown": 2}, "of one size"),
    ],
)
def test_bad_input_gets_a_sentence(arguments: dict[str, object], sentence: str) -> None:
    given = {"images": digits()[0][:2], "layer": "3", **arguments}
    with pytest.raises(ValueError, match=sentence):
        backsight.activations(trained(), **given)


def test_is_drawn_and_saved(tmp_path) -> None:
    found = backsight.activations(crippled(), digits()[0][:30], layer="3")
    found.save(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as arrays:
        np.testing.assert_array_equal(arrays["maps"], found.maps.numpy())
    found.save(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    words = [text.get_text() for text in found.plot().axes[0].texts]
    assert "dead" in words
    assert found.report()["dead"] == found.dead.nonzero()[:, 0].tolist()
