"""torch.export's graph of a model."""

from __future__ import annotations

import contextlib
import io
import logging
import operator
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .refusals import CaptureError


def export(module: nn.Module, examples: Sequence[Tensor]) -> Any:
    """The exported program of `module` for arguments like `examples`, with any first axis.

    Raises:
        CaptureError: torch.export cannot.
        MemoryError: it could with more memory.
    """
    shapes = torch.export.ShapesCollection()
    for tensor in examples:
        shapes[tensor] = {0: torch.export.Dim.DYNAMIC}
    try:
        with torch.no_grad(), _quiet():
            dynamic = shapes.dynamic_shapes(module, (*examples,))
            exported = torch.export.export(
                module, (*examples,), dynamic_shapes=dynamic, strict=False
            )
            if (
                _writes_through_views(exported.graph)
                or _has_regions(exported.graph)
                or torch.is_autocast_enabled(examples[0].device.type)
            ):
                # An empty table: in-place operations become functional ones, regions are inlined,
                # what autocast does becomes casts, and everything else stays as it is.
                exported = exported.run_decompositions({})
    except MemoryError:
        raise  # not the model's fault
    except SystemError as error:  # where Python has no memory left to say so
        raise MemoryError from error
    except Exception as error:
        raise CaptureError.of(error) from error
    return exported


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch.export's warnings and graph dumps off the terminal: its error says enough."""
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def written_to(fx: Any) -> Any:
    """The fx node that an in-place operation writes to, or None."""
    schema = getattr(fx.target, "_schema", None)
    if fx.op != "call_function" or schema is None:
        return None
    for argument, value in zip(schema.arguments, fx.args, strict=False):
        if argument.alias_info is not None and argument.alias_info.is_write:
            return value
    return None


def _writes_through_views(graph: Any) -> bool:
    """Whether an in-place operation changes a value that is also read under another name (a view of
    it).

    The rest is turned into functional operations here, which takes no time; export's own pass takes
    seconds.
    """
    order = {fx: i for i, fx in enumerate(graph.nodes)}
    root: dict[Any, Any] = {fx: fx for fx in graph.nodes}
    family: dict[Any, list[Any]] = {fx: [fx] for fx in graph.nodes}
    for fx in graph.nodes:
        schema = getattr(fx.target, "_schema", None)
        source = fx.args[0] if fx.args and isinstance(fx.args[0], torch.fx.Node) else None
        written = written_to(fx)
        if written is not None:
            if not isinstance(written, torch.fx.Node) or written is not source:
                return True
            others = [v for v in family[root[written]] if v is not written]
            if any(order[user] > order[fx] for v in others for user in v.users if user is not fx):
                return True
            root[fx] = fx  # from here on the old name means the new value
            continue
        views = schema is not None and any(r.alias_info is not None for r in schema.returns)
        if source is not None and (views or "dropout" in fx.name or fx.target is operator.getitem):
            root[fx] = root[source]
            family[root[fx]].append(fx)
    return False


def _has_regions(graph: Any) -> bool:
    """Whether a part of the model runs in a context of its own (autocast, no_grad)."""
    return any(isinstance(fx.target, torch._ops.HigherOrderOperator) for fx in graph.nodes)
