"""Images that are damaged, or enormous, and regions that lie beyond them: of whole sweeps."""

from __future__ import annotations

import json
import random
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("google_crc32c")
pytest.importorskip("tifffile")

import tifffile

import backsight
from backsight.cli import run
from backsight.occlusion_store import Store
from forked import Nursery
from large_runs import command, files, picture, same

#: 2^31 pixels and some.
SIDE = 46400


def refused(said: str, name: str) -> None:
    """In one sentence that names the file."""
    assert said.startswith("backsight: ")
    assert said.count("\n") == 1
    assert name in said


def test_truncated_and_lying_tiffs_get_a_sentence(nursery: Nursery, tmp_path: Path) -> None:
    picture(tmp_path)
    path = tmp_path / "scene.tif"
    whole = path.read_bytes()

    def check() -> None:
        code, said = nursery.run(command, "store", folder=tmp_path)
        assert code == 2, said
        refused(said, "scene.tif")
        assert not (tmp_path / "store").exists()

    for length in (0, 4, 60, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        check()
    for tag, value in (("ImageWidth", 10**9), ("ImageLength", 400), ("TileWidth", 128)):
        path.write_bytes(whole)
        with tifffile.TiffFile(path, mode="r+b") as file:
            file.pages[0].tags[tag].overwrite(value)
        check()
    path.write_bytes(whole)
    assert nursery.run(command, "store", folder=tmp_path)[0] == 0


def test_a_damaged_tile_ends_a_sweep_in_a_sentence(nursery: Nursery, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 9, (300, 280, 3), dtype=np.uint8)
    path = tmp_path / "scene.tif"
    tifffile.imwrite(path, pixels, tile=(64, 64), photometric="rgb", compression="zlib")
    with tifffile.TiffFile(path) as file:
        start = file.pages[0].dataoffsets[9]
    data = bytearray(path.read_bytes())
    data[start + 2 : start + 40] = bytes(38)
    path.write_bytes(data)
    code, said = nursery.run(command, "store", folder=tmp_path)
    assert code == 2, said
    refused(said, "scene.tif")
    assert ".lock" not in files(tmp_path)
    assert not list((tmp_path / "store" / "drops").glob("c.*"))


@pytest.mark.slow
def test_headers_with_a_wrong_byte_never_crash(nursery: Nursery, tmp_path: Path) -> None:
    picture(tmp_path)
    path = tmp_path / "scene.tif"
    whole, drawn = path.read_bytes(), random.Random(5)
    codes = set()
    for i in range(20):
        data = bytearray(whole)
        data[drawn.randrange(400)] ^= 1 << drawn.randrange(8)
        path.write_bytes(data)
        code, said = nursery.run(command, f"{i}", folder=tmp_path)
        assert code in (0, 2), said
        assert said.count("\n") == 1, said
        codes.add(code)
    assert 2 in codes


def located(image: Path, model: str, roi: Sequence[int], store: Path) -> int:
    """A sweep over a region; fails if it takes memory by the size of the image."""
    boxes = image.with_suffix(".json")
    boxes.write_text(json.dumps([list(roi)]), encoding="utf-8")
    unit = 1 if sys.platform == "darwin" else 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    options = ["--window", "64", "--stride", "64", "--memory", "8MiB", "-q", "--roi", str(boxes)]
    code = run(
        [
            "large-occlusion",
            str(image),
            "--model",
            f"large_runs:{model}",
            *options,
            "-o",
            f"{store}",
        ]
    )
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - before < 400 << 20
    return code


def test_a_corner_of_more_than_two_billion_pixels(nursery: Nursery, tmp_path: Path) -> None:
    image, part = tmp_path / "image.npy", tmp_path / "part.npy"
    pixels = np.random.default_rng(0).integers(0, 256, (3, 512, 512), dtype=np.uint8)
    # Sparse: the file has holes where nothing is written.
    large = np.lib.format.open_memmap(image, mode="w+", dtype=np.uint8, shape=(3, SIDE, SIDE))
    assert large[0].size > 1 << 31
    large[:, -512:, -512:] = pixels
    del large
    np.save(part, pixels)
    found = []
    for path, end in ((image, SIDE), (part, 512)):
        store = path.with_suffix(".store")
        roi = [end - 300, end - 280, end, end]
        code, said = nursery.run(located, path, "corner", roi, store)
        assert code == 0, said
        view = Store.view(store)
        parts = [view.read(unit) for unit in range(len(view.units))]
        boxes = np.concatenate([p["boxes"] for p in parts]) - end
        order = np.lexsort(boxes.T)
        found.append((boxes[order], np.concatenate([p["drops"] for p in parts])[order]))
    (boxes, drops), (expected_boxes, expected) = found
    assert len(boxes) > 9
    assert np.array_equal(boxes, expected_boxes)
    assert np.abs(expected).max() > 0
    assert np.abs(drops - expected).max() <= 1e-5 * np.abs(expected).max()
    image.unlink()


class Sum(nn.Module):
    """Reads all of an image, coarsely."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(1, 8, 64, 64), nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.head(self.conv(images).relu().sum((2, 3)))
        return scores


@pytest.mark.slow
def test_a_sum_over_more_than_two_billion_pixels(tmp_path: Path) -> None:
    path, model = tmp_path / "image.npy", Sum().eval()
    values = np.random.default_rng(0).normal(size=(1, 512, 512)).astype(np.float16)
    large = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(1, SIDE, SIDE))
    large[:, -512:, -512:] = values
    del large
    roi = np.array([[212, 232, 512, 512]])
    found = backsight.large_occlusion(model, path, window=64, roi=roi + SIDE - 512, memory=64 << 20)
    expected = backsight.occlusion(
        model, torch.from_numpy(values.astype(np.float32))[None], window=64
    )
    inside = {tuple(box): i for i, box in enumerate(expected.boxes.tolist())}
    rows = [inside[tuple(box)] for box in (found.boxes - (SIDE - 512)).tolist()]
    assert len(rows) > 9
    largest = float(expected.drops.abs().max())
    assert largest > 0
    assert float((found.drops - expected.drops[:, rows]).abs().max()) <= 1e-5 * largest
    path.unlink()


@pytest.mark.parametrize(
    "boxes",
    [
        [[-9, 0, -3, 4]],
        [[50, 50, 20, 20]],
        [[0, 0, 40]],
        [[0, 0, 100, 100], [-20, -20, -1, -1]],
        [[300, 280, 310, 290]],
        [],
    ],
)
def test_regions_beyond_the_image_get_a_sentence(
    nursery: Nursery, scenery: Path, tmp_path: Path, boxes: list[list[int]]
) -> None:
    roi = tmp_path / "roi.json"
    roi.write_text(json.dumps(boxes), encoding="utf-8")
    store = tmp_path / "store"
    code, said = nursery.run(command, store, "--roi", str(roi), folder=scenery)
    assert code == 2, said
    refused(said, "box")
    assert "expected" in said
    assert not store.exists()


def test_regions_that_overlap_hold_each_position_once(
    nursery: Nursery, scenery: Path, tmp_path: Path
) -> None:
    overlapping = [[0, 0, 90, 70], [0, 40, 90, 120], [9, 9, 50, 50], [9, 9, 50, 50]]
    overhanging = [[-50, -1, 90, 120]]  # of which the part within the image counts
    stores: list[Path] = []
    for boxes in ([[0, 0, 90, 120]], overlapping, overhanging):
        roi = tmp_path / f"{len(stores)}.json"
        roi.write_text(json.dumps(boxes), encoding="utf-8")
        stores.append(roi.with_suffix(".store"))
        code, said = nursery.run(command, stores[-1], "--roi", str(roi), folder=scenery)
        assert code == 0, said
    view = Store.view(stores[0])
    found = np.concatenate([view.read(unit)["boxes"] for unit in range(len(view.units))])
    assert len(np.unique(found, axis=0)) == len(found) > 9
    for store in stores[1:]:
        same(files(store), files(stores[0]))
