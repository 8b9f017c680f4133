"""Filters of a convolution as pictures, and which of them have learned nothing of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..models.call import Call, Model
from ..models.subject import Subject
from ..plots import Tile, tiles
from ..results import Result, array
from ..zoo.network import Network

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Filters", "filters"]

_TELLING = 5  # cells along each axis, for a filter to be called noisy

_Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


@dataclass(frozen=True)
class Filters(Result):
    """What `filters` finds.

    Attributes:
        weights: (filters, channels, *kernel), the weights of the layer.
        pictures: (filters, h, w, 3) uint8: each filter's weights from its least (black) to its
            largest (white). Of three input channels RGB, of one gray, of others the input channel
            with the largest weights in gray. A filter along one axis is one row; of three axes the
            middle slice is shown.
        norms: (filters,) the root of the sum of the squares.
        nearest: (filters,) int64, the filter that is most alike.
        similarity: (filters,) in -1..1, the cosine between a filter and that one; -1 where there
            are no others.
        noise: (filters,) about 1 for white noise, below 0.5 for blobs, edges and gratings: six
            times the share of the cells times the share of the frequencies over which the squares
            are spread, (sum e)^2 / (n sum e^2) of n energies e; of each input channel, weighted by
            its squares.
        dead: (filters,) bool, the norm is below `dead_below` times the median.
        duplicate: (filters,) bool, the similarity is above `duplicate_above`, and neither is dead.
        noisy: (filters,) bool, `noise` is above `noisy_above`, and the filter is not dead; of
            kernels with fewer than 5 cells along an axis none is: they are too small to tell.
        layer: the name of the layer.
    """

    weights: Tensor
    pictures: Tensor
    norms: Tensor
    nearest: Tensor
    similarity: Tensor
    noise: Tensor
    dead: Tensor
    duplicate: Tensor
    noisy: Tensor
    layer: str

    def plot(self) -> Figure:
        """All filters; dead, duplicate and noisy ones are framed."""
        shown = [
            Tile(array(picture), str(i), self._frame(i)) for i, picture in enumerate(self.pictures)
        ]
        channels = self.weights.shape[1]
        note = "each filter from its least weight (black) to its largest (white)"
        if channels not in (1, 3):
            note += f"; of its {channels} input channels the one with the largest weights"
        count = f"{len(self.pictures)} filters of {self.layer}"
        return tiles(shown, title=f"{count}, {_size(self.weights.shape[1:])}", note=note)

    def summary(self) -> str:
        return (
            f"{len(self.norms)} filters of {self.layer}: {int(self.dead.sum())} dead,"
            f" {int(self.duplicate.sum())} duplicate, {int(self.noisy.sum())} noisy"
        )

    def report(self) -> dict[str, Any]:
        pairs = [[i, int(self.nearest[i])] for i in _listed(self.duplicate)]
        return {
            "layer": self.layer,
            "shape": list(self.weights.shape),
            "dead": _listed(self.dead),
            "duplicate": pairs,
            "noisy": _listed(self.noisy),
        }

    def _frame(self, index: int) -> str:
        kinds = {"dead": self.dead, "duplicate": self.duplicate, "noisy": self.noisy}
        return next((name for name, which in kinds.items() if bool(which[index])), "")


def filters(
    model: Model | Network,
    layer: str | None = None,
    *,
    dead_below: float = 0.01,
    duplicate_above: float = 0.95,
    noisy_above: float = 0.65,
    device: torch.device | str | None = None,
) -> Filters:
    """The filters of a convolution as pictures, and those that are dead, duplicate or noisy.

    Only those of the first layer can be read as pictures of what they look for.

    Args:
        model: a zoo.Network, or a module. It is not changed.
        layer: the name of a convolution; default: the model's first one, in the order in which its
            modules are declared.
        dead_below: the share of the median norm below which a filter is dead.
        duplicate_above: the cosine above which two filters are duplicates.
        noisy_above: the noise above which a filter is noisy.
        device: where to compute; default: where the model is.

    Returns:
        A `Filters`; its tensors on that device, in float32 for models of half precision.

    Raises:
        ValueError: the layer is no convolution, or the model has none; the sentence says what was
            expected and what came.
    """
    subject = Subject.of(model, device)
    name, module = _convolution(subject, layer)
    weights: Tensor = module.weight.detach()
    weights = weights.to(torch.promote_types(weights.dtype, torch.float32)).clone()
    flat = weights.flatten(1)
    norms = flat.norm(dim=1)
    dead = (norms < dead_below * norms.median()) | (norms == 0)
    unit = flat / norms.clamp_min(torch.finfo(flat.dtype).tiny)[:, None]
    cosines = (unit @ unit.T).clamp(-1, 1).fill_diagonal_(-1)
    similarity, nearest = cosines.max(1)
    noise = _noise(weights)
    return Filters(
        weights,
        _pictures(subject, weights),
        norms,
        nearest,
        similarity,
        noise,
        dead,
        (similarity > duplicate_above) & ~dead & ~dead[nearest],
        (noise > noisy_above) & ~dead & (min(weights.shape[2:]) >= _TELLING),
        name,
    )


def _convolution(subject: Subject, layer: str | None) -> tuple[str, _Convolution]:
    """A convolution of the model, and its name."""
    if layer is not None:
        # An image's shape, of which nothing is asked.
        module = Call(subject.model, (), torch.empty(0, 1, 1, 1), None, layer).named
        if not isinstance(module, _Convolution):
            raise ValueError(
                f"expected the name of a convolution, and {layer} is a {type(module).__name__}"
            )
        return layer, module
    for name, module in subject.module.named_modules():
        if isinstance(module, _Convolution):
            return name or type(module).__name__, module
    raise ValueError(f"expected a model with a convolution, got a {type(subject.model).__name__}")


def _noise(weights: Tensor) -> Tensor:
    squares = weights.square()
    energy = squares.flatten(2).sum(2)
    spectrum = torch.fft.fftn(weights, dim=tuple(range(2, weights.ndim))).abs().square()
    spread = 6 * _share(squares) * _share(spectrum) * energy
    return spread.sum(1) / energy.sum(1).clamp_min(torch.finfo(energy.dtype).tiny)


def _share(energies: Tensor) -> Tensor:
    """Over which share of the cells energies (filters, channels, *cells) are spread."""
    flat = energies.flatten(2)
    # Relative to the largest one, whose square might overflow.
    flat = flat / flat.amax(2, keepdim=True).clamp_min(torch.finfo(flat.dtype).tiny)
    squares = flat.square().sum(2).clamp_min(torch.finfo(flat.dtype).tiny)
    return flat.sum(2).square() / (flat.shape[2] * squares)


def _pictures(subject: Subject, weights: Tensor) -> Tensor:
    shown = weights
    if shown.shape[1] not in (1, 3):
        strongest = shown.flatten(2).norm(dim=2).argmax(1)
        shown = shown[torch.arange(len(shown), device=shown.device), strongest][:, None]
    if shown.ndim == 3:
        shown = shown[:, :, None]
    elif shown.ndim == 5:
        shown = shown[:, :, shown.shape[2] // 2]
    if shown.shape[1] == 3 and subject.preprocessing is not None and subject.preprocessing.bgr:
        shown = shown.flip(1)
    least, most = shown.amin((1, 2, 3), True), shown.amax((1, 2, 3), True)
    spread = (most - least).clamp_min(torch.finfo(shown.dtype).tiny)
    scaled = ((shown - least) / spread * 255).round().byte()
    return scaled.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().cpu()


def _listed(which: Tensor) -> list[int]:
    found: list[int] = which.nonzero()[:, 0].tolist()
    return found


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
