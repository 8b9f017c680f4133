"""``backsight feature-map``: a folder of photos as the network sees them, on one sheet."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import backsight
from backsight import plots
from backsight._version import __version__
from backsight.cli import BAD_INPUT, complain
from backsight.cli.contents import Shared
from backsight.cli.files import check_folder, write_all
from backsight.cli.photos import Pictures, expanded
from backsight.cli.reader import Reader
from backsight.store import write_bytes, write_json

__all__ = ["map_photos"]

_BATCH = 32  # photos in memory at a time


def map_photos(photos: Sequence[Path], shared: Shared, layer: str | None, seed: int) -> int:
    """Do what the command says; what can be wrong with the options is found at the first photo.

    Returns:
        The exit code: 2 where some of the photos could not be read, 0 otherwise.

    Raises:
        ValueError: bad input, in one sentence.
        ImportError: something that is not installed, in one sentence.
    """
    started = time.perf_counter()
    check_folder(shared.output)
    reader = Reader(shared.source)
    dataset = _Batches(Pictures(reader, expanded(photos)))
    dataset.photos.any()
    loaded = time.perf_counter()
    found = backsight.feature_map(
        reader.network,
        dataset,
        layer=layer,
        seed=seed,
        show_progress=not shared.quiet,
        device=reader.device,
    )
    done = time.perf_counter()
    skipped = [dataset.photos.why(index) for index in dataset.skipped]
    endings = {"png": "png", "neighbours": "neighbours.png", "npz": "npz", "json": "json"}
    paths = {kind: shared.output / f"feature-map.{end}" for kind, end in endings.items()}
    neighbours = plots.png(found.plot_neighbours())
    report: dict[str, Any] = {
        "backsight": __version__,
        "model": reader.network.name,
        "photos": [str(dataset.photos.paths[index]) for index in dataset.taken],
        "skipped": skipped,
        **found.report(),
        "seconds": {"load": loaded - started, "map": done - loaded},
        "files": {kind: str(path) for kind, path in paths.items()},
    }
    write_all(
        shared.output,
        {
            paths["png"]: found.save,
            paths["neighbours"]: lambda path: write_bytes(path, neighbours),
            paths["npz"]: found.save,
            paths["json"]: lambda path: write_json(path, report),
        },
    )
    for sentence in skipped:
        complain(sentence)
    if shared.as_json:
        print(json.dumps(report, ensure_ascii=False, allow_nan=False), flush=True)
    else:
        lines = [found.summary(), *(f"{kind}: {path}" for kind, path in paths.items())]
        print("\n".join(lines), flush=True)
    return BAD_INPUT if skipped else 0


@dataclass
class _Batches:
    """Photos in batches of one size, without those that cannot be read."""

    photos: Pictures

    def __post_init__(self) -> None:
        self.taken: list[int] = []
        self.skipped: list[int] = []

    def __iter__(self) -> Iterator[Tensor]:
        held: list[Tensor] = []
        for index in range(len(self.photos)):
            image = self.photos[index]
            if image is None:
                self.skipped.append(index)
                continue
            self.taken.append(index)
            if held and (len(held) == _BATCH or image.shape != held[0].shape):
                yield torch.stack(held)
                held = []
            held.append(image)
        if held:
            yield torch.stack(held)
