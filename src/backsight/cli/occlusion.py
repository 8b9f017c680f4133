"""``backsight occlusion`` and ``backsight plan``: photo by photo, files and a few lines of text."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import backsight
from backsight import plots
from backsight._version import __version__
from backsight.cli.files import check_folder, write_all
from backsight.cli.photos import each, expanded, names
from backsight.cli.reader import Photo
from backsight.cli.readings import Readings
from backsight.cli.task import Job, Options, Task
from backsight.cli.words import article, short
from backsight.store import write_bytes, write_json

__all__ = ["occlude_photos", "plan_photos"]

_TOP = 5


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
    check_folder(output)
    named = names(expanded(photos))

    def occlude(task: Task, photo: Photo, started: float) -> None:
        _occlude(task, task.job(photo), output / named[photo.path], started, quiet, as_json)

    return each(list(named), lambda: Task(options), occlude)


def plan_photos(photos: Sequence[Path], options: Options, *, as_json: bool) -> int:
    """Print what `occlude_photos` would do."""

    def show(task: Task, photo: Photo, started: float) -> None:
        job = task.job(photo)
        model, image = job.network.model, photo.image
        plan = backsight.plan(model, image, **job.places, **job.arguments)
        if as_json:
            print(json.dumps({**_head(task, job), "plan": plan.as_dict()}), flush=True)
        else:
            print(f"{photo.path.name}: {task.covering}\n{plan}", flush=True)

    return each(expanded(photos), lambda: Task(options), show)


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
    drops = result.drops[0, :, result.column(index)]
    position = int(drops.argmax())
    largest = float(drops[position])
    boxes = result.spatial_boxes(position)
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
    write_all(stem.parent, files)
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
        f"largest drop of {what}: {largest:.4g} of {article(unit)} of {float(job.base[index]):.4g}",
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


def _output(job: Job, index: int) -> dict[str, Any]:
    """What a report says about one output of the unoccluded photo."""
    entry = {"index": index, "name": job.label(index), job.unit: float(job.base[index])}
    if job.probabilities is not None:
        entry["probability"] = float(job.probabilities[index])
    return entry
