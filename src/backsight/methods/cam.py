"""Class activation maps: where in the image the evidence for a class lies.

Zhou et al., "Learning Deep Features for Discriminative Localization", arXiv:1512.04150 (CAM);
Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
Localization", arXiv:1610.02391.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ..graph import Graph
from ..models.call import Call, Model, pick
from ..models.precision import alone
from ..models.prepare import forget, prepare, verify
from ..models.subject import Subject
from ..models.targets import Aim, Target, aim, part
from ..plots import overlay
from ..results import Result, array
from ..sweep.tail import linear_tail
from ..zoo.network import Network

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Cam", "GapModel", "cam", "to_gap"]

#: How far the weights of a channel may differ from place to place, and how far a map's mean and the
#: bias may lie from the score, relative to the largest of them.
_EQUAL = {torch.float64: 1e-9, torch.float32: 1e-4}

_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}

M = TypeVar("M", nn.Module, Network)


@dataclass(frozen=True)
class Cam(Result):
    """What `cam` finds.

    Attributes:
        maps: (images, *spatial), `cams` scaled to the size of the images by linear interpolation.
        cams: (images, *positions), the maps as they are: of the last feature maps, or of `layer`.
        biases: (images,) what of each score lies at no place, so that the mean of a map and the
            bias are the score; None with a layer (Grad-CAM), whose maps do not add up to it.
        scores: (images,) the scores of the targets, before any softmax.
        pictures: (images, H, W, 3) uint8, the photos.
        targets: for each image what its target is called.
        layer: whose feature maps; None for the last ones of a model that ends in their averages.
    """

    maps: Tensor
    cams: Tensor
    biases: Tensor | None
    scores: Tensor
    pictures: Tensor
    targets: tuple[str, ...]
    layer: str | None

    def plot(self, image: int = 0) -> Figure:
        """The photo, and the photo under the map."""
        size = " x ".join(map(str, self.cams.shape[1:]))
        score = f"score {float(self.scores[image]):.4g}, before any softmax"
        if self.biases is None:
            title = f"Grad-CAM of {self.targets[image]} at {self.layer}"
            note = f"a map of {size}, enlarged; {score}"
        else:
            title = f"CAM of {self.targets[image]}"
            bias = float(self.biases[image])
            note = f"a map of {size}, enlarged; its mean and the bias {bias:.3g} are the {score}"
        return overlay(
            array(self.pictures[image]),
            array(self.maps[image]),
            title=title,
            note=note,
            label="evidence for the class",
        )

    def summary(self) -> str:
        name = "CAM" if self.layer is None else f"Grad-CAM at {self.layer}"
        found = zip(self.targets, self.scores.tolist(), strict=True)
        return ", ".join(f"{name} of {target}, score {score:.4g}" for target, score in found)

    def report(self) -> dict[str, Any]:
        return {
            "targets": list(self.targets),
            "scores": self.scores.tolist(),
            "biases": None if self.biases is None else self.biases.tolist(),
            "layer": self.layer,
            "largest": self.cams.flatten(1).amax(1).tolist(),
        }


def cam(
    model: Model | Network,
    images: Tensor,
    target: Target = None,
    *,
    layer: str | None = None,
    batch_size: int = 32,
    show_progress: bool = False,
    device: torch.device | str | None = None,
) -> Cam:
    """Where the evidence for a class lies: its weights' sum over the last feature maps.

    Without a layer this is the CAM of a model that ends in the averages of its last feature maps
    and at most linear layers behind them (global average pool and a fully connected layer, or a 1 x
    1 convolution and the pool), which is found by capturing the model: map = sum over channels k of
    w_k f_k, and its mean plus the bias is the score. `to_gap` gives other models such an end. With
    a layer it is Grad-CAM, for any model: w_k is the mean over space of the gradient of the score,
    and what is negative becomes 0.

    Args:
        model: a zoo.Network, or a module (or function) from images to scores (images, classes) or
            maps of them, in evaluation mode. It is not changed.
        images: (images, channels, *spatial), one to three spatial axes, floating point.
        target: a class by index or name, or (channel, *position) of dense outputs, whose channels
            count by their mean; a list of one for each image; or a function of the outputs (images,
            ...) that returns (images,) scores, for CAM a linear one. Default: each image's
            strongest class.
        layer: a module's name, for Grad-CAM; it puts out maps. Of one that runs several times the
            last run counts.
        batch_size: images at a time.
        show_progress: show a progress bar on stderr.
        device: where to compute; default: where the model is.

    Returns:
        A `Cam`; its tensors on that device, in float32 for models of half precision.

    Raises:
        ValueError: an argument does not fit, or the model does not end in averages; the sentence
            says what was expected and what came.
    """
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"expected a positive batch_size, got {batch_size!r}")
    subject = Subject.of(model, device)
    images = subject.take(images)
    with torch.inference_mode(False), torch.no_grad(), alone(images.device):
        if images.is_inference():
            images = images.clone()
        maps = _Averaged(subject, images) if layer is None else _Inner(subject, layer, images)
        found: list[_Maps] = []
        with tqdm(total=len(images), unit="image", disable=not show_progress) as bar:
            for first in range(0, len(images), batch_size):
                some = images[first : first + batch_size]
                found.append(maps(some, part(target, first, len(some), len(images))))
                bar.update(len(some))
    cams = torch.cat([one.cams for one in found])
    biases = [one.biases for one in found if one.biases is not None]
    size, mode = images.shape[2:], _MODES[images.ndim - 2]
    return Cam(
        F.interpolate(cams[:, None], size=size, mode=mode, align_corners=False)[:, 0],
        cams,
        torch.cat(biases) if biases else None,
        torch.cat([one.scores for one in found]),
        subject.pictures(images),
        tuple(label for one in found for label in one.labels),
        layer,
    )


class _Maps(NamedTuple):
    """The maps of a batch of images, (images, *positions)."""

    cams: Tensor
    biases: Tensor | None
    scores: Tensor
    labels: tuple[str, ...]


class _Averaged:
    """The maps of a model that ends in averages, which are its last feature maps weighted."""

    def __init__(self, subject: Subject, images: Tensor) -> None:
        self.subject = subject
        call = Call(subject.model, (), images)
        prepared = prepare(call, images)
        if not verify(prepared, call, images):
            forget(call)
            prepared = prepare(call, images)
            verify(prepared, call, images)
        if prepared.graph is None:
            raise ValueError(
                "expected a model that can be captured, to find the averages that it ends in; name"
                f" a layer for Grad-CAM: {prepared.reason}"
            )
        self.graph = prepared.graph
        self.maps, self.path = _ending(prepared.graph)

    def __call__(self, images: Tensor, target: Target) -> _Maps:
        done = self.graph.replay(images, keep=(self.maps,))
        features = done[self.maps]
        wanted = aim(self.subject, target, done[self.graph.output])
        with torch.enable_grad():
            leaf = features.detach().clone().requires_grad_()
            scores = wanted(self._behind(leaf))
            (slopes,) = torch.autograd.grad(scores.sum(), leaf)
        scores = scores.detach()
        biases = wanted(self._behind(torch.zeros_like(features)))
        wide = torch.promote_types(images.dtype, torch.float32)
        slopes, features, scores, biases = (
            values.to(wide) for values in (slopes, features, scores, biases)
        )
        space = tuple(range(2, slopes.ndim))
        means = slopes.mean(space, keepdim=True)
        if (slopes - means).abs().max() > _EQUAL[wide] * slopes.abs().max():
            raise _no_averages("whose feature maps count differently from place to place")
        cams = (features * means).sum(1) * prod(features.shape[2:])
        found = cams.flatten(1).mean(1) + biases
        scale = cams.flatten(1).abs().mean(1) + biases.abs() + scores.abs()
        if wanted.function is not None and bool(
            ((found - scores).abs() > _tolerance(images.dtype) * scale).any()
        ):
            raise ValueError(
                "expected a target that is a linear function of the outputs, for a map whose mean"
                f" and bias are the score, got {wanted.labels[0]}; name a layer for Grad-CAM"
            )
        return _Maps(cams, biases, scores, wanted.labels)

    def _behind(self, maps: Tensor) -> Tensor:
        """The model's output for feature maps."""
        nodes = self.graph.nodes
        done: dict[int, Any] = {self.maps: maps}
        for index in self.path:
            node = nodes[index]
            for i in node.inputs:
                if i not in done:
                    done[i] = nodes[i].kind.whole(nodes[i], done)  # a constant
            done[index] = node.kind.whole(node, done)
        output: Tensor = done[self.graph.output]
        return output


