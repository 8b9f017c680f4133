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


def verify(prepared: Prepared, model: Model, images: Tensor) -> bool:
    """Whether the captured graph reproduces the model's own output for the first image.

    Looked at once; a graph that does not is dropped, and the model runs plainly.
    """
    with _lock:
        if prepared.graph is None or prepared.verified:
            return True
        own = scores_of(model(images[:1]), 1)
        check_scores(own)
        if _agrees(prepared.graph, images, own):
            prepared.verified = True
            return True
        prepared.graph, prepared.outputs = None, own.shape[1]
        prepared.reason = "the captured graph does not compute what the model does"
        prepared.plans.clear()
        return False


def _agrees(graph: Graph, images: Tensor, own: Tensor) -> bool:
    replayed = graph(images[:1]).reshape(1, -1)
    if replayed.shape != own.shape:
        return False
    scale = own.abs().max().clamp_min(torch.finfo(own.dtype).tiny)
    return bool((replayed - own).abs().max() <= _AGREE[images.dtype] * scale)


def _fingerprint(model: Model) -> Any:
    """Changes when a parameter, a buffer, a mode, a hook or a plain attribute of the model does."""
    if not isinstance(model, nn.Module):
        return None
    tensors = [*model.parameters(), *model.buffers()]
    plain = (bool, int, float, str, tuple)
    return (
        tuple((id(t), t.data_ptr(), t._version) for t in tensors),
        _sums(tensors),
        tuple(
            tuple((k, v) for k, v in vars(m).items() if isinstance(v, plain) and _hashable(v))
            + tuple(
                (k, *map(id, v.values())) for k, v in vars(m).items() if k.endswith("_hooks") and v
            )
            for m in model.modules()
        ),
    )


def _sums(tensors: list[Tensor]) -> bytes:
    """Sums of all values: edits through `.data` leave no other trace. One read of the weights."""
    sums = [
        t.detach().sum(dtype=torch.float32 if t.dtype.itemsize < 4 else None).double()
        for t in tensors
        if t.numel()
    ]
    return torch.stack(sums).cpu().numpy().tobytes() if sums else b""


def _hashable(value: object) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


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
