"""``backsight occlusion`` and ``backsight plan``: photo by photo, files and a few lines of text."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import backsight
from backsight import plots
from backsight._version import __version__
from backsight.cli import BAD_INPUT, complain, refusals
from backsight.cli.readings import Readings
from backsight.cli.task import Job, Options, Task, short
from backsight.io import pictures
from backsight.store import write_bytes, write_json

__all__ = ["occlude_photos", "plan_photos"]

_TOP = 5
#: What the pictures that this command writes end in; they are no photos.
_OURS = (".occlusion.png", ".readings.png")


def occlude_photos(
    photos: Sequence[Path], options: Options, *, output: Path, quiet: bool, as_json: bool
) -> int:
    """Do what the command says; all that can be wrong is found before a photo's sweep starts.

    Returns:
        The exit code: 2 where some of several photos could not be done, 0 otherwise.

    Raises:
        ValueError: bad input, in one sentence.
        ImportError: something that is not installed, in one sentence.
    """
    _check_folder(output)
    named = _names(_expanded(photos))

    def occlude(task: Task, job: Job, started: float) -> None:
        _occlude(task, job, output / named[job.photo.path], started, quiet, as_json)

    return _each(list(named), options, occlude)


def plan_photos(photos: Sequence[Path], options: Options, *, as_json: bool) -> int:
    """Print what `occlude_photos` would do."""

    def show(task: Task, job: Job, started: float) -> None:
        model, image = job.network.model, job.photo.image
        plan = backsight.plan(model, image, **job.places, **job.arguments)
        if as_json:
            print(json.dumps({**_head(task, job), "plan": plan.as_dict()}), flush=True)
        else:
            print(f"{job.photo.path.name}: {task.covering}\n{plan}", flush=True)

    return _each(_expanded(photos), options, show)


def _each(photos: Sequence[Path], options: Options, do: Callable[[Task, Job, float], None]) -> int:
    """Do something for each photo.

    Of several, one that cannot be read or done is named, and the others are done; but where the
    first one that can be read cannot be done, the options are to blame, and that is all.
    """
    started = time.perf_counter()
    task = Task(options)
    code, done = 0, False
    for path in photos:
        read = False
        try:
            photo = task.open(path)
            read = True
            do(task, task.job(photo), started)
            done = True
        except refusals() as error:
            if len(photos) == 1 or (read and not done):
                raise
            text = str(error) or type(error).__name__
            code = complain(text if str(path) in text else f"{path}: {text}", BAD_INPUT)
        started = time.perf_counter()
    return code


def _expanded(photos: Sequence[Path]) -> list[Path]:
    """The photos, with the pictures of a folder in its place."""
    found: list[Path] = []
    for path in photos:
        inside = pictures(path) if path.is_dir() else [path]
        found += [p for p in inside if p == path or not p.name.endswith(_OURS)]
    if not found:
        raise ValueError("expected photos, got a folder of nothing but results")
    return list(dict.fromkeys(found))


def _names(photos: Sequence[Path]) -> dict[Path, str]:
    """What each photo's files are called: its name, with its ending where that tells it apart."""
    stems = Counter(path.stem for path in photos)
    names = {path: path.stem if stems[path.stem] == 1 else path.name for path in photos}
    for name, count in Counter(names.values()).items():
        if count > 1:
            raise ValueError(f"expected photos of different names, got {count} called {name}")
    return names


def _head(task: Task, job: Job) -> dict[str, Any]:
    """What a report says about its input."""
    options = task.options
    height, width = job.photo.pixels.shape[:2]
    return {
        "backsight": __version__,
        "photo": str(job.photo.path),
        "model": job.network.name,
        "image": {"height": height, "width": width},
        "window": None if task.window is None else list(task.window),
        "stride": None if task.stride is None else list(task.stride),
        "edge": None if task.table is not None else task.edge,
        "rows": options.rows,
        "columns": options.columns,
        "boxes": options.boxes,
        "baseline": options.baseline,
        "baseline_units": options.baseline_units,
        "layer": job.layer,
        "model_output": options.model_output,
        "region": options.region,
        "unit": job.unit,
    }


