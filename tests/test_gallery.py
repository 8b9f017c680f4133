"""The gallery shows every picture that lies there, and each is small."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parent.parent / "docs"


def test_shows_all_pictures_once_with_what_they_are() -> None:
    text = (DOCS / "gallery.md").read_text(encoding="utf-8")
    shown = re.findall(r"!\[([^\]]+)\]\(gallery/([^)]+)\)", text)
    there = sorted(path.name for path in (DOCS / "gallery").glob("*.jpg"))
    assert len(there) > 10
    assert sorted(name for _, name in shown) == there
    assert len({words for words, _ in shown}) == len(shown)


def test_pictures_are_pictures_of_sixty_kilobytes_at_most() -> None:
    Image = pytest.importorskip("PIL.Image", reason="pictures need Pillow")
    for path in (DOCS / "gallery").glob("*.jpg"):
        assert path.stat().st_size <= 60_000, path.name
        with Image.open(path) as picture:
            assert picture.format == "JPEG"
            picture.load()


def test_each_picture_has_a_function_that_draws_it() -> None:
    made = set()
    for script in (DOCS / "gallery").glob("make_*.py"):
        source = script.read_text(encoding="utf-8")
        made |= {name.replace("_", "-") for name in re.findall(r"^def (\w+)\(", source, re.M)}
    assert {path.stem for path in (DOCS / "gallery").glob("*.jpg")} <= made
