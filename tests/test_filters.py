"""Filters: normalised pictures, and planted dead, duplicate and noisy ones are found."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import backsight
from backsight.zoo import Network, Preprocessing
from digits import trained


def gabor(turn: float, wave: float, size: int = 7) -> torch.Tensor:
    """A grating within a bell, (3, size, size)."""
    at = torch.arange(size) - (size - 1) / 2
    y, x = torch.meshgrid(at, at, indexing="ij")
    angle = torch.tensor(turn)
    along = x * angle.cos() + y * angle.sin()
    picture = torch.cos(2 * torch.pi * along / wave) * torch.exp(-(x**2 + y**2) / 12)
    return picture.expand(3, -1, -1) * torch.tensor([1.0, 0.8, 0.6])[:, None, None]


def planted() -> nn.Module:
    """Gratings of 4 waves and 4 directions; 3 is dead, 9 is twice 2 with a little more, 12 to 15
    are noise.
    """
    generator = torch.Generator().manual_seed(0)
    weights = torch.stack(
        [gabor(turn, wave) for wave in (3, 4, 6, 12) for turn in (0.0, 0.8, 1.6, 2.4)]
    )
    weights[12:] = torch.randn(4, 3, 7, 7, generator=generator)
    weights[3] *= 1e-4
    weights[9] = 2 * weights[2] + 0.02 * torch.randn(3, 7, 7, generator=generator)
    layer = nn.Conv2d(3, 16, 7)
    layer.weight.data = weights
    return nn.Sequential(nn.Identity(), layer).eval()


def test_planted_ones_are_found_and_no_others() -> None:
    found = backsight.filters(planted())
    assert found.layer == "1"
    assert found.dead.nonzero()[:, 0].tolist() == [3]
    assert found.duplicate.nonzero()[:, 0].tolist() == [2, 9]
    assert (found.nearest[2], found.nearest[9]) == (9, 2)
    assert found.noisy.nonzero()[:, 0].tolist() == [12, 13, 14, 15]
    assert found.noise[:12].max() < 0.6
    assert found.report()["duplicate"] == [[2, 9], [9, 2]]
    assert found.summary() == "16 filters of 1: 1 dead, 2 duplicate, 4 noisy"


def test_statistics_are_what_they_are_said_to_be() -> None:
    found = backsight.filters(planted())
    weights = found.weights.double()
    flat = weights.flatten(1)
    torch.testing.assert_close(found.norms.double(), flat.norm(dim=1), rtol=1e-6, atol=0)
    cosine = torch.nn.functional.cosine_similarity(flat[2], flat[9], dim=0)
    torch.testing.assert_close(found.similarity[2].double(), cosine, rtol=1e-6, atol=0)
    # one filter's noise, straight from the definition
    total, share = 0.0, []
    for channel in weights[5]:
        energies = channel.square().flatten()
        waves = torch.fft.fft2(channel).abs().square().flatten()
        n = len(energies)
        spread = [float(e.sum() ** 2 / (n * e.square().sum())) for e in (energies, waves)]
        share.append(6 * spread[0] * spread[1] * float(energies.sum()))
        total += float(energies.sum())
    assert float(found.noise[5]) == pytest.approx(sum(share) / total, rel=1e-5)


def test_opposite_filters_are_no_duplicates() -> None:
    layer = nn.Conv2d(3, 3, 7)
    layer.weight.data = torch.stack([gabor(0, 4), -gabor(0, 4), gabor(1.6, 4)])
    assert not backsight.filters(layer).duplicate.any()


def test_pictures_reach_from_black_to_white() -> None:
    found = backsight.filters(planted())
    assert found.pictures.shape == (16, 7, 7, 3)
    assert found.pictures.flatten(1).amin(1).tolist() == [0] * 16
    assert found.pictures.flatten(1).amax(1).tolist() == [255] * 16
    weight = found.weights[0]
    scaled = (weight - weight.min()) / (weight.max() - weight.min())
    expected = (scaled * 255).round().byte().permute(1, 2, 0)
    assert torch.equal(found.pictures[0], expected)
    how = Preprocessing(crop=None, short_side=None, bgr=True)
    bgr = backsight.filters(Network("own", planted(), how))
    assert torch.equal(bgr.pictures, found.pictures.flip(3))
    assert not torch.equal(bgr.pictures, found.pictures)


def test_other_layers_show_their_strongest_input() -> None:
    layer = nn.Conv2d(4, 2, 3, bias=False)
    layer.weight.data.uniform_(-0.1, 0.1, generator=torch.Generator().manual_seed(0))
    layer.weight.data[0, 2] *= 30
    layer.weight.data[1, 3] *= 30
    found = backsight.filters(layer)
    for i, channel in enumerate((2, 3)):
        shown = layer.weight.data[i, channel]
        expected = ((shown - shown.min()) / (shown.max() - shown.min()) * 255).round().byte()
        assert torch.equal(found.pictures[i], expected[..., None].expand(-1, -1, 3))


def test_small_kernels_and_other_dimensions() -> None:
    torch.manual_seed(0)
    assert not backsight.filters(nn.Conv2d(3, 40, 3)).noisy.any()  # too few cells to tell
    assert backsight.filters(nn.Conv1d(2, 5, 4)).pictures.shape == (5, 1, 4, 3)
    assert backsight.filters(nn.Conv3d(1, 5, (3, 4, 5))).pictures.shape == (5, 4, 5, 3)
    one = backsight.filters(nn.Conv2d(3, 1, 1))
    assert one.similarity.tolist() == [-1]
    zero = nn.Conv2d(3, 4, 5)
    zero.weight.data.zero_()
    assert backsight.filters(zero).dead.all()
    half = backsight.filters(planted().bfloat16())
    assert half.weights.dtype == torch.float32
    assert half.noisy[12:].all()


def test_bad_input_gets_a_sentence() -> None:
    with pytest.raises(ValueError, match="1 is a ReLU"):
        backsight.filters(trained(), "1")
    with pytest.raises(ValueError, match="expected a layer of the model, such as"):
        backsight.filters(trained(), "conv")
    with pytest.raises(ValueError, match="model with a convolution, got a Linear"):
        backsight.filters(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="got a function"):
        backsight.filters(lambda images: images)


def test_is_drawn_and_saved(tmp_path) -> None:
    found = backsight.filters(planted())
    found.save(tmp_path / "f.npz")
    with np.load(tmp_path / "f.npz") as arrays:
        np.testing.assert_array_equal(arrays["noise"], found.noise.numpy())
    found.save(tmp_path / "f.png")
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")
    words = [text.get_text() for text in found.plot().axes[0].texts]
    assert {"dead", "duplicate", "noisy"} < set(words)