def _tolerance(dtype: torch.dtype) -> float:
    return _EQUAL.get(dtype, 1e-2)


def _ending(graph: Graph) -> tuple[int, list[int]]:
    """The last maps of more than one position, and the linear nodes behind them, in order."""
    nodes, tail = graph.nodes, linear_tail(graph).nodes
    path: list[int] = []
    node = nodes[graph.output]
    while not node.spatial or prod(node.extent) == 1:
        varying = [i for i in node.inputs if nodes[i].varies]
        if node.index not in tail or len(varying) != 1:
            raise _no_averages(f"with {node.label} behind its last feature maps")
        path.insert(0, node.index)
        node = nodes[varying[0]]
    return node.index, path


def _no_averages(got: str) -> ValueError:
    return ValueError(
        "expected a model that ends in the averages of its last feature maps and linear layers, got"
        f" one {got}; name a layer for Grad-CAM, or give it such an end with to_gap"
    )


class _Inner:
    """The Grad-CAM of a layer: what lies in front of it is run without a gradient."""

    def __init__(self, subject: Subject, layer: str, images: Tensor) -> None:
        self.subject, self.layer = subject, layer
        self.call = Call(subject.model, (), images)
        self.module = Call(subject.model, (), images, None, layer).named  # refuses unknown names

    def __call__(self, images: Tensor, target: Target) -> _Maps:
        leaves: list[Tensor] = []

        def replaced(_: nn.Module, __: Any, out: Any) -> Tensor:
            maps = isinstance(out, Tensor) and out.ndim == images.ndim
            if not maps or prod(out.shape[2:]) == 1:
                came = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
                raise ValueError(
                    "expected a layer that puts out maps (images, channels, *spatial) of several"
                    f" positions, and {self.layer} puts out {came}"
                )
            leaves.append(out.detach().clone().requires_grad_())
            torch.set_grad_enabled(True)
            return leaves[-1].clone()  # what follows may change it

        handle = self.module.register_forward_hook(replaced)
        try:
            with torch.no_grad():
                output = self.call(images.clone())  # which the model may change
        finally:
            handle.remove()
        if not leaves:
            raise ValueError(f"expected the model to run its layer {self.layer!r}, it did not")
        wanted: Aim = aim(self.subject, target, output)
        with torch.enable_grad():
            scores = wanted(output)
            slopes = None
            if scores.requires_grad:
                (slopes,) = torch.autograd.grad(scores.sum(), leaves[-1], allow_unused=True)
        if slopes is None:
            raise ValueError(
                f"expected scores that depend on {self.layer} by differentiable steps, got scores"
                " that do not"
            )
        wide = torch.promote_types(images.dtype, torch.float32)
        weights = slopes.to(wide).mean(tuple(range(2, slopes.ndim)), keepdim=True)
        cams = (weights * leaves[-1].detach().to(wide)).sum(1).relu()
        return _Maps(cams, None, scores.detach().to(wide), wanted.labels)


