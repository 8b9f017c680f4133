"""Photos of every ordinary kind come out as the same upright uint8 RGB, boxes of every kind as the
same numbers; others get a sentence.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest

from backsight.io import pictures, read_boxes, read_image

Image = pytest.importorskip("PIL.Image")

RGB = np.random.default_rng(1).integers(0, 256, (5, 7, 3), dtype=np.uint8)
GRAY = RGB[..., 0]


def test_png_is_read_exactly_and_may_be_written_to(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.png")
    pixels = read_image(tmp_path / "a.png")
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, RGB)
    pixels[0, 0] = 0
    assert np.array_equal(read_image(str(tmp_path / "a.png")), RGB)


def test_grayscale_black_and_white_and_palette(tmp_path: Path) -> None:
    Image.fromarray(GRAY).save(tmp_path / "gray.png")
    assert np.array_equal(read_image(tmp_path / "gray.png"), np.stack([GRAY] * 3, -1))
    Image.fromarray(GRAY > 127).save(tmp_path / "bits.png")
    assert np.array_equal(read_image(tmp_path / "bits.png")[..., 1], (GRAY > 127) * np.uint8(255))
    palette = Image.fromarray(RGB).quantize(64)
    palette.save(tmp_path / "palette.gif")
    assert np.array_equal(read_image(tmp_path / "palette.gif"), np.asarray(palette.convert("RGB")))


def test_sixteen_bits_are_scaled_not_cut_off(tmp_path: Path) -> None:
    values = np.array([[0, 256, 257, 32768, 65535]], dtype=np.uint16)
    expected = np.round(values / 257).astype(np.uint8)
    for name in ("a.png", "a.tif"):
        Image.fromarray(values).save(tmp_path / name)
        for channel in range(3):
            assert np.array_equal(read_image(tmp_path / name)[..., channel], expected)


def test_transparency_lies_over_white(tmp_path: Path) -> None:
    alpha = np.array([[0, 255, 128]], dtype=np.uint8)
    color = np.array([[[10, 20, 30]] * 3], dtype=np.uint8)
    Image.fromarray(np.dstack([color, alpha])).save(tmp_path / "rgba.png")
    share = alpha[..., None] / 255
    expected = color * share + 255 * (1 - share)
    pixels = read_image(tmp_path / "rgba.png")
    assert np.abs(pixels - expected).max() <= 1
    assert pixels[0, 0].tolist() == [255] * 3
    assert pixels[0, 1].tolist() == [10, 20, 30]

    Image.fromarray(np.dstack([color[..., 0], alpha])).save(tmp_path / "la.png")
    assert read_image(tmp_path / "la.png")[0, :2, 0].tolist() == [255, 10]

    indexed = Image.new("P", (2, 1))
    indexed.putpalette([1, 2, 3, 4, 5, 6])
    indexed.putpixel((1, 0), 1)
    indexed.save(tmp_path / "p.png", transparency=0)
    assert read_image(tmp_path / "p.png").tolist() == [[[255, 255, 255], [4, 5, 6]]]


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    turned = {
        1: RGB,
        2: RGB[:, ::-1],
        3: RGB[::-1, ::-1],
        4: RGB[::-1],
        5: RGB.transpose(1, 0, 2),
        6: np.rot90(RGB, -1),
        7: RGB[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(RGB, 1),
    }
    for orientation, upright in turned.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
        assert np.array_equal(read_image(tmp_path / "a.png"), upright), orientation


def test_cmyk_and_first_frame_of_an_animation(tmp_path: Path) -> None:
    flat = np.full((8, 8, 3), (200, 100, 50), dtype=np.uint8)
    Image.fromarray(flat).convert("CMYK").save(tmp_path / "a.jpg", quality=100)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - flat).max() <= 3
    frames = [Image.new("RGB", (4, 3), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "a.gif")[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("ending", ["png", "jpg", "tif", "bmp", "webp"])
def test_truncated_photo_is_refused_with_path_and_cause(tmp_path: Path, ending: str) -> None:
    photo = np.random.default_rng(2).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(photo).save(buffer, {"jpg": "jpeg", "tif": "tiff"}.get(ending, ending))
    data = buffer.getvalue()
    path = tmp_path / f"photo.{ending}"
    for share in (0.0, 0.02, 0.3, 0.6, 0.9):
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(ValueError, match=rf"cannot read photo .*photo\.{ending}: \w") as raised:
            read_image(path)
        assert "\n" not in str(raised.value)


def test_damaged_png_is_refused(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.png")
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[data.index(b"IDAT") + 10] ^= 0xFF
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(ValueError, match=r"cannot read photo .*a\.png: \w"):
        read_image(tmp_path / "a.png")


def test_what_is_no_photo_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.png: there is no such file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(ValueError, match="it is a folder"):
        read_image(tmp_path)
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(ValueError, match="not a picture of a known format"):
        read_image(tmp_path / "a.txt")


def test_pixels_without_a_range_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0.0, 1.0]], dtype=np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(ValueError, match="floats of unknown range"):
        read_image(tmp_path / "f.tif")
    Image.fromarray(np.array([[0, 70000]], dtype=np.int32)).save(tmp_path / "i.tif")
    with pytest.raises(ValueError, match="from 0 to 70000"):
        read_image(tmp_path / "i.tif")


def test_pictures_of_a_folder_come_by_name(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "c.webp", "notes.txt", ".hidden.png", "photo"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    assert pictures(tmp_path) == [tmp_path / name for name in ("a.JPG", "b.png", "c.webp")]
    with pytest.raises(ValueError, match=r"expected pictures in the folder .*folder\.png"):
        pictures(tmp_path / "folder.png")
    with pytest.raises(ValueError, match=r"cannot read the folder .*none: No such file"):
        pictures(tmp_path / "none")


def test_boxes_of_every_kind_are_the_same(tmp_path: Path) -> None:
    boxes = np.array([[0, 1, 20, 30], [5, 6, 7, 8]])
    np.save(tmp_path / "a.npy", boxes.astype(np.uint16))
    np.save(tmp_path / "floats.npy", boxes.astype(np.float32))
    (tmp_path / "a.json").write_text(json.dumps(boxes.tolist()))
    (tmp_path / "a.csv").write_text("0,1,20,30\n5, 6, 7, 8\n\n")
    (tmp_path / "named.csv").write_text("top,left,bottom,right\r\n0,1,20,30\r\n5,6,7,8\r\n")
    for name in ("a.npy", "floats.npy", "a.json", "a.csv", "named.csv"):
        found = read_boxes(tmp_path / name)
        assert found.dtype == np.int64
        assert np.array_equal(found, boxes), name
    (tmp_path / "deep.json").write_text("[[[0, 1, 2, 3], [4, 5, 6, 7]]]")
    assert read_boxes(tmp_path / "deep.json").shape == (1, 2, 4)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"1,2,3,4", r"boxes in a file \.npy, \.json or \.csv, got .*a\.txt"),
        ("a.json", b"[[1, 2, 3, 4], [5]]", "cannot read the boxes .*inhomogeneous"),
        ("a.json", b"[[1, 2", "cannot read the boxes"),
        ("a.json", b'{"a": 1}', "expected boxes of whole pixels"),
        ("a.json", b"[[1, 2, 3.5, 4]]", "expected boxes of whole pixels"),
        ("a.csv", b"1,2,3,4\n5,6,x,8\n", "cannot read the boxes .*'x'"),
        ("a.csv", b"\xff\xfe", "cannot read the boxes"),
        ("a.npy", b"garbage", "cannot read the boxes"),
        ("a.npy", b"", "cannot read the boxes"),
    ],
)
def test_what_is_no_list_of_boxes_is_refused(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        read_boxes(tmp_path / name)
    assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match="No such file"):
        read_boxes(tmp_path / "none.csv")
