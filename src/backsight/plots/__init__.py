"""Figures of what the methods find: from arrays alone; matplotlib is loaded for the first."""

from .canvas import png
from .curves import Line, curves
from .fields import fields
from .maps import overlay, readings
from .panels import Panel, panels
from .tables import Cells, cells
from .tiles import Tile, tiles
from .units import projections, units

__all__ = [
    "Cells",
    "Line",
    "Panel",
    "Tile",
    "cells",
    "curves",
    "fields",
    "overlay",
    "panels",
    "png",
    "projections",
    "readings",
    "tiles",
    "units",
]
