"""A model up to one of its layers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from .call import Call, pick
from .subject import Subject

__all__ = ["stem"]


class _Reached(BaseException):
    """No Exception: the model's own code may catch those."""


def stem(subject: Subject, layer: str | None, images: Tensor) -> Callable[[Tensor], Tensor]:
    """From images to what a layer puts out, with its autograd graph; None: the model's own output.

    What comes behind the layer is not run. Of a module that runs several times the last run counts.

    Raises:
        ValueError: there is no such layer, or the model does not run it.
    """
    if layer is None:
        return Call(subject.model, (), images)
    module = Call(subject.model, (), images, None, layer).named  # refuses unknown names
    return _Stem(subject.module, module, layer)


class _Stem:
    def __init__(self, model: nn.Module, module: nn.Module, layer: str) -> None:
        self.model, self.module, self.layer = model, module, layer
        self.runs = 0  # how often the model runs the layer; 0: not known yet

    def __call__(self, images: Tensor) -> Tensor:
        thread, runs = threading.get_ident(), 0
        found: list[Tensor] = []

        def keep(_: nn.Module, __: Any, out: Any) -> None:
            nonlocal runs
            if threading.get_ident() != thread:  # another thread may run the same model
                return
            runs += 1
            if runs == self.runs:
                found[:] = [pick(out, None)]
                raise _Reached
            found[:] = [pick(out, None).clone()]  # what follows may change it

        handle = self.module.register_forward_hook(keep)
        try:
            self.model(images)
            self.runs = runs
        except _Reached:
            pass
        finally:
            handle.remove()
        if not found:
            raise ValueError(f"expected the model to run its layer {self.layer!r}, it did not")
        return found[0]
