"""Arrays in memory, and .npy files that are mapped into it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from . import digest
from .axes import spelled
from .source import Array, Source

__all__ = ["InMemory", "Npy", "Photo", "of_tensor"]


class InMemory(Source):
    """An array (channels, *spatial), read as it is at that moment."""

    kind = "array"

    def __init__(self, values: Array, axes: str | None, name: str = "array") -> None:
        super().__init__(name, values.shape, values.dtype, spelled(axes, values.shape))
        self._values: Array | None = values

    def _region(self, region: tuple[slice, ...]) -> Array:
        values = self._values
        if values is None:
            raise ValueError(f"expected an open image, and {self.name} has been closed")
        return values[region]

    def fingerprint(self) -> str:
        if self._values is None:
            raise ValueError(f"expected an open image, and {self.name} has been closed")
        return digest.of_array(self._values, self._about())

    def close(self) -> None:
        super().close()
        self._values = None


class Npy(InMemory):
    """A .npy file, of which the system reads the pages that are touched."""

    kind = "npy"

    def __init__(self, path: str, axes: str | None, name: str) -> None:
        mapped = np.lib.format.open_memmap(path, mode="r")
        super().__init__(mapped, axes, name)
        self._path, self._mapped = path, mapped

    def fingerprint(self) -> str:
        return digest.of_file(self._path, self._about())


class Photo(InMemory):
    """An ordinary photo, decoded whole."""

    kind = "photo"


def of_tensor(tensor: torch.Tensor) -> Array:
    """A tensor's values on the CPU, shared where they lie there."""
    values: Any = tensor.detach()
    if tensor.layout != torch.strided or tensor.dtype == torch.bfloat16 or tensor.is_complex():
        raise ValueError(
            "expected a dense tensor of a dtype that numpy has, got "
            f"{tensor.dtype}, {tensor.layout}"
        )
    found: Array = values.cpu().numpy()
    return found
