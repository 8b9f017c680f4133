"""Occlusion of a large image: ``make bench-large``. Half an hour, and 2 GB of disk.

A ResNet-50 over a synthetic tiled TIFF of 16,384 x 16,384 pixels, regions of interest of several
thousand positions, in the memory that the target names; the same over 2,048 x 2,048 for the time of
a position. Each runs in a process of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness import MEBI, QUICK, Report, duration, machine_line

SECTION = "A large image"
SIZE, SMALL = (2048, 1024) if QUICK else (16384, 2048)
WINDOW = 64
#: Squares of positions: 4 x 1024 of them in the large image.
SIDE = 8 if QUICK else 32
MEMORY = (1 if QUICK else 4) << 30
HERE = Path(__file__).resolve().parent

RUN = """
import json, sys, time
sys.path[:0] = [{tests!r}, {bench!r}]
import torch
torch.set_num_threads({threads})
from memory import highest, resident
from nets import resnet50
from backsight.methods.large import Large, fill
from backsight.occlusion_store import Store
from backsight.sources import open_source
from backsight.sweep.readout import Readout
from backsight.zoo import Network, Preprocessing

torch.manual_seed(0)
model = resnet50().eval().requires_grad_(False)
network = Network("ResNet-50", model, Preprocessing())
with torch.inference_mode():
    model(torch.zeros(1, 3, 64, 64))
times = dict.fromkeys(("pass", "sweep", "store", "tiles"), 0.0)
times["tiled"] = 0
before = resident()


class Clock:
    def begin(self, phase, total):
        self.phase, self.at = phase, time.perf_counter()

    def advance(self, count):
        pass

    def stored(self, unit):
        pass

    def end(self):
        times[self.phase] = time.perf_counter() - self.at


def timed_write(self, *args, **kwargs):
    start = time.perf_counter()
    write(self, *args, **kwargs)
    times["store"] += time.perf_counter() - start


write, Store.write = Store.write, timed_write
source = open_source({image!r})


def plain_tiles():
    # A plain forward pass over some tiles of the image, without halos; the first warms up.
    form = torch.channels_last
    plain = resnet50().eval().requires_grad_(False).to(memory_format=form)
    side = min(1024, source.shape[1])
    with torch.inference_mode():
        for k in range(5):
            at = k * side % (source.shape[1] - side + 1)
            start = time.perf_counter()
            pixels = source.read([at, at, at + side, at + side]).transpose(1, 2, 0)
            plain(network.preprocessing.tensor(pixels.copy()).contiguous(memory_format=form))
            if k:
                times["tiles"] += time.perf_counter() - start
                times["tiled"] += side * side


start = time.perf_counter()
job = Large(
    network, source, window={window}, stride={window}, edge="drop", roi={roi!r}, baseline=0.0,
    output=None, readout=Readout(None, None, (0, 1, 2, 3), None), memory={memory}, device=None,
)
if not {quick}:
    times |= job.plan().as_dict()
    times["plan"] = time.perf_counter() - start
    start = time.perf_counter()
fill(job, {store!r}, {shard!r}, Clock())
times["fill"] = time.perf_counter() - start
times["beyond"] = highest() - before
if not {quick}:
    plain_tiles()
