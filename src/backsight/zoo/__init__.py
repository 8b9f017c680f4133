"""Networks together with what is needed to use them: preprocessing and class names."""

from __future__ import annotations

import os
from dataclasses import replace

from . import libraries
from .efficientnet import EfficientNetLite0, efficientnet_lite0
from .network import Network, Preprocessing, imagenet_classes
from .own import build
from .squeezenet11 import SqueezeNet, squeezenet
from .vgg16 import VGG16Features, vgg16_features
from .weights import fill, read_state

__all__ = [
    "TRAINED",
    "EfficientNetLite0",
    "Network",
    "Preprocessing",
    "SqueezeNet",
    "VGG16Features",
    "efficientnet_lite0",
    "imagenet_classes",
    "load",
    "squeezenet",
    "vgg16_features",
]

#: Networks whose trained weights come in packages of their own, by name.
TRAINED = {
    "squeezenet": squeezenet,
    "efficientnet-lite0": efficientnet_lite0,
    "vgg16-features": vgg16_features,
}


def load(
    spec: str,
    weights: str | os.PathLike[str] | None = None,
    *,
    preprocessing: Preprocessing | None = None,
    classes: tuple[str, ...] | None = None,
) -> Network:
    """A network by name, from a library, or from anybody's module.

    Args:
        spec: ``"squeezenet"``, ``"efficientnet-lite0"`` or ``"vgg16-features"`` (no classes);
            ``"torchvision:NAME"`` or ``"timm:NAME"``, with the library's default weights,
            preprocessing and class names; or ``"module:factory"``: a module, found in the working
            folder too, and something in it that is an ``nn.Module`` or returns one when called
            with nothing.
        weights: a file with the model's state dict, read with ``weights_only=True``, in place of
            the weights that the network would come with.
        preprocessing: how the network wants its photos; unless told, the network's own way, and
            ImageNet's usual one for ``"module:factory"``.
        classes: the names of its outputs.

    Raises:
        ValueError: there is no such network, or the weights do not fit; one sentence.
        ImportError: a package that the network needs is not installed.
    """
    library, colon, name = spec.partition(":")
    if spec in TRAINED:
        if weights is not None:
            raise ValueError(f"{spec} has its own weights; expected none, got {weights}")
        network = TRAINED[spec]()
    elif colon and library in libraries.LIBRARIES:
        network = libraries.LIBRARIES[library](name, weights is None)
    else:
        network = Network(spec, build(spec, TRAINED))
    if weights is not None:
        fill(network.model, read_state(weights), os.fspath(weights))
    network.model.eval()
    return replace(
        network,
        preprocessing=preprocessing or network.preprocessing,
        classes=classes or network.classes,
    )
