"""Maps of features: neighbours against brute force, places against the pixels', cells one each."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch import nn

import backsight
from backsight.zoo import Network, Preprocessing
from digits import digits, held_out, trained
from nets import random_images, seeded, squeezenet1_1

pytest.importorskip("sklearn", reason="t-SNE comes with scikit-learn")


def few(count: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = digits()
    some = held_out(len(images))
    return images[some][:count], labels[some][:count]


def test_features_are_what_the_classifier_takes() -> None:
    model = trained()
    images, _ = few(40)
    found = backsight.feature_map(model, images, batch_size=7)
    with torch.no_grad():
        expected = model[:-1](images)
    assert expected.std() > 0.1
    torch.testing.assert_close(found.features, expected)
    scores = model(images).argmax(1)
    assert [found.classes[i] for i in found.labels] == [f"class {i}" for i in scores]
    by_batches = backsight.feature_map(model, images.split(11))
    assert torch.allclose(by_batches.features, found.features, atol=1e-6)


def test_features_of_a_layer_are_its_relus_means_over_space() -> None:
    model = trained()
    images, _ = few(20)
    with torch.no_grad():
        maps = model[2](model[1](model[0](images)))
    assert maps.min() < 0
    found = backsight.feature_map(model, images, layer="2")
    torch.testing.assert_close(found.features, maps.relu().mean((2, 3)))
    assert torch.equal(found.features, backsight.feature_map(model, images, layer="3").features)


def test_neighbours_are_those_of_brute_force() -> None:
    from sklearn.neighbors import NearestNeighbors

    images, labels = few()
    found = backsight.feature_map(trained(), images, labels=labels, neighbours=4)
    search = NearestNeighbors(n_neighbors=5, algorithm="brute").fit(found.features.double())
    distances, index = search.kneighbors(found.features.double())
    assert distances[:, 1].min() > 0
    np.testing.assert_array_equal(found.neighbours, index[:, 1:])
    np.testing.assert_allclose(found.distances, distances[:, 1:], rtol=1e-6)
    assert found.agreement > 0.9


def test_t_sne_separates_classes_better_than_pixels() -> None:
    from sklearn.manifold import TSNE
    from sklearn.metrics import silhouette_score

    images, labels = few()
    found = backsight.feature_map(trained(), images, labels=labels)
    pixels = TSNE(2, init="pca", random_state=0).fit_transform(images.flatten(1).numpy())
    assert silhouette_score(found.places, labels) > silhouette_score(pixels, labels) + 0.1


def test_one_image_a_cell_and_all_of_them() -> None:
    images, labels = few(60)
    found = backsight.feature_map(trained(), images, labels=labels)
    assert found.grid == (8, 8)
    assert len(found.cells.unique(dim=0)) == 60
    assert found.cells.min() >= 0
    assert found.cells.max() < 8
    # near places get near cells: up is up, right is right
    places = found.places.double()
    for axis, cell in ((0, found.cells[:, 1]), (1, -found.cells[:, 0])):
        assert np.corrcoef(places[:, axis], cell)[0, 1] > 0.9
    crowded = backsight.feature_map(trained(), images, labels=labels, side=5)
    shown = crowded.cells[crowded.cells[:, 0] >= 0]
    assert len(shown) == len(shown.unique(dim=0)) == 25


def test_is_seeded_and_leaves_the_generators_alone() -> None:
    images, _ = few(60)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    found, again = (backsight.feature_map(trained(), images, seed=3) for _ in range(2))
    assert torch.equal(found.places, again.places)
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_takes_signals_colours_bfloat16_and_leaves_the_model_alone() -> None:
    signals = nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(56, 3)).eval()
    images = random_images((2, 16), 6)
    found = backsight.feature_map(signals, images)
    assert found.features.shape == (6, 56)
    assert found.pictures.shape == (6, 0, 0, 3)
    assert found.plot().axes
    model = seeded(squeezenet1_1).eval().bfloat16()
    photos = random_images((3, 96, 80), 6).bfloat16()
    found = backsight.feature_map(model, photos)
    assert found.pictures.shape == (6, 64, 53, 3)
    assert found.features.dtype == torch.bfloat16
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_names_of_classes_come_from_the_network() -> None:
    images, labels = few(20)
    names = ("nought", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    network = Network("digits", trained(), Preprocessing(crop=None, short_side=None), names)
    found = backsight.feature_map(network, images, labels=labels)
    assert [found.classes[i] for i in found.labels] == [names[i] for i in labels]
    own = backsight.feature_map(network, images, labels=["a", "b"] * 10)
    assert own.classes == ("a", "b")
    assert own.labels.tolist() == [0, 1] * 10


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"images": torch.rand(4, 1, 8, 8)}, "expected 5 images for a map, or more, got 4"),
        ({"images": []}, "expected images, got none"),
        ({"images": 3}, "iterable of batches"),
        ({"images": torch.zeros(6, 1, 8, 8)}, "features that differ"),
        ({"labels": [1, 2]}, "a label for each of 6 images, got 2"),
        ({"layer": "features"}, "expected a layer of the model"),
        ({"neighbours": 0}, "neighbours to be a positive number"),
        ({"side": 0}, "side to be a positive number"),
        ({"perplexity": 0}, "positive perplexity"),
    ],
)
def test_bad_input_gets_a_sentence(arguments: dict[str, object], sentence: str) -> None:
    given = {"images": torch.rand(6, 1, 8, 8), **arguments}
    with pytest.raises(ValueError, match=sentence):
        backsight.feature_map(trained(), given.pop("images"), **given)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in trained().modules())


def test_without_scikit_learn_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    with pytest.raises(ImportError, match=r'pip install "backsight\[tsne\]"'):
        backsight.feature_map(trained(), torch.rand(6, 1, 8, 8))


def test_is_drawn_and_saved(tmp_path) -> None:
    pytest.importorskip("matplotlib", reason="figures need matplotlib")
    images, labels = few(30)
    found = backsight.feature_map(trained(), images, labels=labels)
    found.save(tmp_path / "map.npz")
    with np.load(tmp_path / "map.npz") as arrays:
        np.testing.assert_array_equal(arrays["neighbours"], found.neighbours.numpy())
    found.save(tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    # the pictures stand on their cells
    mosaic = np.asarray(found.plot().axes[1].images[0].get_array())
    side = mosaic.shape[0] // found.grid[0]
    row, column = found.cells[7].tolist()
    cell = mosaic[row * side : (row + 1) * side - 1, column * side : (column + 1) * side - 1]
    edge = (len(cell) - 24) // 2
    np.testing.assert_array_equal(cell[edge:-edge:3, edge:-edge:3], found.pictures[7].numpy())
    assert found.plot_neighbours([0, 5]).axes