class GapModel(nn.Module):
    """A model up to one of its layers, whose maps are averaged over space, and a linear layer.

    Attributes:
        trunk: the model; modules that it runs behind the layer are gone where it runs without them.
        layer: the name of the last module of the trunk that runs.
        head: from the averages (images, channels) to scores (images, classes).
    """

    def __init__(self, trunk: nn.Module, layer: str, head: nn.Linear) -> None:
        super().__init__()
        self.trunk = trunk
        self.layer = layer
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """(images, channels, *spatial) to (images, classes)."""
        scores: Tensor = self.head(self.averages(images))
        return scores

    def averages(self, images: Tensor) -> Tensor:
        """The means over space of the layer's maps, (images, channels)."""
        reached: list[Tensor] = []

        def keep(_: nn.Module, __: Any, out: Any) -> None:
            # The mean at once: what follows may change the maps. No exception stops the trunk
            # here, for torch.export cannot follow one.
            reached.append(out.mean(tuple(range(2, out.ndim))))

        handle = self.trunk.get_submodule(self.layer).register_forward_hook(keep)
        try:
            self.trunk(images)
        finally:
            handle.remove()
        return reached[0]


def to_gap(
    model: M,
    loader: Iterable[Any],
    *,
    layer: str | None = None,
    decay: float = 1e-3,
    steps: int = 200,
    show_progress: bool = False,
    device: torch.device | str | None = None,
) -> M:
    """A model's copy that ends in global average pooling and one fully connected layer, for CAM.

    Flatten and the fully connected layers are replaced; the layers in front of them stay as they
    are, and only the new layer is trained: it is a logistic regression on the averages of the
    images, which are computed once. It has one solution, which L-BFGS finds, so there is neither a
    learning rate nor chance in it.

    Args:
        model: a zoo.Network, or a module from images to scores (images, classes), in evaluation
            mode. It is not changed.
        loader: batches (images, labels), such as a DataLoader's; labels are (images,) integers
            below the number of scores. The batches are taken once; the averages of all images are
            held: 4 bytes for each image and channel.
        layer: a module's name, whose maps are averaged; it runs once. Default: the last one that
            puts out maps of several positions.
        decay: what the squares of the weights cost, for averages of unit variance; positive.
        steps: at most so many iterations of L-BFGS.
        show_progress: show a progress bar on stderr.
        device: where to compute; default: where the model is.

    Returns:
        A `GapModel` in evaluation mode; of a zoo.Network, a network with it.

    Raises:
        ValueError: an argument does not fit, or no layer puts out maps; the sentence says what was
            expected and what came.
    """
    if not decay > 0:
        raise ValueError(f"expected a positive decay, got {decay!r}")
    subject = Subject.of(model, device)
    made: GapModel | None = None
    averages: list[Tensor] = []
    labels: list[Tensor] = []
    with torch.inference_mode(False), torch.no_grad(), alone(subject.device):
        for batch in tqdm(loader, unit="batch", disable=not show_progress):
            images, wanted = _labelled(batch)
            images = subject.take(images)
            if made is None:
                made = _cut(subject, layer, images)
            averages.append(made.averages(images).float())
            labels.append(wanted.to(subject.device))
        if made is None:
            raise ValueError("expected batches (images, labels), got none")
        _fit(made.head, torch.cat(averages), torch.cat(labels).long(), decay, steps)
    made.eval()
    if isinstance(model, Network):
        return replace(model, model=made)
    return made


