"""Every command that looks at photos: odd photos are taken, bad input costs a sentence, exit code 2
and no file. Which commands there are is asked of the application.
"""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backsight.cli import run

pytest.importorskip("typer", reason="the command line needs typer")
pytest.importorskip("matplotlib", reason="the command line draws with matplotlib")
pytest.importorskip("sklearn", reason="feature-map needs scikit-learn")
Image = pytest.importorskip("PIL.Image", reason="the command line reads photos with Pillow")

from backsight.cli.app import app  # noqa: E402

NETWORK = """
import torch
from torch import nn

def make(classes=4, channels=3):
    torch.manual_seed(7)
    layers = [nn.Conv2d(channels, 4, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4, classes))

def one_class():
    return make(1)

def gray():
    return make(channels=1)
"""


def options_of(command: Any) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(command.callback).parameters)


#: The commands that take photos, by name, with their options.
COMMANDS = {
    command.name: options_of(command)
    for command in app.registered_commands
    if "photos" in options_of(command)
}
#: Those that write files for each photo, and those that make one of all of them; the report has
#: tests of its own.
OF_ALL = {"units", "feature-map", "dream-frames"}
OF_EACH = sorted(COMMANDS.keys() - OF_ALL - {"plan", "report"})
#: What stands for defaults that are layers of another network.
FOR_THIS = {"style": ["--content-layer", "0", "--style-layer", "0"]}
WITH_TARGET = sorted(name for name in COMMANDS if "target" in COMMANDS[name])
WITH_LAYER = sorted(name for name in COMMANDS if "layer" in COMMANDS[name])


def test_the_commands_are_those_that_there_are() -> None:
    assert {"occlusion", "plan", "saliency", "deconv", "units", "report"} <= COMMANDS.keys()
    assert {"saliency", "fully-convolutional", "occlusion"} <= set(WITH_TARGET)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: a photo that lies on its side, in CMYK; one that is none; a network."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(8)
    pixels = np.kron(rng.integers(0, 256, (4, 6, 3)), np.ones((9, 9, 1))).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Path("shots").mkdir()
    Image.fromarray(pixels).convert("CMYK").save("shots/odd.jpg", exif=exif)
    Path("shots/torn.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    Path("own_photos.py").write_text(NETWORK)
    Path("names.txt").write_text("ant\nbee\ncricket\ndragonfly\n")
    monkeypatch.delitem(sys.modules, "own_photos", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def arguments(
    name: str, photos: str, *more: str, model: str = "make", full: bool = True
) -> list[str]:
    """A command on photos, with what it requires."""
    options = COMMANDS[name]
    given = [name, photos, "--model", f"own_photos:{model}", "-q", *(["--full"] if full else [])]
    given += [] if "--layer" in more else FOR_THIS.get(name, [])
    if "window" in options:
        given += ["--window", "8"]
    for option, parameter in options.items():
        required = parameter.default is parameter.empty and option != "photos"
        if required and f"--{option.replace('_', '-')}" not in more:
            plain = "0" if option in ("layer", "channel") else "shots/odd.jpg"
            given += [f"--{option.replace('_', '-')}", plain]
    return [*given, *more]


def tree(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if "__pycache__" not in path.parts)


def refused(given: list[str], sentence: str, folder: Path, capsys: Any) -> None:
    """One sentence, exit code 2, and nothing left behind."""
    before = tree(folder)
    out = [] if "-o" in given else ["-o", "out"]
    assert run([*given, *out]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("backsight: ")
    assert said.err.count("\n") == 1
    assert sentence in said.err
    assert tree(folder) == before


@pytest.mark.parametrize("name", OF_EACH)
def test_a_turned_photo_in_cmyk_beside_one_that_is_none(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*arguments(name, "shots", "--json"), "-o", "out"]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("backsight: cannot read photo shots/torn.png")
    assert said.err.count("\n") == 1
    report = json.loads(said.out)
    assert report["photo"] == "shots/odd.jpg"
    assert report["image"] == {"height": 54, "width": 36}
    written = {str(path.relative_to(folder)) for path in (folder / "out").iterdir()}
    assert set(report["files"].values()) <= written
    assert all(Path(path).name.startswith("odd.") for path in written)
    assert not list((folder / "out").glob(".*"))


@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_no_photo(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    refused(arguments(name, "nothing.png"), "there is no such file", folder, capsys)
    refused(arguments(name, "empty"), "expected pictures in the folder", folder, capsys)
    refused(arguments(name, "shots/torn.png"), "cannot read photo shots/torn.png", folder, capsys)


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "plan"])
def test_results_that_cannot_be_written(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments(name, "shots/odd.jpg", "-o", "names.txt/deep")
    refused(given, "names.txt is a file", folder, capsys)


@pytest.mark.parametrize("name", COMMANDS)
def test_networks_that_are_none_or_take_no_photos(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments(name, "shots/odd.jpg", model="nothing")
    refused(given, "nothing", folder, capsys)
    refused(arguments(name, "shots/odd.jpg", model="gray"), "channels", folder, capsys)


@pytest.mark.parametrize("name", WITH_TARGET)
def test_unknown_classes(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = arguments(name, "shots/odd.jpg", "--classes", "names.txt", "--target", "dragonfyl")
    refused(given, "near names: dragonfly", folder, capsys)


@pytest.mark.parametrize("name", WITH_LAYER)
def test_unknown_layers(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = arguments(name, "shots/odd.jpg", "--layer", "fire99")
    refused(given, "expected a layer of the model, such as", folder, capsys)


@pytest.mark.parametrize("name", OF_EACH)
def test_networks_of_one_class_are_taken_or_refused(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(folder)
    code = run([*arguments(name, "shots/odd.jpg", model="one_class"), "-o", "out"])
    said = capsys.readouterr()
    assert code in (0, 2)
    if code == 2:
        assert said.err.count("\n") == 1
        assert tree(folder) == before
    else:
        assert said.err == ""
        assert any((folder / "out").glob("odd.*.npz"))


@pytest.mark.parametrize("name", ["feature-map", "units"])
def test_folders_of_few_photos(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if name == "feature-map":
        assert run([*arguments(name, "shots"), "-o", "out"]) == 2
        assert "expected 5 images for a map, or more, got 1" in capsys.readouterr().err
        assert not Path("out").exists()
        rng = np.random.default_rng(1)
        for index in range(5):
            pixels = rng.integers(0, 256, (20 + index, 24), dtype=np.uint8)
            Image.fromarray(pixels).save(f"shots/{index}.png")
    assert run([*arguments(name, "shots", "--json"), "-o", "out"]) == 2
    said = capsys.readouterr()
    report = json.loads(said.out)
    assert "cannot read photo shots/torn.png" in report["skipped"][0]
    assert said.err.count("\n") == 1
    written = {str(path.relative_to(folder)) for path in (folder / "out").iterdir()}
    assert set(report["files"].values()) == written
    if name == "feature-map":
        assert len(report["photos"]) == len(report["cells"]) == 6
        # what it wrote is no photo: a second time finds the same
        assert run([*arguments(name, "shots", "--json"), "-o", "shots"]) == 2
        capsys.readouterr()
        assert run([*arguments(name, "shots", "--json"), "-o", "out"]) == 2
        again = json.loads(capsys.readouterr().out)
        assert again["places"] == report["places"]
