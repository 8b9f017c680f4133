"""Networks of torchvision and timm, with the preprocessing and class names that these know."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable, Sequence
from math import floor
from typing import Any

from .network import Network, Preprocessing
from .weights import sentence


def torchvision_network(name: str, trained: bool = True) -> Network:
    """A network of `torchvision.models`, its default weights and what is said with them.

    Args:
        name: as `torchvision.models.list_models()` has it.
        trained: whether to fetch the weights; preprocessing and class names are the same without.

    Raises:
        ImportError: torchvision is not installed, or does not fit the installed torch.
        ValueError: there is no such network, its weights cannot be had, or it does not take one
            photo in pixels of equal mean.
    """
    models = _library("torchvision", "torchvision.models")
    known = models.list_models()
    if name not in known:
        raise _unknown("torchvision", name, known)
    weights = models.get_model_weights(name).DEFAULT
    how = weights.transforms()
    if not all(hasattr(how, field) for field in ("resize_size", "mean", "std", "interpolation")):
        raise ValueError(
            f"expected a network of torchvision for single photos, and {name} wants "
            f"{type(how).__name__} as its preprocessing"
        )
    model = _made(
        f"torchvision:{name}", lambda: models.get_model(name, weights=weights if trained else None)
    )
    # Networks for segmentation take the whole photo.
    crop = getattr(how, "crop_size", None)
    preprocessing = Preprocessing(
        short_side=_side(how.resize_size),
        crop=_side(crop),
        mean=_three(how.mean),
        std=_three(how.std),
        interpolation=how.interpolation.value,
    )
    classes = weights.meta.get("categories")
    return Network(
        f"torchvision:{name}", model.eval(), preprocessing, tuple(classes) if classes else None
    )


def timm_network(name: str, trained: bool = True) -> Network:
    """A network of timm, its default weights and what is said with them.

    Photos are scaled by their shorter side and cropped from the middle, whatever crop mode the
    network was evaluated with.

    Args:
        name: as `timm.list_models()` has it, with or without the tag of certain weights.
        trained: whether to fetch the weights.

    Raises:
        ImportError: timm is not installed, or one of the packages that it needs.
        ValueError: there is no such network, its weights cannot be had, or it does not take square
            photos.
    """
    timm = _library("timm", "timm")
    data = _library("timm", "timm.data")
    if not timm.is_model(name):
        raise _unknown("timm", name, timm.list_models())
    model = _made(f"timm:{name}", lambda: timm.create_model(name, pretrained=trained))
    config = data.resolve_model_data_config(model)
    channels, height, width = config["input_size"]
    if channels != 3 or height != width:
        raise ValueError(
            f"expected a network of timm for square colour photos, and {name} takes "
            f"{channels} x {height} x {width}"
        )
    preprocessing = Preprocessing(
        short_side=floor(height / config["crop_pct"]),
        crop=height,
        mean=_three(config["mean"]),
        std=_three(config["std"]),
        interpolation=config["interpolation"],
    )
    classes = model.pretrained_cfg.get("label_names")
    subset = data.infer_imagenet_subset(model)
    if classes is None and subset is not None:
        classes = data.ImageNetInfo(subset).label_descriptions()
    return Network(f"timm:{name}", model.eval(), preprocessing, tuple(classes) if classes else None)


#: By the word before the colon: from a name, and whether the weights are wanted, to the network.
LIBRARIES: dict[str, Callable[[str, bool], Network]] = {
    "torchvision": torchvision_network,
    "timm": timm_network,
}


def _library(package: str, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or package
        why = "is not installed" if missing.split(".")[0] == package else f"needs {missing}"
        raise ImportError(
            f"networks of {package} need the library, which {why}: pip install {package}",
            name=missing,
        ) from error
    # A library that was built for another torch raises nearly anything.
    except Exception as error:
        raise ImportError(
            f"{package} cannot be imported beside the installed torch: {sentence(error)}",
            name=package,
        ) from error


def _unknown(library: str, name: str, known: Iterable[str]) -> ValueError:
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=5, cutoff=0.5)
    those = f"near names: {', '.join(near)}" if near else "no name is near it"
    return ValueError(f"{library} has no network {name!r}; {those}")


def _made(spec: str, make: Callable[[], Any]) -> Any:
    try:
        return make()
    # Downloads and unpacking fail in many ways.
    except Exception as error:
        raise ValueError(f"cannot make {spec}: {sentence(error)}") from error


def _side(size: int | Sequence[int] | None) -> int | None:
    """Of torchvision's sizes, which are lists of one number."""
    if size is None or isinstance(size, int):
        return size
    if len(set(size)) != 1:
        raise ValueError(f"expected preprocessing to a square, got a size of {list(size)}")
    return int(size[0])


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = map(float, values)
    return red, green, blue
