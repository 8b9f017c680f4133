"""A model as a function of images alone: its other arguments, and which of its outputs counts."""

from __future__ import annotations

import contextlib
import difflib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..zoo.network import Network
from .fingerprint import Marks

Model = Callable[..., Any]

#: An output's key, attribute or index.
Output = str | int

#: Names under which models of several outputs keep the main one.
_MAIN = ("logits", "out", "scores", "output")


class Call(nn.Module):
    """`model(images, *arguments)` as one tensor.

    Args:
        model: from images (batch, channels, *spatial), and more, to a tensor, or a dict, tuple or
            dataclass of tensors; or a network of the zoo.
        arguments: what follows the images. A tensor with one entry per image goes along with its
            image; everything else is passed as it is.
        images: (images, channels, *spatial).
        output: which of several outputs: its key, attribute or index.
        layer: a module's name: its output instead of the model's.
        total: whether the layer's maps are summed over space.
    """

    def __init__(
        self,
        model: Model | Network,
        arguments: Sequence[Any],
        images: Tensor,
        output: Output | None = None,
        layer: str | None = None,
        total: bool = True,
    ) -> None:
        super().__init__()
        self.model = unwrapped(model)
        if not callable(self.model):
            raise ValueError(f"expected a model that can be called, got {type(model).__name__}")
        if output is not None and not isinstance(output, str | int):
            raise ValueError(f"expected output to be a key, a name or an index, got {output!r}")
        self.output = output
        self.layer = layer
        self.total = total
        self._module = self._named(layer) if layer is not None else None
        each = [isinstance(a, Tensor) and a.ndim > 0 and len(a) == len(images) for a in arguments]
        self._each = tuple(each)
        #: The arguments that come one per image, and the whole list with None in their places.
        self.sides = tuple(a.detach() for a, e in zip(arguments, each, strict=True) if e)
        self.rest = tuple(None if e else a for a, e in zip(arguments, each, strict=True))
        #: Over how many of an output's axes it is summed, and with what weights.
        self.axes = images.ndim - 2
        self.regional = False
        self.probability: str | None = None
        device = images.device.type
        # A sweep runs without autocast; the model in the state that the caller chose.
        self.autocast = (
            (device, torch.get_autocast_dtype(device))
            if torch.is_autocast_enabled(device)
            else None
        )

    def in_region(self, weights: Tensor, probability: str | None) -> None:
        """Sum the output's maps over space, with weights (images, 1 or channels, *spatial)."""
        self.sides = (*self.sides, weights)
        self.regional = True
        self.probability = probability

    def dense(self, images: Tensor, *sides: Tensor) -> Tensor:
        """The model's output, before it is summed over a region."""
        if self._module is not None:
            return self._at_layer(self._module, images, sides)
        return pick(self.run(images, *sides), self.output)

    def run(self, images: Tensor, *sides: Tensor) -> Any:
        """Whatever the model returns."""
        given = iter(sides)
        pairs = zip(self.rest, self._each, strict=True)
        arguments = [next(given) if each else rest for rest, each in pairs]
        with torch.autocast(*self.autocast) if self.autocast else contextlib.nullcontext():
            return self.model(images, *arguments)

    def forward(self, images: Tensor, *sides: Tensor) -> Tensor:
        found = self.dense(images, *sides)
        if not self.regional:
            return found
        if self.probability is not None:
            found = found.softmax(1) if self.probability == "softmax" else found.sigmoid()
        return (found * sides[-1]).sum(tuple(range(2, found.ndim)))

    def _named(self, layer: str) -> nn.Module:
        if not isinstance(layer, str):
            raise ValueError(f"expected layer to be a module's name, got {layer!r}")
        if not isinstance(self.model, nn.Module):
            raise ValueError(f"expected a module to find the layer {layer!r} in, got a function")
        known = dict(self.model.named_modules())
        known.pop("", None)
        if layer not in known:
            near = difflib.get_close_matches(layer, known, n=3, cutoff=0.3) or list(known)[:3]
            raise ValueError(
                f"expected a layer of the model, such as {', '.join(near)}, got {layer!r}"
            )
        found: nn.Module = known[layer]
        return found

    def _at_layer(self, module: nn.Module, images: Tensor, sides: Sequence[Tensor]) -> Tensor:
        """What the layer puts out, summed or copied at once: what follows may change it."""
        kept: list[Tensor] = []
        thread = threading.get_ident()

        def keep(_: nn.Module, __: Any, found: Any) -> None:
            if threading.get_ident() == thread:  # another thread may run the same model
                value = pick(found, None)
                space = tuple(range(2, self.axes + 2))
                summed = self.total and value.ndim == self.axes + 2
                kept.append(value.sum(space) if summed else value.clone())

        handle = module.register_forward_hook(keep)
        try:
            self.run(images, *sides)
        finally:
            handle.remove()
        if not kept:
            raise ValueError(f"expected the model to run its layer {self.layer!r}, it did not")
        return kept[-1]

    @property
    def named(self) -> nn.Module:
        """The module of the layer."""
        assert self._module is not None
        return self._module

    @property
    def owner(self) -> nn.Module | None:
        """The user's module, where the model is one."""
        return self.model if isinstance(self.model, nn.Module) else None

    def mark(self, marks: Marks) -> tuple[Any, ...]:
        """What else than the model and the images a captured graph depends on."""
        region = self.regional, self.probability
        return self.mark_of_run(marks), self.output, self.layer, self.total, region

    def mark_of_run(self, marks: Marks) -> tuple[Any, ...]:
        """What of that holds for all layers and outputs."""
        sides = tuple((tuple(s.shape[1:]), s.dtype) for s in self.sides)
        rest = tuple(map(marks.value, self.rest))
        return sides, rest, self.autocast


