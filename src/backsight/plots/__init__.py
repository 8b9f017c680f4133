"""Figures of what the methods find: from arrays alone; matplotlib is loaded for the first."""

from .canvas import png
from .curves import Line, curves
from .fields import fields
from .maps import overlay, readings
from .panels import Panel, panels
from .pictures import gallery
from .predictions import prediction_maps
from .scatter import picture_map, rows_of_pictures
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
    "gallery",
    "overlay",
    "panels",
    "picture_map",
    "png",
    "prediction_maps",
    "projections",
    "readings",
    "rows_of_pictures",
    "tiles",
    "units",
]
