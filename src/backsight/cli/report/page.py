"""The page: semantic HTML with its pictures inside, and nothing that has to be fetched."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from backsight._version import __version__

__all__ = ["Drawn", "Head", "page"]

_WIDE = 2.0  # times as wide as high: such a figure gets a row of its own
_LINES = 4  # of a summary that stand open
_QUALITY = 88  # of pictures in the page


@dataclass(frozen=True)
class Drawn:
    """A view as the page shows it.

    Attributes:
        name: of the view, in its file's name too.
        section: under which heading it stands.
        title: its own.
        reads: how to read it.
        cannot: what it cannot show.
        summary: what it found in this photo.
        png: the figure; None where the view could not be made, which the summary then explains.
        file: the name of the file with the numbers; "" where there is none.
    """

    name: str
    section: str
    title: str
    reads: str
    cannot: str
    summary: str
    png: bytes | None
    file: str


@dataclass(frozen=True)
class Head:
    """What the page says before the views.

    Attributes:
        title: of the page.
        about: network, size and target, in a line.
        photo: ``(H, W, 3)`` uint8 RGB, as the network sees it.
        classes: the most probable ones with their probabilities.
    """

    title: str
    about: str
    photo: npt.NDArray[np.uint8]
    classes: Sequence[tuple[str, float]]


def page(head: Head, views: Sequence[Drawn]) -> str:
    """The whole page.

    Raises:
        ImportError: Pillow is not installed.
    """
    template = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    source, width, height = _inside(_image(head.photo))
    sections = list(dict.fromkeys(view.section for view in views))
    return template.substitute(
        title=escape(head.title),
        heading=escape(head.title),
        about=escape(head.about),
        photo=source,
        width=width,
        height=height,
        alt=escape(f"The photo as the network sees it, {height} by {width} pixels"),
        classes="\n".join(_row(name, share) for name, share in head.classes),
        contents="\n".join(
            f'<li><a href="#{view.name}">{escape(view.title)}</a></li>' for view in views
        ),
        sections="\n".join(
            _section(section, [view for view in views if view.section == section])
            for section in sections
        ),
        version=escape(__version__),
    )


def _row(name: str, share: float) -> str:
    return (
        f'<tr><th scope="row">{escape(name)}</th>'
        f'<td class="bar" aria-hidden="true"><span style="width: {100 * share:.1f}%"></span></td>'
        f"<td>{100 * share:.1f} %</td></tr>"
    )


def _section(title: str, views: Sequence[Drawn]) -> str:
    name = title.lower().replace(" ", "-")
    return "\n".join(
        [
            f'<section aria-labelledby="{name}">',
            f'<h2 id="{name}">{escape(title)}</h2>',
            '<div class="views">',
            *map(_figure, views),
            "</div>",
            "</section>",
        ]
    )


def _figure(view: Drawn) -> str:
    kind, picture = "", ""
    if view.png is not None:
        source, width, height = _inside(_image(view.png))
        kind = ' class="wide"' if width > _WIDE * height else ""
        alt = escape(f"{view.title}: {_first(view.summary)}")
        picture = f'<img src="{source}" width="{width}" height="{height}" alt="{alt}">'
    lines = [
        f'<figure id="{view.name}"{kind}>',
        picture,
        "<figcaption>",
        f"<h3>{escape(view.title)}</h3>",
        _told(view.summary),
        f"<p><b>How to read it.</b> {escape(view.reads)}</p>",
        f"<p><b>What it cannot show.</b> {escape(view.cannot)}</p>",
    ]
    if view.file:
        link = f'<a href="{quote(view.file)}">{escape(view.file)}</a>'
        lines.append(f'<p class="soft">Raw data: {link}</p>')
    return "\n".join([*lines, "</figcaption>", "</figure>"])


def _first(summary: str) -> str:
    return summary.splitlines()[0] if summary else ""


def _told(summary: str) -> str:
    """What was found: a few lines as they are, a table to be unfolded."""
    lines = summary.splitlines()
    if len(lines) <= _LINES:
        return "\n".join(f"<p>{escape(line)}</p>" for line in lines)
    table = escape("\n".join(lines[1:]).strip("\n"))
    return f"<details><summary>The whole table</summary><pre>{table}</pre></details>"


def _image(found: bytes | npt.NDArray[np.uint8]) -> Any:
    """A Pillow picture of a PNG file's bytes, or of pixels."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError('pages need Pillow: pip install "backsight[cli]"', name="PIL") from error
    if isinstance(found, bytes):
        return Image.open(io.BytesIO(found)).convert("RGB")
    return Image.fromarray(found)


def _inside(picture: Any) -> tuple[str, int, int]:
    """A picture as a data: URI, with its width and height."""
    buffer = io.BytesIO()
    picture.save(buffer, format="WEBP", quality=_QUALITY)
    text = base64.b64encode(buffer.getvalue()).decode("ascii")
    width, height = picture.size
    return f"data:image/webp;base64,{text}", width, height
