"""``backsight deconv``: units of a layer projected back to the pixels of each photo."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import backsight
from backsight import plots
from backsight._version import __version__
from backsight.cli import parse
from backsight.cli.files import check_folder, write_all
from backsight.cli.layer import (
    NAMED_RULES,
    SHADES,
    check_channels,
    check_position,
    described,
    order,
    picture,
    place,
    put_out,
)
from backsight.cli.photos import each, expanded, names
from backsight.cli.reader import Photo, Reader, Source
from backsight.cli.words import short
from backsight.results import array
from backsight.store import save_npz, write_bytes, write_json

__all__ = ["Wanted", "project_photos"]


@dataclass(frozen=True)
class Wanted:
    """Which units, as the options gave them: `position` is theirs, or each channel's strongest."""

    layer: str
    channels: Sequence[int]
    position: str | None
    rule: str


def project_photos(
    photos: Sequence[Path],
    source: Source,
    wanted: Wanted,
    *,
    output: Path,
    quiet: bool,
    as_json: bool,
) -> int:
    """Do what the command says.

    Returns:
        The exit code: 2 where some of several photos could not be done, 0 otherwise.

    Raises:
        ValueError: bad input, in one sentence.
        ImportError: something that is not installed, in one sentence.
    """
    parse.one_of("--rule", wanted.rule, NAMED_RULES)
    position = None
    if wanted.position is not None:
        position = parse.position("--position", wanted.position)
    check_folder(output)
    named = names(expanded(photos))

    def project(reader: Reader, photo: Photo, started: float) -> None:
        stem = output / named[photo.path]
        _project(reader, photo, wanted, position, stem, started, quiet, as_json)

    return each(list(named), lambda: Reader(source), project)


def _project(
    reader: Reader,
    photo: Photo,
    wanted: Wanted,
    position: tuple[int, int] | None,
    stem: Path,
    started: float,
    quiet: bool,
    as_json: bool,
) -> None:
    network, layer, rule = reader.network, wanted.layer, wanted.rule
    height, width = photo.pixels.shape[:2]
    maps = put_out(network.model, layer, photo.image)
    channels = list(dict.fromkeys(wanted.channels))
    check_channels(layer, maps, channels)
    if position is not None:
        check_position(layer, maps, position)
    loaded = time.perf_counter()
    found = backsight.project(
        network.model,
        photo.image,
        layer,
        [[0, channel, *(position or ())] for channel in channels],
        rule=rule,
        show_progress=not quiet,
    )
    projected = time.perf_counter()

    boxes = found.boxes.tolist()
    pictures = [picture(network, found.crop(unit)) for unit in range(len(found))]
    units = [
        {"channel": row[1], **described(row[2:], float(value), box, shown)}
        for row, value, box, shown in zip(
            found.units.tolist(), found.activations, boxes, pictures, strict=True
        )
    ]
    drawn = plots.png(
        plots.projections(
            photo.pixels,
            boxes,
            pictures,
            labels=[f"channel {u['channel']}: {u['activation']:.4g}, {place(u)}" for u in units],
            title=f"{short(layer)} of {short(network.name)}, {rule}",
            note=f"{short(photo.path.name)}; {SHADES}",
        )
    )
    paths = {kind: Path(f"{stem}.deconv.{kind}") for kind in ("png", "npz", "json")}
    report: dict[str, Any] = {
        "backsight": __version__,
        "photo": str(photo.path),
        "model": network.name,
        "image": {"height": height, "width": width},
        "layer": layer,
        "rule": rule,
        "order": order(network),
        "units": units,
        "seconds": {
            "load": loaded - started,
            "project": projected - loaded,
            "draw": time.perf_counter() - projected,
        },
        "files": {kind: str(path) for kind, path in paths.items()},
    }
    arrays = {
        name: array(getattr(found, name))
        for name in ("pictures", "at", "boxes", "units", "activations")
    }
    meta = {name: report[name] for name in report if name not in ("seconds", "files")}
    write_all(
        stem.parent,
        {
            paths["png"]: lambda path: write_bytes(path, drawn),
            paths["npz"]: lambda path: save_npz(path, arrays, meta),
            paths["json"]: lambda path: write_json(path, report),
        },
    )
    if as_json:
        print(json.dumps(report, ensure_ascii=False, allow_nan=False), flush=True)
        return
    lines = [f"{photo.path.name} at {height} x {width}: {layer} by {rule}"]
    for unit in units:
        lines.append(f"channel {unit['channel']}: {unit['activation']:.4g}, {place(unit)}")
        if not unit["largest"]:
            lines.append("  nothing comes back to the pixels: the picture is empty")
    lines += [f"{kind}: {path}" for kind, path in paths.items()]
    print("\n".join(lines), flush=True)
