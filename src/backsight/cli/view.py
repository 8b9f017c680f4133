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

__all__ = ["show"]


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
        stem = output / named[photo.path]
        paths = {kind: Path(f"{stem}.{name}.{kind}") for kind in ("png", "npz", "json")}
        height, width = photo.pixels.shape[:2]
        report: dict[str, Any] = {
            "backsight": __version__,
            "photo": str(photo.path),
            "model": reader.network.name,
            "image": {"height": height, "width": width},
            **found.report(),
            "seconds": {"load": loaded - started, name: done - loaded},
            "files": {kind: str(path) for kind, path in paths.items()},
        }
        write_all(
            output,
            {
                paths["png"]: found.save,
                paths["npz"]: found.save,
                paths["json"]: lambda path: write_json(path, report),
            },
        )
        if as_json:
            print(json.dumps(report, ensure_ascii=False, allow_nan=False), flush=True)
            return
        lines = [f"{photo.path.name} at {height} x {width}: {found.summary()}"]
        print("\n".join([*lines, *(f"{kind}: {p}" for kind, p in paths.items())]), flush=True)

    return each(list(named), lambda: Reader(source), do)
