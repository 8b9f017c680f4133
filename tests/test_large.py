"""Sweeps in bounded memory against the sweep of the whole image, and against the oracle."""

from __future__ import annotations

import copy
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import backsight
from backsight.methods.large import Large
from backsight.occlusion_store import Store, status
from backsight.sweep.grid import Grid
from backsight.sweep.readout import Readout
from backsight.sweep.units import Unit, partitioned
from backsight.zoo import Network, Preprocessing
from nets import NETS, NetCase, calibrate, random_images, resnet18, seeded
from oracle import oracle

SMALL = ["vgg16_fc", "resnet18", "squeezenet1_1", "unet", "squeeze_excitation", "conv1d", "ct"]
SMALL += ["pooled_unevenly"]
OTHERS = [name for name, case in NETS.items() if case.capture and name not in SMALL]


def places(case: NetCase) -> dict[str, Any]:
    size = case.shapes[0][1:]
    return {"window": [max(1, n // 5) for n in size], "stride": [max(1, n // 7) for n in size]}


def task(model: nn.Module, image: Any, memory: int, **arguments: Any) -> Large:
    """One call, not run yet."""
    given: dict[str, Any] = {
        "stride": None,
        "edge": "clip",
        "roi": None,
        "baseline": 0.0,
        "output": None,
        "readout": Readout(None, None, None, None),
        "device": None,
        **arguments,
    }
    return Large(model, image, memory=memory, **given)


def smallest(model: nn.Module, image: Any, memory: int, **arguments: Any) -> Large:
    """The task in the least memory that will do, from so much on."""
    while True:
        try:
            made = task(model, image, memory, **arguments)
            assert made.units
            return made
        except ValueError as error:
            if "memory" not in str(error) or memory > 1 << 26:
                raise
            memory *= 2


def whole(model: nn.Module, image: Tensor, **arguments: Any) -> backsight.Occlusion:
    return backsight.occlusion(model, image[None], **arguments)


def compare(found: backsight.Occlusion, expected: backsight.Occlusion, tolerance: float) -> None:
    largest = float(expected.drops.abs().max())
    assert largest > 0
    assert torch.equal(found.boxes, expected.boxes)
    assert float((found.drops - expected.drops).abs().max()) <= tolerance * largest
    scale = float(expected.base.abs().max())
    assert float((found.base - expected.base).abs().max()) <= 1e-5 * scale


def check(name: str) -> None:
    case = NETS[name]
    model, image = case.build(), case.images()[0]
    where = places(case)
    job = smallest(model, image, 1 << 16, **where)
    # Units as small as can be: their regions overlap by their halos.
    job.sweep.units = partitioned(job.grid, max(1, min(image.shape[1:]) // 3))
    assert len(job.units) > 1
    compare(job.run(), whole(model, image, **where), 1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_regions_give_what_the_whole_image_gives(name: str) -> None:
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_regions_give_what_the_whole_image_gives_for_all_networks(name: str) -> None:
    check(name)


@pytest.mark.parametrize("shape", [(3, 97, 83), (3, 31, 29)])
def test_drops_are_the_oracles(shape: tuple[int, ...]) -> None:
    model = calibrate(seeded(lambda: resnet18(7, 1 / 8)), random_images(shape, 8))
    image = random_images(shape, 1, seed=3)[0]
    job = smallest(model, image, 1 << 16, window=11, stride=7)
    job.sweep.units = partitioned(job.grid, 16)
    found = job.run()
    _, expected = oracle(model, image[None], found.boxes)
    largest = float(expected.abs().max())
    assert largest > 0
    assert float((found.drops - expected).abs().max()) <= 1e-3 * largest


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return calibrate(seeded(lambda: resnet18(7, 1 / 8)), random_images((3, 64, 64), 8))


@pytest.fixture(scope="module")
def picture() -> Tensor:
    return random_images((3, 120, 150), 1, seed=5)[0]


def test_a_unit_gives_the_same_bits_alone_and_after_others(
    network: nn.Module, picture: Tensor
) -> None:
    def job() -> Large:
        made = task(network, picture, 1 << 22, window=16, stride=8)
        made.sweep.units = partitioned(made.grid, 48)
        return made

    first = job()
    units = first.units
    assert len(units) > 4
    found = {id(u): d.drops for u, d in first.drops(units)}
    again = dict(enumerate(job().drops(list(reversed(units)))))
    for i, unit in enumerate(reversed(units)):
        assert torch.equal(again[i][1].drops, found[id(unit)])
    (alone,) = job().drops(units[3:4])
    assert torch.equal(alone[1].drops, found[id(units[3])])
    assert float(alone[1].drops.abs().max()) > 0


def test_memory_makes_units_and_regions_smaller(near: nn.Module) -> None:
    picture = random_images((3, 400, 500), 1)[0]
    some, much = (task(near, picture, m, window=8, stride=8) for m in (1 << 20, 1 << 26))
    assert len(some.units) > len(much.units)
    assert some.sweep.side < much.sweep.side
    every = np.concatenate([unit.positions for unit in some.units])
    assert sorted(every) == list(range(len(some.grid.boxes)))


PEAK = """
import gc, sys, torch
from pathlib import Path
sys.path[:0] = [{tests!r}, {bench!r}]
torch.set_num_threads(1)
import backsight
from memory import highest, resident
from nets import calibrate, random_images, resnet18, seeded
from backsight.sweep.allocator import give_back
model = calibrate(seeded(lambda: resnet18(7, 1 / 4)), random_images((3, 64, 64), 8))
# What Python's libraries take once for any sweep.
backsight.large_occlusion(model, random_images((3, 64, 64), 1)[0], window=16, memory=1 << 28)
gc.collect()
give_back()
Path("/proc/self/clear_refs").write_text("5")
before = resident()
found = backsight.large_occlusion(
    model, {image!r}, window=64, stride=64, roi=[[300, 300, 700, 700]], memory={memory}
)
assert float(found.drops.abs().max()) > 0
print(highest() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how much a process takes")
@pytest.mark.parametrize("size", [700, pytest.param(2500, marks=pytest.mark.slow)])
def test_the_peak_stays_within_the_memory(tmp_path: Path, size: int) -> None:
    image, memory = tmp_path / "image.npy", 128 << 20
    np.save(image, np.random.default_rng(0).random((3, size, size), np.float32))
    tests = Path(__file__).parent
    code = PEAK.format(
        tests=str(tests), bench=str(tests.parent / "bench"), image=str(image), memory=memory
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert 0 < int(run.stdout) <= memory


def test_regions_of_interest(network: nn.Module, picture: Tensor) -> None:
    where: dict[str, Any] = {"window": 16, "stride": 8}
    expected = whole(network, picture, **where)
    boxes = [[0, 0, 50, 40], [30, 20, 120, 60]]  # they overlap, and touch edges
    found = backsight.large_occlusion(network, picture, roi=boxes, **where)
    centre = (expected.boxes[:, :2] + expected.boxes[:, 2:]) // 2
    inside = torch.zeros(len(centre), dtype=torch.bool)
    for top, left, bottom, right in boxes:
        rows = (centre[:, 0] >= top) & (centre[:, 0] < bottom)
        inside |= rows & (centre[:, 1] >= left) & (centre[:, 1] < right)
    assert 0 < int(inside.sum()) < len(inside)
    assert torch.equal(found.boxes, expected.boxes[inside])
    largest = float(expected.drops.abs().max())
    assert float((found.drops - expected.drops[:, inside]).abs().max()) <= 1e-5 * largest
    mask = torch.zeros(12, 15, dtype=torch.bool)  # a tenth of the image's size
    mask[:5, 10:] = True
    corner = backsight.large_occlusion(network, picture, roi=mask, **where)
    boxes_of_mask = backsight.large_occlusion(network, picture, roi=[[0, 100, 50, 150]], **where)
    assert torch.equal(corner.boxes, boxes_of_mask.boxes)
    assert torch.equal(corner.drops, boxes_of_mask.drops)


def test_readouts_are_those_of_the_whole_image(network: nn.Module, picture: Tensor) -> None:
    where: dict[str, Any] = {"window": 24, "stride": 24, "probability": "softmax", "top": 2}
    found = backsight.large_occlusion(network, picture, baseline=[0.1, 0.2, 0.3], **where)
    color = torch.tensor([0.1, 0.2, 0.3])
    expected = whole(network, picture, baseline=color, **where)
    assert torch.equal(found.targets, expected.targets)
    compare(found, expected, 1e-4)
    assert torch.equal(found.most_probable(), expected.most_probable())
    assert found.map(int(found.targets[0, 0])).shape == (1, 120, 150)


def test_pixels_are_normalised_as_photos_are(network: nn.Module) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (90, 80, 3), dtype=np.uint8)
    net = Network("own", network, Preprocessing(bgr=True))
    found = backsight.large_occlusion(net, pixels.transpose(2, 0, 1), window=20)
    image, _ = net.prepare(pixels, full=True)
    compare(found, whole(network, image[0], window=20), 1e-5)


class Reads:
    """An array that counts what is read of it."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.shape, self.dtype = values, values.shape, values.dtype
        self.largest = 0

    def read(self, box: list[int]) -> np.ndarray:
        top, left, bottom, right = box
        self.largest = max(self.largest, (bottom - top) * (right - left))
        return self.values[:, top:bottom, left:right]


def test_only_regions_are_read(near: nn.Module) -> None:
    image = random_images((3, 900, 700), 1)[0].numpy()
    source = Reads(image)
    roi = [[0, 0, 100, 100], [800, 600, 900, 700]]
    found = backsight.large_occlusion(near, source, window=32, roi=roi, memory=6 << 20)
    assert 0 < source.largest < image[0].size / 2
    assert float(found.drops.abs().max()) > 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            {"memory": 1 << 12},
            r"expected memory of [\d.]+ \wiB or more, got 4.0 KiB: beside the weights",
        ),
        ({"memory": 0}, "positive number of bytes"),
        ({"window": 500}, "no larger than the image"),
        ({"roi": [[0, 0, 1, 1]]}, "with a box's centre, got none"),
        ({"roi": [[-9, 0, -3, 4]]}, "each box to hold a pixel"),
        ({"roi": np.ones(5, bool)}, "a mask of 2 axes"),
        ({"baseline": [1.0, 2.0]}, "one for each of 3 channels"),
        ({"baseline": math.nan}, "finite baseline"),
        ({"stride": [4, 4, 4]}, "of 2 axes"),
        ({"image": "photo.png"}, "photo.png"),
        ({"image": 3}, "got int"),
        ({"image": np.zeros((3, 50, 50), np.uint8)}, "knows how to normalise pixels"),
        ({"image": np.full((3, 50, 50), np.nan, np.float32)}, "finite image"),
        ({"model": nn.Conv2d(3, 4, 3)}, "got maps"),
        ({"model": nn.Sequential(nn.BatchNorm2d(3), nn.Flatten())}, "evaluation mode"),
        ({"model": NETS["data_dependent"].build()}, "whose graph can be captured"),
    ],
)
def test_bad_input_gets_a_sentence(
    network: nn.Module, picture: Tensor, arguments: dict[str, Any], sentence: str
) -> None:
    given = {"model": network, "image": picture, "window": 16, **arguments}
    with pytest.raises(ValueError, match=sentence):
        backsight.large_occlusion(**given)


@pytest.mark.parametrize(
    ("name", "node"),
    [
        ("squeeze_excitation", "mul"),
        ("group_norm", "group_norm"),
        ("attention", "flatten"),
    ],
)
def test_what_reads_large_maps_as_a_whole_is_refused_by_name(
    name: str, node: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = NETS[name].build()

    def never(*_: Any) -> None:
        raise AssertionError("began")

    monkeypatch.setattr("backsight.sweep.stream.StreamedMaps.strips", never)
    image = random_images((3, 600, 500), 1)[0]
    with pytest.raises(ValueError, match=f"expected memory of .*({node}).*read.* as a whole"):
        backsight.large_occlusion(model, image, window=20, stride=100, memory=2 << 20)


def test_a_model_that_works_by_size_is_refused() -> None:
    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, images: Tensor) -> Tensor:
            maps = self.conv(images)
            return (maps.relu() if images.shape[2] > 600 else maps.tanh()).mean((2, 3))

    with pytest.raises(ValueError, match="alike whatever the size"):
        backsight.large_occlusion(Sized().eval(), torch.rand(3, 700, 20), window=16)


def test_units_hold_every_position_once() -> None:
    boxes = torch.tensor([[y, x, y + 4, x + 4] for y in range(0, 40, 3) for x in range(0, 30, 5)])
    units: list[Unit] = partitioned(Grid(boxes, None), 16)
    every = np.concatenate([unit.positions for unit in units])
    assert sorted(every) == list(range(len(boxes)))
    for unit in units:
        starts = boxes[torch.from_numpy(unit.positions), :2]
        assert int((starts.max(0).values - starts.min(0).values).max()) < 16
    # Neither slivers nor more than there must be.
    assert len(units) == 3 * 2
    assert min(len(unit.positions) for unit in units) > len(boxes) / 12


def test_regions_far_apart_are_units_of_their_own() -> None:
    corners = [(0, 0), (7, 7000), (9003, 50), (9000, 9000)]
    boxes = torch.tensor(
        [[y + i, x + j, y + i + 9, x + j + 9] for y, x in corners for i, j in np.ndindex(30, 30)]
    )
    units = partitioned(Grid(boxes, None), 64)
    assert [len(unit.positions) for unit in units] == [900] * 4
    assert len(partitioned(Grid(boxes[:1].repeat(5000, 1), None), 64)) == 2


# --- stores --------------------------------------------------------------------------------------


def tree(folder: Path) -> dict[str, bytes]:
    """All files of a store, but the lock of one that is being written."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def fill(model: nn.Module, image: Any, path: Path, **more: Any) -> Store:
    found = backsight.large_occlusion(
        model, image, window=16, stride=16, memory=1 << 20, store=path, **more
    )
    assert isinstance(found, Store)
    return found


@pytest.fixture(scope="module")
def complete(near: nn.Module, scene: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stores") / "whole"
    assert fill(near, scene, path).finished
    return path


def test_a_store_holds_the_drops(near: nn.Module, scene: Tensor, complete: Path) -> None:
    store = Store.view(complete)
    assert len(store.units) > 3
    expected = whole(near, scene, window=16, stride=16)
    parts = [store.read(unit) for unit in range(len(store.units))]
    order = {tuple(box): i for i, box in enumerate(expected.boxes.tolist())}
    rows = [order[tuple(box)] for part in parts for box in part["boxes"].tolist()]
    assert sorted(rows) == list(range(len(expected.boxes)))
    drops = torch.from_numpy(np.concatenate([part["drops"] for part in parts]))
    largest = float(expected.drops.abs().max())
    assert largest > 0
    assert float((drops - expected.drops[0, rows]).abs().max()) <= 1e-5 * largest
    np.testing.assert_allclose(store.base, expected.base[0].numpy(), rtol=1e-5)
    zarr = pytest.importorskip("zarr")
    assert zarr.open(str(complete), mode="r")["drops"].shape[1] == 5
    assert status(complete)["finished"]


def test_shards_and_interruptions_give_the_same_bytes(
    near: nn.Module, scene: Tensor, complete: Path, tmp_path: Path
) -> None:
    shards = tmp_path / "shards"
    assert not fill(near, scene, shards, shard=(1, 3)).finished
    assert not fill(near, scene, shards, shard=(0, 3)).finished
    some = status(shards)["units_done"]
    assert 0 < some < len(Store.view(complete).units)
    assert fill(near, scene, shards, shard=(0, 1)).finished  # another number of processes
    assert tree(shards) == tree(complete)

    damaged = tmp_path / "damaged"
    shutil.copytree(complete, damaged)
    chunk = max((damaged / "drops").rglob("c*"), key=lambda path: path.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-9])
    assert fill(near, scene, damaged).finished
    assert tree(damaged) == tree(complete)


def test_a_finished_store_is_not_computed_again(
    near: nn.Module, scene: Tensor, complete: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.stat().st_mtime_ns for path in complete.rglob("*") if path.is_file()}

    def never(*_: Any) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr("backsight.sweep.units.UnitSweep.run", never)
    assert fill(near, scene, complete).finished
    assert {p: p.stat().st_mtime_ns for p in complete.rglob("*") if p.is_file()} == before


def test_the_first_pass_is_kept_until_the_store_is_finished(
    near: nn.Module,
    scene: Tensor,
    complete: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, damaged = tmp_path / "half", tmp_path / "damaged"
    assert not fill(near, scene, path, shard=(0, 2)).finished
    assert ".pass" in tree(path)
    shutil.copytree(path, damaged)
    kept = bytearray((damaged / ".pass").read_bytes())
    kept[3] ^= 1
    (damaged / ".pass").write_bytes(kept)
    assert fill(near, scene, damaged, shard=(1, 2)).finished  # computed again
    assert tree(damaged) == tree(complete)

    def never(*_: Any) -> None:
        raise AssertionError("passed again")

    monkeypatch.setattr("backsight.sweep.stream.StreamedMaps.strips", never)
    left = (path / ".pass").read_bytes()
    assert fill(near, scene, path, shard=(1, 2)).finished
    assert tree(path) == tree(complete)
    (path / ".pass").write_bytes(left)  # of a writer that was late, and killed
    assert fill(near, scene, path).finished
    assert tree(path) == tree(complete)


@pytest.mark.parametrize("what", ["model", "image", "setting"])
def test_a_store_of_something_else_is_refused(
    near: nn.Module, scene: Tensor, complete: Path, what: str
) -> None:
    before = tree(complete)
    model, image, more = copy.deepcopy(near), scene, {}
    if what == "model":
        model[0].weight.data[0, 0, 0, 0] += 1e-3
    elif what == "image":
        image = scene.clone()
        image[0, 7, 7] += 1e-3
    else:
        more = {"baseline": 0.5}
    name = {"model": "model", "image": "fingerprint", "setting": "baseline"}[what]
    with pytest.raises(ValueError, match=f"was made for another run: .*{name}"):
        fill(model, image, complete, **more)
    assert tree(complete) == before
