"""Weights from files: nothing in them is executed, and every name and shape must fit."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn


def folder_of(package: str, remedy: str) -> Path:
    """Where a package lies, which is not imported; `remedy` is what is said if it is missing."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(remedy, name=package)
    return Path(next(iter(spec.submodule_search_locations)))


def read_state(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ValueError(f"cannot read the weights {path}: there is no such file") from error
    except Exception as error:
        cause = str(error).strip().split("\n")[0].split(". ")[0] or type(error).__name__
        raise ValueError(
            f"cannot read the weights {path}: expected a state dict that loads with "
            f"weights_only=True: {cause}"
        ) from error
    # Training scripts like to wrap it.
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(
        isinstance(value, Tensor) for value in state.values()
    ):
        raise ValueError(f"cannot use the weights {path}: expected names and tensors")
    return cast(dict[str, Tensor], state)


def fill(model: nn.Module, state: dict[str, Tensor], path: str) -> None:
    """Put the weights into the model; every name and shape must fit."""
    own = {key: value for key, value in model.state_dict().items() if isinstance(value, Tensor)}
    wrong = [f"{key} is missing" for key in own if key not in state]
    wrong += [f"{key} is not in the network" for key in state if key not in own]
    wrong += [
        f"{key} is {tuple(state[key].shape)} and should be {tuple(value.shape)}"
        for key, value in own.items()
        if key in state and state[key].shape != value.shape
    ]
    if wrong:
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(f"the weights {path} do not fit: {', '.join(wrong[:3])}{more}")
    # assign only where there is nothing to copy into
    model.load_state_dict(state, assign=any(value.is_meta for value in own.values()))


def sentence(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
