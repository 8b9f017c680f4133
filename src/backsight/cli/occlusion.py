"""``backsight occlusion``: one photo, one network, one map; three files and a few lines of text."""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import backsight
from backsight import plots
from backsight._version import __version__
from backsight.cli import parse
from backsight.io import read_image
from backsight.store import write_bytes, write_json
from backsight.zoo import Network, Preprocessing, imagenet_classes, load

__all__ = ["Preprocess", "occlude_photo"]

_EDGES = ("clip", "inside", "drop", "overhang")
_TOP = 5


@dataclass(frozen=True)
class Preprocess:
    """The options for a network of the user's own, as they were given; None where not given."""

    short_side: int | None
    crop: int | None
    mean: str | None
    std: str | None


def occlude_photo(
    *,
    photo: Path,
    model: str,
    weights: str | None,
    classes: str | None,
    window: str,
    stride: str,
    target: str | None,
    baseline: str,
    edge: str,
    size: int | None,
    full: bool,
    preprocess: Preprocess,
    memory: str | None,
    device: str,
    output: Path,
    quiet: bool,
) -> None:
    """Do what the command says; everything that can be wrong is found before the sweep starts.

    Raises:
        ValueError: bad input, in one sentence.
        ImportError: something that is not installed, in one sentence.
    """
    sides, steps = parse.pair("--window", window), parse.pair("--stride", stride)
    cover = parse.color("--baseline", baseline)
    budget = None if memory is None else parse.bytes_of("--memory", memory)
    if edge not in _EDGES:
        raise ValueError(f"expected --edge as one of {', '.join(_EDGES)}, got {edge!r}")
    _check_folder(output)
    place = _device(device)

    started = time.perf_counter()
    network = _network(model, weights, classes, preprocess)
    image, pixels = network.prepare(read_image(photo), size=size, full=full)
    height, width = pixels.shape[:2]
    if sides[0] > height or sides[1] > width:
        raise ValueError(
            f"the window of {sides[0]} x {sides[1]} does not fit in the image of "
            f"{height} x {width} pixels"
        )
    network.model.to(place)
    image = image.to(place)
    scores = _scores(network, image)
    index = (
        int(scores.argmax()) if target is None else network.find(target, outputs=scores.shape[0])
    )
    loaded = time.perf_counter()

    result = backsight.occlusion(
        network.model,
        image,
        window=sides,
        stride=steps,
        baseline=0.0 if cover is None else network.preprocessing.color(cover).to(place),
        edge=edge,
        memory=budget,
        show_progress=not quiet,
    )
    swept = time.perf_counter()

    heat = result.map(index)[0].double().cpu().numpy()
    drops = result.drops[0, :, index]
    position = int(drops.argmax())
    largest = float(drops[position])
    top, left, bottom, right = result.boxes[position].tolist()
    row, column = (int(value) for value in np.unravel_index(int(heat.argmax()), heat.shape))
    base = result.base[0].double().cpu()
    probabilities = base.softmax(0)
    label = network.label(index)

    figure = plots.overlay(
        pixels,
        heat,
        title=f"{_short(label)} (class {index}), probability {float(probabilities[index]):.3g}",
        note=f"{_short(photo.name)}, {_short(network.name)}, window {_by(sides)}, "
        f"stride {_by(steps)}\noutlined: the box with the largest drop, {largest:.3g}",
        label="drop of the logit, mean over covering boxes",
        box=(top, left, bottom, right),
    )
    picture = plots.png(figure)
    drawn = time.perf_counter()

    stem = output / f"{photo.stem}.occlusion"
    files = {kind: Path(f"{stem}.{kind}") for kind in ("png", "npz", "json")}
    best = probabilities.topk(min(_TOP, len(probabilities))).indices.tolist()
    report: dict[str, Any] = {
        "backsight": __version__,
        "photo": str(photo),
        "model": network.name,
        "image": {"height": height, "width": width},
        "window": list(sides),
        "stride": list(steps),
        "edge": edge,
        "baseline": baseline,
        "target": _class(network, index, base, probabilities),
        "top": [_class(network, other, base, probabilities) for other in best],
        "largest_drop": {
            "drop": largest,
            "position": position,
            "box": {"top": top, "left": left, "bottom": bottom, "right": right},
            "centre": {"row": (top + bottom) / 2, "column": (left + right) / 2},
            "pixel": {"row": row, "column": column, "mean_drop": float(heat[row, column])},
        },
        "noise_floor": float(result.noise_floor),
        "plan": result.plan if isinstance(result.plan, dict) else result.plan.as_dict(),
        "seconds": {
            "load": loaded - started,
            "sweep": swept - loaded,
            "draw": drawn - swept,
        },
        "files": {kind: str(path) for kind, path in files.items()},
    }
    _write(output, files, result, picture, report)

    named = ", ".join(f"{network.label(other)} {float(probabilities[other]):.3f}" for other in best)
    lines = [
        f"{photo.name} at {height} x {width}: {named}",
        str(result.plan),
        f"largest drop of {label} (class {index}): {largest:.4g} of a logit of "
        f"{float(base[index]):.4g}",
        f"  box: rows {top} to {bottom}, columns {left} to {right}; "
        f"pixel of the largest mean drop: row {row}, column {column}",
        f"noise floor {float(result.noise_floor):.2g}; {len(drops)} positions in "
        f"{swept - loaded:.1f} s",
    ]
    if largest <= result.noise_floor:
        lines.append("no box costs the class more than the noise floor: the map shows nothing")
    lines += [f"{kind}: {path}" for kind, path in files.items()]
    print("\n".join(lines))


