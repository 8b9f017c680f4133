"""From a photo to its page and the files next to it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from tqdm import tqdm

from backsight._version import __version__
from backsight.cli import refusals
from backsight.cli.contents import Shared
from backsight.cli.files import check_folder, write_all
from backsight.cli.photos import each, expanded, names
from backsight.cli.reader import Photo
from backsight.cli.report.page import Drawn, Head, page
from backsight.cli.report.views import VIEWS, Found, Look, View
from backsight.cli.task import Options, Task
from backsight.cli.words import by
from backsight.store import write_bytes, write_json

__all__ = ["report_photos"]

_TOP = 5


def report_photos(photos: Sequence[Path], shared: Shared, target: str | None, seed: int) -> int:
    """Write a page for each photo: NAME.report.html, with its numbers in NAME.report.VIEW.npz and
    NAME.report.json, all of them or none.

    Returns:
        The exit code: 2 where some of several photos could not be done, 0 otherwise.

    Raises:
        ValueError: bad input, in one sentence.
        ImportError: something that is not installed, in one sentence.
    """
    check_folder(shared.output)
    named = names(expanded(photos))
    options = _options(shared, target)

    def do(task: Task, photo: Photo, started: float) -> None:
        stem = shared.output / named[photo.path]
        _report(Look(task, task.job(photo), seed), stem, shared, started)

    return each(list(named), lambda: Task(options), do)


def _options(shared: Shared, target: str | None) -> Options:
    """Those of a sweep of all classes; its window is found for each photo."""
    given: dict[str, Any] = dict.fromkeys(field.name for field in fields(Options))
    given |= asdict(shared.source) | {"window": "1", "target": target, "readings": False}
    return Options(**given | {"baseline": "training", "baseline_units": "pixel"})


def _report(look: Look, stem: Path, shared: Shared, started: float) -> None:
    job = look.job
    shares = job.probabilities
    assert shares is not None  # there is no --probability here
    height, width = job.photo.pixels.shape[:2]
    best = shares.topk(min(_TOP, len(shares))).indices.tolist()
    head = Head(
        f"{job.photo.path.name} in the eyes of {look.network.name}",
        f"{by((height, width))} pixels; asked about {job.label(look.index)}, probability "
        f"{float(shares[look.index]):.3g}, logit {float(job.base[look.index]):.4g}",
        job.photo.pixels,
        [(job.label(index), float(shares[index])) for index in best],
    )
    paths = {"html": Path(f"{stem}.report.html"), "json": Path(f"{stem}.report.json")}
    files: dict[Path, Any] = {}
    views: list[Drawn] = []
    told: dict[str, Any] = {}
    with tqdm(VIEWS, unit="view", disable=shared.quiet, file=sys.stderr) as bar:
        for view in bar:
            begun = time.perf_counter()
            found = _find(view, look)
            path = Path(f"{stem}.report.{view.name}.npz")
            if isinstance(found, str):
                told[view.name] = {"refused": found}
                views.append(_drawn(view, f"This view cannot be made here: {found}", None, ""))
                continue
            files[path] = found.save
            views.append(_drawn(view, found.summary, found.png, path.name))
            seconds = time.perf_counter() - begun
            told[view.name] = {**found.report, "file": str(path), "seconds": seconds}
    report = {
        "backsight": __version__,
        "photo": str(job.photo.path),
        "model": look.network.name,
        "image": {"height": height, "width": width},
        "target": {"index": look.index, "name": job.label(look.index)},
        "classes": [{"name": name, "probability": share} for name, share in head.classes],
        "views": told,
        "seconds": time.perf_counter() - started,
        "files": {kind: str(path) for kind, path in paths.items()},
    }
    text = page(head, views)
    files[paths["json"]] = lambda path: write_json(path, report)
    files[paths["html"]] = lambda path: write_bytes(path, text.encode())
    write_all(stem.parent, files)
    if shared.as_json:
        print(json.dumps(report, ensure_ascii=False, allow_nan=False), flush=True)
        return
    made = sum(view.png is not None for view in views)
    print(f"{job.photo.path.name} at {by((height, width))}: {made} views of {len(views)}")
    for view in views:
        if view.png is None:
            print(f"{view.title}: {view.summary}")
    print(f"html: {paths['html']}", flush=True)


def _find(view: View, look: Look) -> Found | str:
    """What the view shows; or why it cannot be made of this network or photo."""
    try:
        return view.make(look)
    except refusals() as error:
        return " ".join(str(error).split()) or type(error).__name__


def _drawn(view: View, summary: str, png: bytes | None, file: str) -> Drawn:
    return Drawn(view.name, view.section, view.title, view.reads, view.cannot, summary, png, file)
