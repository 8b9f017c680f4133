"""The application, its help page by sections, and commands that show one photo after the other."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer
from typer.core import TyperGroup

from backsight.cli import options

if TYPE_CHECKING:
    from backsight.cli.reader import Source

__all__ = ["SECTIONS", "app", "on_photos", "source_of"]

#: The sections of the help page, in their order.
DECISIONS = "What a decision hangs on"
UNITS = "What a unit sees"
PICTURES = "Pictures made for a network"
NETWORK = "A network and its data"
PACKAGE = "The package"
SECTIONS = (DECISIONS, UNITS, PICTURES, NETWORK, PACKAGE)

F = TypeVar("F", bound=Callable[..., Any])


class _Contents(TyperGroup):
    """Commands under the headings that they name as their panel."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.commands)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        rows: dict[str, list[tuple[str, str]]] = {section: [] for section in SECTIONS}
        for name, command in self.commands.items():
            section = getattr(command, "rich_help_panel", None)
            rows.setdefault(str(section), []).append((name, command.get_short_help_str(90)))
        for section, commands in rows.items():
            if commands:
                with formatter.section(section):
                    formatter.write_dl(commands)


app = typer.Typer(
    add_completion=False,
    cls=_Contents,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

#: Options that say which network, and how it gets its photos: what `Source` takes.
_NETWORK = {
    "model": (options.Model, "squeezenet"),
    "weights": (options.Weights, None),
    "classes": (options.Classes, None),
    "size": (options.Size, None),
    "full": (options.Full, False),
    "short_side": (options.ShortSide, None),
    "crop": (options.Crop, None),
    "mean": (options.Mean, None),
    "std": (options.Std, None),
    "dtype": (options.Dtype, "float32"),
    "device": (options.Device, "cpu"),
}
_RESULTS = {
    "out": (options.Out, "."),
    "as_json": (options.Json, False),
    "quiet": (options.Quiet, False),
}


def source_of(given: dict[str, Any]) -> Source:
    """Take the options that say which network out of those that were given."""
    from backsight.cli.reader import Source

    return Source(**{name: given.pop(name) for name in _NETWORK if name in given})


def with_network(function: Callable[..., Any], own: Sequence[inspect.Parameter]) -> None:
    """Give a function of keywords the options `own`, and those of a network and of results."""
    shared = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
        )
        for name, (annotation, default) in (_NETWORK | _RESULTS).items()
        if name not in {p.name for p in own}
    ]
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + shared
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {p.name: p.annotation for p in parameters}


def on_photos(section: str) -> Callable[[F], F]:
    """Make a command of a function `(reader, photo, show_progress, own options) -> Result`.

    It writes the result of each photo as NAME.COMMAND.png, .npz and .json: all of them, or none.
    The function's docstring is the command's help; its module must not postpone the evaluation of
    annotations, which are the options.
    """

    def decorate(make: F) -> F:
        name = make.__name__.replace("_", "-")
        _, _, _, *own = inspect.signature(make).parameters.values()
        photos = inspect.Parameter(
            "photos", inspect.Parameter.KEYWORD_ONLY, annotation=options.Photos
        )

        def command(**given: Any) -> None:
            from backsight.cli.view import show

            source = source_of(given)
            out, as_json, quiet = (given.pop(key) for key in _RESULTS)
            paths = [Path(photo) for photo in given.pop("photos")]
            code = show(
                name,
                paths,
                source,
                lambda reader, photo: make(reader, photo, not quiet, **given),
                output=Path(out),
                as_json=as_json,
            )
            raise typer.Exit(code)

        with_network(command, [photos, *own])
        text = " ".join((make.__doc__ or "").split())
        files = f"Writes NAME.{name}.png, .npz and .json of each photo into DIR."
        app.command(name, help=f"{text} {files}", rich_help_panel=section)(command)
        return make

    return decorate
