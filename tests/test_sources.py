"""Regions of images of every kind are exact, and only what they need is decoded."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from backsight import io
from backsight.sources import digest, open_source, source

tifffile = pytest.importorskip("tifffile")
zarr = pytest.importorskip("zarr")

RGB = np.random.default_rng(1).integers(0, 256, (100, 130, 3), dtype=np.uint8)
FIRST = np.ascontiguousarray(RGB.transpose(2, 0, 1))
VOLUME = np.random.default_rng(2).integers(0, 60000, (5, 50, 40, 2), dtype=np.uint16)


def boxes(size: tuple[int, ...], count: int = 12) -> list[list[int]]:
    rng = np.random.default_rng(3)
    starts = [rng.integers(0, n, count) for n in size]
    stops = [rng.integers(a + 1, n + 1) for a, n in zip(starts, size, strict=True)]
    found = np.stack([*starts, *stops], 1).tolist()
    return [[0] * len(size) + list(size), [n - 1 for n in size] + list(size), *found]


def check(image: Any, expected: np.ndarray, kind: str, **options: Any) -> None:
    """Every box holds the pixels that were stored, whichever they are."""
    assert len(np.unique(expected)) > 1
    with open_source(image, **options) as found:
        assert found.kind == kind
        assert found.shape == expected.shape
        assert found.dtype == expected.dtype.newbyteorder("=")
        for box in boxes(expected.shape[1:]):
            axes = len(box) // 2
            region = (slice(None), *map(slice, box[:axes], box[axes:]))
            values = found.read(box)
            assert values.dtype == found.dtype
            assert values.flags.c_contiguous
            assert values.flags.writeable
            assert np.array_equal(values, expected[region])


def pyramid(path: Path, kind: str) -> np.ndarray:
    """256 by 320 pixels, and halves of them; with the layout of OME-TIFF, COG or SVS."""
    big = np.random.default_rng(4).integers(0, 256, (256, 320, 3), dtype=np.uint8)
    tiles: dict[str, Any] = {"photometric": "rgb", "tile": (64, 64), "compression": "zlib"}
    with tifffile.TiffWriter(path, bigtiff=kind == "ome", ome=kind == "ome") as file:
        if kind == "ome":
            file.write(big, subifds=2, metadata={"axes": "YXS"}, **tiles)
            for step in (2, 4):
                file.write(big[::step, ::step], subfiletype=1, **tiles)
        elif kind == "cog":
            geo = [
                (33550, "d", 3, (0.5, 0.25, 0.0), True),
                (33922, "d", 6, (8.0, 4.0, 0.0, 100.0, 200.0, 0.0), True),
                (34735, "H", 4, (1, 1, 0, 0), True),
            ]
            file.write(big, extratags=geo, metadata=None, **tiles)
            for step in (2, 4):
                file.write(big[::step, ::step], subfiletype=1, metadata=None, **tiles)
        else:
            text = "Aperio Image Library v11.2.1 \r\n320x256 (64x64) JPEG/RGB Q=70|AppMag = 20"
            plain = {"photometric": "rgb", "rowsperstrip": 16, "metadata": None}
            file.write(big, description=text, metadata=None, **tiles)
            file.write(big[::8, ::8], description=text, **plain)  # the thumbnail
            for step in (2, 4):
                file.write(big[::step, ::step], description=text, metadata=None, **tiles)
    return big


def test_arrays_and_tensors() -> None:
    check(FIRST, FIRST, "array")
    check(RGB, FIRST, "array", axes="HWC")
    check(torch.from_numpy(FIRST), FIRST, "array")
    check(torch.from_numpy(FIRST).float().requires_grad_(), FIRST.astype(np.float32), "array")
    check(VOLUME, VOLUME.transpose(3, 0, 1, 2), "array", axes="dhwc")
    check(RGB[..., 0], FIRST[:1], "array", axes="HW")
    check(FIRST[:, 0], FIRST[:, 0], "array")  # one spatial axis


def test_what_is_read_is_the_callers_own() -> None:
    values = FIRST.copy()
    open_source(values).read([0, 0, 2, 2])[:] = 77
    assert np.array_equal(values, FIRST)


@pytest.mark.parametrize("dtype", ["u1", "<f4", ">f8", ">u2", "f2", "?"])
def test_npy_of_both_byte_orders_and_layouts(tmp_path: Path, dtype: str) -> None:
    expected = FIRST.astype(dtype)
    if dtype == "?":
        expected = FIRST > 99
    np.save(tmp_path / "a.npy", expected)
    check(tmp_path / "a.npy", expected, "npy")
    np.save(tmp_path / "a.npy", np.asfortranarray(expected))
    check(str(tmp_path / "a.npy"), expected, "npy")
    np.save(tmp_path / "a.npy", np.moveaxis(expected, 0, -1))
    check(tmp_path / "a.npy", expected, "npy", axes="HWC")


def test_photo(tmp_path: Path) -> None:
    Image = pytest.importorskip("PIL.Image")
    Image.fromarray(RGB).save(tmp_path / "a.png")
    check(tmp_path / "a.png", FIRST, "photo")
    Image.fromarray(RGB).save(tmp_path / "a.jpg")
    check(tmp_path / "a.jpg", io.read_image(tmp_path / "a.jpg").transpose(2, 0, 1), "photo")


@pytest.mark.parametrize("format", [2, 3])
def test_zarr(tmp_path: Path, format: int) -> None:
    options: dict[str, Any] = {"zarr_format": format}
    for name, values, chunks, axes in (
        ("a", FIRST, (3, 32, 48), None),
        ("b", RGB, (33, 40, 1), "HWC"),
        ("c", VOLUME.astype(">u2"), (2, 16, 16, 2), "DHWC"),
    ):
        array = zarr.create_array(
            tmp_path / name, shape=values.shape, dtype=values.dtype, chunks=chunks, **options
        )
        array[:] = values
        expected = values if axes is None else np.moveaxis(values, -1, 0)
        check(tmp_path / name, expected, "zarr", axes=axes)


def test_shards_are_read_by_their_inner_chunks(tmp_path: Path) -> None:
    array = zarr.create_array(
        tmp_path / "a", shape=FIRST.shape, dtype="u1", chunks=(3, 10, 10), shards=(3, 100, 130)
    )
    array[:] = FIRST
    check(tmp_path / "a", FIRST, "zarr")
    with open_source(tmp_path / "a") as found:
        found.read([5, 5, 15, 15])
        assert found.decoded == 4


@pytest.mark.parametrize("version", ["0.4", "0.5", "0.1"])
def test_ngff_groups_have_levels(tmp_path: Path, version: str) -> None:
    group = zarr.open_group(tmp_path / "a", mode="w", zarr_format=3 if version == "0.5" else 2)
    scales: dict[str, Any] = {"version": version, "datasets": [{"path": "s/0"}, {"path": "s/1"}]}
    if version != "0.1":
        scales["axes"] = [{"name": name} for name in "tczyx"]
    for level, step in enumerate((1, 2)):
        values = FIRST[None, :, None, ::step, ::step]
        array = group.create_array(
            f"s/{level}", shape=values.shape, dtype="u1", chunks=(1, 1, 1, 16, 16)
        )
        array[:] = values
    group.attrs.update(
        {"ome": {"multiscales": [scales]}} if version == "0.5" else {"multiscales": [scales]}
    )
    check(tmp_path / "a", FIRST, "zarr")
    check(tmp_path / "a", FIRST[:, ::2, ::2], "zarr", level=1)
    with open_source(tmp_path / "a", level=1) as found:
        assert found.levels == ((3, 100, 130), (3, 50, 65))
    with pytest.raises(ValueError, match="expected a level from 0 to 1, got 2"):
        open_source(tmp_path / "a", level=2)


TIFFS: dict[str, dict[str, Any]] = {
    "one strip": {},
    "strips": {"rowsperstrip": 7},
    "strips, LZW": {"rowsperstrip": 7, "compression": "lzw", "predictor": True},
    "tiles": {"tile": (32, 48)},
    "tiles, deflate": {"tile": (32, 48), "compression": "zlib", "predictor": True},
    "BigTIFF, big-endian": {"tile": (16, 16), "bigtiff": True, "byteorder": ">"},
}


@pytest.mark.parametrize("options", TIFFS.values(), ids=TIFFS.keys())
def test_tiff_of_every_layout(tmp_path: Path, options: dict[str, Any]) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RGB, photometric="rgb", **options)
    check(path, FIRST, "tiff")
    tifffile.imwrite(path, FIRST, photometric="rgb", planarconfig="separate", **options)
    check(path, FIRST, "tiff")
    five = np.concatenate([FIRST, FIRST[:2] // 2])
    tifffile.imwrite(
        path,
        five.transpose(1, 2, 0),
        photometric="minisblack",
        planarconfig="contig",
        metadata=None,
        **options,
    )
    check(path, five, "tiff")
    for dtype in ("u2", "i2", "f4", "f2"):
        gray = FIRST[:1].astype(dtype)
        tifffile.imwrite(path, gray[0], **options)
        check(path, gray, "tiff")


def test_bilevel_tiff(tmp_path: Path) -> None:
    pytest.importorskip("imagecodecs")
    tifffile.imwrite(tmp_path / "a.tif", RGB[..., 0] > 99, rowsperstrip=8)
    check(tmp_path / "a.tif", FIRST[:1] > 99, "tiff")


def test_jpeg_in_tiff_is_what_tifffile_decodes(tmp_path: Path) -> None:
    pytest.importorskip("imagecodecs")
    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb", compression="jpeg", tile=(32, 32))
    decoded = tifffile.imread(tmp_path / "a.tif")
    assert not np.array_equal(decoded, RGB)
    check(tmp_path / "a.tif", decoded.transpose(2, 0, 1), "tiff")


def test_volumes_in_tiff(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    gray = VOLUME[..., 0]
    channels = VOLUME.transpose(3, 0, 1, 2)
    for more in ({}, {"compression": "zlib"}, {"tile": (16, 16)}, {"imagej": True}):
        tifffile.imwrite(path, gray, metadata={"axes": "ZYX"}, **more)
        check(path, gray[None], "tiff")
    tifffile.imwrite(path, gray, metadata={"axes": "ZYX"}, volumetric=True, tile=(2, 16, 16))
    check(path, gray[None], "tiff")
    for more in ({}, {"tile": (16, 16), "compression": "zlib"}):
        tifffile.imwrite(
            path, VOLUME.transpose(0, 3, 1, 2), metadata={"axes": "ZCYX"}, ome=True, **more
        )
        check(path, channels, "tiff")
    for more in ({}, {"compression": "zlib", "rowsperstrip": 9}):
        with tifffile.TiffWriter(path) as file:
            for page in gray:
                file.write(page, metadata=None, contiguous=False, **more)
        with pytest.raises(ValueError, match=r"got . of 5, Y of 50, X of 40: say .* by axes="):
            open_source(path)
        check(path, gray[None], "tiff", axes="DHW")
        check(path, gray, "tiff", axes="CHW")


@pytest.mark.parametrize("kind", ["ome", "cog", "svs"])
def test_pyramids(tmp_path: Path, kind: str) -> None:
    big = pyramid(tmp_path / "a.tif", kind)
    for level, step in enumerate((1, 2, 4)):
        check(tmp_path / "a.tif", big[::step, ::step].transpose(2, 0, 1), "tiff", level=level)
    with open_source(tmp_path / "a.tif", level=1) as found:
        assert found.levels == ((3, 256, 320), (3, 128, 160), (3, 64, 80))
        assert (found.geo is not None) == (kind == "cog")
    with pytest.raises(ValueError, match="expected a level from 0 to 2, got 3"):
        open_source(tmp_path / "a.tif", level=3)


def test_geo_tags_follow_the_level(tmp_path: Path) -> None:
    pyramid(tmp_path / "a.tif", "cog")
    for level, step in enumerate((1, 2, 4)):
        with open_source(tmp_path / "a.tif", level=level) as found:
            assert found.geo is not None
            assert found.geo["ModelPixelScale"] == [0.5 * step, 0.25 * step, 0.0]
            assert found.geo["ModelTiepoint"] == [8.0 / step, 4.0 / step, 0.0, 100.0, 200.0, 0.0]
            assert found.geo["GeoKeyDirectory"] == [1, 1, 0, 0]


def test_only_what_a_box_touches_is_decoded_and_once(tmp_path: Path) -> None:
    pyramid(tmp_path / "a.tif", "cog")  # 4 by 5 tiles of 64
    with open_source(tmp_path / "a.tif") as found:
        assert found.decoded == 0
        found.read([70, 70, 80, 80])
        assert found.decoded == 1
        found.read([60, 60, 70, 70])  # four tiles, one of them kept
        assert found.decoded == 4
        found.read([0, 0, 128, 128])
        assert found.decoded == 4


def test_tiles_used_last_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "CACHE_BYTES", 2 * 64 * 64 * 3)
    pyramid(tmp_path / "a.tif", "cog")
    with open_source(tmp_path / "a.tif") as found:
        for column, decoded in ((0, 1), (64, 2), (0, 2), (128, 3), (0, 3), (64, 4)):
            found.read([0, column, 1, column + 1])
            assert found.decoded == decoded


def test_threads_read_what_one_thread_reads(tmp_path: Path) -> None:
    big = pyramid(tmp_path / "a.tif", "ome").transpose(2, 0, 1)
    todo = boxes((256, 320), 200)
    with open_source(tmp_path / "a.tif") as found, ThreadPoolExecutor(8) as pool:
        for box, values in zip(todo, pool.map(found.read, todo), strict=True):
            assert np.array_equal(values, big[:, box[0] : box[2], box[1] : box[3]])
        assert found.decoded == 20  # no tile twice
    array = zarr.create_array(tmp_path / "a.zarr", shape=big.shape, dtype="u1", chunks=(3, 64, 64))
    array[:] = big
    with open_source(tmp_path / "a.zarr") as found, ThreadPoolExecutor(8) as pool:
        for box, values in zip(todo[:40], pool.map(found.read, todo[:40]), strict=True):
            assert np.array_equal(values, big[:, box[0] : box[2], box[1] : box[3]])
        assert found.decoded == 20


def test_sparse_tiles_are_filled(tmp_path: Path) -> None:
    def tiles() -> Any:
        yield np.full((32, 32), 9, np.uint8)
        yield None

    tifffile.imwrite(
        tmp_path / "a.tif", tiles(), shape=(32, 64), dtype=np.uint8, tile=(32, 32), metadata=None
    )
    expected = np.repeat([[[9, 0]]], 32, axis=2).repeat(32, axis=1).astype(np.uint8)
    check(tmp_path / "a.tif", expected, "tiff")


def test_images_beyond_31_bits(tmp_path: Path) -> None:
    side = 50_000  # 2.5e9 pixels, in files with holes
    box = [side - 2, side - 3, side, side]
    npy = np.lib.format.open_memmap(tmp_path / "a.npy", "w+", np.uint8, (1, side, side))
    npy[0, -2:, -3:] = 7
    npy.flush()
    mapped = tifffile.memmap(
        tmp_path / "a.tif", shape=(side, side), dtype=np.uint8, bigtiff=True, metadata=None
    )
    mapped[-2:, -3:] = 7
    mapped.flush()

    def tiles() -> Any:
        count = (side // 1024 + 1) ** 2
        yield np.zeros((1024, 1024), np.uint8)
        yield from (None for _ in range(count - 2))
        yield np.full((1024, 1024), 7, np.uint8)

    tifffile.imwrite(
        tmp_path / "b.tif",
        tiles(),
        shape=(side, side),
        dtype=np.uint8,
        tile=(1024, 1024),
        compression="zlib",
        bigtiff=True,
        metadata=None,
    )
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=(1, side, side), dtype="u1", chunks=(1, 500, 500)
    )
    array[0, -2:, -3:] = 7
    for name in ("a.npy", "a.tif", "b.tif", "a.zarr"):
        with open_source(tmp_path / name) as found:
            assert found.shape == (1, side, side)
            assert (found.read(box) == 7).all()
            assert (found.read([0, 0, 3, 3]) == 0).all()
            assert len(found.fingerprint()) == 64


def test_fingerprints_tell_images_apart(tmp_path: Path) -> None:
    paths = {name: tmp_path / name for name in ("a.npy", "a.tif", "a.zarr", "a.png")}

    def write(values: np.ndarray) -> dict[str, str]:
        np.save(paths["a.npy"], values)
        tifffile.imwrite(paths["a.tif"], values, photometric="rgb", tile=(32, 32))
        array = zarr.create_array(
            paths["a.zarr"], shape=values.shape, dtype="u1", chunks=(32, 32, 3), overwrite=True
        )
        array[:] = values
        pytest.importorskip("PIL.Image").fromarray(values).save(paths["a.png"])
        found = {"array": open_source(values, axes="HWC").fingerprint()}
        for name, path in paths.items():
            axes = "HWC" if name in ("a.npy", "a.zarr") else None
            with open_source(path, axes=axes) as image:
                found[name] = image.fingerprint()
        return found

    changed = RGB.copy()
    changed[50, 60, 1] ^= 1
    first, second, again = write(RGB), write(changed), write(RGB)
    assert first == again
    assert len(set(first.values()) | set(second.values())) == 10
    moved = tmp_path / "b.npy"
    paths["a.npy"].rename(moved)
    assert open_source(moved, axes="HWC").fingerprint() == first["a.npy"]
    assert open_source(moved, axes="CHW").fingerprint() != first["a.npy"]
    big = pyramid(tmp_path / "p.tif", "ome")
    assert big.any()
    levels = {open_source(tmp_path / "p.tif", level=level).fingerprint() for level in range(3)}
    assert len(levels) == 3


def test_fingerprints_of_large_images_look_at_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digest, "WHOLE", 1 << 16)
    monkeypatch.setattr(digest, "ENDS", 1 << 10)
    monkeypatch.setattr(digest, "SAMPLES", 8)
    monkeypatch.setattr(digest, "BLOCK", 64)
    values = np.random.default_rng(5).integers(0, 256, (1, 512, 512), dtype=np.uint8)
    for save in (False, True):

        def of(values: np.ndarray, save: bool = save) -> str:
            if save:
                np.save(tmp_path / "a.npy", values)
            return open_source(tmp_path / "a.npy" if save else values).fingerprint()

        first = of(values)
        for at in ((0, 0, 0), (0, -1, -1)):
            other = values.copy()
            other[at] ^= 1
            assert of(other) != first
        assert of(values[:, :-1]) != first
        assert of(values.copy()) == first
        unseen = values.copy()
        unseen[0, 100, 100] ^= 1
        assert of(unseen) == first  # as documented: a pixel between the samples


def test_sources_describe_themselves_in_plain_data(tmp_path: Path) -> None:
    import json

    pyramid(tmp_path / "a.tif", "cog")
    with open_source(tmp_path / "a.tif", level=1) as found:
        plain = found.describe()
        assert json.loads(json.dumps(plain)) == plain
        assert plain["shape"] == [3, 128, 160]
        assert plain["compression"] == "ADOBE_DEFLATE"
        assert str(tmp_path) not in json.dumps(plain)


BOXES = [[0, 0, 101, 130], [-1, 0, 5, 5], [5, 5, 5, 9], [0, 0, 5], [0, 0, 1.5, 2], [0, 9, 3, 4]]


@pytest.mark.parametrize("box", BOXES)
def test_boxes_outside_the_image_are_refused(box: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"^expected a box"):
        open_source(FIRST).read(box)


def refused(image: Any, match: str, **options: Any) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        open_source(image, **options)
    assert "\n" not in str(caught.value)


def test_bad_arguments_get_a_sentence(tmp_path: Path) -> None:
    refused(FIRST, "expected level 0", level=1)
    refused(FIRST, "expected axes to name the 3 axes .* got 'HW'", axes="HW")
    refused(FIRST, "got 'CCW'", axes="CCW")
    refused(FIRST, "got 'CDW'", axes="CDW")
    refused(np.zeros((1, 0, 4)), "expected an image with pixels")
    refused(np.zeros((3, 4, 4), complex), "expected pixels of integers or floats")
    refused(np.zeros(3), "1 to 3 spatial axes, got \\(3,\\)")
    refused(torch.zeros(3, 4, 4, dtype=torch.bfloat16), "got torch.bfloat16")
    refused(tmp_path / "none.tif", "^cannot read the image .*none.tif: there is no such file$")
    with pytest.raises(TypeError, match="expected an array, a tensor or a path, got list"):
        open_source([1, 2])  # type: ignore[arg-type]


def test_damaged_files_get_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a"
    np.save(tmp_path / "a.npy", FIRST)
    whole = (tmp_path / "a.npy").read_bytes()
    for cut in (0, 3, 9, 60, 200, len(whole) - 1):
        (tmp_path / "a.npy").write_bytes(whole[:cut])
        refused(tmp_path / "a.npy", "^cannot read the image .*a.npy: ")
    np.save(tmp_path / "a.npy", np.array([[[object()]]]), allow_pickle=True)
    refused(tmp_path / "a.npy", "cannot read the image .*[Oo]bjects")
    path.write_bytes(b"no picture at all")
    refused(path, "^cannot read photo .*not a picture")
    path.unlink()
    path.mkdir()
    refused(path, "expected a zarr array or group, got a folder that is neither")
    zarr.open_group(path, mode="w")
    refused(path, "got a group of no array")
    zarr.open_group(path, mode="w").create_array("x", shape=(1, 4, 4), dtype="u1")
    refused(path, "got a group of arrays: name one of them, x")
    (path / "zarr.json").write_text("{")
    refused(path, "^cannot read the image .*a: ")


@pytest.mark.parametrize("options", TIFFS.values(), ids=TIFFS.keys())
def test_truncated_tiffs_get_a_sentence(tmp_path: Path, options: dict[str, Any]) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RGB, photometric="rgb", **options)
    whole = path.read_bytes()
    with tifffile.TiffFile(path) as file:
        end = max(map(sum, zip(*_spans(file.pages[0]), strict=True)))
    for cut in (4, 9, 100, 300, end // 2, end - 1):
        path.write_bytes(whole[:cut])
        refused(path, "^cannot read the image .*a.tif: ")


def _spans(page: Any) -> tuple[Any, Any]:
    return page.dataoffsets, page.databytecounts


def test_lying_headers_get_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    gray = RGB[..., 0]

    def write(**options: Any) -> None:
        tifffile.imwrite(path, gray, metadata=None, **options)

    def lie(tag: int, value: Any) -> None:
        with tifffile.TiffFile(path, mode="r+") as file:
            file.pages[0].tags[tag].overwrite(value)

    write()
    lie(257, 100_000)  # rows
    refused(path, "its header does not fit|header lies|header speaks")
    write()
    lie(279, 12)  # bytes of the strip
    refused(path, "expected 13000 bytes of pixels in a page, got 12")
    write(tile=(32, 32), compression="zlib")
    lie(256, 100_000)  # columns
    refused(path, "expected 12500 tiles or strips in page 0, got 20 offsets and 20 lengths")
    write(tile=(32, 32), compression="zlib")
    lie(324, [10**9] * 20)
    refused(path, "expected tile or strip 0 to end at byte 100000\\d+, got a file of")


@pytest.mark.filterwarnings("ignore")  # numpy's, on its way to an error
def test_flipped_headers_are_read_or_refused_in_a_sentence(tmp_path: Path) -> None:
    rng, path, sentences = np.random.default_rng(6), tmp_path / "a.tif", set()
    for options in TIFFS.values():
        tifffile.imwrite(path, RGB, photometric="rgb", **options)
        whole = path.read_bytes()
        for _ in range(25):
            data = bytearray(whole)
            data[rng.integers(8, 400)] = rng.integers(256)
            path.write_bytes(data)
            try:
                with open_source(path) as found:
                    box = [0] * (len(found.shape) - 1) + [min(n, 20) for n in found.shape[1:]]
                    assert found.read(box).size
            except ValueError as error:
                sentences.add(str(error))
    assert len(sentences) > 20
    assert all(text.startswith("cannot read") and "\n" not in text for text in sentences)


def test_unknown_compressions_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RGB, photometric="rgb", tile=(32, 32), compression="zlib")
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags[259].overwrite(60_000)
    refused(path, "its compression 60000 is not supported")


def test_damaged_tiles_are_refused_and_the_others_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RGB, photometric="rgb", tile=(32, 32), compression="zlib")
    with tifffile.TiffFile(path) as file:
        offset = file.pages[0].dataoffsets[1]
    data = bytearray(path.read_bytes())
    data[offset : offset + 40] = b"\xff" * 40
    path.write_bytes(bytes(data))
    with open_source(path) as found:
        assert np.array_equal(found.read([0, 0, 32, 32]), FIRST[:, :32, :32])
        for _ in range(2):
            with pytest.raises(ValueError, match=r"a.tif: its tile .* is damaged: "):
                found.read([0, 30, 10, 40])


def test_tiles_too_large_to_decode_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "TILE_BYTES", 10_000)
    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb", compression="zlib")
    refused(tmp_path / "a.tif", "store the image in smaller ones")
    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb")  # plain: mapped, however large
    check(tmp_path / "a.tif", FIRST, "tiff")


def test_palettes_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "a.tif", RGB[..., 0], photometric="palette", colormap=np.zeros((3, 256), "u2")
    )
    refused(tmp_path / "a.tif", "got indices into a palette")


def test_missing_packages_are_named(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb", tile=(32, 32), compression="lzw")
    zarr.create_array(tmp_path / "a.zarr", shape=(1, 4, 4), dtype="u1")
    (tmp_path / "a.cut").write_bytes((tmp_path / "a.tif").read_bytes()[:150])
    code = """if True:
        import sys
        sys.modules["imagecodecs"] = None
        from backsight.sources import open_source
        assert "tifffile" not in sys.modules and "zarr" not in sys.modules
        def sentence(path):
            try:
                open_source(path)
            except (ValueError, ImportError) as error:
                print(type(error).__name__, error)
        sentence(sys.argv[1])
        sentence(sys.argv[3])
        for name in [name for name in sys.modules if name.split(".")[0] == "tifffile"]:
            del sys.modules[name]
        sys.modules["tifffile"] = sys.modules["zarr"] = None
        sentence(sys.argv[1])
        sentence(sys.argv[2])
    """
    done = subprocess.run(
        [sys.executable, "-c", code, *(tmp_path / f"a.{end}" for end in ("tif", "zarr", "cut"))],
        capture_output=True,
        text=True,
        check=True,
    )
    codec, damaged, tiff, chunks = done.stdout.splitlines()
    assert codec.startswith("ValueError")
    assert "its compression LZW needs the package imagecodecs: pip install imagecodecs" in codec
    assert tiff.startswith("ImportError")
    assert tiff.endswith('reading TIFF needs the package tifffile: pip install "backsight[large]"')
    assert damaged.startswith("ValueError cannot read the image")
    assert not done.stderr
    assert chunks.endswith('reading zarr needs the package zarr: pip install "backsight[large]"')


def test_closed_sources_say_so(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb", tile=(32, 32))
    np.save(tmp_path / "a.npy", FIRST)
    for image in (FIRST, tmp_path / "a.tif", tmp_path / "a.npy"):
        found = open_source(image)
        found.close()
        found.close()
        with pytest.raises(ValueError, match="has been closed"):
            found.read([0, 0, 1, 1])
