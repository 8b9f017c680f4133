"""The application, its help page by sections, and commands that show one photo after the other."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer
from typer.core import TyperGroup

from backsight.cli import options

if TYPE_CHECKING:
    from backsight.cli.reader import Source

__all__ = ["SECTIONS", "Shared", "app", "command", "on_photos"]

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


@dataclass(frozen=True)
class Shared:
    """The options that most commands share, as they were given."""

    source: Source
    output: Path
    as_json: bool
    quiet: bool

    @classmethod
    def of(cls, given: dict[str, Any]) -> Shared:
        """Take them out of those that were given."""
        from backsight.cli.reader import Source

        source = Source(**{name: given.pop(name) for name in _NETWORK if name in given})
        out, as_json, quiet = (given.pop(key) for key in _RESULTS)
        return cls(source, Path(out), as_json, quiet)


def with_network(
    function: Callable[..., Any], own: Sequence[inspect.Parameter], without: Sequence[str] = ()
) -> None:
    """Give a function of keywords the options `own`, and those of a network and of results but for
    some.
    """
    shared = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
        )
        for name, (annotation, default) in (_NETWORK | _RESULTS).items()
        if name not in {p.name for p in own} and name not in without
    ]
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + shared
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {p.name: p.annotation for p in parameters}


def command(section: str, *names: str, without: Sequence[str] = ()) -> Callable[[F], F]:
    """Make a command, or several of some names, of a function `(shared, own options) -> exit code`.

    The function's docstring is the command's help; its module must not postpone the evaluation of
    annotations, which are the options. Own options go before those that are shared, in place of
    ones of their names; `without`: shared ones that the command does not have.
    """

    def decorate(make: F) -> F:
        _, *own = inspect.signature(make).parameters.values()

        def run(**given: Any) -> None:
            shared = Shared.of(given)
            raise typer.Exit(make(shared, **given))

        with_network(run, own, without)
        text = " ".join((make.__doc__ or "").split())
        for name in names or (make.__name__.replace("_", "-"),):
            app.command(name, help=text, rich_help_panel=section)(run)
        return make

    return decorate


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

        def run(**given: Any) -> None:
            from backsight.cli.view import show

            shared = Shared.of(given)
            paths = [Path(photo) for photo in given.pop("photos")]
            code = show(
                name,
                paths,
                shared.source,
                lambda reader, photo: make(reader, photo, not shared.quiet, **given),
                output=shared.output,
                as_json=shared.as_json,
            )
            raise typer.Exit(code)

        with_network(run, [photos, *own])
        text = " ".join((make.__doc__ or "").split())
        files = f"Writes NAME.{name}.png, .npz and .json of each photo into DIR."
        app.command(name, help=f"{text} {files}", rich_help_panel=section)(run)
        return make

    return decorate
