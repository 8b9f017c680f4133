"""Style transfer: the paper's losses, average pools, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import backsight
from backsight.methods.style import AveragePools, gram
from backsight.zoo import Network, Preprocessing
from nets import random_images

IMAGES = random_images((3, 16, 20), 2).double()
PAINTING = random_images((3, 18, 14), 1, seed=5).double()
LAYERS = {"content_layer": "3", "style_layer": ["1", "4"], "style_weight": 100.0}


def net(pool: type[nn.Module] = nn.MaxPool2d) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3, padding=1), nn.Softplus(), pool(2), nn.Conv2d(6, 8, 3)]
    return nn.Sequential(*layers, nn.Softplus(), nn.Conv2d(8, 4, 3)).eval().double()


def losses(model: nn.Sequential, x: Tensor, photo: Tensor, painting: Tensor) -> tuple[Tensor, ...]:
    """Of content and style, as the paper writes them, for pictures of one size."""

    def at(x: Tensor, layer: int) -> Tensor:
        maps = model[: layer + 1](x)[0]
        return maps.reshape(len(maps), -1)

    content = (at(x, 3) - at(photo, 3)).square().sum() / 2
    style = torch.zeros(())
    for layer in (1, 4):
        f, a = at(x, layer), at(painting, layer)
        n, m = f.shape
        style = style + 0.5 * (f @ f.T - a @ a.T).square().sum() / (4 * n**2 * m**2)
    return content, style


def test_losses_are_the_papers() -> None:
    model, painting = net(nn.AvgPool2d), random_images((3, 16, 20), 1, seed=5).double()
    found = backsight.style(model, IMAGES[:1], painting, steps=5, **LAYERS)
    for images, told in ((IMAGES[:1], found.starts), (found.images, found.losses)):
        expected = torch.stack(losses(model, images, IMAGES[:1], painting))
        torch.testing.assert_close(told[0], expected.detach(), rtol=1e-9, atol=0)
    assert found.starts[0, 0] == 0
    assert found.losses[0, 0] > 0
    assert found.losses[0, 1] < 0.7 * found.starts[0, 1]


def test_comes_to_where_the_loss_has_no_slope() -> None:
    model, painting = net(nn.AvgPool2d), random_images((3, 16, 20), 1, seed=5).double()
    slopes = []
    for steps in (1, 300):
        found = backsight.style(model, IMAGES[:1], painting, steps=steps, **LAYERS)
        leaf = found.images.clone().requires_grad_()
        content, style = losses(model, leaf, IMAGES[:1], painting)
        (g,) = torch.autograd.grad(content + 100 * style, leaf)
        slopes.append(float(g.norm()))
    assert slopes[1] < 0.02 * slopes[0]


def test_own_content_and_style_have_no_loss() -> None:
    found = backsight.style(net(), IMAGES, IMAGES, steps=5, **LAYERS)
    assert found.losses.tolist() == [[0, 0], [0, 0]]
    assert torch.equal(found.images, IMAGES)
    other = backsight.style(net(), IMAGES, PAINTING, steps=1, **LAYERS)
    assert (other.starts[:, 1] > 1e-4).all()


def test_gram_matrices() -> None:
    maps = torch.randn(2, 5, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = gram(maps)
    flat = maps.flatten(2)
    expected = torch.einsum("nip,njp->nij", flat, flat)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    values = torch.linalg.eigvalsh(found)
    assert (values > 0).all()
    few = torch.linalg.eigvalsh(gram(maps[..., :1, :3]))  # of rank 3
    assert (few > -1e-12).all()
    assert ((few.abs() < 1e-12).sum(1) == 2).all()
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    shuffled = flat[..., order].view_as(maps)
    assert not torch.equal(shuffled, maps)
    torch.testing.assert_close(gram(shuffled), found, rtol=1e-12, atol=1e-12)


def test_a_painting_of_another_size_has_the_same_style_as_its_tiling() -> None:
    """Gram matrices count by the position: a picture beside itself has the same style."""
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Softplus()).double().eval()
    layers = {"content_layer": "1", "style_layer": "1"}
    twice = torch.cat([PAINTING, PAINTING], 3)
    found = backsight.style(model, PAINTING, twice, steps=1, **layers)
    other = backsight.style(model, PAINTING, twice.flip(1), steps=1, **layers)
    assert found.starts[0, 1] < 1e-25
    assert other.starts[0, 1] > 1e-6


@pytest.mark.parametrize(
    "how",
    [
        {"kernel_size": 2},
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": (3, 2), "stride": 2, "ceil_mode": True},
    ],
)
def test_pools_average(how: dict[str, object]) -> None:
    x = random_images((3, 13, 15), 2)
    expected = F.avg_pool2d(x, count_include_pad=False, **how)
    highest = F.max_pool2d(x, **how)
    assert (expected - highest).abs().max() > 0.1
    with AveragePools():
        assert torch.equal(nn.MaxPool2d(**how)(x), expected)
        assert torch.equal(F.max_pool2d(x, **how), expected)
        assert torch.equal(torch.max_pool2d(x, **how), expected)
        kept, indices = F.max_pool2d(x, **how, return_indices=True)
        dilated = F.max_pool2d(x, 2, dilation=2)
    assert torch.equal(kept, highest)
    assert indices.shape == kept.shape
    assert torch.equal(dilated, F.max_pool2d(x, 2, dilation=2))
    assert torch.equal(nn.MaxPool2d(**how)(x), highest)


def test_pools_of_the_model_average_while_it_runs() -> None:
    averaging = backsight.style(net(nn.AvgPool2d), IMAGES, PAINTING, steps=4, **LAYERS)
    found = backsight.style(net(), IMAGES, PAINTING, steps=4, **LAYERS)
    assert torch.equal(found.images, averaging.images)
    taking = backsight.style(net(), IMAGES, PAINTING, steps=4, average_pools=False, **LAYERS)
    assert (taking.images - found.images).abs().max() > 1e-3


def test_each_photo_is_painted_as_alone_and_may_have_a_painting_of_its_own() -> None:
    paintings = torch.cat([PAINTING, PAINTING.flip(1)])
    both = backsight.style(net(), IMAGES, paintings, steps=4, **LAYERS)
    for i in range(2):
        alone = backsight.style(net(), IMAGES[i, None], paintings[i, None], steps=4, **LAYERS)
        assert torch.equal(both.images[i], alone.images[0])
    one = backsight.style(net(), IMAGES, PAINTING, steps=4, **LAYERS)
    assert torch.equal(one.images[0], both.images[0])
    assert not torch.equal(one.images[1], both.images[1])


def test_from_noise_and_within_range() -> None:
    model = net().float()
    network = Network("own", model, Preprocessing(crop=None, short_side=None))
    low, high = (network.preprocessing.color((end,) * 3) for end in (0, 255))
    images, painting = IMAGES.float().clamp(low, high), PAINTING.float()
    state = torch.random.get_rng_state()
    kwargs = {"start": "noise", "steps": 30, **LAYERS}
    found = [backsight.style(network, images, painting, seed=s, **kwargs) for s in (0, 1, 0)]
    assert torch.equal(found[0].images, found[2].images)
    assert not torch.equal(found[0].images, found[1].images)
    assert ((low <= found[0].images) & (found[0].images <= high)).all()
    assert (found[0].losses[:, 0] < 0.5 * found[0].starts[:, 0]).all()
    assert torch.equal(torch.random.get_rng_state(), state)


def test_layouts_in_memory_do_not_count() -> None:
    last = {"memory_format": torch.channels_last}
    expected = backsight.style(net(), IMAGES, PAINTING, steps=4, **LAYERS)
    found = backsight.style(net().to(**last), IMAGES.to(**last), PAINTING, steps=4, **LAYERS)
    torch.testing.assert_close(found.images, expected.images, rtol=1e-8, atol=1e-9)
    assert (found.images - IMAGES).abs().max() > 0.01


def test_bfloat16() -> None:
    model = net().bfloat16()
    found = backsight.style(model, IMAGES.bfloat16(), PAINTING.bfloat16(), steps=6, **LAYERS)
    assert found.images.dtype == torch.float32
    assert (found.losses[:, 1] < found.starts[:, 1]).all()


def test_leaves_the_model_and_the_images_alone() -> None:
    model, images = net(), IMAGES.clone()
    with torch.inference_mode():
        backsight.style(model, images.clone(), PAINTING.clone(), steps=2, **LAYERS)
    with torch.no_grad():
        backsight.style(model, images, PAINTING, steps=2, **LAYERS)
    assert torch.equal(images, IMAGES)
    assert all(not module._forward_hooks for module in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    model[4].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        backsight.style(model, images, PAINTING, steps=2, **LAYERS)
    assert torch.equal(F.max_pool2d(images, 2), nn.MaxPool2d(2)(images))
    assert (F.max_pool2d(images, 2) - F.avg_pool2d(images, 2)).abs().max() > 0.1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"content_layer": "relu4_2"}, "expected a layer of the model"),
        ({"style_layer": {"1": -1.0}}, "style_layer as layers with positive weights"),
        ({"style_weight": -1.0}, "style_weight of at least 0"),
        ({"start": "photo"}, "start as one of content, noise, got 'photo'"),
        ({"steps": 0}, "steps of at least 1"),
        ({"painting": torch.cat([PAINTING] * 3)}, "one painting or one for each, got"),
        ({"painting": PAINTING.float()}, "images of the model's dtype"),
    ],
)
def test_bad_input_gets_a_sentence(arguments: dict[str, object], sentence: str) -> None:
    given = {"painting": PAINTING, **LAYERS, **arguments}
    with pytest.raises(ValueError, match=sentence):
        backsight.style(net(), IMAGES, **given)


def test_is_drawn_and_saved(tmp_path) -> None:
    found = backsight.style(net(), IMAGES, PAINTING, steps=2, **LAYERS)
    found.save(tmp_path / "s.npz")
    with np.load(tmp_path / "s.npz") as arrays:
        np.testing.assert_array_equal(arrays["images"], found.images.numpy())
    assert len(found.plot(1).axes) == 3
    found.save(tmp_path / "s.png")
    assert "style from " in found.summary()


@pytest.mark.slow
def test_a_photo_takes_the_style_of_another() -> None:
    skimage = pytest.importorskip("skimage.data")
    datasets = pytest.importorskip("sklearn.datasets")
    network = backsight.zoo.vgg16_features()
    photo, _ = network.prepare(skimage.coffee(), size=96)
    painting, _ = network.prepare(datasets.load_sample_image("flower.jpg"), size=96)
    found = backsight.style(network, photo, painting, steps=30)
    assert found.losses[0, 1] < 0.5 * found.starts[0, 1]
