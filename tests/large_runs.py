"""One small sweep, by the library and by the command, and what its store is compared by."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from torch import Tensor, nn

import backsight
from backsight.cli import run
from backsight.occlusion_store import Store, status
from nets import calibrate, random_images

__all__ = [
    "COMMAND",
    "SWEEP",
    "chunks",
    "command",
    "done",
    "dying",
    "files",
    "network",
    "picture",
    "same",
    "scene",
    "sweep",
    "warmed",
]

SWEEP: dict[str, Any] = {"window": 16, "stride": 8, "baseline": 0.1, "memory": 1 << 20}

#: In the folder of `picture`; what it writes is named beside it.
COMMAND = ["large-occlusion", "scene.tif", "--model", "large_runs:network", "-q"]
COMMAND += ["--window", "16", "--stride", "8", "--memory", "1MiB"]


@functools.cache
def network() -> nn.Module:
    """One whose units see 23 pixels."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(8, 8, 3), nn.ReLU()]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)]
    return calibrate(nn.Sequential(*layers), random_images((3, 64, 64), 8))


class Corner(nn.Module):
    """Looks at the lower right of an image alone, whose size may be any."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.inner(images[:, :, -400:, -400:])
        return scores


def corner() -> nn.Module:
    return Corner().eval()


@functools.cache
def scene() -> Tensor:
    return random_images((3, 300, 280), 1, seed=9)[0]


def sweep(path: Path) -> None:
    """By the library."""
    backsight.large_occlusion(network(), scene(), top=3, store=path, **SWEEP)


def picture(folder: Path) -> None:
    """What the command reads."""
    pixels = np.random.default_rng(0).integers(0, 256, (300, 280, 3), dtype=np.uint8)
    tifffile.imwrite(folder / "scene.tif", pixels, tile=(64, 64), photometric="rgb")


def command(store: Path | str, *more: str) -> int:
    """By the command, in the folder of the picture: its exit code."""
    return run([*COMMAND, *more, "-o", str(store)])


def warmed(folder: Path) -> None:
    """Both once, so that all they import is there."""
    sweep(folder / "library")
    picture(folder)
    before = Path.cwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            assert command("command") == 0
    finally:
        os.chdir(before)


def files(folder: Path) -> dict[str, bytes]:
    """All of them, also what should not be there."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def same(found: dict[str, bytes], expected: dict[str, bytes]) -> None:
    assert sorted(found) == sorted(expected)
    assert [name for name, data in found.items() if data != expected[name]] == []


def chunks(store: Path) -> dict[str, tuple[int, int]]:
    """The units that are there by their files of drops: which file it is, and of when."""
    drops = [p for p in (store / "drops").glob("[!.]*") if p.name != "zarr.json"]
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in drops}


def done(store: Path) -> int:
    """How many units are there; every one is whole, and its checksums are right."""
    if not os.path.exists(store / "zarr.json"):
        assert not chunks(store)
        return 0
    count = int(status(store)["units_done"])
    assert len(Store.view(store).done) == count == len(chunks(store))
    return count


def dying(work: Callable[[], object], at: int, when: str) -> int:
    """Work that is killed with its `at`-th file; how many there were if it is not."""
    replace, count = os.replace, 0

    def last(source: str, target: str) -> None:
        nonlocal count
        count += 1
        if count == at and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = last
    work()
    return count


if __name__ == "__main__":
    # The command, of whose ranks one is killed with some file.
    which, at, *arguments = sys.argv[1:]
    if os.environ["RANK"] == which:
        dying(lambda: run(arguments), int(at), "before")
    else:
        sys.exit(run(arguments))
