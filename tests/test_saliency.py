"""Saliency: identities on linear models, against autograd, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import backsight
from backsight.zoo import Network, Preprocessing
from nets import random_images, seeded, squeezenet1_1

IMAGES = random_images((3, 32, 32), 3)


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4)).eval()


def test_of_a_linear_model_is_the_largest_weight_of_each_pixel() -> None:
    model = linear()
    found = backsight.saliency(model, IMAGES, 2)
    expected = model[1].weight[2].view(3, 32, 32).abs().amax(0)
    assert expected.max() > 0
    assert torch.equal(found.maps, expected.expand(3, -1, -1))
    assert torch.equal(found.maps, backsight.saliency(model, 5 * IMAGES + 1, 2).maps)


def test_is_the_gradient_of_the_score() -> None:
    model = seeded(squeezenet1_1).eval().double()
    images = random_images((3, 64, 64), 2).double()
    found = backsight.saliency(model, images, [3, 7], batch_size=1)
    leaf = images.clone().requires_grad_()
    scores = model(leaf)[[0, 1], [3, 7]]
    (expected,) = torch.autograd.grad(scores.sum(), leaf)
    assert expected.abs().max() > 0
    torch.testing.assert_close(found.maps, expected.abs().amax(1), rtol=1e-9, atol=0)
    torch.testing.assert_close(found.scores, scores.detach(), rtol=1e-12, atol=0)


def test_mask_holds_the_share_of_the_strongest_pixels() -> None:
    found = backsight.saliency(linear(), IMAGES, 0, threshold=0.75)
    assert found.masks.flatten(1).sum(1).tolist() == [256] * 3
    assert found.maps[found.masks].min() > found.maps[~found.masks].max()


def test_targets_by_name_default_and_function() -> None:
    names = ("tench", "goldfish", "great white shark", "tiger shark")
    network = Network("own", linear(), Preprocessing(crop=None, short_side=None), names)
    best = network.model(IMAGES).argmax(1)
    default = backsight.saliency(network, IMAGES)
    assert default.targets == tuple(names[i] for i in best)
    by_index = backsight.saliency(network, IMAGES, best)
    assert torch.equal(default.maps, by_index.maps)
    by_name = backsight.saliency(network, IMAGES, "goldfish")
    assert torch.equal(by_name.maps, backsight.saliency(network.model, IMAGES, 1).maps)

    def margin(scores: Tensor) -> Tensor:
        return scores[:, 0] - scores[:, 1]

    weight = network.model[1].weight
    expected = (weight[0] - weight[1]).view(3, 32, 32).abs().amax(0)
    found = backsight.saliency(network, IMAGES, margin)
    torch.testing.assert_close(found.maps[0], expected)
    assert found.targets == ("margin",) * 3
    with pytest.raises(ValueError, match="near names: goldfish"):
        backsight.saliency(network, IMAGES, "godfish")


def test_leaves_the_model_alone_also_under_no_grad() -> None:
    model = linear()
    with torch.no_grad():
        found = backsight.saliency(model, IMAGES, 1)
    assert found.maps.max() > 0
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    with torch.inference_mode():
        again = backsight.saliency(model, IMAGES.clone(), 1)
    assert torch.equal(again.maps, found.maps)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"target": 4}, r"expected a class index in 0..3, got 4"),
        ({"target": "cat"}, "a bare model has no class names"),
        ({"target": [0, 1]}, "one for each of 3 images, got 2"),
        ({"target": lambda scores: scores}, r"to return \(3,\) scores, got \(3, 4\)"),
        ({"target": lambda scores: scores[:, 0].detach()}, "differentiable"),
        ({"threshold": 1.0}, r"threshold in \[0, 1\)"),
        ({"batch_size": 0}, "positive batch_size"),
    ],
)
def test_bad_input_gets_a_sentence(arguments: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        backsight.saliency(linear(), IMAGES, **arguments)


def test_training_mode_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    with pytest.raises(ValueError, match=r"call model.eval\(\) first"):
        backsight.saliency(model, IMAGES)


def test_is_drawn_and_saved(tmp_path) -> None:
    found = backsight.saliency(linear(), IMAGES, 0)
    found.save(tmp_path / "s.npz")
    with np.load(tmp_path / "s.npz") as arrays:
        np.testing.assert_array_equal(arrays["maps"], found.maps.numpy())
    found.save(tmp_path / "s.png")
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")
    assert len(found.plot(2).axes) == 4
    with pytest.raises(ValueError, match=r"ends in \.npz or \.png"):
        found.save(tmp_path / "s.gif")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.npz", "s.png"]
