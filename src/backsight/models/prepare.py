"""Models made ready for sweeping: captured, folded, checked against themselves, and remembered."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..graph import (
    CaptureError,
    Graph,
    Packs,
    RefusedError,
    capture,
    fold_batch_norms,
    lower,
    refuse_training,
)
from .call import Call
from .fingerprint import Marks
from .layers import LayerGraphs
from .scores import check_scores, scores_of

#: How far a replay may lie from the model's own output of each dtype, relative to its largest
#: score: folding rounds anew.
_AGREE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}


#: Captured graphs that are kept per model: one for each size of image, layer, ...
_KEPT = 4


@dataclass
class Prepared:
    """A captured graph, or the reason why there is none; the shape of one output; weights laid
    out; and plans made for it.

    `watched`: whether every change of the model would be noticed by its fingerprint.
    """

    graph: Graph | None
    reason: str | None
    shape: tuple[int, ...]
    packs: Packs = field(default_factory=Packs)
    plans: dict[Any, Any] = field(default_factory=dict)
    watched: bool = True
    verified: bool = False


@dataclass
class _Layers:
    """The layer of a model that was asked for first; all of them, once there is a second one."""

    key: Any
    first: str
    tried: bool = False
    graphs: LayerGraphs | None = None


_known: weakref.WeakKeyDictionary[Any, OrderedDict[Any, Prepared]] = weakref.WeakKeyDictionary()
_layers: weakref.WeakKeyDictionary[Any, _Layers] = weakref.WeakKeyDictionary()
_lock = threading.RLock()


def _renew_lock() -> None:
    """In a forked process, whose other threads are gone with what they held."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def prepare(call: Call, images: Tensor, *, lowered: bool = True) -> Prepared:
    """Capture a model for images of this shape, dtype and device, unless that was done and nothing
    has changed.

    `lowered`: the graph is one to run fast; otherwise its operations stay apart.
    """
    model = call.owner
    with _lock:
        if model is None:
            return _captured(call, images, lowered)  # what a function refers to cannot be watched
        check_fit(model, images)
        marks = Marks()
        # A change of the weights or of the model makes all that was captured before useless.
        state = marks.module(model)
        image = tuple(images.shape[1:]), images.dtype, str(images.device)
        asked = image, call.mark(marks), lowered
        entries = _known.setdefault(model, OrderedDict())
        for old in [k for k in entries if k[0] != state]:
            del entries[old]
        key = state, asked
        if key not in entries:
            check_finite(model)
            graph = None
            if call.layer is not None and not call.total and not lowered:
                graph = _shared(call, images, (state, image, call.mark_of_run(marks)))
            entries[key] = _captured(call, images, lowered, graph)
            entries[key].watched = marks.complete
        entries.move_to_end(key)
        while len(entries) > _KEPT:
            entries.popitem(last=False)
        return entries[key]


def forget(call: Call) -> None:
    """Drop what was captured of a model."""
    with _lock:
        if call.owner is not None:
            _known.pop(call.owner, None)
            _layers.pop(call.owner, None)


def _shared(call: Call, images: Tensor, key: Any) -> Graph | None:
    """The graph up to a layer out of one capture for all layers, which takes twice as long as that
    for one: worth it from the second layer on.
    """
    assert call.layer is not None
    known = _layers.get(call.owner)
    if known is None or known.key != key:
        _layers[call.owner] = _Layers(key, call.layer)
        return None
    if not known.tried and known.first != call.layer:
        known.tried = True
        # A model may run as far as some of its layers, and others cannot be captured.
        with contextlib.suppress(Exception):
            known.graphs = LayerGraphs(call, images)
    graph = known.graphs.up_to(call.layer) if known.graphs is not None else None
    if graph is None or not _agrees(graph, call, images, scores_of(_own(call, images), 1)):
        return None
    return graph


def _captured(call: Call, images: Tensor, lowered: bool, graph: Graph | None = None) -> Prepared:
    packs = Packs()
    try:
        shape = tuple(images.shape[1:])
        if graph is None:
            graph = capture(call, shape, images.dtype, images.device, call.sides, within="model")
        graph = fold_batch_norms(graph)
        graph = lower(graph, packs) if lowered else graph
    except RefusedError:
        raise
    except Exception as error:
        # Whatever a model does that the graph has no place for, it runs as it is.
        output = _own(call, images)
        scores_of(output, 1)
        return Prepared(None, str(CaptureError.of(error)), tuple(output.shape[1:]))
    return Prepared(graph, None, graph.nodes[graph.output].shape, packs)


