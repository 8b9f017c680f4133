"""Empty figures, and what all kinds of them share."""

from __future__ import annotations

import io
import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "EMPTY",
    "cell_edges",
    "check_photo",
    "check_picture",
    "empty_figure",
    "load_matplotlib",
    "outline",
    "png",
    "shades",
    "wrapped",
]

EMPTY = 0.93  # the gray of a tile that shows nothing
_CUT = 0.01  # the share of a projection that is drawn as strong as can be


def load_matplotlib() -> Any:
    try:
        import matplotlib
        import matplotlib.figure
    except ImportError as error:
        raise ImportError(
            'figures need matplotlib: pip install "backsight[cli]"', name="matplotlib"
        ) from error
    return matplotlib


def empty_figure(size: tuple[float, float], padding: float = 0.04) -> Figure:
    """An empty figure of so many inches, with so many around each panel and what belongs to it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=110)
    figure.set_layout_engine("constrained", w_pad=padding, h_pad=padding)
    FigureCanvasAgg(figure)
    return figure


def png(figure: Figure) -> bytes:
    """The figure as the bytes of a PNG file; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def shades(picture: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """A signed picture in 0..1, with 0 in the middle.

    A few dots are many times stronger than all the rest, which would be lost in gray beside them:
    the strongest hundredth of what is not 0 is cut off.
    """
    values = picture.astype(np.float64)
    strength = np.abs(values[values != 0])
    most = np.quantile(strength, 1 - _CUT) if strength.size else 1.0
    shades: npt.NDArray[np.float64] = 0.5 + np.clip(values / most, -1.0, 1.0) / 2
    return shades


def outline(axes: Any, left: float, top: float, width: float, height: float) -> None:
    """A box in black within white, which stands out from any photo."""
    from matplotlib.patches import Rectangle

    for line, color in ((3.0, "white"), (1.4, "black")):
        box = Rectangle((left, top), width, height, fill=False, edgecolor=color, lw=line)
        axes.add_patch(box)


def cell_edges(centres: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Where the cells around rising centres end, in the coordinates of pixels' centres."""
    between = (centres[1:] + centres[:-1]) / 2
    first = centres[0] - (between[0] - centres[0] if len(between) else 0.5)
    last = centres[-1] + (centres[-1] - between[-1] if len(between) else 0.5)
    edges: npt.NDArray[np.float64] = np.array([first, *between, last]) - 0.5
    return edges


def wrapped(name: str, width: int = 16, lines: int = 2) -> str:
    """A name for a narrow legend."""
    return "\n".join(textwrap.wrap(name, width, max_lines=lines, placeholder=" ..."))


def check_photo(photo: npt.NDArray[np.uint8]) -> None:
    if photo.ndim != 3 or photo.shape[2] != 3 or photo.dtype != np.uint8:
        raise ValueError(f"expected a (H, W, 3) uint8 photo, got {photo.shape} of {photo.dtype}")


def check_picture(picture: npt.NDArray[Any], size: tuple[int, ...]) -> None:
    if picture.shape != (*size, 3):
        raise ValueError(f"expected a projection of {(*size, 3)}, got {picture.shape}")
    if not np.isfinite(picture).all():
        raise ValueError("expected a finite projection, got one with a NaN or an infinity")
