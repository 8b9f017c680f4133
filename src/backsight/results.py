"""What all results can do: be drawn, and be saved."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
import torch
from torch import Tensor

from . import plots, store

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Result", "array"]


@dataclass(frozen=True)
class Result:
    """What a method found: a dataclass of tensors, and of plain values that JSON can say."""

    def plot(self) -> Figure:
        """A matplotlib figure; pyplot is not touched."""
        raise NotImplementedError

    def summary(self) -> str:
        """What was found, in a line or a few for people."""
        raise NotImplementedError

    def report(self) -> dict[str, Any]:
        """What was found, in a few plain values that JSON can say."""
        raise NotImplementedError

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file, whole or not at all: all the numbers to ``.npz`` (numpy.load reads it; the
        plain values are JSON under "meta"), or the figure to ``.png``.

        Raises:
            ValueError: another ending.
            OSError: the folder does not exist, or cannot be written to.
        """
        ending = os.path.splitext(os.fspath(path))[1].lower()
        if ending == ".png":
            store.write_bytes(path, plots.png(self.plot()))
        elif ending == ".npz":
            values = {f.name: getattr(self, f.name) for f in fields(self)}
            arrays = {name: array(v) for name, v in values.items() if isinstance(v, Tensor)}
            plain = {n: v for n, v in values.items() if n not in arrays and v is not None}
            store.save_npz(path, arrays, {"kind": type(self).__name__, **plain})
        else:
            raise ValueError(f"expected a path that ends in .npz or .png, got {os.fspath(path)}")


def array(values: Tensor) -> npt.NDArray[Any]:
    """A tensor of any dtype as an array; numpy has no bfloat16."""
    values = values.detach().cpu()
    found: npt.NDArray[Any] = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    return found
