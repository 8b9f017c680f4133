"""Deep dreams: against the program written out, identities, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import backsight
from backsight.zoo import Network, Preprocessing
from digits import digits, trained
from nets import random_images

IMAGES = random_images((3, 24, 30), 2).double()


def circular() -> nn.Sequential:
    """Shifts of its input around the edges shift what it puts out."""
    torch.manual_seed(0)
    how = {"padding": 1, "padding_mode": "circular"}
    layers = [nn.Conv2d(3, 6, 3, **how), nn.ReLU(), nn.Conv2d(6, 5, 3, **how), nn.Softplus()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval().double()


def test_the_gradient_at_the_layer_is_its_activation() -> None:
    model = circular()
    leaf = IMAGES.clone().requires_grad_()
    maps = model[:3](leaf)
    maps.backward(maps.detach())  # as the program does it
    size = leaf.grad.abs().mean((1, 2, 3), keepdim=True)
    assert size.min() > 0
    expected = IMAGES + 0.3 * leaf.grad / size
    found = backsight.dream(model, IMAGES, layer="2", steps=1, step=0.3, octaves=1, jitter=0)
    torch.testing.assert_close(found.images, expected, rtol=1e-9, atol=1e-12)
    change = (found.images - IMAGES).abs().mean((1, 2, 3))
    torch.testing.assert_close(
        change, torch.full((2,), 0.3, dtype=torch.float64), rtol=1e-9, atol=0
    )


def test_is_mordvintsevs_program() -> None:
    """Octaves that carry the added detail alone, written out without jitter."""
    model, step, scale = circular(), 0.05, 1.4
    sizes = [(24, 30), (17, 21), (12, 15)]
    detail = torch.zeros(2, 3, *sizes[-1]).double()
    for size in reversed(sizes):
        base = F.interpolate(IMAGES, size, mode="bilinear", antialias=True)
        x = base + F.interpolate(detail, size, mode="bilinear")
        for _ in range(3):
            leaf = x.clone().requires_grad_()
            maps = model[:3](leaf)
            (g,) = torch.autograd.grad(maps, leaf, maps.detach())
            x = x + step / g.abs().mean((1, 2, 3), keepdim=True) * g
        detail = x - base
    found = backsight.dream(
        model, IMAGES, layer="2", steps=3, step=step, octaves=3, scale=scale, jitter=0
    )
    assert (x - IMAGES).abs().max() > 0.05
    torch.testing.assert_close(found.images, x, rtol=1e-9, atol=1e-11)
    assert (found.after > found.before).all()
    expected = model[:3](IMAGES).square().flatten(1).sum(1) / 2
    torch.testing.assert_close(found.before, expected.detach(), rtol=1e-9, atol=0)


def test_shifts_are_undone() -> None:
    model, kwargs = circular(), {"layer": "2", "steps": 4, "octaves": 2, "step": 0.05}
    still = backsight.dream(model, IMAGES, jitter=0, **kwargs)
    for seed in (0, 1):
        shifted = backsight.dream(model, IMAGES, jitter=32, seed=seed, **kwargs)
        torch.testing.assert_close(shifted.images, still.images, rtol=1e-8, atol=1e-10)
    # Of a model with edges the shifts count, and the seed says which they are.
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.padding_mode = "zeros"
    found = [backsight.dream(model, IMAGES, seed=seed, **kwargs).images for seed in (0, 1, 0)]
    assert (found[0] - found[1]).abs().max() > 1e-3
    assert torch.equal(found[0], found[2])


def test_nothing_is_lost_where_nothing_is_added() -> None:
    """A layer that is nowhere active leaves the photo as it is, through all octaves."""
    model = circular()
    model[0].bias.data.fill_(-1000)
    model[2].bias.data.zero_()
    found = backsight.dream(model, IMAGES, layer="2", octaves=3)
    assert torch.equal(found.images, IMAGES)


def test_a_mixture_is_the_weighted_sum() -> None:
    model = circular()
    leaf = IMAGES.clone().requires_grad_()
    first, last = model[:1](leaf), model[:4](leaf)
    total = 3 * first.square().sum() + 0.25 * last.square().sum()
    (g,) = torch.autograd.grad(total, leaf)
    expected = IMAGES + 0.3 * g / g.abs().mean((1, 2, 3), keepdim=True)
    kwargs = {"steps": 1, "step": 0.3, "octaves": 1, "jitter": 0}
    found = backsight.dream(model, IMAGES, layer={"0": 3, "3": 0.25}, **kwargs)
    torch.testing.assert_close(found.images, expected, rtol=1e-9, atol=1e-12)
    alone = backsight.dream(model, IMAGES, layer="3", **kwargs)
    assert (alone.images - expected).abs().max() > 0.01


def test_runs_no_further_than_its_last_layer() -> None:
    model = circular()
    model[4].register_forward_hook(lambda *_: runs.append(1))
    runs: list[int] = []
    backsight.dream(model, IMAGES, layer=["2", "0"], steps=3, octaves=1)
    assert len(runs) == 1  # the first run counts how often each layer runs


def test_images_are_dreamt_of_as_alone() -> None:
    model, kwargs = circular(), {"layer": "2", "steps": 3, "octaves": 2, "step": 0.05}
    both = backsight.dream(model, IMAGES, **kwargs)
    alone = [backsight.dream(model, image[None], **kwargs).images for image in IMAGES]
    torch.testing.assert_close(both.images, torch.cat(alone), rtol=1e-9, atol=1e-12)
    apart = backsight.dream(model, IMAGES, batch_size=1, **kwargs)
    torch.testing.assert_close(both.images, apart.images, rtol=1e-9, atol=1e-12)


def test_pixels_stay_in_range() -> None:
    model = circular().float()
    network = Network("own", model, Preprocessing(crop=None, short_side=None))
    low, high = (network.preprocessing.color((end,) * 3) for end in (0, 255))
    images = IMAGES.float().clamp(low, high)
    found = backsight.dream(network, images, layer="2", step=30)
    assert ((low <= found.images) & (found.images <= high)).all()
    assert (found.images == low).any()
    assert (found.images == high).any()
    assert found.pictures.shape == (2, 24, 30, 3)


def test_bfloat16() -> None:
    model = circular().bfloat16()
    found = backsight.dream(model, IMAGES.bfloat16(), layer="2", steps=3, octaves=2, step=0.05)
    assert found.images.dtype == torch.float32
    assert (found.after > 1.05 * found.before).all()


def test_leaves_the_model_and_the_images_alone() -> None:
    model, images = circular(), IMAGES.clone()
    state = torch.random.get_rng_state()
    with torch.no_grad():
        backsight.dream(model, images, layer="2", steps=2, octaves=2)
    with torch.inference_mode():
        backsight.dream(model, images.clone(), layer="2", steps=2, octaves=2)
    assert torch.equal(images, IMAGES)
    assert all(not module._forward_hooks for module in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_digits_excite_a_layer_more_after_a_dream() -> None:
    images, _ = digits()
    found = backsight.dream(
        trained(), images[:4], layer="5", limits=(0, 1), octaves=1, jitter=0, step=8
    )
    assert (found.after > 1.1 * found.before).all()
    assert ((found.images >= 0) & (found.images <= 1)).all()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"layer": "9"}, "expected a layer of the model"),
        ({"layer": {}}, "layers with positive weights"),
        ({"layer": {"2": 0.0}}, "layers with positive weights"),
        ({"octaves": 0}, "octaves of at least 1"),
        ({"scale": 1.0}, "a scale above 1"),
        ({"step": -1.0}, "positive step"),
        ({"images": IMAGES[..., 0]}, r"images \(images, channels, H, W\)"),
        ({"octaves": 12}, "cannot take the smallest, 1 x 1"),
    ],
)
def test_bad_input_gets_a_sentence(arguments: dict[str, object], sentence: str) -> None:
    model = circular()
    model[2].padding_mode, model[2].padding = "zeros", (0, 0)
    given = {"images": IMAGES, "layer": "2", **arguments}
    with pytest.raises(ValueError, match=sentence):
        backsight.dream(model, **given)


def test_is_drawn_and_saved(tmp_path) -> None:
    found = backsight.dream(circular(), IMAGES, layer=["0", "2"], steps=1, octaves=1)
    found.save(tmp_path / "d.npz")
    with np.load(tmp_path / "d.npz") as arrays:
        np.testing.assert_array_equal(arrays["images"], found.images.numpy())
    assert len(found.plot(1).axes) == 2
    found.save(tmp_path / "d.png")
    assert "dream of 0 + 2, activity from " in found.summary()


@pytest.mark.slow
def test_a_trained_network_sees_more_of_what_it_sees() -> None:
    skimage = pytest.importorskip("skimage.data")
    network = backsight.zoo.squeezenet()
    image, _ = network.prepare(skimage.coffee())
    found = backsight.dream(network, image, layer="fire8")
    assert found.after[0] > 5 * found.before[0]
