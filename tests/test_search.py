"""The strongest images of a data set: against brute force, interrupted, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import backsight
from backsight.methods import search


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 5, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ).eval()


def pictures(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 21, 17, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def brute_force(maps: Tensor, k: int) -> list[list[tuple[float, int, tuple[int, ...]]]]:
    """For each channel the k best (activation, image, position), by sorting all images."""
    found = []
    for channel in range(maps.shape[1]):
        rows = []
        for image, values in enumerate(maps[:, channel]):
            at = int(values.flatten().argmax())
            place = tuple(int(i) for i in torch.unravel_index(torch.tensor(at), values.shape))
            rows.append((float(values.flatten()[at]), image, place))
        found.append(sorted(rows, key=lambda row: (-row[0], row[1]))[:k])
    return found


def assert_found(found: backsight.TopActivations, expected: list[list[Any]]) -> None:
    for channel, rows in enumerate(expected):
        assert found.images[channel, : len(rows)].tolist() == [row[1] for row in rows]
        assert [u[2:] for u in found.units(channel)] == [row[2] for row in rows]
        values = torch.tensor([row[0] for row in rows])
        torch.testing.assert_close(found.values[channel, : len(rows)], values)


class Indexed:
    """A data set of single images with labels; None for those that cannot be read."""

    def __init__(self, images: Tensor, missing: tuple[int, ...] = ()) -> None:
        self.images, self.missing = images, missing

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor | None, int]:
        return (None if i in self.missing else self.images[i]), i % 3


@pytest.mark.parametrize("layer", ["0", "5"])
@pytest.mark.parametrize("kind", ["tensor", "indexed", "loader", "batches"])
def test_equals_brute_force(kind: str, layer: str) -> None:
    model, images = network(), pictures(23)
    with torch.no_grad():
        expected = brute_force(model[: int(layer) + 1](images), 4)
    dataset: Any = {
        "tensor": images,
        "indexed": Indexed(images),
        "loader": torch.utils.data.DataLoader(Indexed(images), batch_size=5),
        "batches": images.split(7),
    }[kind]
    if kind == "batches":
        dataset = iter(dataset)
    assert_found(backsight.top_activations(model, layer, dataset, k=4, batch_size=6), expected)


@given(values=st.lists(st.integers(-2, 2), min_size=1, max_size=60), batch=st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_ties_go_to_the_first(values: list[int], batch: int) -> None:
    count = -(-len(values) // 4)
    cells = torch.tensor(values + [-3] * (4 * count - len(values)), dtype=torch.float32)
    images = cells.view(count, 1, 2, 2)
    found = backsight.top_activations(IDENTITY, "0", images, k=3, batch_size=batch)
    assert_found(found, brute_force(images, 3))
    assert found.count == count


IDENTITY = nn.Sequential(nn.Identity(), nn.Conv2d(1, 1, 1)).eval()


def test_only_the_box_has_influence() -> None:
    """Pixels outside the crop change the unit by exactly 0; some inside change it."""
    model, images = network(), pictures(9)
    found = backsight.top_activations(model, "3", images, k=2)
    seen = model[:4]
    for channel in range(6):
        for rank, (image, _, *place) in enumerate(found.units(channel)):
            top, left, bottom, right = found.boxes[channel, rank].tolist()
            outside = torch.randn(3, 21, 17)
            outside[:, top:bottom, left:right] = images[image, :, top:bottom, left:right]
            inside = images[image].clone()
            inside[:, top:bottom, left:right] += 5
            with torch.no_grad():
                units = seen(torch.stack([images[image], outside, inside]))[:, channel]
            before, same, other = units[(slice(None), *place)].tolist()
            assert same == before != other


def test_scores_and_vectors() -> None:
    model, images = network(), pictures(12)
    found = backsight.top_activations(model, None, images, k=3)
    with torch.no_grad():
        best = model(images).T.topk(3)
    assert torch.equal(found.images, best.indices)
    assert found.positions.shape == (5, 3, 0)
    assert found.boxes[0, 0].tolist() == [0, 0, 21, 17]


def test_the_winners_are_projected() -> None:
    model, images = network(), pictures(9)
    found = backsight.top_activations(model, "5", images, k=2)
    units = [unit for channel in range(5) for unit in found.units(channel)]
    projection = backsight.project(model, images, "5", units)
    torch.testing.assert_close(projection.activations, found.values.flatten())
    assert torch.equal(projection.boxes, found.boxes.flatten(0, 1))
    assert projection.pictures.any()


def test_images_that_are_missing_are_left_out() -> None:
    model, images = network(), pictures(14)
    found = backsight.top_activations(model, "5", Indexed(images, (0, 4, 5, 13)), k=14)
    assert found.skipped == (0, 4, 5, 13)
    assert found.count == 14
    good = [i for i in range(14) if i not in found.skipped]
    with torch.no_grad():
        expected = brute_force(model[:6](images[good]), 14)
    assert_found(found, [[(v, good[i], at) for v, i, at in rows] for rows in expected])
    assert found.images[0, 10:].tolist() == [-1] * 4
    assert len(found.units(0)) == 10


def test_images_of_several_sizes() -> None:
    model = network()
    images = [*pictures(3), *torch.randn(2, 3, 30, 40), *pictures(2, seed=7)]
    found = backsight.top_activations(model, "5", images, k=7)
    with torch.no_grad():
        best = [float(model[:6](image[None])[0, 0].max()) for image in images]
    torch.testing.assert_close(found.values[0], torch.tensor(sorted(best, reverse=True)))


class Interrupted(Indexed):
    def __init__(self, images: Tensor, at: int) -> None:
        super().__init__(images)
        self.at = at

    def __getitem__(self, i: int) -> tuple[Tensor | None, int]:
        if i >= self.at:
            raise KeyboardInterrupt
        return super().__getitem__(i)


@pytest.mark.parametrize("at", [1, 6, 7, 20])
def test_a_search_goes_on_where_it_was_interrupted(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "EVERY", -1.0)
    model, images = network(), pictures(23)
    whole = backsight.top_activations(model, "5", images, k=4)
    path = tmp_path / "search.npz"
    arguments: dict[str, Any] = {"k": 4, "batch_size": 3, "checkpoint": path}
    with pytest.raises(KeyboardInterrupt):
        backsight.top_activations(model, "5", Interrupted(images, at), **arguments)
    seen: list[int] = []

    class Watched(Indexed):
        def __getitem__(self, i: int) -> tuple[Tensor | None, int]:
            seen.append(i)
            return super().__getitem__(i)

    found = backsight.top_activations(model, "5", Watched(images), **arguments)
    assert seen == list(range(max(0, at - 1) // 3 * 3, 23))
    for name in ("values", "images", "positions", "boxes"):
        torch.testing.assert_close(getattr(found, name), getattr(whole, name))
    again = backsight.top_activations(model, "5", Interrupted(images, 23), **arguments)
    assert torch.equal(again.values, found.values)
    # Batches of a loader are taken up in their middle.
    loader = torch.utils.data.DataLoader(Indexed(images), batch_size=5)
    again = backsight.top_activations(model, "5", loader, k=4, checkpoint=path)
    assert torch.equal(again.images, found.images)


def test_the_checkpoint_of_another_search_is_refused(tmp_path: Path) -> None:
    model, images, path = network(), pictures(4), tmp_path / "search.npz"
    backsight.top_activations(model, "5", images, k=4, checkpoint=path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"of the same k \(3\), and .* is one of 4"):
        backsight.top_activations(model, "5", images, k=3, checkpoint=path)
    with pytest.raises(ValueError, match=r"of the same layer \('4'\), and .* is one of '5'"):
        backsight.top_activations(model, "4", images, k=4, checkpoint=path)
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] += 1
    with pytest.raises(ValueError, match="of the same model"):
        backsight.top_activations(model, "5", images, k=4, checkpoint=path)
    assert path.read_bytes() == before
    path.write_bytes(before[:-100])
    with pytest.raises(ValueError, match="not a whole"):
        backsight.top_activations(network(), "5", images, k=4, checkpoint=path)


def test_models_that_cannot_be_captured() -> None:
    class Asking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network()[:6]

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x) * float(x.abs().sum() >= 0)

    model, images = Asking().eval(), pictures(5)
    found = backsight.top_activations(model, "body", images, k=2)
    with torch.no_grad():
        assert_found(found, brute_force(model.body(images), 2))


def batches() -> Iterator[Any]:
    yield from ([], {"image": 1})


@pytest.mark.parametrize(
    ("layer", "dataset", "arguments", "sentence"),
    [
        ("5", pictures(2), {"k": 0}, "positive number of images, got 0"),
        ("5", pictures(2), {"batch_size": 0}, "positive number, got 0"),
        ("55", pictures(2), {}, "expected a layer of the model, such as 5.* got '55'"),
        ("5", pictures(0), {}, "expected at least one image, got none of 0"),
        ("5", [None], {}, "expected at least one image, got none of 1"),
        ("5", 3, {}, "a data set of images, .* got int"),
        ("5", batches(), {}, "a data set of tensors, .* got list"),
        ("5", pictures(2) * torch.nan, {}, "expected finite images"),
    ],
)
def test_bad_arguments(layer: str, dataset: Any, arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        backsight.top_activations(network(), layer, dataset, **arguments)
