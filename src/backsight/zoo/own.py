"""Networks from anybody's module."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable

from torch import nn

from .weights import sentence


def build(spec: str, named: Iterable[str] = ()) -> nn.Module:
    """What ``module:factory`` names, in the mode it comes in.

    Args:
        spec: a module, found in the working folder too, and something in it.
        named: other networks that the sentence for a wrong `spec` offers.

    Raises:
        ValueError: there is no such thing, or it is no network and returns none.
    """
    module_name, colon, name = spec.partition(":")
    if not colon or not module_name or not name:
        others = ", ".join((*named, "torchvision:NAME", "timm:NAME"))
        raise ValueError(f"expected {others} or module:factory as the network, got {spec!r}")
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    # The module is somebody else's and may raise anything.
    except Exception as error:
        raise ValueError(
            f"cannot import {module_name} for the network {spec!r}: {sentence(error)}"
        ) from error
    finally:
        sys.path.remove(here)
    made: object = module
    for part in name.split("."):
        if not hasattr(made, part):
            raise ValueError(f"the module {module_name} has nothing called {name}")
        made = getattr(made, part)
    if not isinstance(made, nn.Module):
        if not callable(made):
            raise ValueError(f"expected {spec} to be a network or to return one, got {made!r}")
        try:
            made = made()
        except Exception as error:
            raise ValueError(f"calling {spec} with nothing failed: {sentence(error)}") from error
    if not isinstance(made, nn.Module):
        raise ValueError(f"expected {spec} to return an nn.Module, got {type(made).__name__}")
    return made
