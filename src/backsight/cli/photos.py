"""Several photos: which they are, what their results are called, one after the other."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from backsight.cli import BAD_INPUT, complain, refusals
from backsight.cli.reader import Photo, Reader
from backsight.io import pictures

__all__ = ["Pictures", "each", "expanded", "names"]

#: What the pictures that the commands write are called, or end in; they are no photos.
_VIEWS = (
    *("activations", "cam", "class-model", "deconv", "detections", "dream", "faithfulness", "fool"),
    *("fully-convolutional", "occlusion", "readings", "receptive-field", "rotation", "saliency"),
    "style",
)
_OURS = tuple(f".{view}.png" for view in _VIEWS)
_SHEETS = (
    *("units.png", "filters.png", "feature-map.png", "feature-map.neighbours.png"),
    "class-model.png",
)

R = TypeVar("R", bound=Reader)


def expanded(photos: Sequence[Path]) -> list[Path]:
    """The photos, with the pictures of a folder in its place."""
    found: list[Path] = []
    for path in photos:
        inside = pictures(path) if path.is_dir() else [path]
        found += [p for p in inside if p == path or not _is_ours(p.name)]
    if not found:
        raise ValueError("expected photos, got a folder of nothing but results")
    return list(dict.fromkeys(found))


def _is_ours(name: str) -> bool:
    return name in _SHEETS or name.endswith(_OURS)


def names(photos: Sequence[Path]) -> dict[Path, str]:
    """What each photo's files are called: its name, with its ending where that tells it apart."""
    stems = Counter(path.stem for path in photos)
    found = {path: path.stem if stems[path.stem] == 1 else path.name for path in photos}
    for name, count in Counter(found.values()).items():
        if count > 1:
            raise ValueError(f"expected photos of different names, got {count} called {name}")
    return found


def each(
    photos: Sequence[Path], make: Callable[[], R], do: Callable[[R, Photo, float], None]
) -> int:
    """Do something for each photo.

    Of several, one that cannot be read or done is named, and the others are done; but where the
    first one that can be read cannot be done, the options are to blame, and that is all.

    Args:
        photos: where they lie.
        make: makes what reads them.
        do: takes the reader, the photo, and when the work on it began.

    Returns:
        The exit code: 2 where some of several photos could not be done, 0 otherwise.
    """
    started = time.perf_counter()
    reader = make()
    code, done = 0, False
    for path in photos:
        read = False
        try:
            photo = reader.open(path)
            read = True
            do(reader, photo, started)
            done = True
        except refusals() as error:
            if len(photos) == 1 or (read and not done):
                raise
            text = str(error) or type(error).__name__
            code = complain(text if str(path) in text else f"{path}: {text}", BAD_INPUT)
        started = time.perf_counter()
    return code


class Pictures:
    """Prepared photos as a data set, with None for those that cannot be read."""

    def __init__(self, reader: Reader, paths: Sequence[Path]) -> None:
        self.reader = reader
        self.paths = paths
        self._why: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor | None:
        photo = self._open(index)
        return None if photo is None else photo.image[0]

    def any(self) -> Photo:
        """The first that can be read.

        Raises:
            ValueError: none can.
        """
        for index in range(len(self)):
            photo = self._open(index)
            if photo is not None:
                return photo
        raise ValueError(
            self._why[0]
            if len(self) == 1
            else f"expected pictures, and none of {len(self)} can be read: {self._why[0]}"
        )

    def why(self, index: int) -> str:
        """Why a picture cannot be read."""
        if index not in self._why:  # left out before a search was taken up
            self._open(index)
        text = self._why.get(index, "it was left out when the checkpoint was written")
        path = str(self.paths[index])
        return text if path in text else f"{path}: {text}"

    def _open(self, index: int) -> Photo | None:
        try:
            return self.reader.open(self.paths[index])
        except ValueError as error:
            self._why[index] = str(error)
            return None
