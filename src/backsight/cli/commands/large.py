"""Commands for images that do not fit in memory.

The annotations are the options: they are evaluated at once.
"""

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backsight.cli import options
from backsight.cli.contents import DECISIONS, Shared, app, command

if TYPE_CHECKING:
    from backsight.cli.large import Wanted

#: What is for photos that are scaled and cropped; a large image is taken as it is.
_WITHOUT = ("size", "full", "short_side", "crop")


@command(DECISIONS, without=_WITHOUT)
def large_occlusion(
    shared: Shared,
    image: Annotated[
        str,
        typer.Argument(
            metavar="IMAGE",
            help="A TIFF (BigTIFF, OME-TIFF, pyramids, stacks), zarr, .npy, or photo. Pixels (RGB "
            "of 8 bits) are normalised for the network, neither scaled nor cropped; images and "
            "volumes of floating point, of any channels, go to it as they are.",
        ),
    ],
    window: Annotated[
        str,
        typer.Option(
            metavar="N|HxW|DxHxW", help="Size of the box in pixels: of volumes, depth comes first."
        ),
    ] = "32",
    stride: Annotated[
        str | None,
        typer.Option(
            metavar="N|HxW|DxHxW", help="Step between boxes in pixels. [the window's size]"
        ),
    ] = None,
    edge: Annotated[
        str, typer.Option(metavar="clip|inside|drop|overhang", help="As for occlusion.")
    ] = "clip",
    roi: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Only boxes with their centres in regions of interest: boxes from a .json, .csv "
            "or .npy (top, left, bottom, right in pixels; of volumes front, top, left, back, "
            "bottom, right), or a mask of any size: a picture, white inside, or a .npy of bool.",
        ),
    ] = None,
    level: Annotated[int, typer.Option(metavar="N", help="Of an image pyramid, 0 the finest.")] = 0,
    axes: Annotated[
        str | None,
        typer.Option(
            metavar="LETTERS",
            help="What the axes of a file are that does not say it, such as HWC or DHW. [channels, "
            "then depth, height and width]",
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="COLOR|A,B,...",
            help="What covers. Of pixels: training (the mean pixel of the training data), black, "
            "gray, white, a value in 0..255, or R,G,B. Of floating point: a number, or one per "
            "channel. [training, or 0]",
        ),
    ] = None,
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
            metavar="BYTES", help="What the sweep may take beside the model, such as 4GiB."
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
    "event": "plan", "pass" (over the image) and "unit" (stored by the process "rank";
    "positions_done" of the whole store) as they come, four a second at most, and as the last line
    "end", the report.
    """
    given = wanted(**locals())
    from backsight.cli.large import occlude_large

    return occlude_large(Path(image), shared, given)


def wanted(shared: Shared, image: str, **own: Any) -> "Wanted":
    """The command's own options."""
    from backsight.cli.large import Wanted

    return Wanted(**own)


def large_plan(shared: Shared, image: str, **own: Any) -> int:
    """Print what large-occlusion with the same options would compute, and how long it takes."""
    from backsight.cli.large import plan_large

    return plan_large(Path(image), shared, wanted(shared, image, **own))


large_plan.__signature__ = inspect.signature(large_occlusion)  # type: ignore[attr-defined]
command(DECISIONS, without=_WITHOUT)(large_plan)


@app.command(rich_help_panel=DECISIONS)
def status(
    store: Annotated[str, typer.Argument(metavar="STORE", help="A store of large-occlusion.")],
    as_json: options.Json = False,
) -> None:
    """How far a store of large-occlusion is, how fast it fills and what time is left. The store
    holds no clock: the speed is of the units since the last pause, by the times of their files, an
    approximation that is lost where those are copied without; one unit alone has none.
    """
    from backsight.cli.large import show_status

    raise typer.Exit(show_status(Path(store), as_json=as_json))
