"""large-occlusion and status: a TIFF into a store, alone and by several processes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import backsight
from backsight.cli import events as cli_events
from backsight.cli import run
from backsight.cli.speed import speed
from backsight.occlusion_store import Store
from backsight.zoo import Network, Preprocessing
from test_large import tree

tifffile = pytest.importorskip("tifffile")

NETWORK = """
import torch
from torch import nn

def make():
    torch.manual_seed(3)
    layers = [nn.Conv2d(3, 8, 5, stride=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3)]
    return nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
"""
COMMAND = ["large-occlusion", "scene.tif", "--model", "own_network:make", "-q"]
SMALL = ["--window", "24", "--stride", "16", "--memory", "1MiB"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_network", raising=False)
    Path("own_network.py").write_text(NETWORK, encoding="utf-8")
    pixels = np.random.default_rng(0).integers(0, 256, (300, 260, 3), dtype=np.uint8)
    tifffile.imwrite("scene.tif", pixels, tile=(64, 64), photometric="rgb")
    return tmp_path


def events(out: str) -> list[dict[str, Any]]:
    """The lines of a run with --json."""
    return [json.loads(line) for line in out.splitlines()]


def told(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The report, the last of them."""
    *_, report = events(capsys.readouterr().out)
    assert report["event"] == "end"
    return report


@pytest.fixture
def environment(folder: Path) -> dict[str, str]:
    """Of processes that see the network."""
    paths = [str(folder), *map(os.path.abspath, filter(None, sys.path))]
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}


def test_a_tiff_becomes_the_store_of_its_drops(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*COMMAND, *SMALL, "--target", "2", "-o", "store", "--json"]) == 0
    report = told(capsys)
    assert report["status"]["finished"]
    assert report["status"]["units"] > 1
    import own_network

    network = Network("own", own_network.make().eval(), Preprocessing())
    image, _ = network.prepare(tifffile.imread("scene.tif"), full=True)
    expected = backsight.occlusion(network, image, window=24, stride=16, targets=[2])
    compare("store", expected)
    assert run(["status", "store"]) == 0
    assert "finished" in capsys.readouterr().out


def test_regions_of_interest_from_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("roi.json").write_text("[[0, 0, 150, 130]]", encoding="utf-8")
    mask = np.zeros((30, 26), np.uint8)
    mask[:15, :13] = 255
    Image.fromarray(mask).save("roi.png")
    found = []
    for roi in ("roi.json", "roi.png"):
        assert run([*COMMAND, *SMALL, "--roi", roi, "-o", f"{roi}.store", "--json"]) == 0
        found.append(told(capsys)["status"]["positions"])
    assert found[0] == found[1] > 0


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_a_store(folder: Path, processes: int, environment: dict[str, str]) -> None:
    backsight_command = ["-m", "backsight", *COMMAND, *SMALL]
    alone = [sys.executable, *backsight_command, "-o", "alone"]
    subprocess.run(alone, check=True, env=environment)
    together = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone"]
    subprocess.run(
        [sys.executable, *together, *backsight_command, "-o", "together"],
        check=True,
        env=environment,
        capture_output=True,
    )
    assert Store.view("together").finished
    assert tree(folder / "together") == tree(folder / "alone")


VOLUME = """
import torch
from torch import nn

def make():
    torch.manual_seed(4)
    layers = [nn.Conv3d(1, 4, 3, stride=2), nn.ReLU(), nn.Conv3d(4, 6, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(6, 3))

def spectral():
    torch.manual_seed(4)
    layers = [nn.Conv2d(5, 4, 3, stride=2), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
"""


