"""Modules of max pooling and unpooling, in the place of `torch.nn`'s with the same names.

They are torch's own modules, with their arguments, attributes, repr and state; only their forward
runs `backsight.functional`.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from backsight import functional as F

__all__ = [
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
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
