"""Commands for images that do not fit in memory.

The annotations are the options: they are evaluated at once.
"""

from pathlib import Path
from typing import Annotated

import typer

from backsight.cli import options
from backsight.cli.contents import DECISIONS, Shared, app, command

#: What is for photos that are scaled and cropped; a large image is taken as it is.
_WITHOUT = ("size", "full", "short_side", "crop")


@command(DECISIONS, without=_WITHOUT)
def large_occlusion(
    shared: Shared,
    image: Annotated[
        str,
        typer.Argument(
            metavar="IMAGE",
            help="A TIFF (BigTIFF, OME-TIFF, pyramids), zarr, .npy, or photo; its pixels are taken "
            "as they are, neither scaled nor cropped.",
        ),
    ],
    window: Annotated[
        str, typer.Option(metavar="N|HxW", help="Size of the box in pixels, height x width.")
    ] = "32",
    stride: Annotated[
        str | None,
        typer.Option(metavar="N|HxW", help="Step between boxes in pixels. [the window's size]"),
    ] = None,
    edge: Annotated[
        str, typer.Option(metavar="clip|inside|drop|overhang", help="As for occlusion.")
    ] = "clip",
    roi: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Only boxes with their centres in regions of interest: boxes from a .json, .csv "
            "or .npy (top, left, bottom, right in pixels), or a picture of any size, white inside.",
        ),
    ] = None,
    level: Annotated[int, typer.Option(metavar="N", help="Of an image pyramid, 0 the finest.")] = 0,
    target: options.Target = None,
    top: Annotated[
        int | None, typer.Option(metavar="N", help="Keep only the N strongest outputs.")
    ] = None,
    probability: Annotated[
        str | None,
        typer.Option(
            metavar="softmax|sigmoid", help="Measure probabilities instead of the scores."
        ),
    ] = None,
    memory: Annotated[
        str,
        typer.Option(
            metavar="BYTES", help="What regions and windows are planned for, such as 4GiB."
        ),
    ] = "2GiB",
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Compute the I-th of N shares, from 0, beside other processes on one store. "
            "[torchrun's rank and world size, where it runs]",
        ),
    ] = None,
) -> int:
    """Occlusion of an image of any size in bounded memory, into a zarr store at DIR. A run that was
    killed is finished by the same command. With --json every line on stdout is an object with an
    "event": "pass" (over the image) and "unit" (stored by the process "rank"; "positions_done" of
    the whole store) as they come, four a second at most, and as the last line "end", the report.
    """
    from backsight.cli.large import Wanted, occlude_large

    wanted = Wanted(window, stride, edge, roi, level, target, top, probability, memory, shard)
    return occlude_large(Path(image), shared, wanted)


@app.command(rich_help_panel=DECISIONS)
def status(
    store: Annotated[str, typer.Argument(metavar="STORE", help="A store of large-occlusion.")],
    as_json: options.Json = False,
) -> None:
    """How far a store of large-occlusion is."""
    from backsight.cli.large import show_status

    raise typer.Exit(show_status(Path(store), as_json=as_json))
