"""Fooling images: bounds that hold exactly, linear models, digits, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import backsight
from backsight.zoo import Network, Preprocessing
from digits import digits, held_out, trained
from nets import random_images

SHAPE = (3, 8, 9)
IMAGES = random_images(SHAPE, 4)
SIZE = math.prod(SHAPE)


def linear(classes: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(SIZE, classes)).eval().double()


def margin(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        scores = model(images)
    return scores[:, 1] - scores[:, 0]


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("method", ["fgsm", "pgd"])
def test_a_linear_margin_rises_by_the_dual_norm(method: str, norm: str) -> None:
    model, images, epsilon = linear(), IMAGES.double(), 0.01
    w = (model[1].weight[1] - model[1].weight[0]).detach()
    found = backsight.fool(
        model, images, 1, method=method, norm=norm, epsilon=epsilon, confidence=0.999999
    )
    assert not found.reached.any()
    dual = w.abs().sum() if norm == "linf" else w.norm()
    rise = margin(model, found.images) - margin(model, images)
    torch.testing.assert_close(rise, (epsilon * dual).expand(4), rtol=1e-9, atol=0)
    assert torch.equal(found.distances <= epsilon, torch.ones(4, dtype=torch.bool))
    # Without a target: away from the class that is stronger.
    away = backsight.fool(
        model, images, method=method, norm=norm, epsilon=epsilon, confidence=0.999999
    )
    sign = -margin(model, images).sign()
    rise = margin(model, away.images) - margin(model, images)
    torch.testing.assert_close(rise, sign * epsilon * dual, rtol=1e-9, atol=0)
    assert away.targets is None


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_smallest_flip_of_a_linear_model_is_the_distance_to_its_plane(norm: str) -> None:
    model, images = linear(), IMAGES.double()
    w = (model[1].weight[1] - model[1].weight[0]).detach()
    found = backsight.fool(model, images, norm=norm, confidence=0, smallest=True)
    dual = w.abs().sum() if norm == "linf" else w.norm()
    nearest = margin(model, images).abs() / dual
    assert found.reached.all()
    assert (found.distances >= nearest).all()
    assert (found.distances <= 1.02 * nearest).all()
    assert (margin(model, images).sign() == -margin(model, found.images).sign()).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("epsilon", [0.37, 3.0])
def test_bounds_hold_exactly(norm: str, dtype: torch.dtype, epsilon: float) -> None:
    """In levels, as computed in float64 from the images themselves; and pixels stay in range."""
    network = Network("own", linear(5).to(dtype), Preprocessing(crop=None, short_side=None))
    how = network.preprocessing
    low, high = (how.color((end,) * 3).to(dtype) for end in (0, 255))
    images = IMAGES.to(dtype).clamp(low, high)
    epsilon *= 1 if norm == "linf" else math.sqrt(SIZE)
    found = backsight.fool(
        network, images, 3, norm=norm, epsilon=epsilon, confidence=0.999, steps=7
    )
    assert found.images.dtype == dtype
    assert ((low <= found.images) & (found.images <= high)).all()
    std = torch.tensor(how.std, dtype=torch.float64).view(3, 1, 1)
    changes = (found.images.double() - images.double()) * std * 255
    flat = changes.flatten(1)
    norms = flat.abs().amax(1) if norm == "linf" else flat.norm(dim=1)
    assert (norms <= epsilon * (1 + 1e-12)).all()
    assert (found.distances <= epsilon).all()
    torch.testing.assert_close(found.distances, norms, rtol=1e-12, atol=0)
    if dtype != torch.bfloat16:
        assert (norms > 0.9 * epsilon).all()
    torch.testing.assert_close(found.changes.double(), changes, rtol=1e-5, atol=1e-5)


def test_confidences_are_the_networks_own() -> None:
    model = linear(5)
    found = backsight.fool(model, IMAGES.double(), [0, 1, 2, 3], confidence=0.8)
    with torch.no_grad():
        before, after = (model(x.double()).softmax(1) for x in (IMAGES, found.images))
    torch.testing.assert_close(found.before, before, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.after, after, rtol=1e-9, atol=1e-12)
    assert found.reached.all()
    assert after.argmax(1).tolist() == [0, 1, 2, 3]
    assert (after.amax(1) >= 0.8).all()
    assert found.targets == ("class 0", "class 1", "class 2", "class 3")
    assert [now for _, now in found.names] == list(found.targets)


def test_what_is_reached_already_stays() -> None:
    model = linear(3)
    best = model(IMAGES.double()).argmax(1)
    found = backsight.fool(model, IMAGES.double(), best, confidence=0, epsilon=5.0)
    assert torch.equal(found.images, IMAGES.double())
    assert found.distances.tolist() == [0] * 4


def test_images_are_changed_as_alone() -> None:
    model = linear(4)
    images = IMAGES.double()
    how = {"steps": 40, "step": 0.01}
    both = backsight.fool(model, images, 2, batch_size=3, **how)
    alone = [backsight.fool(model, x[None], 2, **how).images for x in images]
    assert len({float(d) for d in both.distances}) > 1
    torch.testing.assert_close(both.images, torch.cat(alone), rtol=1e-9, atol=1e-12)


def test_digits_are_taken_for_others_within_the_bound() -> None:
    images, labels = digits()
    some = images[held_out(len(images))][:12]
    truth = labels[held_out(len(images))][:12]
    targets = (truth + 3) % 10
    model = trained()
    found = backsight.fool(
        model, some, targets, confidence=0.9, epsilon=90.0, limits=(0, 1), steps=60
    )
    assert found.reached.all()
    with torch.no_grad():
        shares = model(found.images).softmax(1)
    assert shares.argmax(1).tolist() == targets.tolist()
    assert (shares.amax(1) >= 0.9).all()
    assert ((found.images - some).abs() <= 90 / 255 + 1e-7).all()
    assert ((found.images >= 0) & (found.images <= 1)).all()
    assert (model(some).argmax(1) != targets).all()


def test_the_smallest_change_is_less_than_the_first_found() -> None:
    images, _ = digits()
    some, model = images[:6], trained()
    kwargs = {"confidence": 0.0, "limits": (0, 1), "epsilon": 100.0}
    first = backsight.fool(model, some, **kwargs)
    least = backsight.fool(model, some, smallest=True, **kwargs)
    assert least.reached.all()
    assert (least.distances <= first.distances).all()
    assert (least.distances < 0.9 * first.distances).any()
    assert all(was != now for was, now in least.names)


def test_from_noise() -> None:
    model = trained()
    state = torch.random.get_rng_state()
    found = [
        backsight.fool(model, None, [3, 7], shape=(1, 8, 8), limits=(0, 1), steps=100, seed=seed)
        for seed in (0, 1, 0)
    ]
    assert found[0].reached.all()
    assert found[0].after.argmax(1).tolist() == [3, 7]
    assert torch.equal(found[0].images, found[2].images)
    assert not torch.equal(found[0].images, found[1].images)
    starts = found[0].images - found[0].changes / 255
    torch.testing.assert_close(starts[0], starts[1])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_leaves_the_model_alone_also_in_inference_mode() -> None:
    model, images = linear(3), IMAGES.double()
    with torch.inference_mode():
        backsight.fool(model, images.clone(), 1, epsilon=0.5)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(images, IMAGES.double())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"target": 7}, r"class index in 0..2, got 7"),
        ({"target": [0, 1]}, "one for each of 4 images, got 2"),
        ({"target": lambda scores: scores[:, 0]}, "a class that has a probability, got a function"),
        ({"method": "bim"}, "method as one of pgd, fgsm, got 'bim'"),
        ({"norm": "l1"}, "norm as one of linf, l2, got 'l1'"),
        ({"confidence": 1.0}, r"a confidence in \[0, 1\), got 1.0"),
        ({"epsilon": -1.0}, "a positive epsilon, got -1.0"),
        ({"method": "fgsm"}, "expected an epsilon"),
        ({"images": None}, "a model without a usual size"),
        ({"steps": 0}, "steps of at least 1"),
    ],
)
def test_bad_input_gets_a_sentence(arguments: dict[str, object], sentence: str) -> None:
    given = {"images": IMAGES.double(), "target": 1, **arguments}
    with pytest.raises(ValueError, match=sentence):
        backsight.fool(linear(3), **given)


def test_models_without_two_classes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"two classes at least, got \(4, 1\)"):
        backsight.fool(linear(1), IMAGES.double())
    maps = nn.Conv2d(3, 4, 3).double()
    with pytest.raises(ValueError, match=r"two classes at least, got \(4, 4, 6, 7\)"):
        backsight.fool(maps, IMAGES.double())


def test_is_drawn_and_saved(tmp_path) -> None:
    found = backsight.fool(linear(3), IMAGES.double(), 1)
    found.save(tmp_path / "f.npz")
    with np.load(tmp_path / "f.npz") as arrays:
        np.testing.assert_array_equal(arrays["images"], found.images.numpy())
    assert len(found.plot(1).axes) == 3
    found.save(tmp_path / "f.png")
    assert "becomes class 1" in found.summary()


@pytest.mark.slow
def test_an_espresso_becomes_a_volcano() -> None:
    skimage = pytest.importorskip("skimage.data")
    network = backsight.zoo.squeezenet()
    image, _ = network.prepare(skimage.coffee())
    found = backsight.fool(network, image, "volcano", epsilon=4.0)
    assert found.names == (("espresso", "volcano"),)
    assert found.reached.all()
    assert found.distances[0] <= 4
