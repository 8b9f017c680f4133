"""A method's view of each photo, and its files."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from backsight._version import __version__
from backsight.cli.files import check_folder, write_all
from backsight.cli.photos import each, expanded, names
from backsight.cli.reader import Photo, Reader, Source
from backsight.results import Result
from backsight.store import write_json

__all__ = ["alone", "show", "write"]


def show(
    name: str,
    photos: Sequence[Path],
    source: Source,
    make: Callable[[Reader, Photo], Result],
    *,
    output: Path,
    as_json: bool,
) -> int:
    """Write what `make` finds in each photo: NAME.name.png, .npz and .json, all of them or none.

    Returns:
        The exit code: 2 where some of several photos could not be done, 0 otherwise.

    Raises:
        ValueError: bad input, in one sentence.
        ImportError: something that is not installed, in one sentence.
    """
    check_folder(output)
    named = names(expanded(photos))

    def do(reader: Reader, photo: Photo, started: float) -> None:
        loaded = time.perf_counter()
        found = make(reader, photo)
        done = time.perf_counter()
        height, width = photo.pixels.shape[:2]
        about = {"photo": str(photo.path), "image": {"height": height, "width": width}}
        seconds = {"load": loaded - started, name: done - loaded}
        stem = output / f"{named[photo.path]}.{name}"
        head = f"{photo.path.name} at {height} x {width}: "
        write(found, stem, reader.network.name, about, seconds, head=head, as_json=as_json)

    return each(list(named), lambda: Reader(source), do)


def alone(
    name: str, source: Source, make: Callable[[Reader], Result], *, output: Path, as_json: bool
) -> None:
    """Write what is found in a network without a photo: name.png, .npz and .json, all or none.

    Raises:
        ValueError: bad input, in one sentence.
        ImportError: something that is not installed, in one sentence.
    """
    check_folder(output)
    started = time.perf_counter()
    reader = Reader(source)
    loaded = time.perf_counter()
    found = make(reader)
    seconds = {"load": loaded - started, name: time.perf_counter() - loaded}
    write(found, output / name, reader.network.name, {}, seconds, as_json=as_json)


def write(
    found: Result,
    stem: Path,
    model: str,
    about: dict[str, Any],
    seconds: dict[str, float],
    *,
    head: str = "",
    as_json: bool,
) -> None:
    """Write a result as stem.png, .npz and .json, all of them or none, and tell of it."""
    paths = {kind: Path(f"{stem}.{kind}") for kind in ("png", "npz", "json")}
    report: dict[str, Any] = {
        "backsight": __version__,
        "model": model,
        **about,
        **found.report(),
        "seconds": seconds,
        "files": {kind: str(path) for kind, path in paths.items()},
    }
    write_all(
        stem.parent,
        {
            paths["png"]: found.save,
            paths["npz"]: found.save,
            paths["json"]: lambda path: write_json(path, report),
        },
    )
    if as_json:
        print(json.dumps(report, ensure_ascii=False, allow_nan=False), flush=True)
        return
    lines = [f"{head}{found.summary()}", *(f"{kind}: {path}" for kind, path in paths.items())]
    print("\n".join(lines), flush=True)
