"""The networks that the tests run on: small versions of the published ones, and some for one thing.

Weights are random but *calibrated*: one pass over random images rescales every convolution and
linear layer to unit variance and fills every batch norm's running statistics, so that activations
stay healthy down to the last layer and an occluded box moves the scores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from architectures import (
    alexnet,
    caffenet,
    conv_bn,
    convnext_tiny,
    densenet121,
    efficientnet_b0,
    efficientnet_lite0,
    fcn_resnet50,
    googlenet,
    inception_v3,
    mnasnet1_0,
    mobilenet_v2,
    regnet_x_400mf,
    regnet_y_400mf,
    resnet18,
    resnet50,
    resnext50_32x4d,
    scaled,
    shufflenet_v2_x1_0,
    squeezenet1_1,
    unet,
    vgg16,
    vit_b_16,
)

Shape = tuple[int, ...]  # (channels, *spatial)


def random_images(shape: Shape, count: int = 1, seed: int = 0) -> Tensor:
    """Random images (count, *shape), fp32: white noise over a smooth random field, mean not 0."""
    generator = torch.Generator().manual_seed(seed)
    channels, *size = shape
    coarse = torch.randn(count, channels, *[4] * len(size), generator=generator)
    mode = ("linear", "bilinear", "trilinear")[len(size) - 1]
    smooth = F.interpolate(coarse, size=tuple(size), mode=mode, align_corners=True)
    return smooth + 0.5 * torch.randn(count, *shape, generator=generator) + 0.3


def calibrate(model: nn.Module, images: Tensor | tuple[Tensor, ...], seed: int = 0) -> nn.Module:
    """Rescale and centre every conv and linear layer, fill every batch norm, return in eval mode.

    images: what the model is called with, a tuple where that is several tensors. Works in one
    forward pass: each layer is normalised in a hook before the next one sees it.
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
        model(*(images if isinstance(images, tuple) else (images,)))
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


# --- small networks, each for one thing ----------------------------------------------------------


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


