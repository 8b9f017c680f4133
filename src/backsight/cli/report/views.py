"""The views of a photo: what each asks of the network, how it is read, and what it cannot show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

import backsight
from backsight import plots
from backsight.cli.contents import DECISIONS, NETWORK, PICTURES, UNITS
from backsight.cli.layer import put_out
from backsight.cli.readings import Readings, last_maps
from backsight.cli.task import Job, Task
from backsight.cli.words import by
from backsight.io import read_image
from backsight.models.layers import layers_of
from backsight.zoo import Network

__all__ = ["VIEWS", "Found", "Look", "View"]

_UNITS = 4  # strongest units of a layer that are shown
_SMALLER = 7  # the window's side is this part of the photo's shorter one
_SEEN = 0.5  # the share of the photo's shorter side that units may see, to be told apart
_STEPS = 100  # of the ascent to a class
_LARGER = 2  # times the usual crop: how large a photo a classifier slides over


@dataclass(frozen=True)
class Found:
    """What a view found: a line or a few, its figure as PNG, plain values, and what writes the raw
    numbers to an .npz file.
    """

    summary: str
    png: bytes
    report: dict[str, Any]
    save: Callable[[Path], None]

    @classmethod
    def of(cls, result: Any, **plotting: Any) -> Found:
        """What a method's result says."""
        figure = result.plot(**plotting)
        return cls(result.summary(), plots.png(figure), result.report(), result.save)


