"""What the scripts beside it share: the photo, the network, and pictures that are small files."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import skimage
from matplotlib.figure import Figure
from PIL import Image

from backsight import zoo
from backsight.plots import png

COFFEE = Path(skimage.__file__).parent / "data" / "coffee.png"
WIDTH = 700  # pixels
LARGEST = 60_000  # bytes


@cache
def network() -> zoo.Network:
    return zoo.squeezenet()


def draw(makes: Sequence[Callable[[], Figure | bytes | None]]) -> None:
    """Write what each makes, a figure or a PNG, as a small JPEG of its name: all, or those that the
    command line names. None: it could not be made.
    """
    for make in makes:
        name = make.__name__.replace("_", "-")
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        found = make()
        if found is None:
            print(f"{name}: not drawn, there is no chromium")
            continue
        picture = Image.open(io.BytesIO(found if isinstance(found, bytes) else png(found))).convert(
            "RGB"
        )
        height = round(picture.height * WIDTH / picture.width)
        picture = picture.resize((WIDTH, height), Image.Resampling.LANCZOS)
        path = Path(__file__).with_name(f"{name}.jpg")
        for quality in range(85, 20, -5):
            picture.save(path, quality=quality, optimize=True)
            if path.stat().st_size <= LARGEST:
                break
        print(path, f"{path.stat().st_size / 1000:.0f} kB")
