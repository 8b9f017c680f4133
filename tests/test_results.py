"""Occlusion, projection and search as results: of a zoo.Network, drawn, told and saved."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import backsight
from backsight.zoo import Network, Preprocessing
from nets import random_images, seeded, squeezenet1_1

NAMES = ("ant", "bee", "cricket", "dragonfly")
HOW = Preprocessing(crop=None, short_side=None, mean=(10.0, 20.0, 30.0), std=(1, 2, 3), scale=1.0)


def small() -> nn.Module:
    layers = [nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


def network(bgr: bool = False) -> Network:
    how = Preprocessing(**{**HOW.__dict__, "bgr": bgr})
    return Network("small", seeded(small).eval(), how, NAMES)


PHOTO = np.random.default_rng(3).integers(0, 256, (24, 30, 3), dtype=np.uint8)


def test_a_network_is_swept_as_its_model() -> None:
    net = network()
    image, _ = net.prepare(PHOTO)
    found = backsight.occlusion(net, image, window=6, stride=4)
    bare = backsight.occlusion(net.model, image, window=6, stride=4)
    assert bare.drops.abs().max() > 1e-3
    assert torch.equal(found.drops, bare.drops)
    assert str(backsight.plan(net, image, window=6)) == str(
        backsight.plan(net.model, image, window=6)
    )
    assert found.classes == NAMES
    assert torch.equal(found.map("cricket"), bare.map(2))
    assert torch.equal(found.grid(["bee"]), bare.grid([1]))
    np.testing.assert_array_equal(found.pictures[0], PHOTO)
    with pytest.raises(ValueError, match="near names: cricket"):
        found.map("crickt")
    with pytest.raises(ValueError, match=r"only the result of a zoo\.Network knows"):
        bare.map("cricket")


def test_names_are_those_of_what_was_measured() -> None:
    net = network()
    image, _ = net.prepare(PHOTO)
    assert backsight.occlusion(net, image, window=8, layer="2").classes is None
    assert backsight.occlusion(net, image, window=8, score=lambda s: s.sum(1)).classes is None
    kept = backsight.occlusion(net, image, window=8, targets=[3, 1])
    assert kept.classes == NAMES
    assert torch.equal(kept.map("bee"), backsight.occlusion(net, image, window=8).map(1))
    with pytest.raises(ValueError, match=r"of those kept, \[1, 3\], got"):
        kept.map("ant")


def test_occlusion_is_drawn_and_told(tmp_path) -> None:
    pytest.importorskip("matplotlib", reason="figures need matplotlib")
    net = network()
    image, _ = net.prepare(PHOTO)
    images = torch.cat([image, image.flip(3)])
    found = backsight.occlusion(net, images, window=6, stride=3)
    figure = found.plot("bee", 1)
    photo, heat = (axes.images[-1].get_array() for axes in figure.axes[:2])
    np.testing.assert_array_equal(photo, PHOTO[:, ::-1])
    np.testing.assert_allclose(heat, found.map(1)[1].double())
    best = found.strongest(0)
    report = found.report()
    assert report["images"][0]["target"] == NAMES[best]
    drops = found.drops[0, :, best]
    assert report["images"][0]["largest_drop"] == pytest.approx(float(drops.max()))
    assert report["images"][0]["boxes"] == [found.boxes[drops.argmax()].tolist()]
    json.dumps(report, allow_nan=False)
    assert NAMES[best] in found.summary()
    found.save(tmp_path / "o.npz")
    loaded = backsight.Occlusion.load(tmp_path / "o.npz")
    assert loaded.plot().axes  # without the photo
    assert loaded.report()["images"][0]["target"] == f"output {best}"
    again = pickle.loads(pickle.dumps(found))
    assert torch.equal(again.map("ant"), found.map("ant"))
    signals = backsight.occlusion(nn.Conv1d(2, 3, 5).eval(), torch.rand(1, 2, 5), window=2)
    with pytest.raises(ValueError, match="two spatial axes, got 1"):
        signals.plot()


@pytest.mark.parametrize("bgr", [False, True])
def test_projection_is_drawn_told_and_saved(tmp_path, bgr: bool) -> None:
    pytest.importorskip("matplotlib", reason="figures need matplotlib")
    net = network(bgr)
    image, _ = net.prepare(PHOTO)
    found = backsight.project(net, image, "2", units=3)
    bare = backsight.project(net.model, image, "2", units=3)
    assert found.pictures.abs().max() > 0
    assert torch.equal(found.pictures, bare.pictures)
    assert found.order == ("BGR" if bgr else "RGB")
    assert found.layer == "2"
    assert bare.order == ""
    np.testing.assert_array_equal(found.photos[0], PHOTO)
    shown = found.plot().axes[0].images
    assert len(shown) == 9
    top, left, bottom, right = found.boxes[1].tolist()
    np.testing.assert_array_equal(shown[4].get_array(), PHOTO[top:bottom, left:right])
    drawn = np.asarray(shown[5].get_array()) - 0.5
    signal = found.crop(1).flip(0) if bgr else found.crop(1)
    assert np.corrcoef(drawn.ravel(), signal.permute(1, 2, 0).ravel())[0, 1] > 0.95
    json.dumps(found.report(), allow_nan=False)
    assert f"channel {int(found.units[0, 1])} at" in found.summary()
    found.save(tmp_path / "p.npz")
    with np.load(tmp_path / "p.npz") as arrays:
        np.testing.assert_array_equal(arrays["pictures"], found.pictures)
    with pytest.raises(ValueError, match="got 0 of image 4"):
        found.plot(4)


def test_search_is_drawn_told_and_saved(tmp_path) -> None:
    pytest.importorskip("matplotlib", reason="figures need matplotlib")
    net = network()
    photos = [np.roll(PHOTO, shift, 1) for shift in range(5)]
    images = torch.cat([net.prepare(photo)[0] for photo in photos])
    found = backsight.top_activations(net, "2", images, 3)
    bare = backsight.top_activations(net.model, "2", images, 3)
    assert found.values.std() > 0
    assert torch.equal(found.values, bare.values)
    assert found.layer == "2"
    best = found.strongest(2)
    assert float(found.values.max()) == float(found.values[best[0], 0])
    figure = found.plot(images, network=net, channels=best)
    shown = figure.axes[0].images
    assert len(shown) == 6
    image = int(found.images[best[1], 2])
    top, left, bottom, right = found.boxes[best[1], 2].tolist()
    crop = photos[image][top:bottom, left:right]
    np.testing.assert_allclose(shown[5].get_array() * 255, crop, atol=1e-6)
    assert found.plot().axes
    json.dumps(found.report(), allow_nan=False)
    assert f"channel {best[0]}" in found.summary()
    found.save(tmp_path / "t.npz")
    with np.load(tmp_path / "t.npz") as arrays:
        np.testing.assert_array_equal(arrays["values"], found.values)
    few = backsight.top_activations(net, "2", images[:2], 3)
    assert few.plot().axes  # where there are fewer images than places
    json.dumps(few.report(), allow_nan=False)


def test_device_moves_a_copy() -> None:
    model = seeded(squeezenet1_1).eval()
    images = random_images((3, 64, 64))
    for found, other in (
        (backsight.project(model, images, units=1, device="cpu").pictures,) * 2,
        (
            backsight.occlusion(model, images, window=32, device="cpu").drops,
            backsight.occlusion(model, images, window=32).drops,
        ),
    ):
        assert found.abs().max() > 0
        assert torch.equal(found, other)
    with pytest.raises((ValueError, RuntimeError)):
        backsight.occlusion(model, images, window=32, device="nowhere")


def test_neither_a_network_nor_a_model_is_refused() -> None:
    for call in (
        lambda: backsight.occlusion(3, torch.rand(1, 3, 8, 8), window=2),
        lambda: backsight.project(3, torch.rand(1, 3, 8, 8)),
        lambda: backsight.top_activations(3, None, torch.rand(1, 3, 8, 8)),
    ):
        with pytest.raises(ValueError, match="expected a model that can be called"):
            call()
