"""``backsight large-occlusion``: images of any size, region by region, into a store."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from backsight._version import __version__
from backsight.cli import parse
from backsight.cli.contents import Shared
from backsight.cli.events import Events, tell
from backsight.cli.reader import Reader
from backsight.cli.reader import Source as NetworkSource
from backsight.cli.speed import speed
from backsight.io import read_boxes, read_image
from backsight.methods.large import Large, fill
from backsight.methods.large.glance import Glance
from backsight.methods.large.watch import StoreBars, Together, Watch
from backsight.occlusion_store import status
from backsight.sources import Source, open_source
from backsight.sweep.readout import Readout
from backsight.zoo import Network

__all__ = ["Wanted", "occlude_large", "plan_large", "show_status"]


@dataclass(frozen=True)
class Wanted:
    """What to compute, as the options gave it."""

    window: str
    stride: str | None
    edge: str
    roi: str | None
    level: int
    axes: str | None
    baseline: str | None
    target: str | None
    top: int | None
    probability: str | None
    memory: str
    shard: str | None


def occlude_large(image: Path, shared: Shared, wanted: Wanted) -> int:
    """Do what the command says.

    Raises:
        ValueError, OSError, RuntimeError: bad input, a full disk, or a busy store; one sentence.
    """
    started = time.perf_counter()
    shard = _shard(wanted.shard)
    share = shard or (0, 1)
    rank = share[0]
    # Processes that torchrun has started speak with one voice; of a batch scheduler's each does.
    one = shard is not None and wanted.shard is None
    with _opened(image, shared, wanted) as (large, network):
        loaded = time.perf_counter()
        before = _is_finished(shared.output)
        if not (one and rank) and not before:
            plan = large.plan()
            if not shared.quiet:
                print(plan, file=sys.stderr, flush=True)
            if shared.as_json:
                tell("plan", {**plan.as_dict(), "rank": rank})
        watches: list[Watch] = []
        if not shared.quiet:
            watches.append(StoreBars(shared.output, share, one=one))
        if shared.as_json:
            watches.append(Events(shared.output, share))
        fill(large, shared.output, shard, Together(watches))
    now = status(shared.output)
    report: dict[str, Any] = {
        "backsight": __version__,
        "image": str(image),
        "model": network.name,
        "store": str(shared.output),
        "rank": rank,
        "status": now,
        "seconds": {"load": loaded - started, "sweep": time.perf_counter() - loaded},
    }
    if shared.as_json:
        tell("end", report)
    elif not one or (now["finished"] and (rank == 0 or not before)):  # those who see the end
        print(f"{shared.output}: {_far(now)}", flush=True)
    return 0


def plan_large(image: Path, shared: Shared, wanted: Wanted) -> int:
    """Print what `occlude_large` would do."""
    with _opened(image, shared, wanted) as (large, network):
        plan = large.plan()
    if shared.as_json:
        head = {"backsight": __version__, "image": str(image), "model": network.name}
        print(json.dumps({**head, "plan": plan.as_dict()}), flush=True)
    else:
        print(plan, flush=True)
    return 0


@contextmanager
def _opened(image: Path, shared: Shared, wanted: Wanted) -> Iterator[tuple[Large, Network]]:
    """The sweep that the options ask for, while its image is open, and its network."""
    if wanted.probability is not None:
        parse.one_of("--probability", wanted.probability, ("softmax", "sigmoid"))
    if wanted.target is not None and wanted.top is not None:
        raise ValueError("expected either --target or --top, got both")
    reader = Reader(shared.source)
    network = reader.network
    with open_source(str(image), level=wanted.level, axes=wanted.axes) as source:
        targets = None
        if wanted.target is not None:
            outputs = len(network.classes) if network.classes else 1 << 31
            targets = (network.find(wanted.target, outputs),)
        as_it_is = _is_taken_as_it_is(source, shared.source)
        axes = len(source.shape) - 1
        stride = wanted.stride
        large = Large(
            network.model if as_it_is else network,
            source,
            window=parse.sides("--window", wanted.window, axes),
            stride=None if stride is None else parse.sides("--stride", stride, axes),
            edge=wanted.edge,
            roi=None if wanted.roi is None else _regions(wanted.roi),
            baseline=_baseline(wanted.baseline, None if as_it_is else network),
            output=None,
            readout=Readout(wanted.probability, None, targets, parse.count("--top", wanted.top)),
            memory=parse.bytes_of("--memory", wanted.memory),
            device=reader.device,
        )
        yield large, network


def show_status(store: Path, *, as_json: bool) -> int:
    """Print how far a store is, how fast it fills, and what time is left at that speed."""
    now = status(store)
    glance = Glance(store)
    fast = speed(glance.times(), glance.units)
    left = now["positions"] - now["positions_done"]
    seconds = 0.0 if now["finished"] else left / fast if fast else None
    if as_json:
        print(json.dumps({**now, "per_second": fast, "seconds_left": seconds}), flush=True)
        return 0
    rest = "speed unknown"
    if fast and seconds is not None:
        rest = f"{fast:,.1f} positions/s, {timedelta(seconds=round(seconds))} left"
    print(f"{store}: {_far(now)}" + ("" if now["finished"] else f", {rest}"), flush=True)
    return 0


def _far(now: dict[str, Any]) -> str:
    if now["finished"]:
        return f"finished, {now['positions']} positions in {now['units']} units"
    return (
        f"{now['positions_done']} of {now['positions']} positions,"
        f" {now['units_done']} of {now['units']} units"
    )


def _is_finished(store: Path) -> bool:
    try:
        return bool(status(store)["finished"])
    except (ValueError, OSError):
        return False


def _shard(given: str | None) -> tuple[int, int] | None:
    """``"1/4"`` as (1, 4); without it, what torchrun says."""
    if given is None:
        count = int(os.environ.get("WORLD_SIZE", "1"))
        return (int(os.environ.get("RANK", "0")), count) if count > 1 else None
    match = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", given)
    if not match or int(match[1]) >= int(match[2]):
        raise ValueError(f"expected --shard as I/N with I from 0 to N - 1, got {given!r}")
    return int(match[1]), int(match[2])


def _is_taken_as_it_is(image: Source, given: NetworkSource) -> bool:
    """Whether an image is what the model takes, rather than pixels to normalise."""
    if image.dtype.kind == "f":
        for option, value in (("--mean", given.mean), ("--std", given.std)):
            if value is not None:
                raise ValueError(
                    f"expected pixels of uint8 for {option}, got {image.dtype}, which the network"
                    " takes as it is"
                )
        return True
    if image.dtype != np.uint8 or len(image.shape) != 3 or image.shape[0] != 3:
        raise ValueError(
            "expected pixels (3, H, W) of uint8, or floating point as the network takes it, got"
            f" {image.shape} of {image.dtype}"
        )
    return False


def _regions(path: str) -> Any:
    if Path(path).suffix.lower() == ".npy":
        with suppress(OSError, ValueError):  # of a file that is no array, read_boxes tells
            mask = np.load(path, allow_pickle=False)
            if mask.dtype == np.bool_:
                return mask
    if Path(path).suffix.lower() in (".json", ".csv", ".npy"):
        return read_boxes(path)
    inside: Any = read_image(path).astype(np.float64).mean(2) >= 127.5
    return inside


def _baseline(text: str | None, network: Network | None) -> float | list[float]:
    """What stands in the box, as the model takes it: of pixels that the network normalises, a
    colour; otherwise the numbers themselves.
    """
    if text is None:
        return 0.0
    if network is None:
        return parse.numbers("--baseline", text)
    color = parse.baseline("--baseline", text, "pixel", ("training",))
    if isinstance(color, str):
        return 0.0
    found: list[float] = network.preprocessing.color(color).flatten().tolist()
    return found
