"""CAM: its mean and the bias are the score; Grad-CAM; a new head for other models."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import backsight
from backsight import zoo
from digits import accuracy, digits, held_out, trained
from nets import calibrate, random_images, resnet18, seeded, squeezenet1_1


class Volume(nn.Module):
    """The worked case: the image is the last volume, 4 x 4 x 6; six averages; one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(x).mean((2, 3)))


def means(found: backsight.Cam) -> Tensor:
    """What the maps and biases say that the scores are."""
    assert found.biases is not None
    assert found.cams.abs().max() > 0
    return found.cams.flatten(1).mean(1) + found.biases


def test_worked_case_of_the_lecture() -> None:
    volume = random_images((6, 4, 4), 2).double()
    model = seeded(Volume).eval().double()
    found = backsight.cam(model, volume, [0, 2])
    weights = model.fc.weight.detach()
    for image, target in enumerate((0, 2)):
        summed = sum(weights[target, k] * volume[image, k].relu() for k in range(6))
        torch.testing.assert_close(found.cams[image], summed, rtol=1e-12, atol=1e-12)
        # (1/16) sum over positions of the map, and sum over channels of the averages
        swapped = sum(weights[target, k] * volume[image, k].relu().sum() / 16 for k in range(6))
        torch.testing.assert_close(found.cams[image].sum() / 16, swapped, rtol=1e-12, atol=1e-12)
    assert torch.equal(found.biases, model.fc.bias.detach()[[0, 2]])
    assert torch.equal(found.maps, found.cams)  # of the image's own size


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_mean_and_bias_are_the_score(dtype: torch.dtype, near: float) -> None:
    images = random_images((3, 64, 48), 3).to(dtype)
    for make in (lambda: resnet18(10, 1 / 8), lambda: squeezenet1_1(10, 1 / 4)):
        model = seeded(make).eval().to(dtype)
        found = backsight.cam(model, images, [1, 7, 3], batch_size=2)
        scores = model(images).detach()[[0, 1, 2], [1, 7, 3]]
        assert found.maps.shape == (3, 64, 48)
        assert found.cams[0].numel() > 1
        scale = scores.abs().max()
        assert (means(found) - scores).abs().max() <= near * scale
        assert (found.scores - scores).abs().max() <= near * scale


def test_head_of_convolution_and_pool_is_a_cam() -> None:
    images = random_images((3, 64, 64), 2)
    model = calibrate(seeded(lambda: squeezenet1_1(10, 1 / 4)), images)
    found = backsight.cam(model, images, 4)
    assert torch.equal(found.biases, torch.zeros(2))
    with torch.no_grad():
        maps = model[:-2](images)[:, 4]  # behind the ReLU of the last convolution
    assert maps.max() > 0
    torch.testing.assert_close(found.cams, maps, rtol=1e-4, atol=1e-5 * float(maps.max()))


def test_digits() -> None:
    images, labels = digits()
    model = trained()
    images, labels = images[held_out(len(images))][:100], labels[held_out(len(images))][:100]
    found = backsight.cam(model, images, labels)
    scores = model(images).detach().gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(means(found), scores, rtol=1e-5, atol=1e-5)
    margin = backsight.cam(model, images[:2], lambda s: s[:, 3] - 2 * s[:, 5])
    torch.testing.assert_close(means(margin), margin.scores, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="linear function of the outputs"):
        backsight.cam(model, images[:2], lambda s: s.softmax(1)[:, 3])


def test_grad_cam_at_the_last_layer_is_what_cam_has_above_zero() -> None:
    images, _ = digits()
    cam, grad = (backsight.cam(trained(), images[:20], layer=layer) for layer in (None, "6"))
    assert grad.biases is None
    assert (cam.cams < 0).any()
    assert grad.cams.max() > 0
    torch.testing.assert_close(grad.cams, cam.cams.relu() / 16, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(grad.scores, cam.scores, rtol=1e-5, atol=1e-5)


def test_grad_cam_is_its_formula() -> None:
    """At a convolution whose output the next layer, a ReLU, overwrites."""
    images = random_images((3, 64, 64), 2).double()
    model = calibrate(seeded(lambda: squeezenet1_1(10, 1 / 4)), images.float()).double()
    assert model[1].inplace
    found = backsight.cam(model, images, [3, 8], layer="0", batch_size=1)
    maps = model[0](images).detach().requires_grad_()
    scores = model[1:](maps.clone())[[0, 1], [3, 8]]
    (slopes,) = torch.autograd.grad(scores.sum(), maps)
    expected = (slopes.mean((2, 3), keepdim=True) * maps.detach()).sum(1).relu()
    assert expected.max() > 0
    torch.testing.assert_close(found.cams, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.scores, scores.detach(), rtol=1e-12, atol=1e-12)


def test_leaves_everything_alone() -> None:
    model = trained()
    images = digits()[0][:3].clone()
    before = images.clone()
    with torch.inference_mode():
        backsight.cam(model, images, layer="4")
        found = backsight.cam(model, images)
    assert not found.cams.requires_grad
    assert torch.equal(images, before)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())

    def boom(scores: Tensor) -> Tensor:
        raise KeyError("boom")

    for layer in (None, "4"):
        with pytest.raises(KeyError):
            backsight.cam(model, images, boom, layer=layer)
    assert not any(m._forward_hooks for m in model.modules())
    assert torch.is_grad_enabled()