@pytest.fixture
def volume(folder: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray[Any, Any]:
    """(D, H, W), as four files, and networks of volumes and of channels."""
    zarr = pytest.importorskip("zarr")
    monkeypatch.delitem(sys.modules, "own_volume", raising=False)
    Path("own_volume.py").write_text(VOLUME, encoding="utf-8")
    values = np.random.default_rng(1).standard_normal((20, 28, 30)).astype(np.float32)
    np.save("ct.npy", values)
    np.save("rows_first.npy", np.moveaxis(values[:5], 0, -1))
    tifffile.imwrite("ct.tif", values, metadata={"axes": "ZYX"})
    stored = zarr.create_array(
        "ct.zarr", shape=(1, *values.shape), dtype="float32", chunks=(1, 8, 8, 8)
    )
    stored[:] = values[None]
    return values


def drops_of(store: str) -> dict[tuple[int, ...], torch.Tensor]:
    """The drops of a store by their boxes."""
    view = Store.view(store)
    parts = [view.read(unit) for unit in range(len(view.units))]
    return {
        tuple(box): torch.from_numpy(row)
        for part in parts
        for box, row in zip(part["boxes"].tolist(), part["drops"], strict=True)
    }


def compare(store: str, expected: backsight.Occlusion) -> None:
    found = drops_of(store)
    assert sorted(found) == sorted(map(tuple, expected.boxes.tolist()))
    rows = torch.stack([found[tuple(box)] for box in expected.boxes.tolist()])
    largest = float(expected.drops.abs().max())
    assert largest > 0
    assert float((rows - expected.drops[0]).abs().max()) <= 1e-5 * largest


def test_volumes_are_covered_along_three_axes(
    volume: np.ndarray[Any, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    own = ["--model", "own_volume:make", "-q", "--window", "5x9x8", "--stride", "5x6x7"]
    files = {"ct.npy": ["--axes", "DHW"], "ct.tif": [], "ct.zarr": []}
    for name, more in files.items():
        command = ["large-occlusion", name, *own, *more, "--baseline", "0.25", "--memory", "1MiB"]
        assert run([*command, "-o", f"{name}.store"]) == 0
    import own_volume

    expected = backsight.occlusion(
        own_volume.make().eval(),
        torch.from_numpy(volume)[None, None],
        window=(5, 9, 8),
        stride=(5, 6, 7),
        baseline=0.25,
    )
    for name in files:
        compare(f"{name}.store", expected)
    Path("roi.json").write_text("[[0, 0, 0, 20, 14, 30]]", encoding="utf-8")
    mask = np.zeros((2, 2, 2), bool)
    mask[:, 0] = True
    np.save("roi.npy", mask)
    for roi in ("roi.json", "roi.npy"):
        command = ["large-occlusion", "ct.tif", *own, "--roi", roi, "-o", f"{roi}.store"]
        assert run(command) == 0
        inside = drops_of(f"{roi}.store")
        boxes = expected.boxes.tolist()
        assert sorted(inside) == sorted(tuple(b) for b in boxes if (b[1] + b[4]) // 2 < 14)
        assert 0 < len(inside) < len(boxes)


def test_channels_of_floating_point_go_to_the_network_as_they_are(
    volume: np.ndarray[Any, Any],
) -> None:
    command = ["large-occlusion", "rows_first.npy", "--axes", "HWC", "-q", "--window", "7"]
    more = ["--model", "own_volume:spectral", "--baseline", "0.5,-1,0,2,1e-1", "-o", "store"]
    assert run([*command, *more]) == 0
    import own_volume

    colour = torch.tensor([0.5, -1, 0, 2, 0.1]).view(1, 5, 1, 1)
    image = torch.from_numpy(volume[:5])[None]
    model = own_volume.spectral().eval()
    compare("store", backsight.occlusion(model, image, window=7, baseline=colour))


def test_a_colour_covers_pixels(folder: Path) -> None:
    import own_network

    network = Network("own", own_network.make().eval(), Preprocessing())
    image, _ = network.prepare(tifffile.imread("scene.tif"), full=True)
    colour = network.preprocessing.color((255, 0, 127.5))
    given = {"window": 40, "stride": 40}
    expected = backsight.occlusion(network, image, baseline=colour, **given)
    of_training = backsight.occlusion(network, image, **given)
    assert not torch.equal(expected.drops, of_training.drops)
    for store, told_colour in (("red", ["--baseline", "255,0,127.5"]), ("mean", [])):
        assert run([*COMMAND, "--window", "40", *told_colour, "-o", store]) == 0
    compare("red", expected)
    compare("mean", of_training)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--window", "4x4"], "--window as N or DEPTHxHEIGHTxWIDTH"),
        (["--stride", "4x0x4"], "--stride as N or DEPTHxHEIGHTxWIDTH"),
        (["--window", "4x40x4"], "no larger than the image"),
        (["--baseline", "black"], "--baseline as a number, or one per channel"),
        (["--baseline", "1,2"], "one for each of 1 channels"),
        (["--baseline", "nan"], "a finite baseline"),
        (["--mean", "0,0,0"], "pixels of uint8 for --mean, got float32"),
        (["--axes", "HW"], "3 axes"),
        (["--roi", "flat.json"], "boxes of shape"),
        (["--roi", "flat.png"], "a mask of 3 axes"),
        (["--model", "own_network:make"], "channels|1"),
    ],
)
def test_bad_input_of_volumes_ends_with_one_sentence(
    volume: np.ndarray[Any, Any],
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    sentence: str,
) -> None:
    Path("flat.json").write_text("[[0, 0, 9, 9]]", encoding="utf-8")
    Image.fromarray(np.zeros((3, 3), np.uint8)).save("flat.png")
    command = ["large-occlusion", "ct.npy", "--model", "own_volume:make", "--axes", "DHW", "-q"]
    assert run([*command, "--window", "4", *arguments, "-o", "store"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(sentence, error), error
    assert not Path("store").exists()


def test_integers_that_are_no_pixels_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save("ct.npy", np.zeros((1, 9, 9, 9), np.int16))
    assert run(["large-occlusion", "ct.npy", *COMMAND[2:], "-o", "store"]) == 2
    assert "or floating point as the network takes it, got (1, 9, 9, 9)" in capsys.readouterr().err


def written(store: Path, times: Sequence[float]) -> None:
    """Give the first units of a store times, and remove the others."""
    chunks = sorted((store / "drops").glob("c.*"), key=lambda path: int(path.name.split(".")[1]))
    for path, at in zip(chunks, times, strict=False):
        os.utime(path, (at, at))
    for path in chunks[len(times) :]:
        path.unlink()


def test_status_tells_the_speed_since_the_last_pause(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*COMMAND, *SMALL, "-o", "store"]) == 0
    units = Store.view("store").units
    total = sum(units)

    def now(*times: float) -> dict[str, Any]:
        written(Path("store"), times)
        capsys.readouterr()
        assert run(["status", "store", "--json"]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert found["positions_done"] == sum(units[: len(times)])
        return found

    day = 86400.0
    fast = [1e9 + 2 * i for i in range(6)]
    slow = [fast[-1] + day + 8 * i for i in range(5)]
    found = now(*fast, *slow)
    assert found["per_second"] == pytest.approx(sum(units[7:11]) / 32)
    assert found["seconds_left"] == pytest.approx((total - sum(units[:11])) * 32 / sum(units[7:11]))
    assert run(["status", "store"]) == 0
    assert re.search(r"units, \d+\.\d positions/s, \d:\d\d:\d\d left\n", capsys.readouterr().out)
    found = now(*fast)
    assert found["per_second"] == pytest.approx(sum(units[1:6]) / 10)
    for times in ([*fast[:5], 2e9], [1e9], []):  # one since the pause, one at all, none
        found = now(*times)
        assert found["per_second"] is found["seconds_left"] is None
    assert run(["status", "store"]) == 0
    assert "0 of 304 positions, 0 of 20 units, speed unknown" in capsys.readouterr().out


@pytest.mark.parametrize("processes", [1, 2, 4, 8])
def test_speed_is_of_all_processes_together(processes: int) -> None:
    generator = np.random.default_rng(0)
    clocks, times = np.zeros(processes), {}
    for unit in range(300):
        if unit in (40, 200):  # killed, and taken up hours later
            clocks[:] = clocks.max() + 5e3 * unit
        clocks[unit % processes] += 10 * generator.uniform(0.8, 1.2)
        times[unit] = float(clocks[unit % processes])
    assert speed(times, [100] * 300) == pytest.approx(100 * processes / 10, rel=0.15)


def test_lines_for_machines(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_events, "_EVERY", 0.0)
    assert run([*COMMAND, *SMALL, "--shard", "0/2", "-o", "store", "--json"]) == 0
    first = events(capsys.readouterr().out)
    before = first[-1]["status"]
    assert 0 < before["units_done"] < before["units"]
    passing = [event["pixels"] for event in first if event["event"] == "pass"]
    assert 0 < passing[0] < passing[-1] == 300 * 260
    assert run([*COMMAND, *SMALL, "--shard", "1/2", "-o", "store", "--json"]) == 0
    found = events(capsys.readouterr().out)
    kinds = [event["event"] for event in found]
    units = [event for event in found if event["event"] == "unit"]
    passes = [event for event in found if event["event"] == "pass"]
    assert kinds == ["plan", *["pass"] * len(passes), *["unit"] * len(units), "end"]
    assert {event["rank"] for event in found} == {1}
    assert [event["unit"] for event in units] == list(range(1, before["units"], 2))
    assert {event["of"] for event in passes} == {300 * 260}
    assert passes[-1]["pixels"] == 300 * 260  # what the first has found is taken up
    done = [event["positions_done"] for event in units]
    assert before["positions_done"] < done[0] < done[-1] == before["positions"]
    assert done == sorted(done)
    assert all(event["per_second"] > 0 for event in units)
    assert [event["seconds_left"] for event in units][-1] == 0 < units[0]["seconds_left"]
    assert found[-1]["status"]["finished"]


def test_the_plan_comes_first(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loud = [*COMMAND[:-1], *SMALL, "-o", "store"]
    assert run(["large-plan", *loud[1:]]) == 0
    plan = capsys.readouterr().out
    assert not Path("store").exists()
    assert run(["large-plan", *loud[1:], "--json"]) == 0
    values = json.loads(capsys.readouterr().out)["plan"]
    assert values["positions"] == 304
    assert 0 < values["flops"] < 304 * values["plain_flops"]
    assert run([*loud, "--json"]) == 0
    out, err = capsys.readouterr()
    first, *_, report = events(out)
    exact = ("positions", "units", "flops", "plain_flops", "memory")  # its seconds are measured
    assert first["event"] == "plan"
    assert {name: first[name] for name in exact} == {name: values[name] for name in exact}
    assert report["status"]["units"] == values["units"]
    assert "304" in plan
    assert "304" in err.split("first pass")[0]
    # Of a store that is finished nothing is planned.
    assert run([*loud, "--json"]) == 0
    out, err = capsys.readouterr()
    assert [event["event"] for event in events(out)] == ["end"]
    assert err == ""


def test_plan_and_occlusion_have_the_same_options(capsys: pytest.CaptureFixture[str]) -> None:
    def options(command: str) -> list[str]:
        assert run([command, "--help"]) == 0
        return re.findall(r"^  (?:-\w, )?(--[\w-]+)", capsys.readouterr().out, re.MULTILINE)

    assert "--window" in options("large-occlusion")
    assert options("large-plan") == options("large-occlusion")


def test_lines_that_come_at_once_are_told_by_the_last(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_events, "_EVERY", 1000.0)
    assert run([*COMMAND, *SMALL, "-o", "store", "--json"]) == 0
    found = events(capsys.readouterr().out)
    units = [event["unit"] for event in found if event["event"] == "unit"]
    assert units == [0, found[-1]["status"]["units"] - 1]


def test_lines_of_processes_on_one_pipe_stay_whole(
    folder: Path, environment: dict[str, str]
) -> None:
    both = [sys.executable, "-m", "backsight", *COMMAND, *SMALL, "-o", "store", "--json"]
    read, written = os.pipe()
    processes = [
        subprocess.Popen([*both, "--shard", f"{i}/2"], env=environment, stdout=written)
        for i in range(2)
    ]
    os.close(written)
    with os.fdopen(read, encoding="utf-8") as pipe:
        found = events(pipe.read())
    assert [process.wait() for process in processes] == [0, 0]
    for rank in range(2):
        kinds = [event["event"] for event in found if event["rank"] == rank]
        assert {"pass", "unit"} < set(kinds)
        assert kinds[-1] == "end"


def test_torchruns_other_ranks_are_silent(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*COMMAND[:-1], *SMALL, "-o", "store"]  # not -q
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert run(command) == 0
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("RANK", "0")
    assert run(command) == 0
    out, err = capsys.readouterr()
    assert re.fullmatch(r"store: finished, (\d+) positions in \d+ units\n", out)
    assert "first pass: 100%" in err
    assert "sweep: 100%" in err
    monkeypatch.setenv("RANK", "1")
    assert run(command) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--shard", "3/2"], "--shard as I/N"),
        (["--roi", "none.json"], "none.json"),
        (["--target", "9"], "targets within 4 outputs"),
        (["--target", "1", "--top", "2"], "either --target or --top"),
        (["--memory", "4KB"], "expected memory of"),
        (["--level", "3"], "level"),
        (["--window", "400"], "no larger than the image"),
    ],
)
def test_bad_input_ends_with_one_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    assert run([*COMMAND, *SMALL, *arguments, "-o", "store"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1

    assert re.search(sentence, error), error
    assert not Path("store").exists() or not any(Path("store").iterdir())


def test_no_store_and_no_image_get_a_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["status", "nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err
    Path("scene.tif").write_bytes(Path("scene.tif").read_bytes()[:5000])
    assert run([*COMMAND, *SMALL, "-o", "store"]) == 2
    assert "scene.tif" in capsys.readouterr().err
