"""Published networks, layer for layer as torchvision has them where it does (``width=1.0``).

The spellings vary deliberately: modules and functions, in place and not, one module used twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pair = int | tuple[int, int]


def scaled(channels: int, width: float) -> int:
    """``channels`` times ``width``, a multiple of 4 unless width is 1."""
    return channels if width == 1.0 else max(4, 4 * round(channels * width / 4))


def conv_bn(
    inputs: int,
    outputs: int,
    kernel: Pair = 3,
    stride: int = 1,
    padding: int | None = None,
    groups: int = 1,
    dilation: int = 1,
    act: Callable[[], nn.Module] | None = nn.ReLU,
    eps: float = 1e-5,
) -> nn.Sequential:
    """Convolution without bias, batch norm, activation; padded to keep the size unless told."""
    sides = (kernel, kernel) if isinstance(kernel, int) else kernel
    around = [dilation * (k - 1) // 2 if padding is None else padding for k in sides]
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, sides, stride, tuple(around), dilation, groups, bias=False),
        nn.BatchNorm2d(outputs, eps),
    ]
    return nn.Sequential(*layers, *([] if act is None else [act()]))


class VGG16(nn.Module):
    """VGG16 without batch norms; head "fc" (torchvision's) or "gap" (one linear layer)."""

    plan = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)

    def __init__(self, head: str, num_classes: int, width: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for entry in self.plan:
            if entry == 0:
                layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
                continue
            out = scaled(entry, width)
            layers += [nn.Conv2d(channels, out, 3, padding=1), nn.ReLU(inplace=True)]
            channels = out
        self.features = nn.Sequential(*layers)
        self.head = head
        if head == "fc":
            hidden = scaled(4096, width)
            self.avgpool = nn.AdaptiveAvgPool2d((7, 7))
            self.classifier: nn.Module = nn.Sequential(
                nn.Linear(channels * 49, hidden),
                nn.ReLU(True),
                nn.Dropout(p=0.5),
                nn.Linear(hidden, hidden),
                nn.ReLU(True),
                nn.Dropout(p=0.5),
                nn.Linear(hidden, num_classes),
            )
        elif head == "gap":
            self.avgpool = nn.AdaptiveAvgPool2d(1)
            self.classifier = nn.Linear(channels, num_classes)
        else:
            raise ValueError(f'head must be "fc" or "gap", got {head!r}')

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.features(x))
        return self.classifier(torch.flatten(x, 1))


def vgg16(head: str = "fc", num_classes: int = 1000, width: float = 1.0) -> nn.Module:
    return VGG16(head, num_classes, width)


class Fire(nn.Module):
    def __init__(self, inputs: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeeze, 1)
        self.squeeze_activation = nn.ReLU(inplace=True)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand1x1_activation = nn.ReLU(inplace=True)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)
        self.expand3x3_activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze_activation(self.squeeze(x))
        return torch.cat(
            [
                self.expand1x1_activation(self.expand1x1(x)),
                self.expand3x3_activation(self.expand3x3(x)),
            ],
            1,
        )


