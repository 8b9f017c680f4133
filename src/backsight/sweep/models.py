"""Models made ready for sweeping: captured, folded, checked against themselves, and remembered."""

from __future__ import annotations

import os
import threading
import weakref
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..graph import CaptureError, Graph, Packs, capture, fold_batch_norms, lower, refuse_training
from .call import Call
from .plain import check_scores, scores_of

#: How far a replay may lie from the model's own output, relative to its largest score: folding
#: rounds anew.
_AGREE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}


@dataclass
class Prepared:
    """A captured graph, or the reason why there is none; the shape of one output; weights laid
    out; and plans made for it.
    """

    graph: Graph | None
    reason: str | None
    shape: tuple[int, ...]
    packs: Packs = field(default_factory=Packs)
    plans: dict[Any, Any] = field(default_factory=dict)
    verified: bool = False


_known: weakref.WeakKeyDictionary[Any, dict[Any, Prepared]] = weakref.WeakKeyDictionary()
_lock = threading.RLock()


def _renew_lock() -> None:
    """In a forked process, whose other threads are gone with what they held."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def prepare(call: Call, images: Tensor) -> Prepared:
    """Capture a model for images of this shape, dtype and device, unless that was done and nothing
    has changed.
    """
    model = call.owner
    if model is None:
        return _captured(call, images)  # what a function refers to cannot be watched
    check_fit(model, images)
    key = (
        tuple(images.shape[1:]),
        images.dtype,
        str(images.device),
        call.mark(),
        _fingerprint(model),
    )
    with _lock:
        entries = _known.setdefault(model, {})
        if key not in entries:
            check_finite(model)
            # Another fingerprint means that the weights have changed: what was captured before is
            # of no use.
            for old in [k for k in entries if k[-1] != key[-1]]:
                del entries[old]
            entries[key] = _captured(call, images)
        return entries[key]


def _captured(call: Call, images: Tensor) -> Prepared:
    packs = Packs()
    try:
        shape = tuple(images.shape[1:])
        graph = capture(call, shape, images.dtype, images.device, call.sides, within="model")
    except CaptureError as error:
        output = _own(call, images)
        scores_of(output, 1)
        return Prepared(None, str(error), tuple(output.shape[1:]))
    graph = lower(fold_batch_norms(graph), packs)
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


def verify(prepared: Prepared, call: Call, images: Tensor) -> None:
    """Compare the captured graph's output for the first image with the model's own, once.

    A graph that does not reproduce it is dropped, and the model runs plainly.

    Raises:
        ValueError: the model changes its input in place, or its scores for an image depend on
            chance or on the rest of the batch.
    """
    with _lock:
        if prepared.verified:
            return
        own = scores_of(_own(call, images), 1)
        check_scores(own)
        if not _close(scores_of(_own(call, images), 1), own):
            raise ValueError(
                "expected a model without randomness, got other scores for the same image"
            )
        _check_independence(call, images, own)
        if prepared.graph is not None and not _agrees(prepared.graph, call, images, own):
            prepared.graph = None
            prepared.reason = "the captured graph does not compute what the model does"
            prepared.plans.clear()
        prepared.verified = True


def _check_independence(call: Call, images: Tensor, own: Tensor) -> None:
    """Refuse a model whose scores for an image depend on what stands beside it in the batch."""
    other = images[:1].flip(-1) * 0.5
    sides = [torch.cat([side[:1], side[:1]]) for side in call.sides]
    scores = scores_of(call(torch.cat([images[:1], other]), *sides), 2)[:1]
    if not _close(scores, own):
        raise ValueError(
            "expected a model that scores each image by itself,"
            " got other scores for the same image in another batch"
        )


def _close(scores: Tensor, own: Tensor) -> bool:
    scale = own.abs().max().clamp_min(torch.finfo(own.dtype).tiny)
    return bool((scores - own).abs().max() <= _AGREE[own.dtype] * scale)


def _agrees(graph: Graph, call: Call, images: Tensor, own: Tensor) -> bool:
    replayed = graph(images[:1], *(side[:1] for side in call.sides)).reshape(1, -1)
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