class Look:
    """A photo with what the views have in common.

    Attributes:
        job: the photo, its network, and the class that is asked about.
        seed: of all that is drawn by chance.
    """

    def __init__(self, task: Task, job: Job, seed: int) -> None:
        side = max(1, round(min(job.photo.pixels.shape[:2]) / _SMALLER))
        self.window, self.stride = (side, side), (max(1, side // 4),) * 2
        places = {"window": self.window, "stride": self.stride, "edge": task.edge}
        self.job = replace(job, places=places)
        self.seed = seed

    @property
    def network(self) -> Network:
        return self.job.network

    @property
    def image(self) -> Tensor:
        return self.job.photo.image

    @property
    def index(self) -> int:
        return self.job.index

    @property
    def covering(self) -> str:
        return f"window {by(self.window)}, stride {by(self.stride)}"

    @cached_property
    def occlusion(self) -> backsight.Occlusion:
        arguments = self.job.arguments
        return backsight.occlusion(self.network, self.image, **self.job.places, **arguments)

    @cached_property
    def last(self) -> str:
        """The last layer with maps."""
        return last_maps(self.network.model, self.image)

    @cached_property
    def middle(self) -> str:
        """The deepest layer whose units see no more than a part of the photo, of those behind a
        ReLU where there are such; where no field is known, the last one with maps.
        """
        layers, _ = layers_of(self.network.model, self.image[:1])
        limit = _SEEN * min(self.image.shape[2:])
        fits = [
            layer.name
            for layer in layers
            if layer.field is not None and max(axis.size for axis in layer.field) <= limit
        ]
        for name in reversed(fits):
            if float(put_out(self.network.model, name, self.image).min()) >= 0:
                return name
        return fits[-1] if fits else self.last

    @cached_property
    def units(self) -> Tensor:
        """The strongest units of that layer."""
        found = backsight.project(self.network, self.image, self.middle, units=_UNITS)
        return found.units


@dataclass(frozen=True)
class View:
    """A view.

    Attributes:
        name: of the view, in its file's name too.
        section: under which heading it stands.
        title: its own.
        reads: how to read it.
        cannot: what it cannot show.
        make: finds it.
    """

    name: str
    section: str
    title: str
    reads: str
    cannot: str
    make: Callable[[Look], Found]


def _occlusion(look: Look) -> Found:
    found = look.occlusion
    return Found(
        f"{look.covering}. {found.summary()}",
        plots.png(found.plot(look.index)),
        found.report(),
        found.save,
    )


def _readings(look: Look) -> Found:
    readings = Readings.of(look.job, None)
    readings.sweep(look.occlusion, show_progress=False)
    readings.draw(look.covering)
    files = readings.files({"model": look.network.name})
    summary = f"feature map {readings.channel} of {readings.layer} is the strongest"
    report = {"layer": readings.layer, "channel": readings.channel}
    return Found(summary, readings.picture, report, files["npz"])


def _saliency(look: Look) -> Found:
    return Found.of(backsight.saliency(look.network, look.image, look.index))


def _cam(look: Look) -> Found:
    try:
        found = backsight.cam(look.network, look.image, look.index)
    except ValueError:  # no averages at the end of this network: Grad-CAM needs none
        found = backsight.cam(look.network, look.image, look.index, layer=look.last)
    return Found.of(found)


def _faithfulness(look: Look) -> Found:
    heat = look.occlusion.map([look.index])
    return Found.of(backsight.faithfulness(look.network, look.image, heat, look.index))


def _rotation(look: Look) -> Found:
    return Found.of(backsight.rotation(look.network, look.image, look.index))


def _slide(look: Look) -> Found:
    photo = read_image(look.job.photo.path)
    how = look.network.preprocessing
    usual = how.crop or how.short_side or min(photo.shape[:2])
    size = max(usual, min(_LARGER * usual, min(photo.shape[:2])))
    image, _ = look.network.prepare(photo, size=size)
    image = image.to(look.image)
    return Found.of(backsight.prediction_maps(look.network, image, look.index))


def _activations(look: Look) -> Found:
    return Found.of(backsight.activations(look.network, look.image, layer=look.middle))


def _projected(rule: str) -> Callable[[Look], Found]:
    def make(look: Look) -> Found:
        units = look.units
        return Found.of(backsight.project(look.network, look.image, look.middle, units, rule=rule))

    return make


def _receptive_field(look: Look) -> Found:
    return Found.of(backsight.receptive_field(look.network, look.image))


def _class_model(look: Look) -> Found:
    return Found.of(backsight.class_model(look.network, look.index, seed=look.seed, steps=_STEPS))


def _dream(look: Look) -> Found:
    return Found.of(backsight.dream(look.network, look.image, layer=look.middle, seed=look.seed))


def _flip(look: Look) -> Found:
    return Found.of(
        backsight.fool(look.network, look.image, smallest=True, confidence=0.5, steps=20)
    )


def _noise(look: Look) -> Found:
    return Found.of(backsight.fool(look.network, None, look.index, seed=look.seed))


def _filters(look: Look) -> Found:
    return Found.of(backsight.filters(look.network))


#: All views, in the order of the page.
VIEWS = (
    View(
        "occlusion",
        DECISIONS,
        "Occlusion",
        "A gray box covers the photo piece by piece. Red: covering there lowers the score of the "
        "class, so that the network relies on it; blue: covering raises the score.",
        "What a drop says holds for this size of box and this gray: a smaller box gives a finer "
        "map and a noisier one, a larger one a coarser. Two parts that can stand in for each other "
        "cost nothing one by one. A box is itself something that the network has never seen.",
        _occlusion,
    ),
    View(
        "readings",
        DECISIONS,
        "Occlusion, read four ways",
        "For each position of the box: (a) the probability of the class, (b) the total activation "
        "of the feature map that is strongest in the uncovered photo, and (d) the most probable "
        "class; and once, (c) that feature map sent back to the pixels. Where (a) and (b) are low "
        "at one place, the map stands for what the class hangs on.",
        "A probability falls too when another class rises. The strongest feature map need not be "
        "the one that the class uses.",
        _readings,
    ),
    View(
        "saliency",
        DECISIONS,
        "Saliency",
        "The size of the gradient of the class's score before the softmax: which pixels would "
        "change it most if they moved a little. On the right the strongest of them alone.",
        "It says where the score is sensitive, not what speaks for the class, and only to first "
        "order. It is noisy, and as a segmentation it does not work too well.",
        _saliency,
    ),
    View(
        "cam",
        DECISIONS,
        "Class activation map",
        "The last feature maps, each weighted by what it counts for the class. Red: evidence for "
        "it, blue: against it. The mean of a CAM is the score, but for the bias.",
        "It is as coarse as the last feature maps, enlarged; the network's other layers have mixed "
        "the places before. Grad-CAM, for other heads, does not add up to the score.",
        _cam,
    ),
    View(
        "faithfulness",
        DECISIONS,
        "Does the occlusion map name the pixels that count?",
        "Pixels are deleted, or inserted, in the order of the occlusion map. A good map makes the "
        "probability fall at once when its first pixels go, and rise at once when they come.",
        "Half-deleted photos are like nothing that the network was trained on, and the curves "
        "change with what stands in for the pixels. They judge the map, not the network.",
        _faithfulness,
    ),
    View(
        "rotation",
        DECISIONS,
        "Rotation",
        "The probability of classes while the photo turns. A flat line: the network does not mind; "
        "peaks: it knows the thing at these angles only.",
        "The corners that turning opens are filled, and the photo is interpolated: part of a fall "
        "is due to that. Pooling makes networks bear shifts, hardly ever turns.",
        _rotation,
    ),
    View(
        "fully-convolutional",
        DECISIONS,
        "The classifier all over the photo",
        "The head as convolutions slides over a larger picture: the probability of the class at "
        "each place, and the most probable class there; outlined, what the best place sees.",
        "The network was trained on whole things in the middle, so that between them it names "
        "whatever comes nearest. The map is coarse, and an outline is what a unit sees, not where "
        "the thing ends.",
        _slide,
    ),
    View(
        "activations",
        UNITS,
        "Activations of a layer",
        "What each channel puts out for this photo. Healthy layers are sparse, and their channels "
        "differ; a channel that is blank on many photos may be dead.",
        "One photo says nothing about a channel that stays silent on it. What a channel stands for "
        "cannot be read from where it is active alone.",
        _activations,
    ),
    View(
        "deconvnet",
        UNITS,
        "Strongest units, by deconvnet",
        "The strongest channels of a layer, each where it is strongest: what the unit sees, and "
        "what of it comes back when the signal is sent down through pools and filters.",
        "It is a reconstruction, no inverse: switches and filters draw their own edges. It shows "
        "one activation at a time; more of them at once only make it messier.",
        _projected("deconvnet"),
    ),
    View(
        "guided",
        UNITS,
        "The same units, by guided backpropagation",
        "The same units, but a signal passes a ReLU only where it is positive both ways: sharper "
        "pictures of what excites the unit.",
        "Sharpness is partly the rule's doing: the pictures change little even when higher layers "
        "are drawn at random. What inhibits the unit is left out by construction.",
        _projected("guided"),
    ),
    View(
        "receptive-field",
        UNITS,
        "Receptive fields",
        "The pixels that can reach a unit of each layer. Nothing outside its box has any "
        "influence on it.",
        "It bounds what a unit can see; what it uses is less, mostly near the middle.",
        _receptive_field,
    ),
    View(
        "class-model",
        PICTURES,
        "What the class looks like to the network",
        "A picture grown from noise until the class scores as high as it can, kept smooth on the "
        "way. Parts that come back again and again are what the network looks for.",
        "The smoothing decides much of how it looks, and without it there would be noise alone. It "
        "is one of many such pictures, and none of them shows this photo.",
        _class_model,
    ),
    View(
        "dream",
        PICTURES,
        "Dream",
        "The photo, changed so that a layer is more active on it, at several sizes: more of "
        "whatever the layer sees there already. Low layers give textures, high ones parts.",
        "It amplifies all that is active at once and weighs nothing by what it does for the class.",
        _dream,
    ),
    View(
        "flip",
        PICTURES,
        "The smallest change found that flips the decision",
        "What has to be added to the photo for another class to win, and the photo with it. Small "
        "and shapeless changes that suffice mean that the decision hangs on little.",
        "A smaller one may exist that the search did not find. What flips this network in this "
        "photo need not flip another one, and no camera would make such a change.",
        _flip,
    ),
    View(
        "fooling",
        PICTURES,
        "Noise that the network takes for the class",
        "Uniform noise, changed until the network is sure of the class. That it is sure says "
        "nothing about whether the thing is there.",
        "It shows that scores can be had without the thing, not how often it happens.",
        _noise,
    ),
    View(
        "filters",
        NETWORK,
        "Filters of the first layer",
        "Each filter as a picture, in its own range: edges, colours, gratings. Noisy or equal ones "
        "are signs of too little training, or of more filters than are needed.",
        "Only the first layer's filters lie on pixels and can be read; deeper ones lie on "
        "channels. They say nothing about this photo.",
        _filters,
    ),
)
