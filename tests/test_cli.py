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
    return nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))

def make_maps():
    return nn.Conv2d(3, 4, 3)
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
        (["--baseline", "pink"], "expected --baseline as mean, black, gray, white"),
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
        (["--model", "resnet"], "expected squeezenet or module:factory as the network"),
        (["--model", "own_network:make_maps"], "to return (1, classes) scores, got (1, 4, 58, 78)"),
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
    refused(["occlusion", ".", *options], "cannot read photo .: it is a folder", capsys, folder)
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


def test_interrupted_command_leaves_nothing(folder: Path) -> None:
    # a shell that starts this in the background has its children ignore Ctrl-C
    program = (
        "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from backsight.cli import main\nmain()\n"
    )
    arguments = [*OWN[:-1], "--size", "400", "--window", "9", "--stride", "1", "-o", "out"]
    command = [sys.executable, "-c", program, *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.read(1), "no progress bar"
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130, rest
    assert rest.rstrip().endswith("backsight: interrupted")
    assert "Traceback" not in rest
    assert results(folder / "out") == []


def test_version_help_and_config() -> None:
    from backsight import __version__

    def output(*arguments: str) -> str:
        done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=True)
        assert done.stderr == ""
        return done.stdout

    assert output("--version") == f"backsight {__version__}\n"
    assert "occlusion" in output("--help")
    assert output() == output("--help")
    assert "--window" in output("occlusion", "--help")
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
