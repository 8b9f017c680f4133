"""Modules of max pooling and unpooling and of transposed convolution, in the place of `torch.nn`'s
with the same names.

They are torch's own modules, with their arguments, attributes, repr and state; only their forward
runs `backsight.functional`.
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from backsight import functional as F
from backsight.ops.packs import KeptFilter

__all__ = [
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "MaxPool1d",
    "MaxPool1dSwitches",
    "MaxPool2d",
    "MaxPool2dSwitches",
    "MaxPool3d",
    "MaxPool3dSwitches",
    "MaxUnpool1d",
    "MaxUnpool2d",
    "MaxUnpool3d",
]


class MaxPool1d(nn.MaxPool1d):
    """`torch.nn.MaxPool1d` by `backsight.functional.max_pool1d`."""

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return F.max_pool1d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.ceil_mode,
            return_indices=self.return_indices,
        )


class MaxPool2d(nn.MaxPool2d):
    """`torch.nn.MaxPool2d` by `backsight.functional.max_pool2d`."""

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return F.max_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.ceil_mode,
            return_indices=self.return_indices,
        )


class MaxPool3d(nn.MaxPool3d):
    """`torch.nn.MaxPool3d` by `backsight.functional.max_pool3d`."""

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return F.max_pool3d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.ceil_mode,
            return_indices=self.return_indices,
        )


class MaxPool1dSwitches(MaxPool1d):
    """`MaxPool1d` that returns `functional.Switches` where it is to return indices."""

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor | F.Switches]:  # type: ignore[override]
        if not self.return_indices:
            return super().forward(input)
        return F.max_pool1d_switches(
            input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode
        )


class MaxPool2dSwitches(MaxPool2d):
    """`MaxPool2d` that returns `functional.Switches` where it is to return indices."""

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor | F.Switches]:  # type: ignore[override]
        if not self.return_indices:
            return super().forward(input)
        return F.max_pool2d_switches(
            input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode
        )


class MaxPool3dSwitches(MaxPool3d):
    """`MaxPool3d` that returns `functional.Switches` where it is to return indices."""

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor | F.Switches]:  # type: ignore[override]
        if not self.return_indices:
            return super().forward(input)
        return F.max_pool3d_switches(
            input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode
        )


class MaxUnpool1d(nn.MaxUnpool1d):
    """`torch.nn.MaxUnpool1d` by `backsight.functional.max_unpool1d`; takes `Switches` too."""

    def forward(
        self, input: Tensor, indices: Tensor | F.Switches, output_size: Sequence[int] | None = None
    ) -> Tensor:
        return F.max_unpool1d(
            input, indices, self.kernel_size, self.stride, self.padding, output_size
        )


class MaxUnpool2d(nn.MaxUnpool2d):
    """`torch.nn.MaxUnpool2d` by `backsight.functional.max_unpool2d`; takes `Switches` too."""

    def forward(
        self, input: Tensor, indices: Tensor | F.Switches, output_size: Sequence[int] | None = None
    ) -> Tensor:
        return F.max_unpool2d(
            input, indices, self.kernel_size, self.stride, self.padding, output_size
        )


class MaxUnpool3d(nn.MaxUnpool3d):
    """`torch.nn.MaxUnpool3d` by `backsight.functional.max_unpool3d`; takes `Switches` too."""

    def forward(
        self, input: Tensor, indices: Tensor | F.Switches, output_size: Sequence[int] | None = None
    ) -> Tensor:
        return F.max_unpool3d(
            input, indices, self.kernel_size, self.stride, self.padding, output_size
        )


class ConvTranspose1d(nn.ConvTranspose1d):
    """`torch.nn.ConvTranspose1d` by `backsight.functional.conv_transpose1d`."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        return _conv_transpose(self, 1, input, output_size)


class ConvTranspose2d(nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d` by `backsight.functional.conv_transpose2d`."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        return _conv_transpose(self, 2, input, output_size)


class ConvTranspose3d(nn.ConvTranspose3d):
    """`torch.nn.ConvTranspose3d` by `backsight.functional.conv_transpose3d`."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        return _conv_transpose(self, 3, input, output_size)


#: The filters of modules in oneDNN's layouts. Not on the modules, which are copied and pickled.
_KEPT: WeakKeyDictionary[nn.Module, KeptFilter] = WeakKeyDictionary()


def kept_bytes(module: nn.Module) -> int:
    """Bytes of the layouts of a module's filter that are kept beside it."""
    kept = _KEPT.get(module)
    return 0 if kept is None else kept.bytes


def _conv_transpose(
    module: ConvTranspose1d | ConvTranspose2d | ConvTranspose3d,
    dims: int,
    input: Tensor,
    output_size: Sequence[int] | None,
) -> Tensor:
    kept = None
    if not torch.compiler.is_compiling():
        kept = _KEPT.get(module)
        if kept is None:
            kept = _KEPT.setdefault(module, KeptFilter())
    return F.conv_transpose(
        dims,
        input,
        module.weight,
        module.bias,
        module.stride,
        module.padding,  # type: ignore[arg-type]  # never a string in these modules
        _output_padding(module, input, output_size),
        module.groups,
        module.dilation,
        kept,
    )


def _output_padding(
    module: ConvTranspose1d | ConvTranspose2d | ConvTranspose3d,
    input: Tensor,
    output_size: Sequence[int] | None,
) -> Sequence[int]:
    """torch's rule: what makes the result as large as `output_size`."""
    if output_size is None:
        return module.output_padding
    found: list[int] = module._output_padding(
        input,
        list(output_size),
        list(module.stride),
        list(module.padding),  # type: ignore[arg-type]
        list(module.kernel_size),
        len(module.kernel_size),
        list(module.dilation),
    )
    return found
