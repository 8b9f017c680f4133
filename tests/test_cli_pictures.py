"""The commands that make pictures: against the methods themselves, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import backsight
from backsight.cli import run
from backsight.zoo import Network, Preprocessing
from test_cli import Image, files, results

NETWORK = """
import torch
from torch import nn

def make():
    torch.manual_seed(7)
    layers = [nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(8, 8, 3)]
    layers += [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)]
    layers[-1].weight.data *= 40
    return nn.Sequential(*layers)
"""
OWN = ["--model", "own_network:make", "-q", "-o", "out"]
NAMED = ["--classes", "names.txt"]
NAMES = ("ant", "bee", "cricket", "dragonfly")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: a photo, a folder of three frames, a network and its class names."""
    monkeypatch.chdir(tmp_path)
    Path("frames").mkdir()
    for seed, name in enumerate(("photo", "frames/a", "frames/b", "frames/c")):
        pixels = np.random.default_rng(seed).integers(0, 256, (40, 56, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"{name}.png")
    Path("own_network.py").write_text(NETWORK)
    Path("names.txt").write_text("\n".join(NAMES))
    monkeypatch.delitem(sys.modules, "own_network", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def network() -> Network:
    model = __import__("own_network").make().eval()
    return Network("own_network:make", model, Preprocessing(), NAMES)


def prepared(name: str) -> Tensor:
    return Preprocessing().tensor(np.array(Image.open(name)))


def told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> list[Any]:
    """What a command prints as JSON, a line each."""
    capsys.readouterr()
    assert run([*arguments, "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def loaded(name: str, *arrays: str) -> list[Tensor]:
    with np.load(Path("out") / name, allow_pickle=False) as archive:
        return [torch.from_numpy(archive[each]) for each in arrays]


def test_class_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--target", "bee", "--target", "3", "--size", "24", "--steps", "9", "--step", "4"]
    command = ["class-model", *options, *OWN, *NAMED, "--seed", "5", "--seed", "6"]
    (report,) = told(command, capsys)
    assert results(folder / "out") == [f"class-model.{e}" for e in ("json", "npz", "png")]
    expected = backsight.class_model(
        network(), ["bee", 3], shape=(3, 24, 24), steps=9, step=4, seed=[5, 6]
    )
    (images,) = loaded("class-model.npz", "images")
    torch.testing.assert_close(images, expected.images, rtol=1e-4, atol=1e-4)
    assert report["targets"] == ["bee", "bee", "dragonfly", "dragonfly"]
    assert report["scores"] == pytest.approx(expected.scores.tolist(), rel=1e-3)
    assert min(np.array(report["scores"]) - np.array(report["starts"])) > 0.1
    assert json.loads(Path("out/class-model.json").read_text()) == report


def test_class_model_of_a_neuron(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--target", "4,2,3", "--layer", "3", "--size", "40", "--steps", "3"]
    assert run(["class-model", *options, *OWN]) == 0
    assert "channel 4 at 2, 3: from " in capsys.readouterr().out


def test_dream(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--layer", "0=2", "--layer", "3", "--steps", "3", "--octaves", "2", "--full"]
    (report,) = told(["dream", "photo.png", *options, *OWN], capsys)
    assert results(folder / "out") == [f"photo.dream.{e}" for e in ("json", "npz", "png")]
    expected = backsight.dream(
        network(), prepared("photo.png"), layer={"0": 2, "3": 1}, steps=3, octaves=2
    )
    (images,) = loaded("photo.dream.npz", "images")
    torch.testing.assert_close(images, expected.images, rtol=1e-4, atol=1e-4)
    assert report["layers"] == {"0": 2.0, "3": 1.0}
    assert report["after"][0] > 1.1 * report["before"][0]


def test_dream_of_frames(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--layer", "3", "--steps", "2", "--octaves", "1", "--full", "--carry", "0.25"]
    reports = told(["dream-frames", "frames", *options, *OWN], capsys)
    assert results(folder / "out") == [f"{name}.dream.png" for name in "abc"]
    assert [report["files"]["png"] for report in reports] == [
        f"out/{name}.dream.png" for name in "abc"
    ]
    last = None
    for name in "abc":
        image = prepared(f"frames/{name}.png")
        start = image if last is None else 0.75 * image + 0.25 * last
        found = backsight.dream(network(), start, layer="3", steps=2, octaves=1)
        last = found.images
        shown = torch.from_numpy(np.array(Image.open(f"out/{name}.dream.png"))).int()
        assert shown.shape == (40, 56, 3)
        assert (shown - found.pictures[0].int()).abs().max() <= 1
        assert (shown - torch.from_numpy(np.array(Image.open(f"frames/{name}.png"))).int()).any()
    # Dreams that lie among the frames are no frames.
    assert run(["dream-frames", "out", *options, *OWN]) == 2


def test_style(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--painting", "frames/a.png", "--content-layer", "3", "--style-layer", "1"]
    options += ["--steps", "5", "--style-weight", "1e5", "--full"]
    (report,) = told(["style", "photo.png", *options, *OWN], capsys)
    assert results(folder / "out") == [f"photo.style.{e}" for e in ("json", "npz", "png")]
    expected = backsight.style(
        network(),
        prepared("photo.png"),
        prepared("frames/a.png"),
        content_layer="3",
        style_layer="1",
        steps=5,
        style_weight=1e5,
    )
    (images,) = loaded("photo.style.npz", "images")
    torch.testing.assert_close(images, expected.images, rtol=1e-3, atol=1e-3)
    assert report["losses"][0]["style"] < 0.9 * report["starts"][0]["style"]


def test_fool(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = prepared("photo.png")
    model = network().model
    least = NAMES[int(model(image).argmin())]
    options = ["--target", least, "--confidence", "0.6", "--full"]
    (report,) = told(["fool", "photo.png", *options, *OWN, *NAMED], capsys)
    assert results(folder / "out") == [f"photo.fool.{e}" for e in ("json", "npz", "png")]
    (images,) = loaded("photo.fool.npz", "images")
    with torch.no_grad():
        shares = model(images).softmax(1)[0]
    assert NAMES[int(shares.argmax())] == least
    assert shares.max() >= 0.6 - 1e-5
    assert report["names"][0]["after"] == least
    assert report["reached"] == [True]
    (bounded,) = told(["fool", "photo.png", *options, *OWN, *NAMED, "--epsilon", "0.01"], capsys)
    assert bounded["reached"] == [False]
    assert bounded["distances"][0] <= 0.01
    (noise,) = told(["fool", "photo.png", *options, *OWN, *NAMED, "--noise"], capsys)
    assert noise["names"][0]["after"] == least


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["class-model", "--target", "crickt", *NAMED], "near names: cricket"),
        (["class-model", "--target", "1", "--blur", "0.1"], "sigma of at least 0.3"),
        (["class-model"], "--target"),
        (["dream", "photo.png", "--layer", "9"], "expected a layer of the model"),
        (["dream", "photo.png", "--layer", "3=x"], "expected --layer as NAME or NAME=WEIGHT"),
        (["dream-frames", "frames", "--layer", "3", "--carry", "1"], "--carry in [0, 1), got 1"),
        (["style", "photo.png", "--painting", "none.png"], "no such file"),
        (["style", "photo.png", "--painting", "photo.png"], "expected a layer of the model"),
        (["fool", "photo.png", "--norm", "l3"], "norm as one of linf, l2, got 'l3'"),
        (["fool", "photo.png", "--target", "wasp", *NAMED], "there is no class 'wasp'"),
    ],
)
def test_bad_input_gets_a_sentence(
    arguments: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(folder)
    full = [] if arguments[0] == "class-model" else ["--full"]
    assert run([*arguments, *full, *OWN]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("backsight: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert files(folder) == before