def squeezenet1_1(num_classes: int = 1000, width: float = 1.0) -> nn.Module:
    w = [scaled(c, width) for c in (64, 16, 32, 48, 128, 192, 256)]
    c64, c16, c32, c48, c128, c192, c256 = w
    return nn.Sequential(
        nn.Conv2d(3, c64, kernel_size=3, stride=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True),
        Fire(c64, c16, c64),
        Fire(2 * c64, c16, c64),
        nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True),
        Fire(2 * c64, c32, c128),
        Fire(2 * c128, c32, c128),
        nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True),
        Fire(2 * c128, c48, c192),
        Fire(2 * c192, c48, c192),
        Fire(2 * c192, c64, c256),
        Fire(2 * c256, c64, c256),
        nn.Dropout(p=0.5),
        nn.Conv2d(2 * c256, num_classes, kernel_size=1),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d((1, 1)),
        nn.Flatten(),
    )


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, inputs: int, planes: int, stride: int, dilation: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, dilation, dilation, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)  # one module, used twice, as torchvision does
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != planes:
            self.downsample = conv_bn(inputs, planes, 1, stride, act=None)

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1; the stride on the 3x3 or, ``stride_first``, on the first 1x1.

    groups: of the 3x3, which then has twice the channels (ResNeXt 32x4d: 32 * 4 for 64 planes).
    """

    expansion = 4

    def __init__(
        self,
        inputs: int,
        planes: int,
        stride: int,
        dilation: int = 1,
        stride_first: bool = False,
        groups: int = 1,
    ) -> None:
        super().__init__()
        first, second = (stride, 1) if stride_first else (1, stride)
        middle = planes if groups == 1 else 2 * planes
        self.conv1 = nn.Conv2d(inputs, middle, 1, first, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(
            middle, middle, 3, second, dilation, dilation=dilation, groups=groups, bias=False
        )
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = nn.Conv2d(middle, 4 * planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * planes)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != 4 * planes:
            self.downsample = conv_bn(inputs, 4 * planes, 1, stride, act=None)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        identity = x if self.downsample is None else self.downsample(x)
        return torch.relu(out + identity)


class ResNet(nn.Module):
    """The four stages; ``options`` are those of the block.

    dilated: so many of the last stages keep the size and dilate instead.
    """

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        depths: Sequence[int],
        num_classes: int,
        width: float,
        dilated: int = 0,
        **options: Any,
    ) -> None:
        super().__init__()
        channels = scaled(64, width)
        self.conv1 = nn.Conv2d(3, channels, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        stages: list[nn.Module] = []
        dilation = 1
        for stage, depth in enumerate(depths):
            planes = scaled(64 * 2**stage, width)
            keep = stage >= len(depths) - dilated
            blocks: list[nn.Module] = []
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 and not keep else 1
                blocks.append(block(channels, planes, stride, dilation, **options))
                channels = planes * block.expansion
                if index == 0 and keep:
                    dilation *= 2
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def resnet18(num_classes: int = 1000, width: float = 1.0) -> nn.Module:
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes, width)


def resnet34(num_classes: int = 1000, width: float = 1.0) -> nn.Module:
    return ResNet(BasicBlock, (3, 4, 6, 3), num_classes, width)


def resnet50(num_classes: int = 1000, width: float = 1.0, stride_first: bool = False) -> nn.Module:
    """ResNet-50, stride on the 3x3 (torchvision) or, ``stride_first``, on the first 1x1."""
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes, width, stride_first=stride_first)


def resnext50_32x4d(
    num_classes: int = 1000, width: float = 1.0, depths: Sequence[int] = (3, 4, 6, 3)
) -> nn.Module:
    """ResNeXt-50 (Xie et al., arXiv:1611.05431)."""
    groups = 32 if width == 1.0 else 4
    return ResNet(Bottleneck, depths, num_classes, width, groups=groups)


def resnet50_gn(num_classes: int = 1000, width: float = 1.0) -> nn.Module:
    """ResNet-50 with group norms for batch norms, 32 groups each (Wu and He, arXiv:1803.08494)."""
    model = resnet50(num_classes, width)
    for parent in [*model.modules()]:
        for name, child in [*parent.named_children()]:
            if isinstance(child, nn.BatchNorm2d):
                channels = child.num_features
                setattr(parent, name, nn.GroupNorm(32 if width == 1.0 else 2, channels))
    return model


class AlexNet(nn.Module):
    def __init__(self, num_classes: int, width: float) -> None:
        super().__init__()
        a, b, c, d, hidden = (scaled(n, width) for n in (64, 192, 384, 256, 4096))
        self.features = nn.Sequential(
            nn.Conv2d(3, a, kernel_size=11, stride=4, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2),
            nn.Conv2d(a, b, kernel_size=5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2),
            nn.Conv2d(b, c, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(c, d, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(d, d, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d((6, 6))
        self.classifier = nn.Sequential(
            nn.Dropout(p=0.5),
            nn.Linear(d * 36, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(p=0.5),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.features(x))
        return self.classifier(x.view(x.size(0), -1))


def alexnet(num_classes: int = 1000, width: float = 1.0) -> nn.Module:
    return AlexNet(num_classes, width)


class InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = inputs * expand
        self.use_res_connect = stride == 1 and inputs == outputs
        layers: list[nn.Module] = []
        if expand != 1:
            layers.append(conv_bn(inputs, hidden, 1, act=nn.ReLU6))
        layers.append(conv_bn(hidden, hidden, 3, stride, groups=hidden, act=nn.ReLU6))
        layers.append(conv_bn(hidden, outputs, 1, act=None))
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.use_res_connect else self.conv(x)


class MobileNetV2(nn.Module):
    settings = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )

    def __init__(self, num_classes: int, width: float) -> None:
        super().__init__()
        channels = scaled(32, width)
        features: list[nn.Module] = [conv_bn(3, channels, 3, 2, act=nn.ReLU6)]
        for expand, planes, depth, stride in self.settings:
            outputs = scaled(planes, width)
            for index in range(depth):
                features.append(
                    InvertedResidual(channels, outputs, stride if index == 0 else 1, expand)
                )
                channels = outputs
        last = scaled(1280, width)
        features.append(conv_bn(channels, last, 1, act=nn.ReLU6))
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        x = F.adaptive_avg_pool2d(x, (1, 1))
        return self.classifier(torch.flatten(x, 1))


def mobilenet_v2(num_classes: int = 1000, width: float = 1.0) -> nn.Module:
    return MobileNetV2(num_classes, width)


class SqueezeExcitation(nn.Module):
    """Hu et al., arXiv:1709.01507; as torchvision writes it, with 1x1 convolutions on one cell."""

    def __init__(
        self, channels: int, squeezed: int, act: Callable[[], nn.Module] = nn.ReLU
    ) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.activation = act()
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.fc2(self.activation(self.fc1(self.avgpool(x))))) * x


class MBConv(nn.Module):
    """MobileNetV2's block with any kernel and activation, and squeeze-excitation if asked for."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int,
        expand: int,
        act: Callable[[], nn.Module],
        squeeze: bool = False,
    ) -> None:
        super().__init__()
        hidden = inputs * expand
        layers: list[nn.Module] = []
        if expand != 1:
            layers.append(conv_bn(inputs, hidden, 1, act=act))
        layers.append(conv_bn(hidden, hidden, kernel, stride, groups=hidden, act=act))
        if squeeze:
            layers.append(SqueezeExcitation(hidden, max(1, inputs // 4), act))
        layers.append(conv_bn(hidden, outputs, 1, act=None))
        self.block = nn.Sequential(*layers)
        self.skip = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        result = self.block(x)
        if self.skip:
            result += x
        return result


# (expand, kernel, stride, channels, repeats)
Stages = Sequence[tuple[int, int, int, int, int]]


class EfficientNet(nn.Module):
    """Stem, stages of MBConv, a 1x1 convolution, mean, linear (Tan and Le, arXiv:1905.11946)."""

    stages: Stages = (
        (1, 3, 1, 16, 1),
        (6, 3, 2, 24, 2),
        (6, 5, 2, 40, 2),
        (6, 3, 2, 80, 3),
        (6, 5, 1, 112, 3),
        (6, 5, 2, 192, 4),
        (6, 3, 1, 320, 1),
    )

    def __init__(
        self,
        num_classes: int,
        width: float,
        depth: int | None,
        act: Callable[[], nn.Module],
        squeeze: bool,
    ) -> None:
        super().__init__()
        channels = scaled(32, width)
        layers: list[nn.Module] = [conv_bn(3, channels, 3, 2, act=act)]
        for expand, kernel, first, planes, repeats in self.stages:
            outputs = scaled(planes, width)
            for index in range(min(repeats, depth or repeats)):
                stride = first if index == 0 else 1
                layers.append(MBConv(channels, outputs, kernel, stride, expand, act, squeeze))
                channels = outputs
        last = scaled(1280, width)
        layers.append(conv_bn(channels, last, 1, act=act))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            nn.Dropout(p=0.2, inplace=True), nn.Linear(last, num_classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.features(x))
        return self.classifier(torch.flatten(x, 1))


def efficientnet_b0(
    num_classes: int = 1000, width: float = 1.0, depth: int | None = None
) -> nn.Module:
    """EfficientNet-B0; depth: at most so many blocks in a stage."""
    return EfficientNet(num_classes, width, depth, lambda: nn.SiLU(inplace=True), squeeze=True)


def efficientnet_lite0(
    num_classes: int = 1000, width: float = 1.0, depth: int | None = None
) -> nn.Module:
    """B0 with ReLU6 and without squeeze-excitation; depth: at most so many blocks in a stage."""
    return EfficientNet(num_classes, width, depth, lambda: nn.ReLU6(inplace=True), squeeze=False)


class MNASNet(nn.Module):
    """Tan et al., arXiv:1807.11626."""

    stages: Stages = (
        (3, 3, 2, 24, 3),
        (3, 5, 2, 40, 3),
        (6, 5, 2, 80, 3),
        (6, 3, 1, 96, 2),
        (6, 5, 2, 192, 4),
        (6, 3, 1, 320, 1),
    )

    def __init__(self, num_classes: int, width: float, depth: int | None) -> None:
        super().__init__()
        stem, channels, last = (scaled(c, width) for c in (32, 16, 1280))
        layers: list[nn.Module] = [
            conv_bn(3, stem, 3, 2),
            conv_bn(stem, stem, 3, groups=stem),
            conv_bn(stem, channels, 1, act=None),
        ]
        for expand, kernel, first, planes, repeats in self.stages:
            outputs = scaled(planes, width)
            for index in range(min(repeats, depth or repeats)):
                stride = first if index == 0 else 1
                layers.append(MBConv(channels, outputs, kernel, stride, expand, nn.ReLU))
                channels = outputs
        layers.append(conv_bn(channels, last, 1))
        self.layers = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.layers(x).mean([2, 3]))


def mnasnet1_0(num_classes: int = 1000, width: float = 1.0, depth: int | None = None) -> nn.Module:
    """MNASNet 1.0; depth: at most so many blocks in a stage."""
    return MNASNet(num_classes, width, depth)


class GoogLeNetBlock(nn.Module):
    """Four branches; the pool keeps the size. (3x3 where the paper has 5x5, as torchvision.)"""

    def __init__(self, inputs: int, plan: Sequence[int]) -> None:
        super().__init__()
        c1, c3_reduced, c3, c5_reduced, c5, pool = plan
        self.branch1 = conv_bn(inputs, c1, 1, eps=0.001)
        self.branch2 = nn.Sequential(
            conv_bn(inputs, c3_reduced, 1, eps=0.001), conv_bn(c3_reduced, c3, 3, eps=0.001)
        )
        self.branch3 = nn.Sequential(
            conv_bn(inputs, c5_reduced, 1, eps=0.001), conv_bn(c5_reduced, c5, 3, eps=0.001)
        )
        self.branch4 = nn.Sequential(
            nn.MaxPool2d(kernel_size=3, stride=1, padding=1, ceil_mode=True),
            conv_bn(inputs, pool, 1, eps=0.001),
        )
        self.outputs = c1 + c3 + c5 + pool

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class GoogLeNet(nn.Module):
    """Szegedy et al., arXiv:1409.4842, with batch norms and without the auxiliary heads."""

    # One tuple a block, one number a max pool of that size and stride 2.
    plan = (
        (64, 96, 128, 16, 32, 32),
        (128, 128, 192, 32, 96, 64),
        3,
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
        2,
        (256, 160, 320, 32, 128, 128),
        (384, 192, 384, 48, 128, 128),
    )

    def __init__(self, num_classes: int, width: float) -> None:
        super().__init__()
        c64, channels = scaled(64, width), scaled(192, width)
        layers: list[nn.Module] = [
            conv_bn(3, c64, 7, 2, eps=0.001),
            nn.MaxPool2d(3, stride=2, ceil_mode=True),
            conv_bn(c64, c64, 1, eps=0.001),
            conv_bn(c64, channels, 3, eps=0.001),
            nn.MaxPool2d(3, stride=2, ceil_mode=True),
        ]
        for entry in self.plan:
            if isinstance(entry, int):
                layers.append(nn.MaxPool2d(entry, stride=2, ceil_mode=True))
                continue
            block = GoogLeNetBlock(channels, [scaled(c, width) for c in entry])
            layers.append(block)
            channels = block.outputs
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.dropout(torch.flatten(self.avgpool(self.features(x)), 1)))


def googlenet(num_classes: int = 1000, width: float = 1.0) -> nn.Module:
    return GoogLeNet(num_classes, width)


class Branches(nn.Module):
    """All branches side by side; ``pool`` is "average" (then a 1x1), "max" or "none"."""

    def __init__(
        self, inputs: int, branches: Sequence[nn.Module], pool: str, projected: int = 0
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.pool = pool
        if pool == "average":
            self.branch_pool = conv_bn(inputs, projected, 1, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        outputs = [branch(x) for branch in self.branches]
        if self.pool == "average":
            outputs.append(self.branch_pool(F.avg_pool2d(x, 3, stride=1, padding=1)))
        elif self.pool == "max":
            outputs.append(F.max_pool2d(x, kernel_size=3, stride=2))
        return torch.cat(outputs, 1)


def chain(channels: Sequence[int], kernels: Sequence[Pair], stride: int = 1) -> nn.Sequential:
    """Convolutions in a row; a last stride of 2 comes without padding, as Inception-v3 has it."""
    layers: list[nn.Module] = []
    for index, ((a, b), kernel) in enumerate(zip(pairwise(channels), kernels, strict=True)):
        last = stride if index == len(kernels) - 1 else 1
        padding = 0 if last > 1 else None
        layers.append(conv_bn(a, b, kernel, last, padding, eps=0.001))
    return nn.Sequential(*layers)


ROW, COLUMN = (1, 7), (7, 1)


def inception_v3(num_classes: int = 1000, width: float = 1.0) -> nn.Module:
    """Inception-v3 (Szegedy et al., arXiv:1512.00567) without the auxiliary head."""

    def w(*channels: int) -> list[int]:
        return [scaled(c, width) for c in channels]

    layers: list[nn.Module] = [
        conv_bn(3, *w(32), 3, 2, padding=0, eps=0.001),
        conv_bn(*w(32, 32), 3, padding=0, eps=0.001),
        conv_bn(*w(32, 64), 3, eps=0.001),
        nn.MaxPool2d(3, stride=2),
        conv_bn(*w(64, 80), 1, eps=0.001),
        conv_bn(*w(80, 192), 3, padding=0, eps=0.001),
        nn.MaxPool2d(3, stride=2),
    ]
    (inputs,) = w(192)
    for (projected,) in (w(32), w(64), w(64)):
        branches = [
            chain([inputs, *w(64)], [1]),
            chain([inputs, *w(48, 64)], [1, 5]),
            chain([inputs, *w(64, 96, 96)], [1, 3, 3]),
        ]
        layers.append(Branches(inputs, branches, "average", projected))
        inputs = sum(w(64, 64, 96)) + projected
    branches = [
        chain([inputs, *w(384)], [3], 2),
        chain([inputs, *w(64, 96, 96)], [1, 3, 3], 2),
    ]
    layers.append(Branches(inputs, branches, "max"))
    inputs += sum(w(384, 96))
    for c in (128, 160, 160, 192):
        branches = [
            chain([inputs, *w(192)], [1]),
            chain([inputs, *w(c, c, 192)], [1, ROW, COLUMN]),
            chain([inputs, *w(c, c, c, c, 192)], [1, COLUMN, ROW, COLUMN, ROW]),
        ]
        layers.append(Branches(inputs, branches, "average", *w(192)))
        inputs = 4 * w(192)[0]
    branches = [
        chain([inputs, *w(192, 320)], [1, 3], 2),
        chain([inputs, *w(192, 192, 192, 192)], [1, ROW, COLUMN, 3], 2),
    ]
    layers.append(Branches(inputs, branches, "max"))
    inputs += sum(w(320, 192))
    for _ in range(2):
        split = [
            Branches(0, [chain(w(384, 384), [(1, 3)]), chain(w(384, 384), [(3, 1)])], "none")
            for _ in range(2)
        ]
        branches = [
            chain([inputs, *w(320)], [1]),
            nn.Sequential(chain([inputs, *w(384)], [1]), split[0]),
            nn.Sequential(chain([inputs, *w(448, 384)], [1, 3]), split[1]),
        ]
        layers.append(Branches(inputs, branches, "average", *w(192)))
        inputs = sum(w(320, 384, 384, 384, 384, 192))
    return nn.Sequential(
        *layers,
        nn.AdaptiveAvgPool2d((1, 1)),
        nn.Dropout(),
        nn.Flatten(),
        nn.Linear(inputs, num_classes),
    )


class DenseLayer(nn.Module):
    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = self.conv1(self.relu1(self.norm1(torch.cat(features, 1))))
        return self.conv2(self.relu2(self.norm2(x)))


class DenseBlock(nn.ModuleList):
    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self:
            features.append(layer(features))
        return torch.cat(features, 1)


class DenseNet121(nn.Module):
    """Huang et al., arXiv:1608.06993."""

    def __init__(self, num_classes: int, width: float, depths: Sequence[int]) -> None:
        super().__init__()
        growth, channels = scaled(32, width), scaled(64, width)
        layers: list[nn.Module] = [
            nn.Conv2d(3, channels, 7, 2, 3, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
        ]
        for index, depth in enumerate(depths):
            if index > 0:
                half = channels // 2
                layers += [
                    nn.BatchNorm2d(channels),
                    nn.ReLU(inplace=True),
                    nn.Conv2d(channels, half, 1, bias=False),
                    nn.AvgPool2d(2, stride=2),
                ]
                channels = half
            layers.append(
                DenseBlock(DenseLayer(channels + i * growth, growth) for i in range(depth))
            )
            channels += depth * growth
        self.features = nn.Sequential(*layers, nn.BatchNorm2d(channels))
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.features(x), inplace=True)
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), 1))


