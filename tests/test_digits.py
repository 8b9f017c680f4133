"""What maps say of networks that were trained on digits, where it is known what they looked at."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import backsight
from digits import accuracy, digits, framed, held_out, placed, small_net, train, trained


def some(images: Tensor, count: int) -> Tensor:
    """The first few of those for testing."""
    return images[held_out(len(images))][:count]


def correlation(maps: Tensor, others: Tensor) -> Tensor:
    """Of each map (images, H, W) with its other."""
    pairs = zip(maps.flatten(1), others.flatten(1), strict=True)
    return torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in pairs])


def test_the_shared_network_knows_the_digits() -> None:
    model = trained()
    assert accuracy(model, *digits()) > 0.95
    assert trained() is model
    assert all(parameter.grad is None for parameter in model.parameters())


def test_occlusion_and_saliency_agree_on_where_the_digit_is() -> None:
    images, labels = digits()
    canvas, ink = placed(images, 14)
    model = small_net()
    model[7] = nn.AdaptiveMaxPool2d(1)  # wherever it stands
    train(model, canvas, labels, epochs=8)
    assert accuracy(model, canvas, labels) > 0.95
    canvas, ink, labels = (some(x, 60) for x in (canvas, ink, labels))
    near = F.max_pool2d(ink[:, None].float(), 5, 1, 2)[:, 0] > 0
    assert near.float().mean() < 0.6
    drops = backsight.occlusion(model, canvas, window=3, stride=1).map(labels)
    slopes = backsight.saliency(model, canvas, labels).maps
    for maps, least in ((drops.clamp_min(0), 0.99), (slopes, 0.8)):
        best = maps.flatten(1).argmax(1, keepdim=True)
        assert near.flatten(1).gather(1, best).all()
        inside = (maps * near).sum((1, 2)) / maps.sum((1, 2))
        assert inside.min() > least
    together = correlation(drops.clamp_min(0), slopes)
    assert together.mean() > 0.5
    # and it is the image at hand that they agree on
    assert together.mean() > correlation(drops.clamp_min(0), slopes.roll(1, 0)).mean() + 0.2


def test_a_network_that_learnt_marks_is_exposed_by_its_drops() -> None:
    images, labels = digits()
    marked = framed(images, labels, marked=True)

    def on_the_mark(leaked: bool) -> float:
        """The share of marked digits where the largest drop lies on the mark."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layers = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(800, 10)]
        model = train(nn.Sequential(*layers), framed(images, labels, marked=leaked), labels)
        assert accuracy(model, marked, labels) > 0.95  # scores alone do not tell them apart
        seen, of = some(marked, 100), some(labels, 100)
        drops = backsight.occlusion(model, seen, window=2, stride=1).map(of)
        best = drops.flatten(1).argmax(1)
        row, column = best // 10, best % 10
        return float(((row < 2) & ((column - of).abs() <= 1)).float().mean())

    assert on_the_mark(leaked=True) > 0.95
    assert on_the_mark(leaked=False) == 0
