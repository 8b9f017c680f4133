"""A second set of modules over the same parameters."""

from __future__ import annotations

from typing import Any

from torch import nn


def twin(module: nn.Module) -> nn.Module:
    """The modules of `module` anew, with the same tensors.

    torch.export puts fake tensors in the place of a module's parameters while it traces; another
    thread that runs the module at that time must not meet them.
    """
    made: dict[int, nn.Module] = {}

    def of(one: nn.Module) -> nn.Module:
        if id(one) not in made:
            made[id(one)] = new = object.__new__(type(one))
            new.__dict__.update({name: copied(value) for name, value in vars(one).items()})
        return made[id(one)]

    def copied(value: Any) -> Any:
        if isinstance(value, nn.Module):
            return of(value)
        if type(value) in (list, tuple, set):
            return type(value)(map(copied, value))
        if isinstance(value, dict):
            new = value.copy()
            new.update({key: copied(item) for key, item in value.items()})
            return new
        return value

    return of(module)