def _own(call: Call, images: Tensor) -> Tensor:
    """The model's own output for the first image, which must come out of it unchanged."""
    image = images[:1].clone()
    output: Tensor = call(image, *(side[:1] for side in call.sides))
    if not torch.equal(image, images[:1]):
        raise ValueError(
            "expected a model that leaves its input as it is, got one that changes it in place"
        )
    return output


def verify(prepared: Prepared, call: Call, images: Tensor) -> bool:
    """Compare the captured graph's output for the first image with the model's own: once, or at
    every call for a model that may change unseen.

    A graph that does not reproduce it is dropped, and the model runs plainly.

    Returns:
        False for a graph that did reproduce the model and no longer does: the model has changed.

    Raises:
        ValueError: the model changes its input in place, or its scores for an image depend on
            chance or on the rest of the batch.
    """
    with _lock:
        if prepared.verified and (prepared.watched or prepared.graph is None):
            return True
        own = scores_of(_own(call, images), 1)
        if prepared.verified:
            assert prepared.graph is not None
            return _agrees(prepared.graph, call, images, own)
        check_scores(own)
        if not close(scores_of(_own(call, images), 1), own):
            raise ValueError(
                "expected a model without randomness, got other scores for the same image"
            )
        _check_independence(call, images, own)
        if prepared.graph is not None and not _agrees(prepared.graph, call, images, own):
            prepared.graph = None
            prepared.reason = "the captured graph does not compute what the model does"
            prepared.plans.clear()
        prepared.verified = True
        return True


def _check_independence(call: Call, images: Tensor, own: Tensor) -> None:
    """Refuse a model whose scores for an image depend on what stands beside it in the batch."""
    image = images[:1]
    sides = [torch.cat([side[:1], side[:1]]) for side in call.sides]
    # Neighbours with a weaker picture, and with larger and smaller values than any of the image.
    sign = 1.0 - 2.0 * (torch.arange(image.shape[-1], device=image.device) % 2).to(image.dtype)
    strong = sign * (3 * image.flip(-1).abs() + image.abs().mean() + 1)
    for other in (image.flip(-1) * 0.5, strong):
        scores = scores_of(call(torch.cat([image, other]), *sides), 2)[:1]
        if not close(scores, own):
            raise ValueError(
                "expected a model that scores each image by itself,"
                " got other scores for the same image in another batch"
            )


def close(scores: Tensor, own: Tensor) -> bool:
    """Whether scores are a model's own but for rounding, in a dtype."""
    scale = own.abs().max().clamp_min(torch.finfo(own.dtype).tiny)
    return bool((scores - own).abs().max() <= _AGREE[own.dtype] * scale)


def _agrees(graph: Graph, call: Call, images: Tensor, own: Tensor) -> bool:
    try:
        replayed = graph(images[:1], *(side[:1] for side in call.sides)).reshape(1, -1)
    except Exception:
        return False  # what cannot be replayed reproduces nothing
    return replayed.shape == own.shape and close(replayed, own)


def check_fit(model: nn.Module, images: Tensor) -> None:
    """Refuse a model on another device or of another dtype than the images, and layers in training
    mode.
    """
    for name, module in model.named_modules():
        batch_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if module.training and (
            batch_norm or (isinstance(module, nn.modules.dropout._DropoutNd) and module.p)
        ):
            refuse_training(name, f"a {type(module).__name__}")
    dtypes = set()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.device != images.device:
            raise ValueError(
                f"expected model and images on one device, got {name} on {tensor.device}"
                f" and images on {images.device}"
            )
        if tensor.is_floating_point():
            dtypes.add(tensor.dtype)
    if dtypes and images.dtype not in dtypes:
        names = ", ".join(sorted(map(str, dtypes)))
        raise ValueError(f"expected images of the model's dtype ({names}), got {images.dtype}")


def check_finite(model: nn.Module) -> None:
    """Refuse parameters that hold NaN or infinity. (Buffers may: masks of minus infinity are
    common.)
    """
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise ValueError(f"expected finite weights, got NaN or infinity in {name}")
