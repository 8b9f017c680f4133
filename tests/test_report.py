"""The page of all views: whole, self-contained, honest about what could not be made, and readable
in a browser at the width of a desk and of a hand.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from backsight.cli import run

pytest.importorskip("typer", reason="the command line needs typer")
pytest.importorskip("matplotlib", reason="the command line draws with matplotlib")
Image = pytest.importorskip("PIL.Image", reason="the command line reads photos with Pillow")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")

NETWORK = """
import torch
from torch import nn

def make():
    torch.manual_seed(7)
    layers = [nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3)]
    return nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))

class Mixes(nn.Module):
    # computes what no window holds, and no fully convolutional head
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 6, 5, stride=3), nn.Linear(6, 3)

    def forward(self, x):
        x = torch.relu(self.first(x)).flatten(2)
        return self.last((x * x.softmax(2)).sort(2).values.sum(2))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photo, a network of one's own, and the report on them in out/."""
    found = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(8)
    smooth = np.kron(rng.integers(0, 256, (6, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    Image.fromarray(smooth).save(found / "a photo & more.png")
    (found / "own_views.py").write_text(NETWORK)
    (found / "names.txt").write_text("ant\nbee <b>\ncricket\ndragonfly\n")
    patch = pytest.MonkeyPatch()
    with patch.context() as here:
        here.chdir(found)
        here.syspath_prepend(found)
        arguments = ["report", "a photo & more.png", "--model", "own_views:make", "-q"]
        own = ["--classes", "names.txt", "--short-side", "48", "--crop", "40", "--target", "bee"]
        assert run([*arguments, *own, "-o", "out"]) == 0
        sys.modules.pop("own_views", None)
    return found


class Reader(HTMLParser):
    """Keeps every tag with its attributes, and which are open."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def page_of(folder: Path) -> str:
    return (folder / "out/a photo & more.report.html").read_text(encoding="utf-8")


def test_is_whole_and_needs_nothing_else(folder: Path) -> None:
    text = page_of(folder)
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    assert "://" not in text.replace("data:image/webp;base64,", "")
    names = {tag for tag, _ in reader.tags}
    assert not names & {"script", "link", "iframe", "object"}
    assert {"header", "nav", "main", "section", "figure", "figcaption", "footer"} <= names
    images = [attributes for tag, attributes in reader.tags if tag == "img"]
    assert len(images) == 17
    assert all(a["src"].startswith("data:image/webp;base64,") and a["alt"] for a in images)
    ids = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in reader.tags:
        if tag == "a" and attributes["href"].startswith("#"):
            assert attributes["href"][1:] in ids
        assert attributes.get("aria-labelledby", ids[0]) in ids
    assert "bee &lt;b&gt;" in text
    assert "<b>bee" not in text
    assert text.count("How to read it.") == text.count("What it cannot show.") == 16


def test_raw_data_lie_where_the_links_lead(folder: Path) -> None:
    from urllib.parse import unquote

    links = [unquote(link) for link in re.findall(r'href="([^"#]+\.npz)"', page_of(folder))]
    there = sorted(path.name for path in (folder / "out").iterdir())
    own = ["a photo & more.report.html", "a photo & more.report.json"]
    assert sorted([*links, *own]) == there
    for link in links:
        with np.load(folder / "out" / link, allow_pickle=False) as arrays:
            assert all(arrays[name].size for name in arrays.files)
    report = json.loads((folder / "out/a photo & more.report.json").read_text())
    assert report["target"] == {"index": 1, "name": "bee <b>"}
    assert sum(entry["probability"] for entry in report["classes"]) == pytest.approx(1)
    assert not any("refused" in view for view in report["views"].values())
    with np.load(folder / "out/a photo & more.report.saliency.npz") as arrays:
        assert arrays["maps"].max() > 0


def test_says_what_cannot_be_made(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    own = ["--model", "own_views:Mixes", "--short-side", "48", "--crop", "40", "-q"]
    assert run(["report", "a photo & more.png", *own, "-o", "mixed", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    refused = {name for name, view in report["views"].items() if "refused" in view}
    assert "fully-convolutional" in refused
    assert {"occlusion", "saliency", "rotation", "filters"} & refused == set()
    text = (folder / "mixed/a photo & more.report.html").read_text(encoding="utf-8")
    assert text.count("This view cannot be made here: expected") == len(refused)
    assert not list((folder / "mixed").glob("*.fully-convolutional.npz"))
    assert not list((folder / "mixed").glob(".*"))


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
@pytest.mark.parametrize("width", [1280, 390])
def test_is_shown_without_scrolling_sideways(folder: Path, tmp_path: Path, width: int) -> None:
    measure = (
        "<script>addEventListener('load', () => { const root = document.documentElement;"
        " const images = [...document.images].every(i => i.naturalWidth > 0);"
        " const fits = root.scrollWidth <= root.clientWidth;"
        " root.dataset.found = [innerWidth, fits, images].join(' '); })</script>"
    )
    # headless windows have a least width, frames do not
    frame = f'<iframe style="width: {width}px; height: 2000px; border: 0" src="page.html"></iframe>'
    relay = (
        "<script>addEventListener('load', () => { document.body.dataset.found ="
        " document.querySelector('iframe').contentDocument.documentElement.dataset.found; })"
        "</script>"
    )
    (tmp_path / "page.html").write_text(page_of(folder).replace("</body>", measure + "</body>"))
    (tmp_path / "frame.html").write_text(f"<!doctype html><body>{frame}{relay}</body>")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    options += [f"--user-data-dir={tmp_path}/profile", "--window-size=1400,2000"]
    options += ["--virtual-time-budget=5000", "--dump-dom"]
    dom = subprocess.run(
        [str(CHROMIUM), *options, (tmp_path / "frame.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    found = re.search(r'data-found="([^"]+)"', dom)
    assert found is not None
    assert found[1] == f"{width} true true"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["report", "nothing.png"], "there is no such file"),
        (["report", "a photo & more.png", "--target", "wasp"], "near names"),
        (["report", "a photo & more.png", "-o", "own_views.py/x"], "is a file"),
    ],
)
def test_bad_input_costs_one_sentence_and_leaves_nothing(
    folder: Path,
    arguments: list[str],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    before = sorted(folder.rglob("*"))
    own = ["--model", "own_views:make", "--classes", "names.txt", "--full", "-q"]
    out = [] if "-o" in arguments else ["-o", "none"]
    assert run([*arguments, *own, *out]) == 2
    said = capsys.readouterr().err
    assert said.startswith("backsight: ")
    assert said.count("\n") == 1
    assert sentence in said or (sentence == "near names" and "no name is near" in said)
    assert [p for p in sorted(folder.rglob("*")) if "__pycache__" not in p.parts] == [
        p for p in before if "__pycache__" not in p.parts
    ]
