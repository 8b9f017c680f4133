"""Insertion and deletion: areas by hand, both endpoints, occlusion beats chance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import backsight
from digits import digits, held_out, trained
from nets import random_images, resnet18, seeded


def linear(weights: list[float]) -> nn.Module:
    """Of images (1, 2, 2): one score."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 1, bias=False))
    model[1].weight.data = torch.tensor([weights])
    return model.eval()


def test_areas_of_a_linear_model_by_hand() -> None:
    model = linear([4.0, 1.0, 3.0, 2.0])
    image = torch.ones(1, 1, 2, 2)
    found = backsight.faithfulness(
        model,
        image,
        torch.tensor([[4.0, 1.0], [3.0, 2.0]]),
        0,
        steps=4,
        deletion_baseline=0.0,
        insertion_baseline=0.0,
        probability=None,
    )
    assert found.shares.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert found.deletion.tolist() == [[10, 6, 3, 1, 0]]
    assert found.insertion.tolist() == [[0, 4, 7, 9, 10]]
    # trapezoids: (10/2 + 6 + 3 + 1 + 0/2) / 4, and (0/2 + 4 + 7 + 9 + 10/2) / 4
    assert found.deletion_auc.tolist() == [3.75]
    assert found.insertion_auc.tolist() == [6.25]


def test_equal_values_go_in_raster_order_and_steps_take_several() -> None:
    model = linear([8.0, 4.0, 2.0, 1.0])
    found = backsight.faithfulness(
        model,
        torch.ones(1, 1, 2, 2),
        torch.zeros(1, 2, 2, dtype=torch.bool),
        0,
        steps=2,
        deletion_baseline=-1.0,
        probability=None,
    )
    assert found.deletion.tolist() == [[15, -9, -15]]


def test_ends_are_the_image_and_the_baselines() -> None:
    model = seeded(lambda: resnet18(5, 1 / 8)).eval().double()
    images = random_images((3, 32, 40), 2).double()
    maps = random_images((1, 32, 40), 2, seed=4)[:, 0].double()
    found = backsight.faithfulness(model, images, maps, [1, 4], steps=7)
    ends = {
        "deletion": (images, backsight.baselines.mean(images).expand_as(images)),
        "insertion": (backsight.baselines.blur(images), images),
    }
    for name, (first, last) in ends.items():
        curve = getattr(found, name)
        assert curve.shape == (2, 8)
        for at, picture in ((0, first), (-1, last)):
            expected = model(picture).softmax(1).detach()[[0, 1], [1, 4]]
            torch.testing.assert_close(curve[:, at], expected, rtol=1e-12, atol=1e-12)
    # one step in between, pixel by pixel
    flat = images[1].flatten(1).clone()
    gone = maps[1].flatten().argsort(descending=True)[: 3 * 1280 // 7]
    flat[:, gone] = images[1].mean((1, 2))[:, None]
    expected = model(flat.view(1, 3, 32, 40)).softmax(1)[0, 4].detach()
    torch.testing.assert_close(found.deletion[1, 3], expected, rtol=1e-12, atol=1e-12)
    assert found.deletion.std(1).min() > 0


def test_batch_size_does_not_count() -> None:
    model = trained()
    images = digits()[0][:3]
    maps = backsight.saliency(model, images).maps
    one, *others = (
        backsight.faithfulness(model, images, maps, steps=16, batch_size=size)
        for size in (1, 5, 200)
    )
    for other in others:
        for name in ("deletion", "insertion"):
            torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=1e-6)
    assert one.targets == ("class 0", "class 1", "class 2")


def test_occlusion_beats_a_random_map() -> None:
    images, labels = digits()
    some = held_out(len(images))
    images, labels = images[some][:40], labels[some][:40]
    model = trained()
    drops = backsight.occlusion(model, images, window=3, stride=1).map(labels)
    generator = torch.Generator().manual_seed(0)
    random = torch.rand(drops.shape, generator=generator)
    by_drop, by_chance = (
        backsight.faithfulness(
            model, images, maps, labels, steps=32, deletion_baseline=0.0, insertion_baseline=0.0
        )
        for maps in (drops, random)
    )
    assert (by_drop.deletion_auc < by_chance.deletion_auc).double().mean() >= 0.9
    assert (by_drop.insertion_auc > by_chance.insertion_auc).double().mean() >= 0.9


def test_leaves_the_model_and_the_images_alone() -> None:
    images = digits()[0][:2].clone()
    before = images.clone()

    class Writer(nn.Module):
        """Overwrites what it is given."""

        def forward(self, x: Tensor) -> Tensor:
            return x.mul_(2).flatten(1)

    found = backsight.faithfulness(Writer().eval(), images, images[:, 0], 20, steps=4)
    assert torch.equal(images, before)
    assert found.deletion.std() > 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"maps": torch.zeros(2, 8, 9)}, r"maps of \(2, 8, 8\) like the images, got \(2, 8, 9\)"),
        ({"maps": torch.full((2, 8, 8), torch.nan)}, "finite maps"),
        ({"maps": np.zeros((2, 8, 8))}, "tensor of real numbers, got ndarray"),
        ({"steps": 65}, r"steps in 1..64.*got 65"),
        ({"steps": 0}, r"steps in 1..64"),
        ({"target": 11}, r"class index in 0..9"),
        ({"probability": "log"}, "None, 'softmax' or 'sigmoid', got 'log'"),
        ({"deletion_baseline": "inpaint"}, "a colour or a picture, got 'inpaint'"),
        ({"insertion_baseline": [1.0, 2.0, 3.0]}, "broadcasts to images"),
        ({"batch_size": -1}, "positive batch_size"),
    ],
)
def test_bad_input_gets_a_sentence(arguments: dict[str, object], sentence: str) -> None:
    given = {"maps": torch.zeros(2, 8, 8), **arguments}
    with pytest.raises(ValueError, match=sentence):
        backsight.faithfulness(trained(), digits()[0][:2], **given)


def test_is_drawn_and_saved(tmp_path) -> None:
    images = digits()[0][:1]
    found = backsight.faithfulness(trained(), images, images[0, 0], steps=8)
    found.save(tmp_path / "f.npz")
    with np.load(tmp_path / "f.npz") as arrays:
        np.testing.assert_array_equal(arrays["deletion"], found.deletion.numpy())
    found.save(tmp_path / "f.png")
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")
    text = [t.get_text() for t in found.plot().subfigs[1].axes[0].get_legend().get_texts()]
    assert text == [
        f"insertion, area {float(found.insertion_auc[0]):.3f}",
        f"deletion, area {float(found.deletion_auc[0]):.3f}",
    ]
