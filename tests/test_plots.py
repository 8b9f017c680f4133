"""Figures: right sizes and limits, no clipped text, and no traces in matplotlib's settings."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest

from backsight.plots import overlay, png

matplotlib = pytest.importorskip("matplotlib", reason="figures need matplotlib")

PHOTO = np.random.default_rng(9).integers(0, 256, (40, 60, 3), dtype=np.uint8)
HEAT = np.linspace(-1.0, 3.0, 2400).reshape(40, 60)


def test_colours_are_centred_on_zero() -> None:
    figure = overlay(PHOTO, HEAT, title="t", label="drop of the logit")
    bar = figure.axes[-1]
    assert bar.get_ylim() == (-3.0, 3.0)
    assert bar.get_ylabel() == "drop of the logit"
    assert overlay(PHOTO, HEAT, title="t", limit=5.0).axes[-1].get_ylim() == (-5.0, 5.0)
    assert overlay(PHOTO, 0 * HEAT, title="t").axes[-1].get_ylim() == (-1.0, 1.0)


def test_a_red_spot_is_red_and_a_blue_one_blue() -> None:
    """Read from the picture itself: a drop, a rise, and nothing, on a gray photo."""
    heat = np.zeros((30, 30))
    heat[:, :10], heat[:, 20:] = 2.0, -2.0
    figure = overlay(np.full((30, 30, 3), 128, np.uint8), heat, title="t")
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba()).astype(int)
    panel = figure.axes[1]

    def color(column: float) -> list[int]:
        x, y = panel.transData.transform((column, 15))
        return pixels[pixels.shape[0] - 1 - int(y), int(x), :3].tolist()

    red, nothing, blue = color(5), color(15), color(25)
    assert red[0] > red[2] + 50
    assert blue[2] > blue[0] + 50
    assert max(nothing) - min(nothing) <= 2


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (10, 90), (90, 10), (227, 227)])
def test_no_text_is_clipped_and_none_overlaps(shape: tuple[int, int]) -> None:
    photo = np.zeros((*shape, 3), np.uint8)
    heat = np.linspace(-2e-4, 1e-4, photo[..., 0].size).reshape(shape)
    figure = overlay(
        photo,
        heat,
        title="Cardigan, Cardigan Welsh corgi (class 264), probability 0.971",
        note=f"{'n' * 30}, {'m' * 20}, window 32 x 32, stride 8 x 8\nthe largest drop, 0.000123",
        label="drop of the logit, mean over covering boxes",
        box=(0, 0, 5, 5),
    )
    figure.canvas.draw()
    width, height = figure.canvas.get_width_height()
    bar = figure.axes[-1]
    words = [figure.get_suptitle(), figure.get_supxlabel()]
    drawn = [text for text in figure.findobj(matplotlib.text.Text) if text.get_text() in words]
    drawn += [bar.yaxis.label, *bar.get_yticklabels(), bar.yaxis.get_offset_text()]
    boxes = [text.get_window_extent() for text in drawn if text.get_text()]
    boxes += [panel.get_window_extent() for panel in figure.axes]
    assert len(boxes) > 8
    for box in boxes:
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= width
        assert box.y1 <= height
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_same_figure_is_the_same_file() -> None:
    first, second = (png(overlay(PHOTO, HEAT, title="t", box=(1, 2, 3, 4))) for _ in range(2))
    assert first == second
    image = pytest.importorskip("PIL.Image").open(io.BytesIO(first))
    assert image.format == "PNG"


def test_pyplot_and_settings_are_left_alone() -> None:
    program = (
        "import sys, numpy as np, matplotlib\n"
        # asking for the backend makes matplotlib choose one and import pyplot
        "names = [name for name in matplotlib.rcParams if name != 'backend']\n"
        "before = [matplotlib.rcParams[name] for name in names]\n"
        "from backsight.plots import overlay, png\n"
        "png(overlay(np.zeros((9, 9, 3), np.uint8), np.ones((9, 9)), title='t'))\n"
        "after = [matplotlib.rcParams[name] for name in names]\n"
        "print(after == before, 'matplotlib.pyplot' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "True False\n"


def test_what_does_not_fit_gets_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"expected a map of \(40, 60\) like the photo"):
        overlay(PHOTO, HEAT.T, title="t")
    with pytest.raises(ValueError, match="uint8 photo"):
        overlay(PHOTO / 255, HEAT, title="t")
    with pytest.raises(ValueError, match="finite map"):
        overlay(PHOTO, np.where(HEAT > 0, np.nan, HEAT), title="t")
    with pytest.raises(ValueError, match="positive limit"):
        overlay(PHOTO, HEAT, title="t", limit=0.0)
