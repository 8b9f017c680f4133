"""Plain PyTorch networks that the tests and benchmarks run on.

The published ones follow torchvision layer for layer (``width=1.0``), in deliberately varied
spellings. Weights are random but *calibrated*: one pass over random images rescales every
convolution and linear layer to unit variance and fills every batch norm's running statistics, so
that activations stay healthy down to the last layer and an occluded box moves the scores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Shape = tuple[int, ...]  # (channels, *spatial)


def scaled(channels: int, width: float) -> int:
    """``channels`` times ``width``, a multiple of 4 unless width is 1."""
    return channels if width == 1.0 else max(4, 4 * round(channels * width / 4))


def random_images(shape: Shape, count: int = 1, seed: int = 0) -> Tensor:
    """Random images (count, *shape), fp32: white noise over a smooth random field, mean not 0."""
    generator = torch.Generator().manual_seed(seed)
    channels, *size = shape
    coarse = torch.randn(count, channels, *[4] * len(size), generator=generator)
    mode = ("linear", "bilinear", "trilinear")[len(size) - 1]
    smooth = F.interpolate(coarse, size=tuple(size), mode=mode, align_corners=True)
    return smooth + 0.5 * torch.randn(count, *shape, generator=generator) + 0.3


def calibrate(model: nn.Module, images: Tensor, seed: int = 0) -> nn.Module:
    """Rescale and centre every conv and linear layer, fill every batch norm, return in eval mode.

    Works in one forward pass: each layer is normalised in a hook before the next one sees it.
    """
    generator = torch.Generator().manual_seed(seed)
    model.eval()
    seen: set[nn.Module] = set()
    momentum: dict[nn.Module, float | None] = {}

    def normalise(module: nn.Module, _inputs: object, output: Tensor) -> Tensor | None:
        if module in seen:
            return None
        seen.add(module)
        assert isinstance(module.weight, Tensor)
        channel = output.dim() - 1 if isinstance(module, nn.Linear) else 1
        axes = [axis for axis in range(output.dim()) if axis != channel]
        if output.numel() // output.shape[channel] < 4:  # too few values to estimate a mean
            axes = list(range(output.dim()))
        std = output.std().clamp_min(1e-3)
        module.weight.data /= std
        output = output / std
        if module.bias is None:
            return output
        per_channel = [1] * output.dim()
        per_channel[channel] = output.shape[channel]
        shift = 0.2 * torch.randn(per_channel, generator=generator)
        move = (shift - output.mean(axes, keepdim=True)).expand(per_channel)
        module.bias.data = module.bias.data / std + move.flatten()
        return output + move

    handles = []
    for module in model.modules():
        if isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
            handles.append(module.register_forward_hook(normalise))
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            momentum[module] = module.momentum
            module.train()
            module.momentum = 1.0
            assert module.weight is not None
            assert module.bias is not None
            module.weight.data.uniform_(0.6, 1.4, generator=generator)
            module.bias.data.normal_(0.0, 0.2, generator=generator)
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    for norm, value in momentum.items():
        norm.momentum = value  # type: ignore[assignment]
    return model.eval()


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Build a module with the global generator seeded, leaving the generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


# --- published networks --------------------------------------------------------------------------


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

    def __init__(self, inputs: int, planes: int, stride: int, _stride_first: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)  # one module, used twice, as torchvision does
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != planes:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, planes, 1, stride, bias=False), nn.BatchNorm2d(planes)
            )

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, inputs: int, planes: int, stride: int, stride_first: bool) -> None:
        super().__init__()
        first, second = (stride, 1) if stride_first else (1, stride)
        self.conv1 = nn.Conv2d(inputs, planes, 1, first, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, second, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, 4 * planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * planes)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != 4 * planes:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, 4 * planes, 1, stride, bias=False), nn.BatchNorm2d(4 * planes)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        identity = x if self.downsample is None else self.downsample(x)
        return torch.relu(out + identity)


class ResNet(nn.Module):
    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        depths: tuple[int, int, int, int],
        num_classes: int,
        width: float,
        stride_first: bool,
    ) -> None:
        super().__init__()
        channels = scaled(64, width)
        self.conv1 = nn.Conv2d(3, channels, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        stages: list[nn.Module] = []
        for stage, depth in enumerate(depths):
            planes = scaled(64 * 2**stage, width)
            blocks: list[nn.Module] = []
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(block(channels, planes, stride, stride_first))
                channels = planes * block.expansion
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def resnet18(num_classes: int = 1000, width: float = 1.0) -> nn.Module:
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes, width, False)


def resnet34(num_classes: int = 1000, width: float = 1.0) -> nn.Module:
    return ResNet(BasicBlock, (3, 4, 6, 3), num_classes, width, False)


def resnet50(num_classes: int = 1000, width: float = 1.0, stride_first: bool = False) -> nn.Module:
    """ResNet-50, stride on the 3x3 (torchvision) or, ``stride_first``, on the first 1x1."""
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes, width, stride_first)


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


def conv_bn(
    inputs: int,
    outputs: int,
    kernel: int = 3,
    stride: int = 1,
    padding: int | None = None,
    groups: int = 1,
    dilation: int = 1,
    act: Callable[[], nn.Module] | None = nn.ReLU,
) -> nn.Sequential:
    if padding is None:
        padding = dilation * (kernel - 1) // 2
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([] if act is None else [act()]))


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


class Inception(nn.Module):
    """GoogLeNet-v3 style block: 1x1, 3x3, double 3x3, and an average pool with a projection."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.branch1x1 = conv_bn(inputs, outputs, 1)
        self.branch3x3 = nn.Sequential(conv_bn(inputs, outputs, 1), conv_bn(outputs, outputs, 3))
        self.branch_double = nn.Sequential(
            conv_bn(inputs, outputs, 1), conv_bn(outputs, outputs, 3), conv_bn(outputs, outputs, 3)
        )
        self.branch_pool = conv_bn(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.avg_pool2d(x, kernel_size=3, stride=1, padding=1, count_include_pad=True)
        return torch.cat(
            (
                self.branch1x1(x),
                self.branch3x3(x),
                self.branch_double(x),
                self.branch_pool(pooled),
            ),
            dim=1,
        )


class InceptionReduction(nn.Module):
    """Stride-2 block: a convolution branch beside a max pool, concatenated."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.branch3x3 = conv_bn(inputs, outputs, 3, 2, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch3x3(x), F.max_pool2d(x, 3, stride=2)], 1)


class InceptionNet(nn.Module):
    def __init__(self, num_classes: int, width: float) -> None:
        super().__init__()
        c = scaled(64, width)
        self.stem = nn.Sequential(conv_bn(3, c, 3, 2, padding=0), conv_bn(c, c, 3))
        self.block1 = Inception(c, c)
        self.reduce = InceptionReduction(4 * c, c)
        self.block2 = Inception(5 * c, c)
        self.fc = nn.Linear(4 * c, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block2(self.reduce(self.block1(self.stem(x))))
        return self.fc(F.dropout(x.mean([2, 3]), training=self.training))


def inception_block(num_classes: int = 1000, width: float = 1.0) -> nn.Module:
    return InceptionNet(num_classes, width)


# --- small networks, each for one thing ----------------------------------------------------------


class SqueezeExcitationNet(nn.Module):
    """A squeeze-excitation in the middle: everything after it depends on the whole image."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_bn(3, 12, 3, 2), conv_bn(12, 16, 3))
        self.down = nn.Linear(16, 8)
        self.up = nn.Linear(8, 16)
        self.tail = conv_bn(16, 20, 3, 2)
        self.fc = nn.Linear(20, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        gate = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3))))))
        x = x * gate[:, :, None, None]
        return self.fc(self.tail(x).mean((-2, -1)))


