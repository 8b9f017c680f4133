"""Convolutions from pickled numpy arrays: nothing in the file is executed."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


class _ArraysOnly(pickle.Unpickler):
    """Admits the three names that a pickled numpy array is made of, and nothing else.

    A pickle can name any function to call; here it gets none that does more than fill an array.
    """

    def find_class(self, module: str, name: str) -> Any:
        # numpy 2 moved its modules; the array itself knows where its maker is now.
        makers = {
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
            ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        }
        if (module, name) not in makers:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no array")
        return makers[module, name]


def read_arrays(path: Path) -> Any:
    """What a pickle of nothing but lists, dicts, strings, numbers and arrays holds."""
    try:
        with open(path, "rb") as file:
            return _ArraysOnly(file).load()
    # A pickle of garbage raises nearly anything.
    except Exception as error:
        raise ValueError(f"cannot read the weights {path}: {error}") from error


def state_of(layers: Any, path: Path) -> dict[str, Tensor]:
    """The state dict of convolutions from ``{name: (kernel, bias)}``, kernels (H, W, in, out)."""
    if not isinstance(layers, Mapping) or not all(
        isinstance(layer, str)
        and isinstance(pair, list | tuple)
        and [getattr(array, "ndim", None) for array in pair] == [4, 1]
        and all(isinstance(array, np.ndarray) and array.dtype.kind == "f" for array in pair)
        for layer, pair in layers.items()
    ):
        raise ValueError(f"cannot read the weights {path}: expected a kernel and a bias per layer")
    state: dict[str, Tensor] = {}
    for layer, (kernel, bias) in layers.items():
        # Out, in, height, width here.
        state[f"{layer}.weight"] = _tensor(kernel.transpose(3, 2, 0, 1))
        state[f"{layer}.bias"] = _tensor(bias)
    return state


def _tensor(array: npt.NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