def _short(name: str) -> str:
    """A name that fits in the figure."""
    return name if len(name) <= 40 else f"{name[:24]}...{name[-13:]}"


def _by(sides: tuple[int, int]) -> str:
    return f"{sides[0]} x {sides[1]}"


def _class(network: Network, index: int, base: Tensor, probabilities: Tensor) -> dict[str, Any]:
    return {
        "index": index,
        "name": network.label(index),
        "logit": float(base[index]),
        "probability": float(probabilities[index]),
    }


def _network(
    spec: str, weights: str | None, classes: str | None, preprocess: Preprocess
) -> Network:
    given = {
        "--short-side": preprocess.short_side,
        "--crop": preprocess.crop,
        "--mean": preprocess.mean,
        "--std": preprocess.std,
        "--classes": classes,
    }
    if spec == "squeezenet":
        for option, value in given.items():
            if value is not None:
                raise ValueError(
                    f"{option} is for a network of your own; squeezenet has its own preprocessing "
                    "and class names"
                )
        return load(spec, weights)
    usual = Preprocessing()
    own = Preprocessing(
        usual.short_side if preprocess.short_side is None else preprocess.short_side,
        usual.crop if preprocess.crop is None else preprocess.crop,
        usual.mean if preprocess.mean is None else parse.floats("--mean", preprocess.mean),
        usual.std if preprocess.std is None else parse.floats("--std", preprocess.std),
    )
    return load(spec, weights, preprocessing=own, classes=_class_names(classes))


def _class_names(source: str | None) -> tuple[str, ...] | None:
    if source is None:
        return None
    if source == "imagenet":
        return imagenet_classes()
    try:
        lines = Path(source).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the class names {source}: {error}") from error
    names = tuple(line.strip() for line in lines)
    if not names or not all(names):
        raise ValueError(f"expected one class name a line in {source}, and there is an empty one")
    return names


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"expected --device as cpu, cuda or cuda:N, got {name!r}") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"--device {name} asks for a GPU, and torch sees {torch.cuda.device_count()} of them"
        )
    return device


def _scores(network: Network, image: Tensor) -> Tensor:
    """The network's ``(classes,)`` scores of the photo as it is."""
    with torch.no_grad():
        scores = network.model(image)
    if not isinstance(scores, Tensor) or scores.ndim != 2 or scores.shape[0] != 1:
        got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(f"expected {network.name} to return (1, classes) scores, got {got}")
    if network.classes is not None and len(network.classes) != scores.shape[1]:
        raise ValueError(
            f"{network.name} scores {scores.shape[1]} classes, and there are names for "
            f"{len(network.classes)}"
        )
    return scores[0]


def _check_folder(folder: Path) -> None:
    """Say before the work, not after it, that its results cannot be written."""
    existing = folder.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise ValueError(f"expected a folder for the results, and {existing} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"the results cannot be written: no permission to write in {existing}")


def _write(
    folder: Path,
    files: dict[str, Path],
    result: Any,
    picture: bytes,
    report: dict[str, Any],
) -> None:
    """Write all three files next to where they go, and move them there when all are whole."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".backsight-", dir=folder) as staging:
        staged = {kind: Path(staging) / path.name for kind, path in files.items()}
        result.save(staged["npz"])
        write_bytes(staged["png"], picture)
        write_json(staged["json"], report)
        for kind, path in files.items():
            os.replace(staged[kind], path)
