"""A model up to one of its layers, or up to the last of several."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from .call import Call, pick
from .subject import Subject

__all__ = ["Mixture", "stem", "stems", "weights_of"]

#: A layer by name, several, or several with weights.
Mixture = str | Sequence[str] | Mapping[str, float]


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
    run = stems(subject, [layer], images)
    return lambda images: run(images)[0]


def stems(
    subject: Subject, layers: Sequence[str], images: Tensor
) -> Callable[[Tensor], list[Tensor]]:
    """From images to what each of some layers puts out, as `stem` does it for one.

    Raises:
        ValueError: there is no such layer, or the model does not run it.
    """
    # Call refuses unknown names
    modules = {name: Call(subject.model, (), images, None, name).named for name in layers}
    return _Stems(subject.module, modules)


def weights_of(option: str, layers: Mixture) -> dict[str, float]:
    """The weight of each layer; where none are given, equal ones whose sum is 1.

    Raises:
        ValueError: no layer, or a weight that is no positive number.
    """
    if isinstance(layers, Mapping):
        found = {name: float(weight) for name, weight in layers.items()}
    else:
        names = [layers] if isinstance(layers, str) else list(layers)
        found = {name: 1 / len(names) for name in names}
    if not found or not all(0 < weight < math.inf for weight in found.values()):
        raise ValueError(f"expected {option} as layers with positive weights, got {layers!r}")
    return found


class _Stems:
    def __init__(self, model: nn.Module, modules: dict[str, nn.Module]) -> None:
        self.model, self.modules = model, modules
        self.runs = 0  # how often the model runs the layers, all together; 0: not known yet

    def __call__(self, images: Tensor) -> list[Tensor]:
        thread, runs = threading.get_ident(), 0
        found: dict[str, Tensor] = {}

        def keep(name: str, out: Any) -> None:
            nonlocal runs
            if threading.get_ident() != thread:  # another thread may run the same model
                return
            runs += 1
            if runs == self.runs:
                found[name] = pick(out, None)
                raise _Reached
            found[name] = pick(out, None).clone()  # what follows may change it

        def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
            return lambda _, __, out: keep(name, out)

        handles = [
            module.register_forward_hook(hook(name)) for name, module in self.modules.items()
        ]
        try:
            self.model(images)
            self.runs = runs
        except _Reached:
            pass
        finally:
            for handle in handles:
                handle.remove()
        for name in self.modules:
            if name not in found:
                raise ValueError(f"expected the model to run its layer {name!r}, it did not")
        return [found[name] for name in self.modules]
