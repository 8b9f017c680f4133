"""Class models: identities on linear models, the order of a step, and what digits' classes like."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import backsight
from backsight import baselines
from backsight.methods.class_model import ClassModel
from backsight.zoo import Network, Preprocessing
from digits import digits, trained
from nets import random_images

SHAPE = (3, 9, 12)
PLAIN = {"decay": 0.0, "blur": 0.0}


def linear(classes: int = 4) -> nn.Module:
    torch.manual_seed(0)
    size = SHAPE[0] * SHAPE[1] * SHAPE[2]
    return nn.Sequential(nn.Flatten(), nn.Linear(size, classes)).eval().double()


def weights(model: nn.Module) -> Tensor:
    return model[1].weight.detach().view(-1, *SHAPE)


def small(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 6, 3), nn.Tanh(), nn.Conv2d(6, 5, 3), nn.Softplus()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval().double()


def test_of_a_linear_model_is_its_weights_over_twice_the_penalty() -> None:
    model = linear()
    found = backsight.class_model(model, [0, 2], shape=SHAPE, l2=0.5, rate=0.2, steps=200, **PLAIN)
    expected = weights(model)[[0, 2]] / (2 * 0.5)
    assert expected.abs().max() > 0
    torch.testing.assert_close(found.images, expected, rtol=1e-9, atol=1e-12)


def test_decay_without_a_gradient_is_a_power() -> None:
    model = linear()
    model[1].weight.data.zero_()
    start = random_images(SHAPE, 1).double()

    def rising(scores: Tensor) -> Tensor:  # each score is better than the one before
        rising.count += 1
        return scores[:, 0] * 0 + rising.count

    rising.count = 0
    found = backsight.class_model(
        model, rising, start=start, rate=1.0, decay=0.1, blur=0.0, steps=8
    )
    # the last step has no decay
    torch.testing.assert_close(found.images, start * 0.9**7, rtol=1e-12, atol=0)


@pytest.mark.parametrize("option", ["clip_norm", "clip_contribution"])
@pytest.mark.parametrize("percent", [25, 50])
def test_a_percentile_zeroes_so_many_pixels(option: str, percent: int) -> None:
    start = random_images(SHAPE, 1).double()
    model, rate = linear(), 1e-3
    w = weights(model)[1]
    # Two steps; the second has no regulariser, and adds w once more.
    found = backsight.class_model(
        model, 1, start=start, rate=rate, steps=2, **{option: percent}, **PLAIN
    )
    first = start[0] + rate * w
    size = first.norm(dim=0) if option == "clip_norm" else (w * first).sum(0).abs()
    gone = size <= size.flatten().sort().values[round(108 * percent / 100) - 1]
    assert gone.sum() == 108 * percent / 100
    expected = torch.where(gone, 0.0, first)
    met = [start[0], expected, expected + rate * w]
    scores = torch.stack([(w * x).sum() for x in met]) + model[1].bias[1]
    torch.testing.assert_close(found.histories[0], scores.detach(), rtol=1e-9, atol=0)
    assert len(set(scores.tolist())) == 3
    best = met[int(scores.argmax())]
    torch.testing.assert_close(found.images[0], best, rtol=1e-9, atol=1e-12)


def test_a_step_has_yosinskis_order() -> None:
    """Against a loop that is written out."""
    model, start = small(), random_images(SHAPE, 1, seed=3).double()
    rate, decay, sigma, every, norm, share, steps = 3.0, 0.05, 0.7, 3, 20, 10, 7
    x, best, most, scores = start.clone(), None, -torch.inf, []
    for k in range(steps + 1):
        leaf = x.clone().requires_grad_()
        score = model(leaf)[0, 2]
        scores.append(score.item())
        if scores[-1] > most:
            best, most = x.clone(), scores[-1]
        if k == steps:
            break
        (g,) = torch.autograd.grad(score, leaf)
        x = x + rate * g
        if k == steps - 1:
            continue
        x = x * (1 - decay)
        if (k + 1) % every == 0:
            x = baselines.blur(x, sigma)
        for percent, size in (
            (norm, lambda x: x.square().sum(1, keepdim=True)),
            (share, lambda x, g=g: (g * x).sum(1, keepdim=True).abs()),
        ):
            s = size(x)
            x = x * (s > s.flatten().sort().values[round(percent / 100 * s.numel()) - 1])
    found = backsight.class_model(
        model,
        2,
        start=start,
        rate=rate,
        decay=decay,
        blur=sigma,
        blur_every=every,
        clip_norm=norm,
        clip_contribution=share,
        steps=steps,
    )
    assert most > scores[0] + 1e-3
    torch.testing.assert_close(found.images, best, rtol=1e-9, atol=1e-12)
    expected = torch.tensor([scores], dtype=torch.float64)
    torch.testing.assert_close(found.histories, expected, rtol=1e-9, atol=0)


def test_the_best_picture_is_kept() -> None:
    """Steps that are too long overshoot the top."""

    class Hill(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return -(x - 1).square().flatten(1).sum(1, keepdim=True)

    start = torch.full((1, 1, 2, 2), 0.9, dtype=torch.float64)
    found = backsight.class_model(Hill(), 0, start=start, rate=1.2, steps=5, **PLAIN)
    assert torch.equal(found.images, start)
    assert found.histories[0].argmax() == 0
    assert found.scores[0] == found.histories[0, 0] > found.histories[0, 1]


def test_several_targets_and_seeds_are_those_one_by_one() -> None:
    model, targets, seeds = small(), [0, 3, 1], [4, 5]
    kwargs = {"shape": SHAPE, "steps": 6, "step": 0.05, "clip_norm": 10.0}
    found = backsight.class_model(model, targets, seed=seeds, batch_size=4, **kwargs)
    assert found.targets == ("class 0", "class 0", "class 3", "class 3", "class 1", "class 1")
    assert found.seeds == (4, 5) * 3
    for i, target in enumerate(targets):
        for j, seed in enumerate(seeds):
            alone = backsight.class_model(model, target, seed=seed, **kwargs)
            one = found.images[2 * i + j, None]
            torch.testing.assert_close(alone.images, one, rtol=1e-9, atol=1e-12)
    assert (found.images[0] - found.images[1]).abs().max() > 0.01
    again = backsight.class_model(model, targets, seed=seeds, batch_size=4, **kwargs)
    assert torch.equal(again.images, found.images)


def test_a_channel_a_neuron_and_a_function() -> None:
    model = small()
    state = torch.random.get_rng_state()
    kwargs = {"shape": SHAPE, "steps": 5, "step": 0.1, **PLAIN}
    channel = backsight.class_model(model, 4, layer="2", **kwargs)
    assert channel.targets == ("channel 4",)
    with torch.no_grad():
        expected = model[:3](channel.images)[0, 4].mean()
    torch.testing.assert_close(channel.scores[0], expected, rtol=1e-9, atol=0)
    assert channel.scores[0] > channel.histories[0, 0]
    neuron = backsight.class_model(model, (4, 2, 3), layer="2", **kwargs)
    assert neuron.targets == ("channel 4 at 2, 3",)
    # A neuron changes what it sees: 5 x 5 pixels.
    start = backsight.class_model(model, (4, 2, 3), layer="2", **{**kwargs, "step": 1e-12}).images
    moved = (neuron.images - start).abs().amax((0, 1)) > 1e-6
    assert moved[2:7, 3:8].all()
    assert moved.sum() == 25

    def spread(maps: Tensor) -> Tensor:
        return maps.flatten(1).std(1)

    function = backsight.class_model(model, spread, layer="2", **kwargs)
    assert function.targets == ("spread",)
    assert function.scores[0] > function.histories[0, 0]
    assert torch.equal(torch.random.get_rng_state(), state)


def test_pixels_stay_in_range_or_are_stretched_to_it() -> None:
    model = linear()
    model = nn.Sequential(*model).float()
    network = Network("own", model, Preprocessing(crop=None, short_side=None))
    how = network.preprocessing
    low, high = how.color((0, 0, 0)), how.color((255, 255, 255))
    kept = backsight.class_model(network, 1, shape=SHAPE, steps=20, step=40)
    assert ((low <= kept.images) & (kept.images <= high)).all()
    assert ((kept.images == low) | (kept.images == high)).float().mean() > 0.3
    free = backsight.class_model(network, 1, shape=SHAPE, steps=20, step=40, rescale=True)
    assert free.images.abs().max() > high.max()
    levels = free.images * torch.tensor(how.std).view(-1, 1, 1) + torch.tensor(how.mean).view(
        -1, 1, 1
    )
    spread = (levels - levels.min()) / (levels.max() - levels.min()) * 255
    expected = spread.permute(0, 2, 3, 1)
    assert (free.pictures - expected).abs().max() < 0.51
    bare = backsight.class_model(model, 1, shape=SHAPE, steps=20, step=40, limits=(-1, 1))
    assert bare.images.abs().max() == 1
    assert bare.pictures.min() == 0
    assert bare.pictures.max() == 255


def test_step_is_the_mean_change() -> None:
    model = linear().float()
    network = Network("own", model, Preprocessing(crop=None, short_side=None))
    start = torch.zeros(1, *SHAPE)
    found = backsight.class_model(network, 1, start=start, steps=1, step=3.0)
    level = torch.tensor([1 / 255 / s for s in network.preprocessing.std]).view(3, 1, 1)
    assert abs(float((found.images / level).abs().mean()) - 3) < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_and_axes(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv1d(2, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten()]
    model = nn.Sequential(*layers).to(dtype).eval()
    found = backsight.class_model(model, 1, shape=(2, 20), steps=8, step=0.2)
    assert found.images.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert found.scores[0] > found.histories[0, 0] + 0.1


def test_leaves_the_model_alone_also_after_an_exception() -> None:
    model = small()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def fails(_: Tensor) -> Tensor:
        raise KeyError("no")

    with pytest.raises(KeyError):
        backsight.class_model(model, fails, layer="1", shape=SHAPE)
    with torch.inference_mode():
        found = backsight.class_model(model, 1, layer="1", shape=SHAPE, steps=2, step=0.1)
    assert found.scores[0] > found.histories[0, 0]
    assert all(not module._forward_hooks for module in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_scores_higher_than_any_digit() -> None:
    images, _ = digits()
    model = trained()
    found = backsight.class_model(
        model, list(range(10)), shape=(1, 8, 8), limits=(0, 1), steps=100, step=8, **PLAIN
    )
    with torch.no_grad():
        best = model(images).amax(0)
    assert (found.scores > best).all()
    assert ((found.images >= 0) & (found.images <= 1)).all()
    with torch.no_grad():
        assert model(found.images).argmax(1).tolist() == list(range(10))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"target": 4}, r"class index in 0..3, got 4"),
        ({"target": None}, "expected a target"),
        ({"target": []}, "a target at least, got none"),
        ({"target": [1, 2], "start": torch.zeros(3, *SHAPE).double()}, "each of 2 targets, got 3"),
        ({"blur": 0.2}, "sigma of at least 0.3 or 0, got 0.2"),
        ({"decay": 1.0}, r"decay in \[0, 1\)"),
        ({"step": 0.0}, "positive step"),
        ({"steps": 0}, "steps of at least 1, got 0"),
        ({"clip_norm": 100}, r"clip_norm as a percentage in \[0, 100\), got 100"),
        ({"shape": (3,)}, r"a shape \(channels, \*spatial\), got \(3,\)"),
        ({"shape": None}, "a model without a usual size"),
        ({"limits": (1.0, 0.0)}, r"limits \(low, high\) that rise"),
        ({"seed": []}, "a seed at least, got none"),
        ({"layer": "7"}, "expected a layer of the model"),
        ({"rate": 1e200, "l2": 1.0}, "finite scores"),
    ],
)
def test_bad_input_gets_a_sentence(arguments: dict[str, object], sentence: str) -> None:
    given = {"target": 1, "shape": SHAPE, "steps": 4, **arguments}
    if sentence == "finite scores":
        model: nn.Module = nn.Sequential(nn.Flatten(), nn.Linear(324, 4)).double()
        model[1].bias.data.fill_(torch.nan)
    else:
        model = linear()
    with pytest.raises(ValueError, match=sentence):
        backsight.class_model(model, **given)


def test_is_drawn_and_saved(tmp_path) -> None:
    found = backsight.class_model(linear(), [0, 1, 2], shape=SHAPE, steps=2)
    assert isinstance(found, ClassModel)
    found.save(tmp_path / "c.npz")
    with np.load(tmp_path / "c.npz") as arrays:
        np.testing.assert_array_equal(arrays["images"], found.images.numpy())
    found.save(tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert "class 2: from " in found.summary()


@pytest.mark.slow
def test_a_trained_network_is_sure_of_what_it_made() -> None:
    network = backsight.zoo.squeezenet()
    found = backsight.class_model(network, ["goldfish", "volcano"], steps=60)
    with torch.no_grad():
        sure = network.model(found.images).softmax(1)
    assert sure.max(1).values.min() > 0.99
    names = [network.label(int(i)) for i in sure.argmax(1)]
    assert names == ["goldfish", "volcano"]
