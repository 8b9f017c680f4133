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
from .plain import scores_of

Model = Callable[[Tensor], Tensor]

#: How far a replay may lie from the model's own output, relative to its largest score: folding rounds anew.
_AGREE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}


@dataclass
class Prepared:
    """A captured graph, or the reason why there is none; its weights laid out; and plans made for it."""

    graph: Graph | None
    reason: str | None
    packs: Packs = field(default_factory=Packs)
    plans: dict[Any, Any] = field(default_factory=dict)


_known: weakref.WeakKeyDictionary[Any, dict[Any, Prepared]] = weakref.WeakKeyDictionary()
_lock = threading.RLock()


def prepare(model: Model, images: Tensor) -> tuple[Prepared, int]:
    """Capture `model` for images of this shape, dtype and device, unless that was done and nothing has changed.

    Returns what was prepared and the number of outputs. The graph's output for the first image is compared with the
    model's own each time: a model that is not what was captured runs plainly.
    """
    check_fit(model, images)
    prepared = _captured(model, images, fresh=False)
    own = scores_of(model(images[:1]), 1)
    if not bool(torch.isfinite(own).all()):
        raise ValueError("expected finite scores for the unoccluded image, got NaN or infinity")
    if prepared.graph is not None and not _agrees(prepared.graph, images, own):
        prepared = _captured(model, images, fresh=True)
        if prepared.graph is not None and not _agrees(prepared.graph, images, own):
            prepared.graph, prepared.reason = None, "the captured graph does not compute what the model does"
    return prepared, own.shape[1]


def _agrees(graph: Graph, images: Tensor, own: Tensor) -> bool:
    replayed = graph(images[:1]).reshape(1, -1)
    if replayed.shape != own.shape:
        return False
    scale = own.abs().max().clamp_min(torch.finfo(own.dtype).tiny)
    return bool((replayed - own).abs().max() <= _AGREE[images.dtype] * scale)


def _captured(model: Model, images: Tensor, fresh: bool) -> Prepared:
    key = (tuple(images.shape[1:]), images.dtype, str(images.device), _fingerprint(model))
    with _lock:
        entries = _known.setdefault(model, {})
        if fresh or key not in entries:
            # Another fingerprint means that the weights have changed: what was captured before is of no use.
            for old in [k for k in entries if k[-1] != key[-1]]:
                del entries[old]
            check_finite(model)
            packs = Packs()
            try:
                graph = capture(model, tuple(images.shape[1:]), images.dtype, images.device)
                entries[key] = Prepared(lower(fold_batch_norms(graph), packs), None, packs)
            except CaptureError as error:
                entries[key] = Prepared(None, str(error))
        return entries[key]


def _fingerprint(model: Model) -> Any:
    """Changes when a parameter, a buffer or a mode of the model does."""
    if not isinstance(model, nn.Module):
        return None
    tensors = [*model.parameters(), *model.buffers()]
    return tuple((id(t), t.data_ptr(), t._version) for t in tensors), tuple(m.training for m in model.modules())


def check_fit(model: Model, images: Tensor) -> None:
    """Refuse a model on another device or of another dtype than the images, and layers in training mode."""
    if not isinstance(model, nn.Module):
        return
    for name, module in model.named_modules():
        batch_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if module.training and (batch_norm or (isinstance(module, nn.modules.dropout._DropoutNd) and module.p)):
            refuse_training(name, f"a {type(module).__name__}")
    dtypes = set()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.device != images.device:
            raise ValueError(
                f"expected model and images on one device, got {name} on {tensor.device} and images on {images.device}"
            )
        if tensor.is_floating_point():
            dtypes.add(tensor.dtype)
    if dtypes and images.dtype not in dtypes:
        names = ", ".join(sorted(map(str, dtypes)))
        raise ValueError(f"expected images of the model's dtype ({names}), got {images.dtype}")


def check_finite(model: Model) -> None:
    """Refuse parameters that hold NaN or infinity. (Buffers may: masks of minus infinity are common.)"""
    if isinstance(model, nn.Module):
        for name, parameter in model.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                raise ValueError(f"expected finite weights, got NaN or infinity in {name}")