def densenet121(
    num_classes: int = 1000, width: float = 1.0, depths: Sequence[int] = (6, 12, 24, 16)
) -> nn.Module:
    return DenseNet121(num_classes, width, depths)


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    batch, channels, height, width = x.size()
    x = x.view(batch, groups, channels // groups, height, width)
    x = torch.transpose(x, 1, 2).contiguous()
    return x.view(batch, channels, height, width)


class ShuffleBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        half = outputs // 2
        self.stride = stride
        self.branch1: nn.Module = nn.Identity()
        if stride > 1:
            self.branch1 = nn.Sequential(
                conv_bn(inputs, inputs, 3, stride, groups=inputs, act=None),
                conv_bn(inputs, half, 1),
            )
        self.branch2 = nn.Sequential(
            conv_bn(inputs if stride > 1 else half, half, 1),
            conv_bn(half, half, 3, stride, groups=half, act=None),
            conv_bn(half, half, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1) if self.stride == 1 else (x, x)
        return channel_shuffle(torch.cat((self.branch1(left), self.branch2(right)), dim=1), 2)


class ShuffleNetV2(nn.Module):
    """Ma et al., arXiv:1807.11164."""

    def __init__(self, num_classes: int, width: float, depths: Sequence[int]) -> None:
        super().__init__()
        channels, last = scaled(24, width), scaled(1024, width)
        layers: list[nn.Module] = [
            conv_bn(3, channels, 3, 2),
            nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
        ]
        for planes, depth in zip((116, 232, 464), depths, strict=True):
            outputs = scaled(planes, width)
            for index in range(depth):
                layers.append(ShuffleBlock(channels, outputs, 2 if index == 0 else 1))
                channels = outputs
        self.features = nn.Sequential(*layers, conv_bn(channels, last, 1))
        self.fc = nn.Linear(last, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).mean([2, 3]))


def shufflenet_v2_x1_0(
    num_classes: int = 1000, width: float = 1.0, depths: Sequence[int] = (4, 8, 4)
) -> nn.Module:
    return ShuffleNetV2(num_classes, width, depths)


class RegNetBlock(nn.Module):
    """Bottleneck of ratio 1; ``squeeze`` counts from the block's input, as torchvision has it."""

    def __init__(
        self, inputs: int, outputs: int, stride: int, group_width: int, squeeze: float
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            conv_bn(inputs, outputs, 1),
            conv_bn(outputs, outputs, 3, stride, groups=outputs // group_width),
        ]
        if squeeze:
            layers.append(SqueezeExcitation(outputs, round(squeeze * inputs)))
        layers.append(conv_bn(outputs, outputs, 1, act=None))
        self.f = nn.Sequential(*layers)
        self.proj: nn.Module | None = None
        if inputs != outputs or stride != 1:
            self.proj = conv_bn(inputs, outputs, 1, stride, act=None)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.f(x) + (x if self.proj is None else self.proj(x))
        return self.activation(x)


class RegNet(nn.Module):
    """Radosavovic et al., arXiv:2003.13678."""

    def __init__(
        self,
        plan: Sequence[int],
        depths: Sequence[int],
        group_width: int,
        squeeze: float,
        num_classes: int,
        width: float,
    ) -> None:
        super().__init__()
        channels = scaled(32, width)
        layers: list[nn.Module] = [conv_bn(3, channels, 3, 2)]
        for planes, depth in zip(plan, depths, strict=True):
            outputs = scaled(planes, width)
            for index in range(depth):
                stride = 2 if index == 0 else 1
                layers.append(RegNetBlock(channels, outputs, stride, group_width, squeeze))
                channels = outputs
        self.trunk = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.avgpool(self.trunk(x)).flatten(start_dim=1))


def regnet_x_400mf(
    num_classes: int = 1000, width: float = 1.0, depths: Sequence[int] = (1, 2, 7, 12)
) -> nn.Module:
    group = 16 if width == 1.0 else 4
    return RegNet((32, 64, 160, 400), depths, group, 0.0, num_classes, width)


def regnet_y_400mf(
    num_classes: int = 1000, width: float = 1.0, depths: Sequence[int] = (1, 3, 6, 6)
) -> nn.Module:
    group = 8 if width == 1.0 else 4
    return RegNet((48, 104, 208, 440), depths, group, 0.25, num_classes, width)


class LayerNorm2d(nn.LayerNorm):
    """Over the channels, by permutes there and back."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class Permute(nn.Module):
    def __init__(self, dims: Sequence[int]) -> None:
        super().__init__()
        self.dims = list(dims)

    def forward(self, x: Tensor) -> Tensor:
        return torch.permute(x, self.dims)


class ConvNeXtBlock(nn.Module):
    """The layer scale starts at 0.5, not at 1e-6: an untrained block should do something."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(channels, channels, 7, padding=3, groups=channels, bias=True),
            Permute([0, 2, 3, 1]),
            nn.LayerNorm(channels, eps=1e-6),
            nn.Linear(channels, 4 * channels),
            nn.GELU(),
            nn.Linear(4 * channels, channels),
            Permute([0, 3, 1, 2]),
        )
        self.layer_scale = nn.Parameter(torch.full((channels, 1, 1), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        result = self.layer_scale * self.block(x)
        result += x
        return result


def convnext_tiny(
    num_classes: int = 1000, width: float = 1.0, depths: Sequence[int] = (3, 3, 9, 3)
) -> nn.Module:
    """ConvNeXt-T (Liu et al., arXiv:2201.03545)."""
    layers: list[nn.Module] = []
    channels = scaled(96, width)
    for stage, depth in enumerate(depths):
        outputs = scaled(96 * 2**stage, width)
        if stage == 0:
            layers += [nn.Conv2d(3, outputs, 4, stride=4), LayerNorm2d(outputs, eps=1e-6)]
        else:
            layers += [
                LayerNorm2d(channels, eps=1e-6),
                nn.Conv2d(channels, outputs, 2, stride=2),
            ]
        channels = outputs
        layers += [ConvNeXtBlock(channels) for _ in range(depth)]
    return nn.Sequential(
        *layers,
        nn.AdaptiveAvgPool2d(1),
        LayerNorm2d(channels, eps=1e-6),
        nn.Flatten(1),
        nn.Linear(channels, num_classes),
    )


class EncoderBlock(nn.Module):
    """The attention is written out, as timm does: nn.MultiheadAttention's own inference path rounds
    otherwise than what torch.export captures of it.
    """

    def __init__(self, channels: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1 = nn.LayerNorm(channels, eps=1e-6)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.dropout = nn.Dropout(0.0)
        self.ln_2 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, channels), nn.Dropout(0.0)
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, channels = x.shape
        y = self.qkv(self.ln_1(x)).reshape(batch, tokens, 3, self.heads, channels // self.heads)
        q, k, v = y.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        x = self.dropout(self.proj(y.transpose(1, 2).reshape(batch, tokens, channels))) + x
        return x + self.mlp(self.ln_2(x))


class VisionTransformer(nn.Module):
    """Dosovitskiy et al., arXiv:2010.11929; images of ``size`` (height, width)."""

    def __init__(
        self,
        size: tuple[int, int],
        num_classes: int,
        width: float,
        depth: int,
        patch: int,
        heads: int,
    ) -> None:
        super().__init__()
        channels, hidden = scaled(768, width), scaled(3072, width)
        cells = (size[0] // patch) * (size[1] // patch)
        self.conv_proj = nn.Conv2d(3, channels, patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, channels).normal_())
        self.pos_embedding = nn.Parameter(torch.empty(1, 1 + cells, channels).normal_(std=0.2))
        self.layers = nn.Sequential(*(EncoderBlock(channels, heads, hidden) for _ in range(depth)))
        self.ln = nn.LayerNorm(channels, eps=1e-6)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_proj(x).flatten(2).permute(0, 2, 1)
        token = self.class_token.expand(x.shape[0], -1, -1)
        x = torch.cat([token, x], dim=1) + self.pos_embedding
        return self.head(self.ln(self.layers(x))[:, 0])


def vit_b_16(
    num_classes: int = 1000,
    width: float = 1.0,
    size: tuple[int, int] = (224, 224),
    depth: int = 12,
    patch: int = 16,
    heads: int = 12,
) -> nn.Module:
    return VisionTransformer(size, num_classes, width, depth, patch, heads)


class CaffeNet(nn.Module):
    """AlexNet as Caffe has it: pool, then local response norm, and two groups.

    alpha: of the response norm; at activations of about 1 the original's does next to nothing.
    """

    def __init__(self, num_classes: int, width: float, alpha: float) -> None:
        super().__init__()
        a, b, c, hidden = (scaled(n, width) for n in (96, 256, 384, 4096))
        self.alpha = alpha
        self.conv1 = nn.Conv2d(3, a, 11, stride=4)
        self.conv2 = nn.Conv2d(a, b, 5, padding=2, groups=2)
        self.norm = nn.LocalResponseNorm(5, alpha=alpha, beta=0.75, k=1.0)
        self.conv3 = nn.Conv2d(b, c, 3, padding=1)
        self.conv4 = nn.Conv2d(c, c, 3, padding=1, groups=2)
        self.conv5 = nn.Conv2d(c, b, 3, padding=1, groups=2)
        self.pool = nn.MaxPool2d(3, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d((6, 6))  # nothing to do at 227 x 227
        self.fc6 = nn.Linear(36 * b, hidden)
        self.fc7 = nn.Linear(hidden, hidden)
        self.fc8 = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.conv1(x)))
        x = F.local_response_norm(x, 5, alpha=self.alpha, beta=0.75, k=1.0)
        x = self.norm(self.pool(F.relu(self.conv2(x))))
        x = F.relu(self.conv5(F.relu(self.conv4(F.relu(self.conv3(x))))))
        x = torch.flatten(self.avgpool(self.pool(x)), 1)
        x = F.dropout(F.relu(self.fc6(x)), training=self.training)
        return self.fc8(F.dropout(F.relu(self.fc7(x)), training=self.training))


def caffenet(num_classes: int = 1000, width: float = 1.0, alpha: float = 1e-4) -> nn.Module:
    return CaffeNet(num_classes, width, alpha)


class UNet(nn.Module):
    """Ronneberger et al., arXiv:1505.04597, padded and with batch norms; (N, classes, H, W) out.

    Up again by transposed convolutions, padded to the skip's size, or, ``bilinear``, by resampling
    to that size and a convolution.
    """

    def __init__(self, num_classes: int, width: float, depth: int, bilinear: bool) -> None:
        super().__init__()
        sizes = [scaled(64 * 2**level, width) for level in range(depth + 1)]

        def double(inputs: int, outputs: int) -> nn.Module:
            return nn.Sequential(conv_bn(inputs, outputs), conv_bn(outputs, outputs))

        self.down = nn.ModuleList(double(a, b) for a, b in pairwise([3, *sizes]))
        self.pool = nn.MaxPool2d(2)
        self.bilinear = bilinear
        deep = [*pairwise(reversed(sizes))]
        if bilinear:
            self.up = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in deep)
        else:
            self.up = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, stride=2) for a, b in deep)
        self.join = nn.ModuleList(double(2 * b, b) for _, b in deep)
        self.last = nn.Conv2d(sizes[0], num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for block in self.down:
            x = block(self.pool(x) if skips else x)
            skips.append(x)
        for skip, up, join in zip(reversed(skips[:-1]), self.up, self.join, strict=True):
            if self.bilinear:
                x = up(F.interpolate(x, skip.shape[-2:], mode="bilinear", align_corners=False))
            else:
                x = up(x)
                below, right = skip.size(2) - x.size(2), skip.size(3) - x.size(3)
                around = [right // 2, right - right // 2, below // 2, below - below // 2]
                x = F.pad(x, around)
            x = join(torch.cat([skip, x], dim=1))
        return self.last(x)


def unet(
    num_classes: int = 2, width: float = 1.0, depth: int = 4, bilinear: bool = False
) -> nn.Module:
    return UNet(num_classes, width, depth, bilinear)


def dcgan(width: float = 1.0, size: int = 64) -> nn.Sequential:
    """The generator of Radford et al., arXiv:1511.06434, as PyTorch's example has it: noise
    (N, 100, 1, 1) to images (N, 3, size, size)."""
    steps = size.bit_length() - 3  # from 4 x 4, twice as large each time
    sizes = [scaled(64 * 2**step, width) for step in reversed(range(steps))]
    layers: list[nn.Module] = [nn.ConvTranspose2d(100, sizes[0], 4, 1, 0, bias=False)]
    for inputs, outputs in pairwise(sizes):
        layers += [nn.BatchNorm2d(inputs), nn.ReLU(inplace=True)]
        layers += [nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False)]
    layers += [nn.BatchNorm2d(sizes[-1]), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.ConvTranspose2d(sizes[-1], 3, 4, 2, 1, bias=False), nn.Tanh())


class SegNet(nn.Module):
    """Badrinarayanan et al., arXiv:1511.00561: up again by the switches of the pools;
    (N, classes, H, W) out."""

    def __init__(self, num_classes: int, width: float, depth: int) -> None:
        super().__init__()
        sizes = [scaled(64 * 2**level, width) for level in range(depth)]
        self.down = nn.ModuleList(conv_bn(a, b) for a, b in pairwise([3, *sizes]))
        self.pool = nn.MaxPool2d(2, return_indices=True)
        self.unpool = nn.MaxUnpool2d(2)
        deep = [*pairwise([*reversed(sizes), num_classes])]
        self.up = nn.ModuleList(nn.ConvTranspose2d(a, b, 3, padding=1) for a, b in deep)

    def forward(self, x: Tensor) -> Tensor:
        pools = []
        for block in self.down:
            y = block(x)
            x, indices = self.pool(y)
            pools.append((indices, y.shape))
        for up, (indices, shape) in zip(self.up, reversed(pools), strict=True):
            x = up(self.unpool(x, indices, output_size=shape))
        return x


def segnet(num_classes: int = 5, width: float = 1.0, depth: int = 4) -> nn.Module:
    return SegNet(num_classes, width, depth)


class FCN(nn.Module):
    """Long et al., arXiv:1411.4038, on a dilated ResNet-50; a dict of maps of the image's size."""

    def __init__(self, num_classes: int, width: float, depths: Sequence[int]) -> None:
        super().__init__()
        self.backbone = ResNet(Bottleneck, depths, 1, width, dilated=2)
        del self.backbone.fc, self.backbone.avgpool
        channels = 4 * scaled(512, width)

        def head(inputs: int) -> nn.Module:
            last = nn.Conv2d(inputs // 4, num_classes, 1)
            return nn.Sequential(conv_bn(inputs, inputs // 4), nn.Dropout(0.1), last)

        self.classifier = head(channels)
        self.aux_classifier = head(channels // 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        net, size = self.backbone, x.shape[-2:]
        y = net.maxpool(net.relu(net.bn1(net.conv1(x))))
        middle = net.layer3(net.layer2(net.layer1(y)))
        maps = {
            "out": self.classifier(net.layer4(middle)),
            "aux": self.aux_classifier(middle),
        }
        return {
            name: F.interpolate(value, size=size, mode="bilinear", align_corners=False)
            for name, value in maps.items()
        }


def fcn_resnet50(
    num_classes: int = 21, width: float = 1.0, depths: Sequence[int] = (3, 4, 6, 3)
) -> nn.Module:
    return FCN(num_classes, width, depths)
