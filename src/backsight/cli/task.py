"""From option texts to what `backsight.occlusion` takes: for all photos, and for each of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import backsight
from backsight.cli import parse
from backsight.cli.reader import Photo, Reader, Source
from backsight.cli.words import by
from backsight.io import read_boxes, read_image
from backsight.models.call import pick
from backsight.sweep.grid import EDGES, grid
from backsight.zoo import Network

__all__ = ["Job", "Options", "Task"]

_STRIDE = 8
_WINDOW = "32"
#: A box that is enough to try all arguments on.
_PROBE = ((0, 0, 1, 1),)


@dataclass(frozen=True, kw_only=True)
class Options(Source):
    """The options of `occlusion` and `plan` as they were given; None where they were not."""

    window: str | None
    stride: str | None
    edge: str | None
    rows: int | None
    columns: int | None
    boxes: str | None
    target: str | None
    top: int | None
    probability: str | None
    layer: str | None
    model_output: str | None
    region: str | None
    baseline: str
    baseline_units: str
    memory: str | None
    readings: bool


@dataclass(frozen=True)
class Job:
    """All that a sweep of one photo takes, tried.

    Attributes:
        photo: the photo.
        places: which boxes, as arguments of `backsight.occlusion`.
        arguments: the others.
        base: (outputs,) fp64, the outputs of the unoccluded photo in `unit`.
        unit: "logit", "probability" or "activation".
        index: which output is asked about.
        network: the network; without class names where outputs are no classes.
    """

    photo: Photo
    places: dict[str, Any]
    arguments: dict[str, Any]
    base: Tensor
    unit: str
    index: int
    network: Network
    layer: str | None

    def label(self, index: int) -> str:
        return f"channel {index}" if self.layer else self.network.label(index)

    @property
    def probabilities(self) -> Tensor | None:
        """(outputs,) of the unoccluded photo, where outputs are logits of classes or were made
        probabilities.
        """
        if self.unit == "probability":
            return self.base
        whole = self.unit == "logit" and "region" not in self.arguments
        return self.base.softmax(0) if whole else None


class Task(Reader):
    """The options, read and checked as far as they can be without a photo, and the network."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.units = parse.one_of(
            "--baseline-units", options.baseline_units, ("pixel", "normalised")
        )
        self.cover = parse.baseline("--baseline", options.baseline, self.units)
        self.memory = None if options.memory is None else parse.bytes_of("--memory", options.memory)
        if options.probability is not None:
            parse.one_of("--probability", options.probability, ("softmax", "sigmoid"))
        self.top = parse.count("--top", options.top)
        self._read_places()
        if options.readings:
            given = {"--top": options.top, "--region": options.region, "--boxes": options.boxes}
            given |= {"--rows": options.rows, "--columns": options.columns}
            for option, value in given.items():
                if value is not None:
                    raise ValueError(
                        f"--readings shows every class on a grid of windows: expected no {option}"
                    )
        super().__init__(options)

    def _read_places(self) -> None:
        options = self.options
        bands = {"--rows": options.rows, "--columns": options.columns}
        rivals: dict[str, dict[str, str | int | None]] = {
            "--boxes": {
                "--window": options.window,
                "--stride": options.stride,
                "--edge": options.edge,
                **bands,
            },
            "--window": {**bands},
        }
        for one, value in (("--boxes", options.boxes), ("--window", options.window)):
            for other, another in rivals[one].items():
                if value is not None and another is not None:
                    raise ValueError(f"expected either {one} or {other}, got both")
        self.edge = parse.one_of("--edge", options.edge or EDGES[0], EDGES)
        self.bands = tuple(parse.count(option, width) for option, width in bands.items())
        self.table = None if options.boxes is None else torch.from_numpy(read_boxes(options.boxes))
        self.stride = None if options.stride is None else parse.pair("--stride", options.stride)
        self.window: tuple[int, int] | None = None
        if self.table is None and self.bands == (None, None):
            self.window = parse.pair("--window", options.window or _WINDOW)
            self.stride = self.stride or (_STRIDE, _STRIDE)

    @property
    def covering(self) -> str:
        """What covers, in words."""
        if self.window is not None and self.stride is not None:
            return f"window {by(self.window)}, stride {by(self.stride)}"
        if self.table is not None:
            return f"{len(self.table)} boxes of {Path(self.options.boxes or '').name}"
        words = [
            f"{n} {name}"
            for n, name in zip(self.bands, ("rows", "columns"), strict=True)
            if n is not None
        ]
        return f"bands of {' and of '.join(words)}"

    def open(self, path: Path) -> Photo:
        """Read a photo, which the window has to fit in."""
        photo = super().open(path)
        sides, (height, width) = self.window or (1, 1), photo.pixels.shape[:2]
        if sides[0] > height or sides[1] > width:
            raise ValueError(
                f"the window of {by(sides)} does not fit in the image of {height} x {width} pixels"
            )
        return photo

    def job(self, photo: Photo) -> Job:
        """Everything that a sweep of the photo takes, tried on a single box.

        Raises:
            ValueError: an option does not fit the network or the photo.
        """
        options, network = self.options, self.network
        chosen = None if options.model_output is None else parse.output(options.model_output)
        # With readings, the layer is that of the feature map, beside the classes.
        layer = None if options.readings else options.layer
        arguments: dict[str, Any] = {
            "baseline": self._content(photo),
            "memory": self.memory,
            "output": chosen,
            "layer": layer,
            "probability": options.probability,
        }
        with torch.no_grad():
            outputs = None if layer else pick(network.model(photo.image), chosen)
        if outputs is not None and options.region is not None:
            arguments["region"] = self._region(options.region, photo, outputs)
        elif options.region is not None:
            raise ValueError("expected either --region or --layer, got both")
        elif outputs is not None and (outputs.ndim != 2 or len(outputs) != 1):
            raise ValueError(
                f"expected {network.name} to return (1, classes) scores, or a --region of a dense"
                f" output, got {tuple(outputs.shape)}"
            )
        probe = backsight.occlusion(network.model, photo.image, boxes=_PROBE, **arguments)
        base = probe.base[0].double().cpu()
        if network.classes is not None and len(network.classes) != len(base):
            if layer is None and chosen is None:
                raise ValueError(
                    f"{network.name} scores {len(base)} classes, and there are names for"
                    f" {len(network.classes)}"
                )
            network = replace(network, classes=None)
        if layer:
            network = replace(network, classes=None)
        unit = "activation" if layer else "logit"
        unit = unit if options.probability is None else "probability"
        index = int(base.argmax())
        if options.target is not None:
            index = network.find(options.target, outputs=len(base))
        if self.top is not None:
            arguments["top"] = self.top
            if index not in base.topk(min(self.top, len(base))).indices.tolist():
                raise ValueError(
                    f"expected a --target among the --top {self.top}, got {network.label(index)}"
                )
        job = Job(photo, self._places(photo), arguments, base, unit, index, network, layer)
        backsight.plan(network.model, photo.image, **job.places, **arguments)
        return job

    def _places(self, photo: Photo) -> dict[str, Any]:
        if self.table is not None:
            return {"boxes": self.table}
        if self.window is not None:
            return {"window": self.window, "stride": self.stride, "edge": self.edge}
        size = photo.pixels.shape[:2]
        found = []
        for axis, width in enumerate(self.bands):
            if width is not None:
                step = min(_STRIDE, width) if self.stride is None else self.stride[axis]
                along = grid(size[axis : axis + 1], (width,), (step,), self.edge).boxes
                bands = torch.tensor([0, 0, *size]).repeat(len(along), 1)
                bands[:, [axis, axis + 2]] = along
                found.append(bands)
        return {"boxes": torch.cat(found)}

    def _content(self, photo: Photo) -> Any:
        how = self.network.preprocessing
        if self.cover == "training":
            return 0.0
        if isinstance(self.cover, str):
            return self.cover
        color = how.color if self.units == "pixel" else how.ordered
        return color(self.cover).to(photo.image)

    def _region(self, region: str, photo: Photo, outputs: Tensor) -> Any:
        """The mask (H, W) of a dense output, each cell the share of it that lies in the region."""
        if region in ("all", "predicted"):
            return region
        mask = read_image(region)
        if mask.shape[:2] == photo.original:
            nearest = replace(self.network.preprocessing, interpolation="nearest")
            mask = nearest.pixels(mask, size=self.options.size, full=self.options.full)
        if mask.shape[:2] != photo.pixels.shape[:2]:
            raise ValueError(
                f"expected a mask of the photo's size {by(photo.original)} or of the prepared"
                f" image's {by(photo.pixels.shape[:2])}, got {by(mask.shape[:2])}"
            )
        inside = torch.from_numpy(mask.astype(np.float64).mean(2) >= 127.5).to(torch.float64)
        if outputs.ndim != 4:
            return inside
        size = (outputs.shape[2], outputs.shape[3])
        return F.adaptive_avg_pool2d(inside[None], size)[0].to(photo.image.device)