def flat() -> nn.Sequential:
    """The trained digits' network with flatten and two linear layers in place of its end."""
    torch.manual_seed(1)
    head = [nn.Flatten(), nn.Linear(32 * 16, 20), nn.ReLU(), nn.Linear(20, 10)]
    return nn.Sequential(*list(trained())[:7], *head).eval()


def test_to_gap_trains_a_linear_layer_alone() -> None:
    images, labels = digits()
    model = flat()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    train = ~held_out(len(images))
    batches = list(zip(images[train].split(100), labels[train].split(100), strict=True))
    made = backsight.to_gap(model, batches)
    assert isinstance(made, backsight.GapModel)
    assert made.layer == "6"
    assert accuracy(made, images, labels) > 0.95 > 0.3 > accuracy(model, images, labels)
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])
    for name, value in made.trunk.state_dict().items():
        assert torch.equal(value, state[name])  # what is in front is as it was
    assert not any(isinstance(module, nn.Linear) for module in made.trunk.modules())
    found = backsight.cam(made, images[:5])
    scores = made(images[:5]).detach().amax(1)
    torch.testing.assert_close(means(found), scores, rtol=1e-5, atol=1e-5)
    again = backsight.to_gap(model, batches)
    assert torch.equal(again.head.weight, made.head.weight)
    assert "exact windows" in str(backsight.plan(made, images[:1], window=2))


def test_to_gap_keeps_what_is_known_of_a_network() -> None:
    names = tuple(f"digit {i}" for i in range(10))
    images, labels = digits()
    network = zoo.Network("own", flat(), zoo.Preprocessing(crop=None, short_side=None), names)
    made = backsight.to_gap(network, [(images[:200], labels[:200])], layer="4")
    assert isinstance(made, zoo.Network)
    assert made.classes == names
    assert backsight.cam(made, images[:1], "digit 3").targets == ("digit 3",)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"target": 10}, r"class index in 0..9, got 10"),
        ({"layer": "nix"}, "expected a layer of the model, such as"),
        ({"layer": "9"}, r"maps .* 9 puts out \(3, 10\)"),
        ({"layer": "7"}, r"several positions, and 7 puts out \(3, 32, 1, 1\)"),
        ({"batch_size": 0}, "positive batch_size"),
        ({"target": lambda s: s[:, 0].detach(), "layer": "6"}, "differentiable"),
    ],
)
def test_bad_input_gets_a_sentence(arguments: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        backsight.cam(trained(), digits()[0][:3], **arguments)


def test_other_ends_are_refused() -> None:
    images, labels = digits()
    with pytest.raises(ValueError, match=r"differently from place to place.*to_gap"):
        backsight.cam(nn.Sequential(*list(trained())[:7], *flat()[7:9]).eval(), images[:2])
    with pytest.raises(ValueError, match=r"relu.* behind its last feature maps"):
        backsight.cam(flat(), images[:2])
    with pytest.raises(ValueError, match=r"softmax.* behind its last feature maps"):
        backsight.cam(nn.Sequential(trained(), nn.Softmax(1)).eval(), images[:2])
    with pytest.raises(ValueError, match=r"labels in 0..9, got 0..10"):
        backsight.to_gap(flat(), [(images[:3], torch.tensor([0, 1, 10]))])
    with pytest.raises(ValueError, match=r"batches \(images, labels\), got Tensor"):
        backsight.to_gap(flat(), [images[:3]])
    with pytest.raises(ValueError, match=r"got none"):
        backsight.to_gap(flat(), [])
    with pytest.raises(ValueError, match=r"puts out maps, got '8'"):
        backsight.to_gap(flat(), [(images[:3], labels[:3])], layer="8")


def test_half_precision_and_other_dimensions() -> None:
    images = digits()[0][:4]
    half = backsight.cam(copy.deepcopy(trained()).bfloat16(), images.bfloat16(), 3)
    whole = backsight.cam(trained(), images, 3)
    assert (half.cams - whole.cams).abs().max() < 0.05 * whole.cams.abs().max()
    assert half.cams.dtype == torch.float32
    line = nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    torch.manual_seed(0)
    found = backsight.cam(line.eval(), torch.randn(2, 2, 20), 1)
    assert found.maps.shape == (2, 20)
    assert found.pictures.numel() == 0
    torch.testing.assert_close(means(found), found.scores)


def test_is_drawn_and_saved(tmp_path) -> None:
    found = backsight.cam(trained(), digits()[0][:2], 3)
    found.save(tmp_path / "c.npz")
    with np.load(tmp_path / "c.npz") as arrays:
        np.testing.assert_array_equal(arrays["cams"], found.cams.numpy())
    found.save(tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert "CAM of class 3" in found.plot(1).get_suptitle()
    assert found.report()["biases"] == found.biases.tolist()