class GroupNormNet(nn.Module):
    """A group norm in the middle, then more convolutions."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 12, 5, 2, 2)
        self.conv2 = nn.Conv2d(12, 16, 3, 1, 1)
        self.norm = nn.GroupNorm(4, 16)
        self.conv3 = nn.Conv2d(16, 16, 3, 2, 1)
        self.fc = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(self.conv1(x).relu()))
        x = self.conv3(F.silu(self.norm(x)))
        return self.fc(F.adaptive_avg_pool2d(F.relu(x), 1).flatten(1))


class AttentionNet(nn.Module):
    """Self-attention over all positions after a convolutional stem."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_bn(3, 16, 4, 4, padding=0), conv_bn(16, 16, 3))
        self.qkv = nn.Linear(16, 48)
        self.fc = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).chunk(3, dim=-1)
        tokens = tokens + F.scaled_dot_product_attention(q, k, v)
        return self.fc(tokens.mean(1))


class DataDependentNet(nn.Module):
    """Chooses between two branches by each image's own values: torch.export must refuse it."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.bright = nn.Conv2d(8, 8, 3, 1, 1)
        self.dark = nn.Conv2d(8, 8, 5, 1, 2)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        rows = []
        for row in self.stem(x).relu().split(1):
            branch = self.bright if float(row.mean()) > 0.32 else self.dark
            rows.append(branch(row))
        return self.fc(torch.cat(rows).relu().mean((2, 3)))


class LinearNet(nn.Module):
    """No nonlinearity at all: an occlusion's drop is the box sum of w * (x - baseline)."""

    def __init__(self, shape: Shape, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(shape[0], 6, 3, 2, 1)
        size = [(n - 1) // 2 + 1 for n in shape[1:]]
        self.fc = nn.Linear(6 * size[0] * size[1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).flatten(1))


class MultilayerFlat(nn.Module):
    """Conv and pool, then flatten + linear on a fixed size (no adaptive pool)."""

    def __init__(self, shape: Shape, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(shape[0], 8, 5, padding=2), nn.Tanh(), nn.AvgPool2d(2)
        )
        cells = (shape[1] // 2) * (shape[2] // 2)
        self.fc = nn.Sequential(nn.Linear(8 * cells, 24), nn.ReLU(), nn.Linear(24, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.fc(x.reshape(x.shape[0], -1))


class Conv1dNet(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv1d(3, 12, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm1d(12),
            nn.ReLU(),
            nn.MaxPool1d(3, 2, padding=1),
            nn.Conv1d(12, 16, 3, padding=2, dilation=2),
            nn.LeakyReLU(0.1),
            nn.AvgPool1d(3, 2, ceil_mode=True, count_include_pad=False),
            nn.Conv1d(16, 16, 3, padding=1, groups=4),
            nn.ReLU6(),
        )
        self.pool = nn.AdaptiveAvgPool1d(1)
        self.fc = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.features(x)).squeeze(-1))


class Conv3dNet(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(2, 8, 3, stride=(1, 2, 2), padding=1, bias=False)
        self.bn1 = nn.BatchNorm3d(8)
        self.pool = nn.MaxPool3d((1, 2, 2), stride=(1, 2, 2), ceil_mode=True)
        self.conv2 = nn.Conv3d(8, 12, (3, 1, 3), padding=(1, 0, 1))
        self.fc = nn.Linear(12, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.bn1(self.conv1(x))))
        return self.fc(F.relu(self.conv2(x)).mean((2, 3, 4)))


class OddGeometry(nn.Module):
    """Ceil-mode and dilated pools, groups, dilation, non-square kernels, strides over kernels."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, (3, 5), stride=(1, 2), padding=(2, 1))
        self.pool1 = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)
        self.conv2 = nn.Conv2d(8, 16, 3, padding=(0, 2), dilation=(1, 2), groups=4)
        self.pool2 = nn.MaxPool2d(2, stride=1, dilation=2)
        self.conv3 = nn.Conv2d(16, 16, 2, stride=3)  # skips pixels: stride larger than kernel
        self.pool3 = nn.AvgPool2d((2, 3), (1, 2), padding=(1, 1), count_include_pad=False)
        self.pool4 = nn.AvgPool2d(2, 2, padding=1, ceil_mode=True, divisor_override=3)
        self.conv4 = nn.Conv2d(16, 16, 3, padding="same", padding_mode="zeros")
        self.fc = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(F.relu6(self.conv1(x)))
        x = self.pool2(F.leaky_relu(self.conv2(x), 0.2))
        x = self.pool3(F.hardswish(self.conv3(x)))
        x = F.gelu(self.conv4(self.pool4(x)))
        return self.fc(torch.amax(x, (2, 3)))


class StridedProjection(nn.Module):
    """1x1 convolutions and pools with stride 2 or 3: most pixels of a map are never read."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 12, 1, stride=2)
        self.conv2 = nn.Conv2d(12, 16, 1, stride=2, padding=1)
        self.pool = nn.MaxPool2d(2, stride=3)
        self.fc = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.elu(self.conv2(F.softplus(self.conv1(x)))))
        return self.fc(x.mean((2, 3)))


class ShuffleNet(nn.Module):
    """Channel split, depthwise branch, concatenation and a channel shuffle made of views."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = conv_bn(3, 16, 3, 2)
        self.branch = nn.Sequential(
            conv_bn(8, 8, 1), conv_bn(8, 8, 3, groups=8, act=None), conv_bn(8, 8, 1)
        )
        self.last = conv_bn(16, 24, 1, act=nn.Hardswish)
        self.fc = nn.Linear(24, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(2):
            left, right = x.chunk(2, dim=1)
            x = torch.cat((left, self.branch(right)), dim=1)
            batch, channels, height, width = x.size()
            x = x.view(batch, 2, channels // 2, height, width)
            x = torch.transpose(x, 1, 2).contiguous().view(batch, -1, height, width)
        return self.fc(self.last(x).mean([2, 3]))


class ConvNext(nn.Module):
    """Layer norm over channels by permutes, a linear layer per pixel, and a layer scale."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 4, stride=4)
        self.depthwise = nn.Conv2d(16, 16, 7, padding=3, groups=16)
        self.norm = nn.LayerNorm(16, eps=1e-6)
        self.expand = nn.Linear(16, 32)
        self.project = nn.Linear(32, 16)
        self.scale = nn.Parameter(torch.full((16, 1, 1), 0.7))
        self.head_norm = nn.LayerNorm(16)
        self.fc = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.project(F.gelu(self.expand(y))).permute(0, 3, 1, 2)
        x = x + self.scale * y
        return self.fc(self.head_norm(x.mean((2, 3))))


class UpsampleNet(nn.Module):
    """Down and up again: transposed convolution, nearest and bilinear upsampling, a long skip."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.mid = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(12, 8, 3, stride=2, padding=1, output_padding=0)
        self.last = nn.Conv2d(16, num_classes, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.relu(self.down(x))
        y = F.relu(self.up(F.relu(self.mid(skip))))
        size = [min(a, b) for a, b in zip(skip.shape[2:], y.shape[2:], strict=True)]
        y = torch.cat([y[:, :, : size[0], : size[1]], skip[:, :, : size[0], : size[1]]], 1)
        y = F.interpolate(y, scale_factor=2.0, mode="nearest")
        return F.relu(self.last(y)).mean((2, 3))


class DenseNet(nn.Module):
    """Pre-activation batch norms that cannot be folded, growing concatenations, avg transitions."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, 2, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(12 + 6 * i) for i in range(3))
        self.convs = nn.ModuleList(
            nn.Conv2d(12 + 6 * i, 6, 3, padding=1, bias=False) for i in range(3)
        )
        self.transition = conv_bn(30, 16, 1)
        self.norm = nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            features.append(conv(F.relu(norm(torch.cat(features, 1)))))
        x = F.avg_pool2d(self.transition(torch.cat(features, 1)), 2)
        return self.fc(F.relu(self.norm(x)).mean((2, 3)))


class PreprocessedNet(nn.Module):
    """Normalises inside the model with buffers, reads the image twice, ends in a softmax."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.48, 0.45, 0.40]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.9, 1.1, 1.3]).view(1, 3, 1, 1))
        self.conv = nn.Conv2d(3, 12, 3, padding=1)
        self.again = nn.Conv2d(3, 12, 1)
        self.last = nn.Conv2d(12, 16, 3, stride=2, padding=1)
        self.fc = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.mean) / self.std
        y = F.silu(self.conv(x)) + 0.5 * torch.sigmoid(self.again(x))
        y = F.relu(self.last(y * 1.5 - 0.25)).clamp(max=3.0)
        return torch.softmax(self.fc(y.mean((2, 3))), dim=1)


# --- the registry --------------------------------------------------------------------------------


@dataclass(frozen=True)
class NetCase:
    """A network to test and the image shapes to test it on.

    shapes: (channels, *spatial) each, odd and non-square among them.
    capture: torch.export is expected to capture it.
    barrier: a global op in the middle keeps the rest of the network from running on windows;
        None where that is for the graph to say (an operation without a window rule of its own).
    """

    factory: Callable[[Shape], nn.Module]
    shapes: tuple[Shape, ...]
    capture: bool = True
    barrier: bool | None = False
    linear: bool = False

    @property
    def dims(self) -> int:
        return len(self.shapes[0]) - 1

    def build(self, shape: Shape | None = None, seed: int = 0) -> nn.Module:
        """The calibrated model for images of ``shape`` (default the first), fp32, eval mode."""
        shape = self.shapes[0] if shape is None else shape
        model = seeded(lambda: self.factory(shape), seed)
        return calibrate(model, random_images(shape, 8, seed=1000 + seed), seed)

    def images(self, shape: Shape | None = None, count: int = 1, seed: int = 0) -> Tensor:
        """Random images (count, *shape), fp32."""
        return random_images(self.shapes[0] if shape is None else shape, count, seed)


CLASSES = 7
SMALL: tuple[Shape, ...] = ((3, 65, 49), (3, 48, 64))

NETS: dict[str, NetCase] = {
    "vgg16_fc": NetCase(lambda _: vgg16("fc", CLASSES, 1 / 16), ((3, 65, 49), (3, 64, 96))),
    "vgg16_gap": NetCase(lambda _: vgg16("gap", CLASSES, 1 / 16), ((3, 65, 49), (3, 99, 64))),
    "squeezenet1_1": NetCase(lambda _: squeezenet1_1(CLASSES, 1 / 8), SMALL),
    "resnet18": NetCase(lambda _: resnet18(CLASSES, 1 / 8), SMALL),
    "resnet50": NetCase(lambda _: resnet50(CLASSES, 1 / 16), SMALL),
    "resnet50_original": NetCase(
        lambda _: resnet50(CLASSES, 1 / 16, stride_first=True), ((3, 65, 49),)
    ),
    "alexnet": NetCase(lambda _: alexnet(CLASSES, 1 / 16), ((3, 95, 79), (3, 127, 163))),
    "mobilenet_v2": NetCase(lambda _: mobilenet_v2(CLASSES, 1 / 4), SMALL),
    "inception_block": NetCase(lambda _: inception_block(CLASSES, 1 / 8), SMALL),
    "squeeze_excitation": NetCase(lambda _: SqueezeExcitationNet(CLASSES), SMALL, barrier=True),
    "group_norm": NetCase(lambda _: GroupNormNet(CLASSES), SMALL, barrier=True),
    "attention": NetCase(lambda _: AttentionNet(CLASSES), SMALL, barrier=True),
    "data_dependent": NetCase(lambda _: DataDependentNet(CLASSES), SMALL, capture=False),
    "linear": NetCase(lambda shape: LinearNet(shape, CLASSES), SMALL, linear=True),
    "flat": NetCase(lambda shape: MultilayerFlat(shape, CLASSES), ((3, 33, 25), (3, 24, 41))),
    "conv1d": NetCase(lambda _: Conv1dNet(CLASSES), ((3, 129), (3, 64))),
    "conv3d": NetCase(lambda _: Conv3dNet(CLASSES), ((2, 7, 21, 17), (2, 8, 12, 15))),
    "odd_geometry": NetCase(lambda _: OddGeometry(CLASSES), SMALL, barrier=None),
    "strided_projection": NetCase(lambda _: StridedProjection(CLASSES), SMALL),
    "shufflenet": NetCase(lambda _: ShuffleNet(CLASSES), ((3, 33, 25), (3, 24, 40))),
    "convnext": NetCase(lambda _: ConvNext(CLASSES), SMALL),
    "upsample": NetCase(lambda _: UpsampleNet(CLASSES), ((3, 33, 25), (3, 24, 40)), barrier=None),
    "densenet": NetCase(lambda _: DenseNet(CLASSES), ((3, 33, 25), (3, 24, 40))),
    "preprocessed": NetCase(
        lambda _: PreprocessedNet(CLASSES), ((3, 33, 25), (3, 24, 40)), barrier=None
    ),
}
