"""Draws the pictures of deconvolution.md beside it: ``python docs/deconvolution.py``."""

from __future__ import annotations

from pathlib import Path

import backsight
from backsight.plots import png

HERE = Path(__file__).resolve().parent
EXAMPLES = {
    "deconvolution_1d.png": backsight.explain_deconv([1, 2, 3, 4, 5], [1, 2, 3, 4], 2, 2),
    "deconvolution_2d.png": backsight.explain_deconv(
        *[[[4 * row + column + 1 for column in range(4)] for row in range(4)]] * 2, 2, 2
    ),
}

if __name__ == "__main__":
    for name, explained in EXAMPLES.items():
        (HERE / name).write_bytes(png(explained.plot()))
        print(f"{HERE / name}\n{explained}\n")
