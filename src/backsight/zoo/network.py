"""A network with what is needed to use it: preprocessing and class names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

Pixels = npt.NDArray[np.uint8]

_INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
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
        interpolation: how photos are scaled: nearest, box, bilinear, hamming, bicubic or lanczos,
            all but nearest with antialiasing.
    """

    short_side: int | None = 256
    crop: int | None = 224
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    scale: float = 1 / 255
    bgr: bool = False
    interpolation: str = "bilinear"

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
        if self.interpolation not in _INTERPOLATIONS:
            raise ValueError(
                f"expected an interpolation of {', '.join(_INTERPOLATIONS)}, got "
                f"{self.interpolation!r}"
            )

    def pixels(self, photo: Pixels, *, size: int | None = None, full: bool = False) -> Pixels:
        """Scale and crop a photo; what comes back is what the network sees, still in pixels.

        Args:
            photo: ``(H, W, 3)`` uint8 RGB.
            size: scale the shorter side to so many pixels instead, and crop nothing.
            full: neither scale nor crop.

        Returns:
            ``(h, w, 3)`` uint8 RGB. Sides are rounded as torchvision rounds them.

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
        shorter = min(height, width)
        scaled = (
            [height, width] if short is None else [short * n // shorter for n in photo.shape[:2]]
        )
        if crop is not None and min(scaled) < crop:
            raise ValueError(f"a photo of {height} x {width} is smaller than the crop of {crop}")
        if scaled != [height, width]:
            photo = _resize(photo, scaled, self.interpolation)
        if crop is None:
            return photo
        top, left = (round((n - crop) / 2) for n in scaled)
        return photo[top : top + crop, left : left + crop]

    def tensor(self, pixels: Pixels) -> Tensor:
        """``(h, w, 3)`` uint8 RGB as the network's ``(1, 3, h, w)`` float32 input."""
        # A copy: a flipped view has negative strides, which torch does not take.
        values = np.array(pixels[..., ::-1] if self.bgr else pixels, dtype=np.float32)
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        values = (values * np.float32(self.scale) - mean) / std
        return torch.from_numpy(values).permute(2, 0, 1)[None].contiguous()

    def photo(self, image: Tensor) -> Pixels:
        """What `tensor` makes of pixels, back: ``(3, h, w)`` to ``(h, w, 3)`` uint8 RGB, rounded;
        what lies outside 0..255 is cut off.
        """
        values = image.detach().cpu().float().permute(1, 2, 0).numpy()
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        values = (values * std + mean) / np.float32(self.scale)
        values = values[..., ::-1] if self.bgr else values
        return np.ascontiguousarray(values.round().clip(0, 255).astype(np.uint8))

    def color(self, rgb: Sequence[float]) -> Tensor:
        """One colour, red, green and blue in 0..255, as a ``(1, 3, 1, 1)`` float32 input.

        Raises:
            ValueError: not three values, or one of them outside 0..255.
        """
        if len(rgb) != 3 or not all(0 <= value <= 255 for value in rgb):
            raise ValueError(f"expected red, green and blue in 0..255, got {tuple(rgb)}")
        mean, std = torch.tensor(self.mean).view(1, 3, 1, 1), torch.tensor(self.std)
        return (self.ordered(rgb) * self.scale - mean) / std.view(1, 3, 1, 1)

    def ordered(self, rgb: Sequence[float]) -> Tensor:
        """Numbers for red, green and blue, ``(1, 3, 1, 1)`` float32 in the network's order."""
        values = list(rgb)[::-1] if self.bgr else list(rgb)
        return torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1)


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


def _words(words: str) -> list[str]:
    return words.split(", ")


def _resize(photo: Pixels, size: Sequence[int], interpolation: str) -> Pixels:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            'scaling photos needs Pillow: pip install "backsight[cli]"', name="PIL"
        ) from error
    picture = Image.fromarray(np.ascontiguousarray(photo))
    return np.array(picture.resize((size[1], size[0]), Image.Resampling[interpolation.upper()]))
