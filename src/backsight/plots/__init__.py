"""Figures of what the methods find: from arrays alone; matplotlib is loaded for the first."""

from .canvas import png
from .maps import overlay, readings
from .panels import Panel, panels
from .pictures import gallery
from .tables import Cells, cells
from .units import projections, units

__all__ = [
    "Cells",
    "Panel",
    "cells",
    "gallery",
    "overlay",
    "panels",
    "png",
    "projections",
    "readings",
    "units",
]