def unwrapped(model: Model | Network) -> Model:
    """The model inside a zoo's network, torch.compile's or DataParallel's wrapper: what is swept is
    its own code.
    """
    bare: Any = model.model if isinstance(model, Network) else model
    while True:
        inner = getattr(bare, "_orig_mod", None)
        if inner is None and isinstance(
            bare, nn.DataParallel | nn.parallel.DistributedDataParallel
        ):
            inner = bare.module
        if inner is None:
            found: Model = bare
            return found
        bare = inner


def pick(found: Any, output: Output | None) -> Tensor:
    """One tensor of what a model returned.

    Without a name: a tensor itself, the first of a tuple or list, and of a dict or dataclass the
    main output by its usual names, or the only one.
    """
    if isinstance(found, Tensor) and output is None:
        return found
    named = _named(found)
    key: Any = output
    if output is None:
        key = next((k for k in _MAIN if k in named), None)
        if key is None and (len(named) == 1 or isinstance(found, tuple | list)):
            key = next(iter(named), None)
    if isinstance(key, int) and isinstance(found, tuple | list) and -len(found) <= key < 0:
        key += len(found)
    if key not in named:
        names = ", ".join(repr(k) for k in named) or f"a {type(found).__name__}"
        raise ValueError(f"expected output to name one of the model's ({names}), got {output!r}")
    chosen = named[key]
    if not isinstance(chosen, Tensor):
        raise ValueError(
            f"expected the model's output {key!r} to be a tensor, got {type(chosen).__name__}"
        )
    return chosen


def _named(found: Any) -> dict[Any, Any]:
    """The parts of what a model returned, by key."""
    if isinstance(found, Mapping):
        return dict(found)
    if isinstance(found, tuple | list):
        parts: dict[Any, Any] = dict(enumerate(found))
        return parts | {k: getattr(found, k) for k in getattr(found, "_fields", ())}
    if is_dataclass(found):
        return {f.name: getattr(found, f.name) for f in fields(found)}
    return {}


def repeated(call: Call, copies: Tensor, sides: Sequence[Tensor]) -> Tensor:
    """The output for copies of one image, whose side inputs `sides` hold."""
    output: Tensor = call(copies, *(side.expand(len(copies), *side.shape[1:]) for side in sides))
    return output


def check_images(images: Any) -> None:
    if (
        not isinstance(images, Tensor)
        or not images.is_floating_point()
        or not 3 <= images.ndim <= 5
    ):
        came = (
            f"{tuple(images.shape)} {images.dtype}"
            if isinstance(images, Tensor)
            else type(images).__name__
        )
        raise ValueError(
            "expected images as a floating-point tensor (images, channels, *spatial)"
            f" with one to three spatial axes, got {came}"
        )
    if not images.numel():
        raise ValueError(f"expected at least one image, got shape {tuple(images.shape)}")
    if not bool(torch.isfinite(images).all()):
        raise ValueError("expected finite images, got NaN or infinity")
