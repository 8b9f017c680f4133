"""Rotation: multiples of 90 degrees move pixels unchanged; the others interpolate."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import backsight
from backsight.methods.rotation import rotated
from digits import digits, trained
from nets import random_images


def test_angle_zero_is_the_image_itself() -> None:
    model, images = trained(), digits()[0][:5]
    found = backsight.rotation(model, images, angles=(0, 40, 360), probability=None)
    scores = model(images).detach()
    assert torch.equal(found.outputs[:, 0], scores)
    assert torch.equal(found.outputs[:, 2], scores)
    assert torch.equal(found.scores[:, 0], scores.amax(1))
    assert (found.scores[:, 1] - found.scores[:, 0]).abs().max() > 0.1


@pytest.mark.parametrize("size", [(6, 6), (7, 7), (6, 10), (9, 5)])
def test_quarter_turns_are_exact(size: tuple[int, int]) -> None:
    images = random_images((3, *size), 2)
    blank = torch.full_like(images, 9.0)
    assert torch.equal(rotated(images, 180, blank), images.flip(2, 3))
    turned = rotated(images, 90, blank)
    short = min(size)
    at = [(n - short) // 2 for n in size]

    def middle(pictures: torch.Tensor) -> torch.Tensor:
        return pictures[:, :, at[0] : at[0] + short, at[1] : at[1] + short]

    assert torch.equal(middle(turned), torch.rot90(middle(images), 1, (2, 3)))
    back = rotated(turned, -90, blank)
    assert torch.equal(middle(back), middle(images))
    if size[0] != size[1]:
        assert (turned == 9).sum() == 2 * 3 * (size[0] * size[1] - short**2)


def test_other_angles_interpolate_a_slope_exactly() -> None:
    """Bilinear interpolation keeps a plane what it is: only the corners are the baseline's."""
    height, width = 31, 41
    y, x = torch.meshgrid(
        torch.arange(height, dtype=torch.float64) - (height - 1) / 2,
        torch.arange(width, dtype=torch.float64) - (width - 1) / 2,
        indexing="ij",
    )
    cos, sin = math.cos(math.radians(33)), math.sin(math.radians(33))
    turned = rotated((2 * x + 5 * y)[None, None], 33, torch.full((1, 1, height, width), 1e3))
    # counterclockwise as it is seen, with y going down: what is there comes from this far back
    from_x, from_y = cos * x - sin * y, sin * x + cos * y
    inside = (from_x.abs() < (width - 1) / 2) & (from_y.abs() < (height - 1) / 2)
    expected = 2 * from_x + 5 * from_y
    torch.testing.assert_close(turned[0, 0][inside], expected[inside], rtol=1e-9, atol=1e-9)
    outside = (from_x.abs() > (width + 1) / 2) | (from_y.abs() > (height + 1) / 2)
    assert outside.any()
    assert (turned[0, 0][outside] == 1e3).all()


def test_a_small_angle_turns_the_same_way_as_a_quarter() -> None:
    image = torch.zeros(1, 1, 21, 21)
    image[0, 0, 10, 20] = 1.0  # on the right
    top = rotated(image, 90, torch.zeros(1))[0, 0]
    assert top[0, 10] == 1
    rising = rotated(image, 20, torch.zeros(1))[0, 0]
    assert rising[:10].sum() > 0.5
    assert rising[11:].sum() == 0


def test_corners_are_the_baseline() -> None:
    class Corner(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, :, 0, 0]

    images = digits()[0][:2] + 1
    for baseline, corner in ((7.0, torch.full((2,), 7.0)), ("mean", images.mean((1, 2, 3)))):
        found = backsight.rotation(
            Corner(), images, 0, angles=[45.0], baseline=baseline, probability=None
        )
        torch.testing.assert_close(found.scores[:, 0], corner)


def test_a_model_that_adds_up_everything_does_not_care() -> None:
    class Total(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([x.sum((1, 2, 3)), -x.sum((1, 2, 3))], 1)

    images = digits()[0][:3].double()
    found = backsight.rotation(Total(), images, 0, angles=range(0, 360, 90), probability=None)
    torch.testing.assert_close(found.scores, found.scores[:, :1].expand(-1, 4), rtol=1e-12, atol=0)
    assert found.scores.min() > 10
    assert found.targets == ("class 0",) * 3


def test_probabilities_and_classes() -> None:
    found = backsight.rotation(trained(), digits()[0][:2], [0, 1])
    assert found.outputs.shape == (2, 24, 10)
    torch.testing.assert_close(found.outputs.sum(2), torch.ones(2, 24))
    strongest = [[index for index, _ in row] for row in found.classes]
    assert strongest == found.outputs.amax(1).topk(5, 1).indices.tolist()
    torch.testing.assert_close(found.scores[1], found.outputs[1, :, 1])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"angles": []}, "finite angles, one at least"),
        ({"angles": [math.nan]}, "finite angles"),
        ({"target": "cat"}, "a bare model has no class names"),
        ({"baseline": "inpaint"}, "a colour or a picture"),
        ({"probability": "x"}, "None, 'softmax' or 'sigmoid'"),
        ({"batch_size": 0}, "positive batch_size"),
        ({"images": torch.zeros(1, 1, 8)}, r"\(images, channels, H, W\), got \(1, 1, 8\)"),
    ],
)
def test_bad_input_gets_a_sentence(arguments: dict[str, object], sentence: str) -> None:
    given = {"images": digits()[0][:2], **arguments}
    with pytest.raises(ValueError, match=sentence):
        backsight.rotation(trained(), **given)


def test_is_drawn_and_saved(tmp_path) -> None:
    images = digits()[0][:2].clone()
    found = backsight.rotation(trained(), images, 3)
    assert torch.equal(images, digits()[0][:2])
    found.save(tmp_path / "r.npz")
    with np.load(tmp_path / "r.npz") as arrays:
        np.testing.assert_array_equal(arrays["outputs"], found.outputs.numpy())
    found.save(tmp_path / "r.png")
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    shown, curves = found.plot(1).subfigs
    assert [axes.get_title() for axes in shown.axes] == [f"{n}°" for n in range(0, 360, 45)]
    assert curves.axes[0].get_legend().get_texts()[0].get_text() == "class 3"
