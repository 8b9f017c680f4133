"""A model captured as our own node table."""

from ..ops.packs import Packs
from .capture import capture
from .fields import (
    is_aside,
    is_fixed,
    projective_fields,
    receptive_field,
    receptive_fields,
    window_reads,
)
from .fold import fold_batch_norms
from .lower import lower
from .node import Graph, Node, Ref
from .refusals import CaptureError, NoGraphError, RefusedError, refuse_training

__all__ = [
    "CaptureError",
    "Graph",
    "NoGraphError",
    "Node",
    "Packs",
    "Ref",
    "RefusedError",
    "capture",
    "fold_batch_norms",
    "is_aside",
    "is_fixed",
    "lower",
    "projective_fields",
    "receptive_field",
    "receptive_fields",
    "refuse_training",
    "window_reads",
]
