"""Commands that show what a network makes of a photo: their files, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backsight.cli import run

pytest.importorskip("typer", reason="the command line needs typer")
pytest.importorskip("matplotlib", reason="the command line draws with matplotlib")
Image = pytest.importorskip("PIL.Image", reason="the command line reads photos with Pillow")

NETWORK = """
import torch
from torch import nn

def make():
    torch.manual_seed(7)
    layers = [nn.Conv2d(3, 8, 5, stride=2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(8, 8, 3)]
    layers += [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)]
    return nn.Sequential(*layers)

def make_flat():
    torch.manual_seed(7)
    layers = [nn.Conv2d(3, 2, 5, stride=8), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 63, 4)]
    return nn.Sequential(*layers)
"""

OWN = ["--model", "views_network:make", "--classes", "names.txt", "--full", "-q"]

COMMANDS = {
    "cam": ([], "maps"),
    "rotation": (["--step", "90"], "scores"),
    "faithfulness": (["--steps", "4"], "deletion"),
    "activations": (["--layer", "1"], "maps"),
    "receptive-field": ([], "boxes"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: photos of 54 x 70, a network of one's own, its four class names."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(8)
    Path("photos").mkdir()
    for name in ("a", "b"):
        pixels = generator.integers(0, 256, (54, 70, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"photos/{name}.png")
    Path("views_network.py").write_text(NETWORK)
    Path("names.txt").write_text("ant\nbee\ncricket\ndragonfly\n")
    monkeypatch.delitem(sys.modules, "views_network", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def reports(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def names(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


@pytest.mark.parametrize("command", COMMANDS)
def test_writes_three_files_a_photo(
    command: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, member = COMMANDS[command]
    assert run([command, "photos", *OWN, *arguments, "-o", "out", "--json"]) == 0
    found = reports(capsys)
    assert [report["photo"] for report in found] == ["photos/a.png", "photos/b.png"]
    kinds = ("json", "npz", "png")
    assert names("out") == [f"{name}.{command}.{kind}" for name in "ab" for kind in kinds]
    for name, report in zip("ab", found, strict=True):
        stem = f"out/{name}.{command}"
        assert json.loads(Path(f"{stem}.json").read_text()) == report
        assert Image.open(f"{stem}.png").size[0] > 300
        with np.load(f"{stem}.npz") as arrays:
            assert np.abs(arrays[member].astype(float)).max() > 0


def test_cam_of_a_class_and_of_a_layer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cam", "photos/a.png", *OWN, "--target", "bee", "--json"]) == 0
    assert run(["cam", "photos/a.png", *OWN, "--target", "bee", "--layer", "4", "--json"]) == 0
    cam, grad = reports(capsys)
    assert cam["targets"] == grad["targets"] == ["bee"]
    assert cam["biases"] is not None
    assert grad["biases"] is None
    assert cam["scores"] == pytest.approx(grad["scores"], rel=1e-4)


def test_faithfulness_of_any_map(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judged = np.random.default_rng(0).random((54, 70))
    np.save("map.npy", judged)
    areas = []
    command = ["faithfulness", "photos/a.png", *OWN, "--steps", "8", "--json"]
    for of in ("occlusion", "saliency", "cam", "map.npy"):
        assert run([*command, "--of", of]) == 0
        (report,) = reports(capsys)
        areas.append(report["deletion_auc"][0])
        with np.load("a.faithfulness.npz") as arrays:
            shown = arrays["maps"][0]
    assert len(set(areas)) == 4
    np.testing.assert_array_equal(shown, judged)


def test_rotation_turns_all_around(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    colour = ["--baseline", "black", "--probability", "none"]
    assert run(["rotation", "photos/a.png", *OWN, "--step", "100", *colour, "--json"]) == 0
    (report,) = reports(capsys)
    assert report["angles"] == [0, 100, 200, 300]
    assert report["probability"] is None
    assert len(report["classes"][0]) == 4


def test_filters_need_no_photo(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["filters", "--model", "views_network:make", "-o", "out", "--json"]) == 0
    (report,) = reports(capsys)
    assert names("out") == ["filters.json", "filters.npz", "filters.png"]
    assert report["shape"] == [8, 3, 5, 5]
    assert report["noisy"] == list(range(8))  # it is not trained
    assert run(["filters", "--model", "views_network:make", "--layer", "3", "-o", "out"]) == 0
    assert "8 filters of 3: 0 dead, 0 duplicate, 0 noisy" in capsys.readouterr().out


def test_one_unreadable_photo_of_several(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("photos/aa.png").write_bytes(b"no picture")
    assert run(["cam", "photos", *OWN, "-o", "out"]) == 2
    assert len(names("out")) == 6
    assert "cannot read photo photos/aa.png" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["cam", "--target", "beee"], "near names: bee"),
        (["cam", "--layer", "77"], "expected a layer of the model"),
        (["cam", "--layer", "7"], "maps (images, channels, *spatial) of several positions"),
        (["cam", "--model", "views_network:make_flat"], "name a layer for Grad-CAM"),
        (["rotation", "--step", "-3"], "expected --step above 0"),
        (["rotation", "--baseline", "inpaint"], "a colour or a picture"),
        (["rotation", "--probability", "log"], "softmax, sigmoid, none"),
        (["faithfulness", "--of", "gradcam"], "expected --of as"),
        (["faithfulness", "--of", "missing.npy"], "cannot read the map missing.npy"),
        (["faithfulness", "--of", "small.npy"], "a map of 54 x 70 numbers"),
        (["faithfulness", "--steps", "0"], "expected steps in 1..3780"),
        (["activations"], "--layer"),
        (["activations", "--layer", "x"], "expected a layer of the model"),
        (["receptive-field", "--position", "54,0"], "position within (54, 70)"),
        (["receptive-field", "--layer", "7"], "7 puts out none"),
    ],
)
def test_bad_input_costs_a_sentence_and_leaves_no_file(
    arguments: list[str], sentence: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save("small.npy", np.zeros((3, 3)))
    command, *rest = arguments
    assert run([command, "photos/a.png", *OWN, *rest, "-o", "out"]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert not Path("out").exists()


def test_filters_of_no_convolution(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["filters", "--model", "views_network:make", "--layer", "1"]) == 2
    assert "1 is a ReLU" in capsys.readouterr().err
    Path("file").write_text("")
    assert run(["filters", "--model", "views_network:make", "-o", "file"]) == 2
    assert "expected a folder for the results" in capsys.readouterr().err
