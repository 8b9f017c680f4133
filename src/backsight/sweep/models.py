"""Models made ready for sweeping: captured, folded, checked against themselves, and remembered."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..graph import CaptureError, Graph, Packs, capture, fold_batch_norms, lower, refuse_training
from .plain import check_scores, scores_of

Model = Callable[[Tensor], Tensor]

#: How far a replay may lie from the model's own output, relative to its largest score: folding
#: rounds anew.
_AGREE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}


@dataclass
class Prepared:
    """A captured graph, or the reason why there is none; its weights laid out; and plans made for
    it.
    """

    graph: Graph | None
    reason: str | None
    outputs: int
    packs: Packs = field(default_factory=Packs)
    plans: dict[Any, Any] = field(default_factory=dict)
    verified: bool = False


_known: weakref.WeakKeyDictionary[Any, dict[Any, Prepared]] = weakref.WeakKeyDictionary()
_lock = threading.RLock()


def prepare(model: Model, images: Tensor) -> Prepared:
    """Capture `model` for images of this shape, dtype and device, unless that was done and nothing
    has changed.

    What was captured is compared with the model's own output for the first image: a model that it
    does not reproduce runs plainly.
    """
    check_fit(model, images)
    if not isinstance(model, nn.Module):
        return _captured(model, images)  # what a function refers to cannot be watched
    key = (tuple(images.shape[1:]), images.dtype, str(images.device), _fingerprint(model))
    with _lock:
        entries = _known.setdefault(model, {})
        if key not in entries:
            check_finite(model)
            # Another fingerprint means that the weights have changed: what was captured before is
            # of no use.
            for old in [k for k in entries if k[-1] != key[-1]]:
                del entries[old]
            entries[key] = _captured(model, images)
        return entries[key]


def _captured(model: Model, images: Tensor) -> Prepared:
    packs = Packs()
    try:
        graph = capture(model, tuple(images.shape[1:]), images.dtype, images.device)
    except CaptureError as error:
        return Prepared(None, str(error), scores_of(model(images[:1]), 1).shape[1])
    graph = lower(fold_batch_norms(graph), packs)
    return Prepared(graph, None, graph.outputs, packs)


def verify(prepared: Prepared, model: Model, images: Tensor) -> None:
    """Compare the captured graph's output for the first image with the model's own, once.

    A graph that does not reproduce it is dropped, and the model runs plainly.

    Raises:
        ValueError: the model's scores for an image depend on the rest of the batch.
    """
    with _lock:
        if prepared.graph is None or prepared.verified:
            return
        own = scores_of(model(images[:1]), 1)
        check_scores(own)
        _check_independence(model, images, own)
        if _agrees(prepared.graph, images, own):
            prepared.verified = True
            return
        prepared.graph, prepared.outputs = None, own.shape[1]
        prepared.reason = "the captured graph does not compute what the model does"
        prepared.plans.clear()


def _check_independence(model: Model, images: Tensor, own: Tensor) -> None:
    """Refuse a model whose scores for an image depend on what stands beside it in the batch."""
    other = images[:1].flip(-1) * 0.5
    scores = scores_of(model(torch.cat([images[:1], other])), 2)[:1]
    if not _close(scores, own):
        raise ValueError(
            "expected a model that scores each image by itself,"
            " got other scores for the same image in another batch"
        )


def _close(scores: Tensor, own: Tensor) -> bool:
    scale = own.abs().max().clamp_min(torch.finfo(own.dtype).tiny)
    return bool((scores - own).abs().max() <= _AGREE[own.dtype] * scale)


def _agrees(graph: Graph, images: Tensor, own: Tensor) -> bool:
    replayed = graph(images[:1]).reshape(1, -1)
    return replayed.shape == own.shape and _close(replayed, own)


def _fingerprint(model: nn.Module) -> Any:
    """Changes when a parameter, a buffer, a layer, a hook or an attribute of the model does."""
    modules = []
    for name, module in model.named_modules():
        entries = vars(module).items()
        others = [(k, v) for k, v in entries if k not in ("_parameters", "_buffers", "_modules")]
        modules.append((name, type(module), *((k, _mark(v)) for k, v in others)))
    tensors = (*model.parameters(), *model.buffers())
    return (*modules, *map(_mark, tensors))


def _mark(value: object) -> Any:
    """A hashable stand-in for a value that differs when the value does."""
    if isinstance(value, Tensor):
        version = None if value.is_inference() else value._version
        return id(value), value.data_ptr(), version, _sums(value)
    try:
        hash(value)
    except TypeError:
        return repr(value)
    return value


def _sums(tensor: Tensor) -> tuple[float, ...]:
    """A sum of all values, and one of every third: edits through `.data` leave no other trace."""
    if not tensor.numel():
        return ()
    dtype = torch.float32 if tensor.is_floating_point() and tensor.dtype.itemsize < 4 else None
    values = tensor.detach()
    form = torch.channels_last if values.ndim == 4 else torch.contiguous_format
    dense = values.is_contiguous() or values.is_contiguous(memory_format=form)
    flat = values.as_strided((values.numel(),), (1,)) if dense else values.flatten()
    return float(flat.sum(dtype=dtype)), float(flat[::3].sum(dtype=dtype))


def check_fit(model: Model, images: Tensor) -> None:
    """Refuse a model on another device or of another dtype than the images, and layers in training
    mode.
    """
    if not isinstance(model, nn.Module):
        return
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


def check_finite(model: Model) -> None:
    """Refuse parameters that hold NaN or infinity. (Buffers may: masks of minus infinity are
    common.)
    """
    if isinstance(model, nn.Module):
        for name, parameter in model.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                raise ValueError(f"expected finite weights, got NaN or infinity in {name}")
