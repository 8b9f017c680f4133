"""The network that a method looks into: a model, and what is known of its classes and photos."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..zoo.network import Network, Preprocessing
from .call import Model, check_images, unwrapped
from .prepare import check_fit

__all__ = ["Subject", "pictures_of"]


@dataclass(frozen=True)
class Subject:
    """A model on its device.

    Attributes:
        model: what is called: a module in evaluation mode, or a function.
        device: where it computes.
        network: the zoo's network that it came in; None for a bare model.
    """

    model: Model
    device: torch.device
    network: Network | None = None

    @classmethod
    def of(cls, model: Model | Network, device: torch.device | str | None = None) -> Subject:
        """A model, or a zoo's network, to look into.

        Args:
            model: it is not changed.
            device: where to compute; None: where the model is. If the model is elsewhere, a copy of
                it goes there.

        Raises:
            ValueError: neither a network nor something that can be called.
        """
        network = model if isinstance(model, Network) else None
        bare = unwrapped(model)
        if not callable(bare):
            raise ValueError(
                f"expected a model that can be called or a zoo.Network, got {type(model).__name__}"
            )
        tensors = [*bare.parameters(), *bare.buffers()] if isinstance(bare, nn.Module) else []
        here = tensors[0].device if tensors else torch.device("cpu")
        there = here if device is None else torch.empty(0, device=device).device
        if isinstance(bare, nn.Module) and there != here:
            bare = copy.deepcopy(bare).to(there)
        return cls(bare, there, network)

    @property
    def module(self) -> nn.Module:
        """The model, where it is one that has layers."""
        if not isinstance(self.model, nn.Module):
            raise ValueError("expected an nn.Module, got a function, which has no layers")
        return self.model

    @property
    def classes(self) -> tuple[str, ...] | None:
        return self.network.classes if self.network else None

    @property
    def preprocessing(self) -> Preprocessing | None:
        return self.network.preprocessing if self.network else None

    @property
    def dtype(self) -> torch.dtype:
        """Of the model's parameters; float32 where it has none."""
        if isinstance(self.model, nn.Module):
            for tensor in (*self.model.parameters(), *self.model.buffers()):
                if tensor.is_floating_point():
                    return tensor.dtype
        return torch.float32

    def take(self, images: Any) -> Tensor:
        """Images (images, channels, *spatial) on the model's device, cut off from any graph.

        Raises:
            ValueError: they are none, do not fit the model, or the model is in training mode.
        """
        check_images(images)
        taken: Tensor = images.detach().to(self.device)
        if isinstance(self.model, nn.Module):
            check_fit(self.model, taken)
        return taken

    def index(self, target: int | str, outputs: int) -> int:
        """The index of a class given by index or name, among so many.

        Raises:
            ValueError: there is no such class; the sentence has near names.
        """
        if self.network is not None:
            return self.network.find(target, outputs)
        if isinstance(target, str) and not target.strip().lstrip("+-").isdigit():
            raise ValueError(
                f"expected a class index in 0..{outputs - 1}, got {target!r}: a bare model has no"
                " class names, a zoo.Network has"
            )
        index = int(target)
        if not 0 <= index < outputs:
            raise ValueError(f"expected a class index in 0..{outputs - 1}, got {index}")
        return index

    def label(self, index: int, outputs: int, kind: str = "class") -> str:
        """What to call output `index` of so many; of a `kind`, where it has no name."""
        if self.network is not None and self.classes is not None and len(self.classes) == outputs:
            return self.network.label(index)
        return f"{kind} {index}"

    def pictures(self, images: Tensor) -> Tensor:
        """The photos that images (images, channels, *spatial) show; see `pictures_of`."""
        return pictures_of(images, self.preprocessing)


def pictures_of(images: Tensor, preprocessing: Preprocessing | None) -> Tensor:
    """The photos that (images, channels, H, W) show: (images, H, W, 3) uint8 RGB, on the CPU.

    Without preprocessing, each image's values from its least to its largest; one channel is gray,
    and of other counts than 3 the mean over the channels is shown. Images that have not two spatial
    axes show nothing: (images, 0, 0, 3).
    """
    if images.ndim != 4:
        return torch.zeros(len(images), 0, 0, 3, dtype=torch.uint8)
    values = images.detach().cpu().float()
    if preprocessing is not None and values.shape[1] == 3:
        return torch.from_numpy(np.stack([preprocessing.photo(x) for x in values]))
    if values.shape[1] not in (1, 3):
        values = values.mean(1, keepdim=True)
    least, most = values.amin((1, 2, 3), True), values.amax((1, 2, 3), True)
    shades = (values - least).div_((most - least).clamp_min(torch.finfo(torch.float32).tiny))
    shades = shades.mul_(255).round_().byte()
    return shades.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous()
