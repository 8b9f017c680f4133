"""``backsight units``: the pictures that excite each channel of a layer most, and what of them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

import backsight
from backsight import plots
from backsight._version import __version__
from backsight.cli import BAD_INPUT, complain, parse
from backsight.cli.files import check_folder, write_all
from backsight.cli.layer import (
    NAMED_RULES,
    SHADES,
    check_channels,
    described,
    order,
    picture,
    place,
    put_out,
)
from backsight.cli.photos import Pictures, expanded
from backsight.cli.reader import Photo, Reader, Source
from backsight.cli.words import short
from backsight.results import array
from backsight.store import save_npz, write_bytes, write_json

__all__ = ["Wanted", "draw_units"]

_CHANNELS = 8
#: Pictures in memory at a time.
_BATCH = 32
#: How far an activation may lie from that of a search which was taken up, relative to the largest.
_AGREE = {torch.float64: 1e-5, torch.float32: 1e-2, torch.bfloat16: 0.2}


@dataclass(frozen=True)
class Wanted:
    """Which units, as the options gave them."""

    layer: str
    top: int
    channels: str | None
    rule: str
    checkpoint: Path | None


def draw_units(
    photos: Sequence[Path],
    source: Source,
    wanted: Wanted,
    *,
    output: Path,
    quiet: bool,
    as_json: bool,
) -> int:
    """Do what the command says; what can be wrong with the options is found before the search.

    Returns:
        The exit code: 2 where some of the pictures could not be read, 0 otherwise.

    Raises:
        ValueError: bad input, in one sentence.
        ImportError: something that is not installed, in one sentence.
    """
    started = time.perf_counter()
    parse.one_of("--rule", wanted.rule, NAMED_RULES)
    parse.count("--top", wanted.top)
    channels: int | list[int] | None = None
    if wanted.channels is not None:
        channels = parse.channels("--channels", wanted.channels)
    check_folder(output)
    if wanted.checkpoint is not None and not wanted.checkpoint.absolute().parent.is_dir():
        raise ValueError(f"expected a folder for the --checkpoint, got {wanted.checkpoint}")
    dataset = Pictures(Reader(source), expanded(photos))
    model, photo = dataset.reader.network.model, dataset.any()
    chosen = _Channels(wanted.layer, put_out(model, wanted.layer, photo.image), channels)
    # A search may take hours: that its winners can be projected is tried first.
    backsight.project(model, photo.image, wanted.layer, [[0, 0]], rule=wanted.rule)
    loaded = time.perf_counter()

    taken_up = wanted.checkpoint is not None and wanted.checkpoint.exists()
    found = backsight.top_activations(
        model,
        wanted.layer,
        dataset,
        wanted.top,
        batch_size=_BATCH,
        checkpoint=wanted.checkpoint,
        show_progress=not quiet,
    )
    if found.count > len(dataset):
        raise ValueError(
            f"expected a checkpoint of these {len(dataset)} pictures, and {wanted.checkpoint} is"
            f" one of {found.count}"
        )
    searched = time.perf_counter()
    winners = _Winners(dataset, found, chosen.of(found))
    winners.project(wanted, quiet)
    if taken_up:
        winners.check(str(wanted.checkpoint))
    projected = time.perf_counter()

    skipped = [dataset.why(image) for image in found.skipped]
    network, count = dataset.reader.network, found.count - len(skipped)
    drawn = plots.png(winners.figure(wanted, network.name, count))
    paths = {kind: output / f"units.{kind}" for kind in ("png", "npz", "json")}
    report: dict[str, Any] = {
        "backsight": __version__,
        "model": network.name,
        "layer": wanted.layer,
        "rule": wanted.rule,
        "order": order(dataset.reader.network),
        "pictures": count,
        "skipped": skipped,
        "channels": winners.report,
        "seconds": {
            "load": loaded - started,
            "search": searched - loaded,
            "project": projected - searched,
            "draw": time.perf_counter() - projected,
        },
        "files": {kind: str(path) for kind, path in paths.items()},
    }
    meta = {name: report[name] for name in report if name not in ("seconds", "files")}
    write_all(
        output,
        {
            paths["png"]: lambda path: write_bytes(path, drawn),
            paths["npz"]: lambda path: save_npz(path, winners.arrays(), meta),
            paths["json"]: lambda path: write_json(path, report),
        },
    )
    for sentence in skipped:
        complain(sentence)
    if as_json:
        print(json.dumps(report, ensure_ascii=False, allow_nan=False), flush=True)
    else:
        left_out = f", {len(skipped)} left out" if skipped else ""
        lines = [f"{wanted.layer} of {network.name} by {wanted.rule}: {count} pictures{left_out}"]
        for channel in winners.report:
            best = channel["units"][0]
            name = Path(best["photo"]).name
            lines.append(
                f"channel {channel['channel']}: {best['activation']:.4g} in {name}, {place(best)}"
            )
        lines += [f"{kind}: {path}" for kind, path in paths.items()]
        print("\n".join(lines), flush=True)
    return BAD_INPUT if skipped else 0


class _Channels:
    """Which channels of a layer are asked for: some of them, or the strongest."""

    def __init__(self, layer: str, maps: Tensor, asked: int | list[int] | None) -> None:
        self._given = asked if isinstance(asked, list) else None
        self._count = min(_CHANNELS, maps.shape[1])
        if self._given is not None:
            check_channels(layer, maps, self._given)
        elif isinstance(asked, int):
            if asked > maps.shape[1]:
                raise ValueError(
                    f"expected from 1 to {maps.shape[1]} --channels of {layer}, got {asked}"
                )
            self._count = asked

    def of(self, found: backsight.TopActivations) -> list[int]:
        if self._given is not None:
            return self._given
        order = found.values[:, 0].sort(descending=True, stable=True).indices
        chosen: list[int] = order[: self._count].tolist()
        return chosen


@dataclass
class _Unit:
    """A winner: where it was found, and in the end its picture."""

    image: int
    channel: int
    position: tuple[int, ...]
    box: tuple[int, ...]
    value: float
    row: int
    crop: Any = None
    picture: Any = None
    raw: Any = None
    at: tuple[int, ...] = ()
    activation: float = 0.0


class _Winners:
    """The strongest units of the chosen channels, projected."""

    def __init__(
        self, dataset: Pictures, found: backsight.TopActivations, channels: Sequence[int]
    ) -> None:
        self.dataset = dataset
        self.channels = channels
        self.units = [
            _Unit(image, channel, tuple(position), tuple(box), value, row)
            for row, channel in enumerate(channels)
            for (image, _, *position), box, value in zip(
                found.units(channel),
                found.boxes[channel].tolist(),
                found.values[channel].tolist(),
                strict=False,  # places that no image took come last
            )
        ]

    def project(self, wanted: Wanted, quiet: bool) -> None:
        """Read the winners' pictures again, and send their units back to the pixels."""
        reader = self.dataset.reader
        with tqdm(total=len(self.units), unit="unit", disable=quiet) as bar:
            for batch in self._batches():
                rank = {image: n for n, image in enumerate(batch)}
                members = [unit for unit in self.units if unit.image in rank]
                found = backsight.project(
                    reader.network.model,
                    torch.cat([photo.image for photo in batch.values()]),
                    wanted.layer,
                    [[rank[unit.image], unit.channel, *unit.position] for unit in members],
                    rule=wanted.rule,
                )
                for n, unit in enumerate(members):
                    unit.activation = float(found.activations[n])
                    unit.at = tuple(found.at[n].tolist())
                    unit.box = tuple(found.boxes[n].tolist())
                    unit.raw = array(found.pictures[n])
                    unit.picture = picture(reader.network, found.crop(n))
                    top, left, bottom, right = unit.box
                    unit.crop = batch[unit.image].pixels[top:bottom, left:right].copy()
                bar.update(len(members))

    def _batches(self) -> Iterator[dict[int, Photo]]:
        """The pictures that are wanted, by their places in the data set; ones of one size, not too
        many at a time.
        """
        held: dict[int, Photo] = {}
        for image in sorted({unit.image for unit in self.units}):
            photo = self.dataset.reader.open(self.dataset.paths[image])
            other = any(one.image.shape != photo.image.shape for one in held.values())
            if held and (other or len(held) == _BATCH):
                yield held
                held = {}
            held[image] = photo
        if held:
            yield held

    def check(self, checkpoint: str) -> None:
        """Refuse a search that was of other pictures."""
        largest = max(abs(unit.value) for unit in self.units)
        limit = _AGREE[self.dataset.reader.dtype] * largest
        for unit in self.units:
            if abs(unit.activation - unit.value) > limit:
                raise ValueError(
                    f"expected a checkpoint of these pictures, prepared as they are now, and"
                    f" {checkpoint} has {unit.value:.4g} where"
                    f" {self.dataset.paths[unit.image]} has {unit.activation:.4g}"
                )

    def _of(self, row: int) -> list[_Unit]:
        return [unit for unit in self.units if unit.row == row]

    @property
    def report(self) -> list[dict[str, Any]]:
        return [
            {
                "channel": channel,
                "units": [
                    {
                        "photo": str(self.dataset.paths[unit.image]),
                        "image": unit.image,
                        **described(unit.position, unit.value, unit.box, unit.picture),
                    }
                    for unit in self._of(row)
                ],
            }
            for row, channel in enumerate(self.channels)
        ]

    def figure(self, wanted: Wanted, network: str, count: int) -> Any:
        rows = [self._of(row) for row in range(len(self.channels))]
        return plots.units(
            [[unit.crop for unit in row] for row in rows],
            [[unit.picture for unit in row] for row in rows],
            labels=[
                f"channel {channel}\n{row[0].value:.4g}\nto {row[-1].value:.4g}"
                for channel, row in zip(self.channels, rows, strict=True)
            ],
            title=f"{short(wanted.layer)} of {short(network)}, {wanted.rule}",
            note=f"the strongest of {count} pictures; {SHADES}",
        )

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The raw data; where pictures are of several sizes, the smaller ones are filled up with
        zeros behind.
        """
        units, size = self.units, np.max([unit.raw.shape for unit in self.units], axis=0)
        pictures = np.zeros((len(units), *size), units[0].raw.dtype)
        for whole, unit in zip(pictures, units, strict=True):
            channels, height, width = unit.raw.shape
            whole[:channels, :height, :width] = unit.raw
        return {
            "pictures": pictures,
            "at": np.array([unit.at for unit in units], np.int64),
            "boxes": np.array([unit.box for unit in units], np.int64),
            "units": np.array([(u.image, u.channel, *u.position) for u in units], np.int64),
            "activations": np.array([unit.value for unit in units]),
        }
