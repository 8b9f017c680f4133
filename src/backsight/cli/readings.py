"""Figure 7 of Zeiler & Fergus (arXiv:1311.2901): the readings of a sweep beside the photo.

By their letters: for every position (a) the probability of the class, (b) the total activation of
the feature map that is strongest in the unoccluded photo and (d) the most probable class; and once,
for the unoccluded photo, (c) that feature map projected down to the pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

import backsight
from backsight import plots
from backsight.cli.layer import picture, put_out
from backsight.cli.task import Job
from backsight.cli.words import short
from backsight.graph import NoGraphError
from backsight.store import save_npz, write_bytes, write_json

__all__ = ["Readings", "last_maps"]


class Readings:
    """The readings of one photo: first what can be wrong, then the sweep, then the files.

    Attributes:
        layer: the feature maps' layer.
        channel: the one whose total activation is the largest in the unoccluded photo, chosen once.
        base: that total.
        projection: of the feature map, (height, width, 3) RGB; None if the network's graph cannot
            be captured.
        picture: the figure as PNG, once it is drawn.
    """

    def __init__(self, job: Job, layer: str, channel: int, base: float) -> None:
        self.layer = layer
        self.channel = channel
        self.base = base
        self.projection = _projected(job, layer, channel)
        self._job = job
        self._arguments = {
            **job.places,
            "baseline": job.arguments["baseline"],
            "memory": job.arguments["memory"],
            "layer": layer,
        }

    @classmethod
    def of(cls, job: Job, layer: str | None) -> Readings:
        """Those of a photo at a layer; at the last one with maps unless told.

        Raises:
            ValueError: the network has no such layer, or no layer with maps at all.
        """
        model, image = job.network.model, job.photo.image
        layer = last_maps(model, image) if layer is None else layer
        probe = backsight.occlusion(model, image, boxes=[[0, 0, 1, 1]], layer=layer)
        channel = int(probe.base[0].argmax())
        return cls(job, layer, channel, float(probe.base[0, channel]))

    def sweep(self, result: backsight.Occlusion, *, show_progress: bool) -> None:
        """Read (a) and (d) from the sweep of the classes, and sweep the feature map for (b)."""
        job = self._job
        rows, columns = result.grid_shape or (0, 0)
        occluded = result.scores[0].double()
        if job.unit == "logit":
            occluded = occluded.softmax(1)
        self.probability = occluded[:, job.index].reshape(rows, columns).cpu().numpy()
        self.most_probable = result.most_probable()[0].cpu().numpy()
        self.boxes = result.boxes.cpu().numpy()
        found = backsight.occlusion(
            job.network.model,
            job.photo.image,
            **self._arguments,
            targets=[self.channel],
            show_progress=show_progress,
        )
        self.activation = found.scores[0, :, 0].reshape(rows, columns).cpu().numpy()

    def draw(self, covering: str) -> None:
        """The picture: the photo and the three readings."""
        job = self._job
        middles = (self.boxes[:, :2] + self.boxes[:, 2:]) / 2
        shape = self.probability.shape
        rows = middles[:, 0].reshape(shape)[:, 0].tolist()
        columns = middles[:, 1].reshape(shape)[0].tolist()
        label = job.label(job.index)
        figure = plots.readings(
            job.photo.pixels,
            (rows, columns),
            activation=self.activation,
            probability=self.probability,
            most_probable=self.most_probable,
            projection=self.projection,
            names={int(index): job.label(int(index)) for index in np.unique(self.most_probable)},
            title=f"{short(job.photo.path.name)}, {short(job.network.name)}",
            labels=(f"feature map {self.channel} of {short(self.layer)}", short(label)),
            note=f"{covering}; unoccluded: activation {self.base:.3g}, "
            f"probability {self._share:.3g}",
        )
        self.picture = plots.png(figure)

    @property
    def _share(self) -> float:
        """The class's probability in the unoccluded photo."""
        assert self._job.probabilities is not None
        return float(self._job.probabilities[self._job.index])

    def files(self, head: dict[str, Any]) -> dict[str, Callable[[Path], None]]:
        """What writes each file, by its ending."""
        job = self._job
        counts = Counter(self.most_probable.ravel().tolist())
        meta = {
            **head,
            "class": {
                "index": job.index,
                "name": job.label(job.index),
                "probability": self._share,
            },
            "feature_map": {
                "layer": self.layer,
                "channel": self.channel,
                "activation": self.base,
                "projected": self.projection is not None,
            },
            "order": "RGB",
            "most_probable": [
                {"index": index, "name": job.label(index), "positions": count}
                for index, count in counts.most_common()
            ],
        }
        arrays = {
            "activation": self.activation,
            "probability": self.probability,
            "most_probable": self.most_probable,
            "boxes": self.boxes,
        }
        if self.projection is not None:
            arrays["projection"] = self.projection
        return {
            "png": lambda path: write_bytes(path, self.picture),
            "npz": lambda path: save_npz(path, arrays, meta),
            "json": lambda path: write_json(path, meta),
        }


def _projected(job: Job, layer: str, channel: int) -> npt.NDArray[Any] | None:
    """All of a feature map of the unoccluded photo, sent back by the deconvnet."""
    network, image = job.network, job.photo.image
    maps = put_out(network.model, layer, image)
    signal = torch.zeros_like(maps)
    signal[:, channel] = maps[:, channel]
    try:
        found = backsight.project(network.model, image, layer, [[0]], seed=signal)
    except NoGraphError:
        return None
    return picture(network, found.whole(0))


def last_maps(model: nn.Module, image: Tensor) -> str:
    """The name of the last layer whose output is maps, before pools that only bring the head its
    size.
    """
    found: list[str] = []
    pools = nn.modules.pooling._AdaptiveAvgPoolNd | nn.modules.pooling._AdaptiveMaxPoolNd

    def keep(name: str, module: nn.Module) -> Any:
        def look(_: nn.Module, __: Any, out: Any) -> None:
            maps = isinstance(out, Tensor) and out.ndim == 4 and out.shape[2] * out.shape[3] > 1
            if maps and not isinstance(module, pools):
                found.append(name)

        return module.register_forward_hook(look)

    handles = [keep(name, module) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad():
            model(image)
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise ValueError("expected a network with a layer of maps for --readings: name a --layer")
    return found[-1]