print(json.dumps(times))
"""


def synthetic(path: Path, size: int) -> None:
    """A tiled TIFF of smooth colours and noise, written tile by tile."""
    tifffile = pytest.importorskip("tifffile")
    side = 512
    draw = np.random.default_rng(0)

    def tiles() -> Any:
        for row in range(0, size, side):
            for column in range(0, size, side):
                y, x = np.mgrid[row : row + side, column : column + side]
                waves = [np.sin(y / 97 + c) * np.cos(x / (61 + 13 * c)) for c in range(3)]
                noise = draw.integers(-30, 31, (side, side, 3))
                yield np.clip(128 + 70 * np.stack(waves, -1) + noise, 0, 255).astype(np.uint8)

    tifffile.imwrite(
        path, tiles(), shape=(size, size, 3), dtype=np.uint8, tile=(side, side), photometric="rgb"
    )


def regions(size: int, count: int, side: int) -> list[list[int]]:
    """Squares of side x side positions on the grid, spread over the image."""
    reach = side * WINDOW
    at = [(size - reach) * k // max(count - 1, 1) // WINDOW * WINDOW for k in range(count)]
    return [[y, x, y + reach, x + reach] for y, x in zip(at, reversed(at), strict=True)]


def run(
    image: Path,
    store: Path,
    roi: list[list[int]],
    *,
    quick: bool = False,
    shard: tuple[int, int] | None = None,
    threads: int = 2,
    core: int | None = None,
) -> subprocess.Popen[str]:
    code = RUN.format(
        tests=str(HERE.parent / "tests"),
        bench=str(HERE),
        threads=threads,
        image=str(image),
        window=WINDOW,
        roi=roi,
        memory=MEMORY,
        quick=quick,
        store=str(store),
        shard=shard,
    )
    pinned = ["taskset", "-c", str(core)] if core is not None else []
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    return subprocess.Popen(
        [*pinned, sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment
    )


def result(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, _ = process.communicate()
    assert process.returncode == 0
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("large")
    synthetic(path / "large.tif", SIZE)
    synthetic(path / "small.tif", SMALL)
    yield path
    shutil.rmtree(path)


def test_large(folder: Path, report: Report, benchmark: Any) -> None:
    squares = regions(SIZE, 4, SIDE)
    found: dict[str, Any] = {}

    def large() -> None:
        found.update(result(run(folder / "large.tif", folder / "large.store", squares)))

    benchmark.pedantic(large, rounds=1, iterations=1)
    here = [[0, 0, SMALL, SMALL]]
    small = result(run(folder / "small.tif", folder / "small.store", here))
    each, there = (f["sweep"] / f["positions"] for f in (found, small))
    plain = found["tiles"] / found["tiled"] * SIZE**2
    rows = [
        ("image, positions", f"{SIZE} x {SIZE}, {found['positions']} in 4 regions", "4,000"),
        ("units", f"{found['units']} of squares of {found['side']} pixels", ""),
        ("peak beyond the idle process", f"{found['beyond'] / MEBI:.0f} MiB with memory ="
         f" {MEMORY // MEBI} MiB; over {SMALL} x {SMALL} {small['beyond'] / MEBI:.0f} MiB",
         "" if QUICK else "<= 4608 MiB"),
        ("first pass over the image", f"{duration(found['pass'])}, {found['pass'] / plain:.2f}"
         " times a plain forward pass in tiles of 1024 x 1024", "<= 1.25"),
        ("planned, then taken", f"pass {duration(found['pass_seconds'])},"
         f" {duration(found['pass'])}; positions {duration(found['seconds'])},"
         f" {duration(found['sweep'])}", ""),
        ("a position", f"{duration(each)}; over {SMALL} x {SMALL} {duration(there)}:"
         f" {each / there:.2f} times", "<= 1.15"),
        ("FLOP of a plain forward pass over those of a position",
         f"{found['plain_flops'] * found['positions'] / found['flops']:.0f}", ""),
        ("writing the store", f"{100 * found['store'] / found['sweep']:.2f}% of the sweep,"
         " behind it", "<= 3%"),
    ]  # fmt: skip
    for name, value, target in rows:
        report.add(SECTION, {"what": name, "measured": value, "target": target})
    report.remark(
        SECTION,
        f"ResNet-50 with random weights, boxes of {WINDOW} pixels, baseline 0, four outputs kept,"
        f" fp32, a tiled TIFF; memory = {MEMORY >> 30} GiB.",
    )


def test_processes(folder: Path, report: Report, benchmark: Any) -> None:
    """Two processes on a core each against one on one, and a finished run taken up again."""
    squares = regions(SMALL, 1, SMALL // WINDOW)
    image = folder / "small.tif"

    def one() -> None:
        result(run(image, folder / "one", squares, quick=True, threads=1, core=0))

    start = time.perf_counter()
    benchmark.pedantic(one, rounds=1, iterations=1)
    alone = time.perf_counter() - start
    start = time.perf_counter()
    pair = [
        run(image, folder / "two", squares, quick=True, shard=(i, 2), threads=1, core=i)
        for i in range(2)
    ]
    for process in pair:
        result(process)
    both = time.perf_counter() - start
    start = time.perf_counter()
    again = result(run(image, folder / "one", squares, quick=True, threads=1))
    whole = time.perf_counter() - start
    rows = [
        ("two processes, a core each", f"{alone / both:.2f} times one", ">= 1.65"),
        ("a finished run again", f"{duration(again['fill'])} ({duration(whole)} with"
         " starting Python)", "<= 3 s"),
    ]  # fmt: skip
    for name, value, target in rows:
        report.add(SECTION, {"what": name, "measured": value, "target": target})
    if not QUICK:
        kept = {
            "section": SECTION,
            "rows": report.sections[SECTION],
            "remarks": [machine_line(), *report.remarks[SECTION]],
        }
        (HERE / "results" / "large.json").write_text(json.dumps(kept, indent=1) + "\n")
