"""The networks themselves: the published ones have the published size, the others can be judged."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import architectures
import backsight
from nets import AUTOCAST, MULTI
from oracle import oracle

# Parameters, as torchvision's tables have them; without auxiliary heads, but for the FCN.
PUBLISHED = {
    "alexnet": 61_100_840,
    "caffenet": 60_965_224,  # Caffe's
    "convnext_tiny": 28_589_128,
    "densenet121": 7_978_856,
    "efficientnet_b0": 5_288_548,
    "efficientnet_lite0": 4_652_008,  # timm's
    "fcn_resnet50": 35_322_218,
    "googlenet": 6_624_904,
    "inception_v3": 23_834_568,
    "mnasnet1_0": 4_383_312,
    "mobilenet_v2": 3_504_872,
    "regnet_x_400mf": 5_495_976,
    "regnet_y_400mf": 4_344_144,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet50_gn": 25_557_032,
    "resnext50_32x4d": 25_028_904,
    "shufflenet_v2_x1_0": 2_278_604,
    "squeezenet1_1": 1_235_496,
    "vgg16": 138_357_544,
    "vit_b_16": 86_567_656,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_as_published(name: str) -> None:
    with torch.device("meta"):
        model: nn.Module = getattr(architectures, name)()
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED[name]


@pytest.mark.parametrize("name", MULTI)
def test_scores_of_several_inputs_and_outputs(name: str) -> None:
    """The scores come from the image and from every further input, each image by itself."""
    case = MULTI[name]
    model, images, more = case.build().double(), case.images(3).double(), case.more(3)
    more = tuple(value.double() for value in more)
    with torch.no_grad():
        own = case.scores(model(images, *more))
        alone = case.scores(model(images[1:2], *(value[1:2] for value in more)))
        assert own.shape[0] == 3
        assert (alone[0] - own[1]).abs().max() <= 1e-12 * own.abs().max()
        for index in range(-1, len(more)):
            inputs = [images, *more]
            inputs[index + 1] = inputs[index + 1].clone()
            inputs[index + 1][::2] += 0.4  # the middle image's stays
            other = case.scores(model(*inputs))
            assert (other - own)[0].abs().max() > 1e-2 * own.abs().max()
            assert torch.equal(other[1], own[1])


def test_autocast_inside_a_model_is_kept() -> None:
    """As near to fp64's drops as plain occlusion with the same rounding, and no nearer: bf16."""
    model, images = AUTOCAST.build(), AUTOCAST.images(count=2)
    result = backsight.occlusion(model, images, window=8)
    _, truth = oracle(model, images, result.boxes)
    largest = truth.abs().max()
    with torch.no_grad():
        copies = backsight.ops.occlude(images, result.boxes, torch.zeros(1))
        plain = model(images)[:, None] - model(copies).unflatten(0, (2, -1))
    of_plain = (plain - truth).abs().max()
    assert 1e-4 * largest < of_plain < 0.1 * largest
    assert (result.drops - truth).abs().max() <= 1.5 * of_plain