class Spellings(nn.Module):
    """One ReLU module used three times, F.relu, Tensor.relu, relu_ and in-place additions."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)  # used twice as well
        self.conv3 = nn.Conv2d(8, 12, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(12, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv1(x))
        y = self.relu(self.conv2(x))
        y += F.relu(self.conv2(y) + 0.3)
        x = self.relu(y - x)
        x = self.conv3(x).sub_(0.1).relu_()
        return self.fc(x.relu().mean((2, 3)))


class Activations(nn.Module):
    """The activations of torch.nn that are continuous, each behind a convolution.

    At a jump (of Hardshrink, of Softplus with a low threshold) fp32 and fp64 part now and then.
    """

    kinds = (
        lambda: nn.PReLU(4, init=0.2),
        lambda: nn.LeakyReLU(0.1, inplace=True),
        lambda: nn.ELU(0.8),
        nn.SELU,
        lambda: nn.CELU(0.7),
        nn.Hardswish,
        nn.Hardsigmoid,
        lambda: nn.SiLU(inplace=True),
        nn.GELU,
        lambda: nn.GELU(approximate="tanh"),
        nn.Mish,
        lambda: nn.Softplus(2.0),
        nn.Softsign,
        nn.Sigmoid,
        nn.LogSigmoid,
        nn.Tanh,
        nn.Tanhshrink,
        lambda: nn.Hardtanh(-0.7, 1.2),
        lambda: nn.Softshrink(0.2),
        lambda: nn.Threshold(0.1, 0.1),
        nn.PReLU,  # one slope for all channels
    )

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, 4, 3, stride=2, padding=1)]
        for kind in self.kinds:
            layers += [kind(), nn.Conv2d(4, 4, 3, padding=1)]
        layers += [nn.Conv2d(4, 8, 1), nn.GLU(dim=1), nn.Softmax2d()]
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(4, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).mean((2, 3)))


class DilatedGroups(nn.Module):
    """Dilated and grouped convolutions side by side, as in atrous pyramids."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8, 3, 2)
        self.branches = nn.ModuleList(
            conv_bn(8, 8, 3, groups=g, dilation=d) for g, d in ((1, 1), (2, 2), (4, 3), (8, 5))
        )
        self.project = conv_bn(32, 12, 1, groups=4)
        self.last = nn.Conv2d(12, 12, (3, 2), padding=(0, 3), dilation=(1, 4), groups=3)
        self.fc = nn.Linear(12, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.project(torch.cat([branch(x) for branch in self.branches], 1))
        return self.fc(F.relu(self.last(x)).mean((2, 3)))


class Padded(nn.Module):
    """Every padding mode, of a convolution, of a module and of a function; a negative one too."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 5, 2, padding=(2, 1), padding_mode="reflect"),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=2, padding_mode="replicate"),
            nn.ReLU(),
            nn.ReflectionPad2d((1, 2, 0, 3)),
            nn.Conv2d(8, 8, 3),
            nn.ReplicationPad2d(1),
            nn.Tanh(),
            nn.ConstantPad2d((2, 0, 1, 1), 0.4),
            nn.MaxPool2d(2),
        )
        self.around = nn.Conv2d(8, 12, 3, padding=1, padding_mode="circular")
        self.fc = nn.Linear(12, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(self.features(x), (1, -1, 0, 1))
        return self.fc(F.relu(self.around(x)).mean((2, 3)))


class PooledUnevenly(nn.Module):
    """Adaptive pools whose sizes do not divide, one after the other, then a flat head."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = conv_bn(3, 8, 3)
        self.pool1 = nn.AdaptiveAvgPool2d((27, 31))
        self.conv2 = conv_bn(8, 8, 3)
        self.pool2 = nn.AdaptiveMaxPool2d((None, 13))
        self.conv3 = conv_bn(8, 8, 3, 2)
        self.pool3 = nn.AdaptiveAvgPool2d(3)
        self.fc = nn.Linear(72, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool2(self.conv2(self.pool1(self.conv1(x))))
        return self.fc(self.pool3(self.conv3(x)).flatten(1))


class PooledByDivisors(nn.Module):
    """Average pools with a divisor, with and without counting the padding, with a ragged end."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = conv_bn(3, 8, 3)
        self.pool1 = nn.AvgPool2d(3, 2, padding=1, divisor_override=5)
        self.conv2 = conv_bn(8, 12, 3)
        self.pool2 = nn.AvgPool2d((3, 2), (2, 2), (1, 0), ceil_mode=True, count_include_pad=False)
        self.conv3 = conv_bn(12, 12, 3)
        self.pool3 = nn.AvgPool2d(3, 2, padding=1, ceil_mode=True)
        self.fc = nn.Linear(12, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool2(self.conv2(self.pool1(self.conv1(x))))
        return self.fc(F.relu(self.pool3(self.conv3(x)) - 0.5).mean((2, 3)))


class ECG(nn.Module):
    """A 1-D residual network over 12 leads, pooled to 5 cells and read flat."""

    def __init__(self, num_classes: int, leads: int = 12) -> None:
        super().__init__()

        def conv(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Module:
            padding = kernel // 2
            layer = nn.Conv1d(inputs, outputs, kernel, stride, padding, bias=False)
            return nn.Sequential(layer, nn.BatchNorm1d(outputs), nn.ReLU())

        self.stem = nn.Sequential(conv(leads, 8, 15, 2), nn.MaxPool1d(3, 2, padding=1))
        self.body = nn.Sequential(conv(8, 16, 7, 2), conv(16, 16, 7, 1))
        self.short = nn.Sequential(nn.MaxPool1d(2, ceil_mode=True), nn.Conv1d(8, 16, 1))
        self.pool = nn.AdaptiveAvgPool1d(5)
        self.fc = nn.Linear(80, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(self.body(x) + self.short(x))
        return self.fc(torch.flatten(self.pool(x), start_dim=1))


class CT(nn.Module):
    """A 3-D network with residuals; ``norm`` is "batch" or "group"."""

    def __init__(self, num_classes: int, norm: str) -> None:
        super().__init__()

        def block(inputs: int, outputs: int, stride: int) -> nn.Module:
            groups = nn.BatchNorm3d(outputs) if norm == "batch" else nn.GroupNorm(4, outputs)
            return nn.Sequential(
                nn.Conv3d(inputs, outputs, 3, stride, padding=1, bias=norm != "batch"),
                groups,
                nn.LeakyReLU(0.01),
            )

        self.stem = block(1, 8, 1)
        self.pool = nn.MaxPool3d(2, stride=(1, 2, 2), ceil_mode=True)
        self.body = nn.Sequential(block(8, 12, 2), block(12, 12, 1))
        self.short = nn.Sequential(nn.AvgPool3d(2, ceil_mode=True), nn.Conv3d(8, 12, 1))
        self.fc = nn.Linear(12, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stem(x))
        return self.fc((self.body(x) + self.short(x)).relu().mean((2, 3, 4)))


class MeanImageNet(nn.Module):
    """Subtracts a mean image, a buffer that differs from place to place, and ends in a tanh."""

    def __init__(self, shape: Shape, num_classes: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.register_buffer("mean_image", torch.randn(shape, generator=generator))
        self.features = nn.Sequential(
            conv_bn(shape[0], 8, 3, 2), nn.MaxPool2d(2), conv_bn(8, 12, 3)
        )
        self.fc = nn.Linear(12, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x - self.mean_image).mean((2, 3))).tanh()


class PixelShuffleNet(nn.Module):
    """Space to depth, convolutions, depth to space (Shi et al., arXiv:1609.05158)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(12, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 36, 3, padding=1)
        self.shuffle = nn.PixelShuffle(3)
        self.conv3 = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(F.pixel_unshuffle(x, 2)))
        x = self.shuffle(torch.tanh(self.conv2(x)))
        return self.fc(F.relu(self.conv3(x)).mean((2, 3)))


class AutocastNet(nn.Module):
    """Enters autocast by itself: bf16 convolutions under fp32 weights, an fp32 head."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(conv_bn(3, 8, 3, 2), conv_bn(8, 12, 3))
        self.fc = nn.Linear(12, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            x = self.features(x)
        return self.fc(x.to(self.fc.weight.dtype).mean((2, 3)))


# --- several inputs, several outputs -------------------------------------------------------------


class VectorNet(nn.Module):
    """An image and a vector: it scales and shifts the channels (FiLM), and joins the features."""

    def __init__(self, num_classes: int, entries: int) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8, 3, 2)
        self.film = nn.Linear(entries, 16)
        self.tail = conv_bn(8, 12, 3, 2)
        self.fc = nn.Linear(12 + entries, num_classes)

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        scale, shift = self.film(vector)[:, :, None, None].chunk(2, dim=1)
        x = F.relu(self.stem(x) * (1 + scale) + shift)
        return self.fc(torch.cat([self.tail(x).mean((2, 3)), vector], dim=1))


class MaskedNet(nn.Module):
    """An image, a mask of its size and a number: all that may come beside an image."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = conv_bn(4, 8, 3, 2)
        self.tail = conv_bn(8, 12, 3)
        self.fc = nn.Linear(12, num_classes)

    def forward(self, x: Tensor, mask: Tensor, temperature: Tensor) -> Tensor:
        x = self.stem(torch.cat([x, mask], dim=1)) * F.avg_pool2d(mask, 2, ceil_mode=True)
        return self.fc(self.tail(x).mean((2, 3))) / temperature[:, None]


@dataclass
class Prediction:
    logits: Tensor
    features: Tensor


class SeveralOutputs(nn.Module):
    """(Logits, features) as a "tuple", "dict" or "dataclass"."""

    def __init__(self, num_classes: int, form: str) -> None:
        super().__init__()
        self.form = form
        self.features = nn.Sequential(conv_bn(3, 8, 3, 2), conv_bn(8, 12, 3, 2))
        self.fc = nn.Linear(12, num_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor] | dict[str, Tensor] | Prediction:
        features = self.features(x)
        logits = self.fc(features.mean((2, 3)))
        if self.form == "tuple":
            return logits, features
        if self.form == "dict":
            return {"features": features, "logits": logits}
        return Prediction(logits, features)


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

ONE: tuple[Shape, ...] = ((3, 65, 49),)
TINY: tuple[Shape, ...] = ((3, 33, 25), (3, 24, 40))

NETS: dict[str, NetCase] = {
    "vgg16_fc": NetCase(lambda _: vgg16("fc", CLASSES, 1 / 16), ((3, 65, 49), (3, 64, 96))),
    "vgg16_gap": NetCase(lambda _: vgg16("gap", CLASSES, 1 / 16), ((3, 65, 49), (3, 99, 64))),
    "squeezenet1_1": NetCase(lambda _: squeezenet1_1(CLASSES, 1 / 8), SMALL),
    "resnet18": NetCase(lambda _: resnet18(CLASSES, 1 / 8), SMALL),
    "resnet50": NetCase(lambda _: resnet50(CLASSES, 1 / 16), SMALL),
    "resnet50_original": NetCase(lambda _: resnet50(CLASSES, 1 / 16, stride_first=True), ONE),
    "alexnet": NetCase(lambda _: alexnet(CLASSES, 1 / 16), ((3, 95, 79), (3, 127, 163))),
    "mobilenet_v2": NetCase(lambda _: mobilenet_v2(CLASSES, 1 / 4), SMALL),
    "inception_block": NetCase(lambda _: inception_block(CLASSES, 1 / 8), SMALL),
    "googlenet": NetCase(lambda _: googlenet(CLASSES, 1 / 16), SMALL),
    "inception_v3": NetCase(lambda _: inception_v3(CLASSES, 1 / 32), ((3, 83, 75),)),
    "densenet121": NetCase(lambda _: densenet121(CLASSES, 1 / 8, (2, 3, 2, 2)), SMALL),
    "shufflenet_v2": NetCase(lambda _: shufflenet_v2_x1_0(CLASSES, 1 / 12, (2, 3, 2)), SMALL),
    "mnasnet": NetCase(lambda _: mnasnet1_0(CLASSES, 1 / 8, depth=2), ONE),
    "regnet_x": NetCase(lambda _: regnet_x_400mf(CLASSES, 1 / 8, (1, 2, 2, 1)), ONE),
    "regnet_y": NetCase(lambda _: regnet_y_400mf(CLASSES, 1 / 8, (1, 2, 2, 1)), ONE, barrier=True),
    "resnext50": NetCase(lambda _: resnext50_32x4d(CLASSES, 1 / 16, (1, 2, 2, 1)), ONE),
    "efficientnet_b0": NetCase(
        lambda _: efficientnet_b0(CLASSES, 1 / 8, depth=1), ONE, barrier=True
    ),
    "efficientnet_lite0": NetCase(lambda _: efficientnet_lite0(CLASSES, 1 / 8, depth=2), ONE),
    "convnext_tiny": NetCase(lambda _: convnext_tiny(CLASSES, 1 / 12, (1, 1, 2, 1)), SMALL),
    "vit": NetCase(
        lambda shape: vit_b_16(CLASSES, 1 / 48, shape[1:], depth=2, patch=8, heads=4),
        ((3, 40, 56), (3, 33, 25)),
        barrier=True,
    ),
    "caffenet": NetCase(
        lambda _: caffenet(CLASSES, 1 / 16, alpha=0.5), ((3, 95, 79), (3, 127, 111))
    ),
    "unet": NetCase(
        lambda _: nn.Sequential(unet(2, 1 / 16, depth=2), nn.Flatten()),
        ((3, 33, 25), (3, 24, 30)),
    ),
    "unet_bilinear": NetCase(
        lambda _: nn.Sequential(
            unet(CLASSES, 1 / 16, depth=2, bilinear=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        ),
        TINY,
    ),
    "squeeze_excitation": NetCase(lambda _: SqueezeExcitationNet(CLASSES), SMALL, barrier=True),
    "group_norm": NetCase(lambda _: GroupNormNet(CLASSES), SMALL, barrier=True),
    "attention": NetCase(lambda _: AttentionNet(CLASSES), SMALL, barrier=True),
    "data_dependent": NetCase(lambda _: DataDependentNet(CLASSES), SMALL, capture=False),
    "linear": NetCase(lambda shape: LinearNet(shape, CLASSES), SMALL, linear=True),
    "flat": NetCase(lambda shape: MultilayerFlat(shape, CLASSES), ((3, 33, 25), (3, 24, 41))),
    "conv1d": NetCase(lambda _: Conv1dNet(CLASSES), ((3, 129), (3, 64))),
    "ecg": NetCase(lambda _: ECG(CLASSES), ((12, 187), (12, 250))),
    "conv3d": NetCase(lambda _: Conv3dNet(CLASSES), ((2, 7, 21, 17), (2, 8, 12, 15))),
    "ct": NetCase(lambda _: CT(CLASSES, "batch"), ((1, 9, 14, 11),)),
    "ct_group_norm": NetCase(lambda _: CT(CLASSES, "group"), ((1, 9, 14, 11),), barrier=True),
    "odd_geometry": NetCase(lambda _: OddGeometry(CLASSES), SMALL),
    "strided_projection": NetCase(lambda _: StridedProjection(CLASSES), SMALL),
    "dilated_groups": NetCase(lambda _: DilatedGroups(CLASSES), SMALL),
    "padded": NetCase(lambda _: Padded(CLASSES), TINY),
    "pooled_unevenly": NetCase(lambda _: PooledUnevenly(CLASSES), SMALL),
    "pooled_by_divisors": NetCase(lambda _: PooledByDivisors(CLASSES), TINY),
    "spellings": NetCase(lambda _: Spellings(CLASSES), TINY),
    "activations": NetCase(lambda _: Activations(CLASSES), TINY),
    "mean_image": NetCase(lambda shape: MeanImageNet(shape, CLASSES), TINY),
    "pixel_shuffle": NetCase(lambda _: PixelShuffleNet(CLASSES), ((3, 34, 26), (3, 24, 40))),
    "shufflenet": NetCase(lambda _: ShuffleNet(CLASSES), TINY),
    "convnext": NetCase(lambda _: ConvNext(CLASSES), SMALL),
    "upsample": NetCase(lambda _: UpsampleNet(CLASSES), TINY),
    "densenet": NetCase(lambda _: DenseNet(CLASSES), TINY),
    "preprocessed": NetCase(lambda _: PreprocessedNet(CLASSES), TINY),
}

# Rounds to bf16 inside, so that fp64's drops are out of its reach; see tests/test_nets.py.
AUTOCAST = NetCase(lambda _: AutocastNet(CLASSES), TINY)


@dataclass(frozen=True)
class MultiCase:
    """A network with further inputs than the image, or with more to its output than one tensor.

    Called as ``model(images, *case.more(count))``; of what comes back, ``case.scores(result)`` are
    the scores (count, ...) to explain.

    arguments: shapes of the further inputs, batch axis left out; their values lie in 0.5 .. 1.5.
    output: index, key or attribute of the scores in the result; None where they are the result.
    """

    factory: Callable[[Shape], nn.Module]
    shape: Shape
    arguments: tuple[tuple[int, ...], ...] = ()
    output: int | str | None = None

    def build(self, seed: int = 0) -> nn.Module:
        """The calibrated model, fp32, eval mode."""
        model = seeded(lambda: self.factory(self.shape), seed)
        inputs = (random_images(self.shape, 8, seed=1000 + seed), *self.more(8, 1000 + seed))
        return calibrate(model, inputs, seed)

    def images(self, count: int = 1, seed: int = 0) -> Tensor:
        """Random images (count, *shape), fp32."""
        return random_images(self.shape, count, seed)

    def more(self, count: int = 1, seed: int = 0) -> tuple[Tensor, ...]:
        """The further inputs, (count, ...) each, fp32."""
        generator = torch.Generator().manual_seed(seed)
        return tuple(
            0.5 + torch.rand(count, *shape, generator=generator) for shape in self.arguments
        )

    def scores(self, result: object) -> Tensor:
        """The scores in what the model returned."""
        if isinstance(self.output, str) and not isinstance(result, dict):
            found = getattr(result, self.output)
        else:
            found = result if self.output is None else result[self.output]  # type: ignore[index]
        assert isinstance(found, Tensor)
        return found


MULTI: dict[str, MultiCase] = {
    "vector": MultiCase(lambda _: VectorNet(CLASSES, 5), (3, 33, 25), ((5,),)),
    "mask": MultiCase(lambda _: MaskedNet(CLASSES), (3, 33, 25), ((1, 33, 25), ())),
    "tuple": MultiCase(lambda _: SeveralOutputs(CLASSES, "tuple"), (3, 33, 25), output=0),
    "tuple_features": MultiCase(lambda _: SeveralOutputs(CLASSES, "tuple"), (3, 33, 25), output=1),
    "dict": MultiCase(lambda _: SeveralOutputs(CLASSES, "dict"), (3, 33, 25), output="logits"),
    "dataclass": MultiCase(
        lambda _: SeveralOutputs(CLASSES, "dataclass"), (3, 33, 25), output="logits"
    ),
    "fcn_resnet50": MultiCase(
        lambda _: fcn_resnet50(3, 1 / 16, (1, 1, 2, 1)), (3, 33, 25), output="out"
    ),
    "unet": MultiCase(lambda _: unet(3, 1 / 16, depth=2), (3, 33, 25)),
}


def of_small_fields() -> nn.Module:
    """A network whose units see 23 pixels."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(8, 8, 3), nn.ReLU()]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)]
    return calibrate(nn.Sequential(*layers), random_images((3, 64, 64), 8))
