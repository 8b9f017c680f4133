"""The commands and their options; the work is done in modules that are imported when it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from backsight._version import __version__

        typer.echo(f"backsight {__version__}")
        raise typer.Exit


@app.callback()
def backsight(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Which pixels a convolutional network's decision hangs on."""


@app.command()
def config() -> None:
    """Print the instruction set, CUDA, threads and versions in use."""
    from backsight.config import show_config

    typer.echo(show_config())


@app.command()
def occlusion(
    photo: Annotated[str, typer.Argument(metavar="PHOTO", help="The picture to look at.")],
    model: Annotated[
        str,
        typer.Option(
            help="squeezenet, or MODULE:FACTORY, found in the working folder too: an nn.Module "
            "or something that returns one."
        ),
    ] = "squeezenet",
    weights: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="State dict for MODULE:FACTORY (weights_only=True)."),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Class names, one a line; or imagenet for its 1,000 classes."
        ),
    ] = None,
    window: Annotated[
        str, typer.Option(metavar="N|HxW", help="Size of the box in pixels, height x width.")
    ] = "32",
    stride: Annotated[
        str, typer.Option(metavar="N|HxW", help="Step between boxes in pixels, down x right.")
    ] = "8",
    target: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|INDEX",
            help="The class: index, name or unambiguous part of a name. The most probable one "
            "unless told.",
        ),
    ] = None,
    baseline: Annotated[
        str,
        typer.Option(
            metavar="COLOR",
            help="What covers: mean (the mean pixel of the training data), black, gray, white, "
            "one value 0..255, or R,G,B.",
        ),
    ] = "mean",
    edge: Annotated[
        str,
        typer.Option(
            metavar="clip|inside|drop|overhang",
            help="At the edge the last box is cut off, moved inside, left out; or boxes are "
            "centred on the grid and overhang.",
        ),
    ] = "clip",
    size: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Scale the shorter side to N pixels and keep the whole photo."
        ),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Keep the whole photo at its own size.")
    ] = False,
    short_side: Annotated[
        int | None,
        typer.Option(metavar="N", help="For MODULE:FACTORY: scale the shorter side to N. [256]"),
    ] = None,
    crop: Annotated[
        int | None,
        typer.Option(metavar="N", help="For MODULE:FACTORY: square from the middle. [224]"),
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option(metavar="R,G,B", help="For MODULE:FACTORY, of pixels 0..1. [ImageNet's]"),
    ] = None,
    std: Annotated[
        str | None,
        typer.Option(metavar="R,G,B", help="For MODULE:FACTORY, of pixels 0..1. [ImageNet's]"),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(metavar="BYTES", help="Memory for the windows, such as 500MB or 2GiB."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="DIR", help="Where the results go.")
    ] = ".",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Cover a photo piece by piece and measure what each box costs a class.

    Writes an overlay (.png), the raw result (.npz) and what was found (.json) into DIR, as
    PHOTO.occlusion.*: all of them, or none.
    """
    from backsight.cli.occlusion import Preprocess, occlude_photo

    occlude_photo(
        photo=Path(photo),
        model=model,
        weights=weights,
        classes=classes,
        window=window,
        stride=stride,
        target=target,
        baseline=baseline,
        edge=edge,
        size=size,
        full=full,
        preprocess=Preprocess(short_side, crop, mean, std),
        memory=memory,
        device=device,
        output=Path(output),
        quiet=quiet,
    )