def _occlude(task: Task, job: Job, stem: Path, started: float, quiet: bool, as_json: bool) -> None:
    readings = Readings.of(job, task.options.layer) if task.options.readings else None
    pixels, index = job.photo.pixels, job.index
    height, width = pixels.shape[:2]
    loaded = time.perf_counter()
    result = backsight.occlusion(
        job.network.model,
        job.photo.image,
        **job.places,
        **job.arguments,
        show_progress=not quiet,
    )
    if readings is not None:
        readings.sweep(result, show_progress=not quiet)
    swept = time.perf_counter()

    heat = result.map(index)[0].double().cpu().numpy()
    if heat.ndim == 3:
        heat = heat.mean(0)  # boxes of single channels
    drops = result.drops[0, :, _column(result, index)]
    position = int(drops.argmax())
    largest = float(drops[position])
    boxes = _spatial(result.boxes[position])
    top, left, bottom, right = (*boxes.amin(0)[:2].tolist(), *boxes.amax(0)[2:].tolist())
    row, column = (int(value) for value in np.unravel_index(int(heat.argmax()), heat.shape))
    label, unit, shares = job.label(index), job.unit, job.probabilities

    value = f"{unit} {float(job.base[index]):.3g}"
    if shares is not None:
        value = f"probability {float(shares[index]):.3g}"
    what = f"{label} of {job.layer}" if job.layer else f"{label} (class {index})"
    picture = plots.png(
        plots.overlay(
            pixels,
            heat,
            title=f"{short(what)}, {value}",
            note=f"{short(job.photo.path.name)}, {short(job.network.name)}, {task.covering}\n"
            f"outlined: what costs most, {largest:.3g}",
            label=f"drop of the {unit}, mean over covering boxes",
            box=boxes.tolist(),
        )
    )
    paths = {kind: Path(f"{stem}.occlusion.{kind}") for kind in ("png", "npz", "json")}
    if readings is not None:
        readings.draw(task.covering)
        paths |= {f"readings.{kind}": Path(f"{stem}.readings.{kind}") for kind in paths}
    drawn = time.perf_counter()

    best = job.base.topk(min(task.top or _TOP, len(job.base))).indices.tolist()
    winners = result.most_probable().flatten()
    # Which of a layer's channels is the strongest is no decision.
    changed = None if job.layer else int((winners != int(job.base.argmax())).sum())
    plan = result.plan if isinstance(result.plan, dict) else result.plan.as_dict()
    report: dict[str, Any] = {
        **_head(task, job),
        "target": _output(job, index),
        "top": [_output(job, other) for other in best],
        "largest_drop": {
            "drop": largest,
            "position": position,
            "box": {"top": top, "left": left, "bottom": bottom, "right": right},
            "centre": {"row": (top + bottom) / 2, "column": (left + right) / 2},
            "pixel": {"row": row, "column": column, "mean_drop": float(heat[row, column])},
        },
        "changed_decisions": changed,
        "noise_floor": float(result.noise_floor),
        "plan": plan,
        "seconds": {
            "load": loaded - started,
            "sweep": swept - loaded,
            "draw": drawn - swept,
        },
        "files": {kind: str(path) for kind, path in paths.items()},
    }
    files: dict[Path, Callable[[Path], None]] = {
        paths["png"]: lambda path: write_bytes(path, picture),
        paths["npz"]: result.save,
        paths["json"]: lambda path: write_json(path, report),
    }
    if readings is not None:
        for kind, write in readings.files(_head(task, job)).items():
            files[paths[f"readings.{kind}"]] = write
    _write(stem.parent, files)
    if as_json:
        print(json.dumps(report, ensure_ascii=False, allow_nan=False), flush=True)
        return

    named = ", ".join(
        f"{job.label(other)} {float((job.base if shares is None else shares)[other]):.3f}"
        for other in best
    )
    lines = [
        f"{job.photo.path.name} at {height} x {width}: {named}",
        str(result.plan),
        f"largest drop of {what}: {largest:.4g} of {_article(unit)} of "
        f"{float(job.base[index]):.4g}",
        f"  box: rows {top} to {bottom}, columns {left} to {right}; "
        f"pixel of the largest mean drop: row {row}, column {column}",
        f"noise floor {float(result.noise_floor):.2g}; {len(drops)} positions in "
        f"{swept - loaded:.1f} s",
    ]
    if changed is not None:
        lines.append(f"the most probable class is another one at {changed} positions")
    if largest <= result.noise_floor:
        lines.append("no box costs the class more than the noise floor: the map shows nothing")
    lines += [f"{kind}: {path}" for kind, path in paths.items()]
    print("\n".join(lines), flush=True)


def _column(result: backsight.Occlusion, index: int) -> int:
    """Where the drops of an output stand."""
    return index if result.targets is None else int((result.targets[0] == index).nonzero()[0])


def _spatial(box: torch.Tensor) -> torch.Tensor:
    """What one position covers as (boxes, 4), without channels and empty boxes."""
    boxes = box.reshape(-1, box.shape[-1])
    if boxes.shape[1] == 6:
        boxes = boxes[:, [1, 2, 4, 5]]
    return boxes[(boxes[:, 2:] > boxes[:, :2]).all(1)]


def _article(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def _output(job: Job, index: int) -> dict[str, Any]:
    """What a report says about one output of the unoccluded photo."""
    entry = {"index": index, "name": job.label(index), job.unit: float(job.base[index])}
    if job.probabilities is not None:
        entry["probability"] = float(job.probabilities[index])
    return entry


def _check_folder(folder: Path) -> None:
    """Say before the work, not after it, that its results cannot be written."""
    existing = folder.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise ValueError(f"expected a folder for the results, and {existing} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"the results cannot be written: no permission to write in {existing}")


def _write(folder: Path, files: dict[Path, Callable[[Path], None]]) -> None:
    """Write all files of a photo next to where they go, and move them there when all are whole."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".backsight-", dir=folder) as staging:
        for path, write in files.items():
            write(Path(staging) / path.name)
        for path in files:
            os.replace(Path(staging) / path.name, path)