def _labelled(batch: Any) -> tuple[Tensor, Tensor]:
    """The images and the labels of a batch."""
    pair = tuple(batch) if isinstance(batch, tuple | list) else ()
    if len(pair) != 2 or not all(isinstance(each, Tensor) for each in pair):
        raise ValueError(f"expected batches (images, labels), got {type(batch).__name__}")
    images, labels = pair
    if labels.shape != images.shape[:1] or labels.is_floating_point():
        raise ValueError(
            f"expected labels as ({len(images)},) integers, got {tuple(labels.shape)} of"
            f" {labels.dtype}"
        )
    return images, labels


def _cut(subject: Subject, layer: str | None, images: Tensor) -> GapModel:
    """The model up to a layer; its new head is yet to be trained."""
    model = copy.deepcopy(subject.module)
    modules = dict(model.named_modules())
    order: list[str] = []
    shapes: dict[str, tuple[int, ...]] = {}

    def look(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def see(_: nn.Module, __: Any, out: Any) -> None:
            order.append(name)
            if isinstance(out, Tensor):
                shapes[name] = tuple(out.shape)

        return see

    handles = [m.register_forward_hook(look(name)) for name, m in modules.items() if name]
    try:
        output = pick(model(images[:1]), None)
    finally:
        for handle in handles:
            handle.remove()
    if output.ndim != 2:
        raise ValueError(
            f"expected a model that returns scores (images, classes), got {tuple(output.shape)}"
        )
    maps = [n for n in order if len(s := shapes.get(n, ())) == images.ndim and prod(s[2:]) > 1]
    if layer is None and not maps:
        raise ValueError("expected a model with a layer that puts out maps, got one without")
    if layer is not None:
        Call(model, (), images, None, layer)  # refuses unknown names
        if layer not in maps:
            raise ValueError(f"expected a layer that puts out maps, got {layer!r}")
    chosen = layer or maps[-1]
    if order.count(chosen) > 1:
        raise ValueError(f"expected a layer that runs once, and {chosen!r} runs several times")
    # Unfilled: random weights would disturb the caller's generator.
    head = nn.utils.skip_init(
        nn.Linear, shapes[chosen][1], output.shape[1], device=images.device, dtype=images.dtype
    )
    at = order.index(chosen) + 1
    made = GapModel(_without(model, order[at:], order[:at]), chosen, head)
    try:
        made.averages(images[:1])
    # Whatever the model's own code does with what modules return that are gone.
    except Exception:
        made = GapModel(model, chosen, head)
    return made


def _without(model: nn.Module, behind: Sequence[str], front: Sequence[str]) -> nn.Module:
    """A copy with the identity in the place of modules that run behind some point alone."""
    cut = copy.deepcopy(model)
    for name in sorted(set(behind) - set(front), reverse=True):
        if not any(other.startswith(f"{name}.") for other in front):
            parent, _, own = name.rpartition(".")
            setattr(cut.get_submodule(parent), own, nn.Identity())
    return cut


def _fit(head: nn.Linear, averages: Tensor, labels: Tensor, decay: float, steps: int) -> None:
    """Make a linear layer the logistic regression of labels."""
    if not 0 <= int(labels.min()) <= int(labels.max()) < head.out_features:
        raise ValueError(
            f"expected labels in 0..{head.out_features - 1}, got"
            f" {int(labels.min())}..{int(labels.max())}"
        )
    values = averages.double()
    middle, spread = values.mean(0), values.std(0, correction=0)
    spread = torch.where(spread > 0, spread, 1.0)
    values = (values - middle) / spread
    with torch.enable_grad():
        weight = values.new_zeros(head.out_features, head.in_features, requires_grad=True)
        bias = values.new_zeros(head.out_features, requires_grad=True)
        search = torch.optim.LBFGS(
            [weight, bias], max_iter=steps, tolerance_change=1e-10, line_search_fn="strong_wolfe"
        )

        def loss() -> Tensor:
            search.zero_grad()
            found = F.cross_entropy(F.linear(values, weight, bias), labels)
            found = found + decay * weight.square().sum() / 2
            found.backward()
            return found

        search.step(loss)
    with torch.no_grad():
        head.weight.copy_(weight / spread)
        assert head.bias is not None
        head.bias.copy_(bias - (weight / spread) @ middle)
