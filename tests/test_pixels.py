"""The range of pixels, steps in it, and stems of several layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from backsight.models.pixels import Pixels
from backsight.models.stem import stems
from backsight.models.subject import Subject
from backsight.plots import gallery
from backsight.zoo import Network, Preprocessing
from nets import random_images

BGR = Preprocessing(mean=(104.0, 117.0, 123.0), std=(1.0, 2.0, 4.0), scale=1.0, bgr=True)


def pixels_of(how: Preprocessing, images: torch.Tensor) -> Pixels:
    return Pixels.of(Subject.of(Network("own", nn.Identity(), how)), images)


@pytest.mark.parametrize("how", [Preprocessing(), BGR])
def test_a_level_is_one_of_255(how: Preprocessing) -> None:
    photo = torch.randint(0, 256, (6, 5, 3), generator=torch.Generator().manual_seed(0)).byte()
    image = how.tensor(photo.numpy()).double()
    pixels = pixels_of(how, image)
    levels = ((image - pixels.low) / pixels.level).round()
    expected = photo.permute(2, 0, 1)[None].double()
    assert torch.equal(levels, expected.flip(1) if how.bgr else expected)
    torch.testing.assert_close(pixels.low + 255 * pixels.level, pixels.high, rtol=0, atol=1e-5)
    assert torch.equal(pixels.pictures(image)[0], photo)
    outside = image + 300 * pixels.level
    assert torch.equal(pixels.kept(outside), pixels.high.expand_as(image))
    assert torch.equal(pixels.kept(image), image.clamp(pixels.low, pixels.high))
    stretched = pixels.pictures(pixels.stretched(1000 * (levels - 77) * pixels.level))
    spread = (photo.double() - photo.min()) / (photo.max() - photo.min()) * 255
    assert (stretched[0].double() - spread).abs().max() <= 0.51


def test_a_step_has_its_length_and_nothing_moves_without_a_gradient() -> None:
    gradients = random_images((3, 7, 6), 3)
    gradients[1] = 0
    pixels = pixels_of(BGR, gradients)
    steps = pixels.step(gradients, 2.5)
    sizes = (steps / pixels.level).abs().mean((1, 2, 3))
    torch.testing.assert_close(sizes, torch.tensor([2.5, 0.0, 2.5]))
    assert torch.equal(steps[0] > 0, gradients[0] > 0)


def test_noise_fills_the_range_and_is_seeded() -> None:
    images = torch.zeros(1, 3, 40, 40)
    pixels = pixels_of(BGR, images)
    noise = pixels.noise((3, 40, 40), 3)
    assert ((pixels.low <= noise) & (noise <= pixels.high)).all()
    levels = (noise - pixels.low) / pixels.level
    assert levels.amin() < 5
    assert levels.amax() > 250
    assert torch.equal(noise, pixels.noise((3, 40, 40), 3))
    assert not torch.equal(noise, pixels.noise((3, 40, 40), 4))


def test_limits_are_for_bare_models() -> None:
    images = torch.rand(2, 1, 4, 4)
    bare = Pixels.of(Subject.of(nn.Identity()), images, (0, 1))
    assert bare.level.flatten().tolist() == pytest.approx([1 / 255])
    expected = (images * 255).round().byte()[:, 0, :, :, None].expand(-1, -1, -1, 3)
    assert torch.equal(bare.pictures(images), expected)
    network = Subject.of(Network("own", nn.Identity()))
    with pytest.raises(ValueError, match="no limits for a network that knows its own"):
        Pixels.of(network, torch.zeros(1, 3, 4, 4), (0, 1))


class Forked(nn.Module):
    """Runs one module twice, and another in between."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.once, self.last = nn.Conv2d(3, 3, 1), nn.ReLU(inplace=True), nn.ReLU()
        self.runs = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.twice(self.once(self.twice(x)))
        self.runs += 1
        return self.last(x) * 2


def test_stems_give_the_last_run_of_each_layer_and_stop_behind_it() -> None:
    torch.manual_seed(0)
    model, images = Forked().eval(), random_images((3, 5, 5), 2)
    run = stems(Subject.of(model), ["twice", "once"], images)
    middle = model.twice(images).relu()
    for again in range(3):
        twice, once = run(images)
        assert torch.equal(once, middle)
        assert torch.equal(twice, model.twice(middle))
        assert model.runs == 1, again  # only the first run goes to the end
    assert twice.requires_grad
    assert (middle == 0).any()
    assert not any(module._forward_hooks for module in model.modules())


def test_a_gallery_has_its_pictures_in_rows() -> None:
    pictures = [torch.full((6, 9, 3), 20 * i, dtype=torch.uint8).numpy() for i in range(5)]
    figure = gallery(pictures, labels=[f"no. {i}\nsecond" for i in range(5)], title="five")
    (axes,) = figure.axes
    corners = [(image.get_extent()[0], image.get_extent()[3]) for image in axes.images]
    assert len({top for _, top in corners}) == 2
    assert len({round(left, 6) for left, _ in corners}) == 3
    assert {text.get_text() for text in axes.texts} >= {f"no. {i}\nsecond" for i in range(5)}
    with pytest.raises(ValueError, match="expected pictures with a label each, got 5 and 1"):
        gallery(pictures, labels=["one"], title="")
