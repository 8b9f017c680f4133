"""Occlusion: photos covered piece by piece.

The annotations are the options: they are evaluated at once.
"""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backsight.cli import options
from backsight.cli.contents import DECISIONS, Shared, command

if TYPE_CHECKING:
    from backsight.cli.task import Options


@command(DECISIONS)
def occlusion(
    shared: Shared,
    photos: options.Photos,
    window: Annotated[
        str | None,
        typer.Option(metavar="N|HxW", help="Size of the box in pixels, height x width. [32]"),
    ] = None,
    stride: Annotated[
        str | None,
        typer.Option(metavar="N|HxW", help="Step between boxes in pixels, down x right. [8]"),
    ] = None,
    edge: Annotated[
        str | None,
        typer.Option(
            metavar="clip|inside|drop|overhang",
            help="At the edge the last box is cut off, moved inside, left out; or boxes are "
            "centred on the grid and overhang. [clip]",
        ),
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Cover bands of N rows over the whole width, for certifying against patches. "
            "The stride is N where that is less.",
        ),
    ] = None,
    columns: Annotated[
        int | None,
        typer.Option(metavar="N", help="Cover bands of N columns; with --rows, after those."),
    ] = None,
    boxes: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Boxes from a .json, .csv or .npy: top, left, bottom, right in pixels of the "
            "prepared image, half-open.",
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|INDEX",
            help="The class (with --layer, the channel): index, name or unambiguous part of a "
            "name. The strongest one unless told.",
        ),
    ] = None,
    top: Annotated[
        int | None,
        typer.Option(metavar="N", help="Keep only the N strongest outputs. [all, and 5 reported]"),
    ] = None,
    probability: Annotated[
        str | None,
        typer.Option(
            metavar="softmax|sigmoid", help="Measure probabilities instead of the scores."
        ),
    ] = None,
    layer: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Measure the total activation of this layer's channels instead of the scores; "
            "with --readings, the layer of the feature map.",
        ),
    ] = None,
    model_output: Annotated[
        str | None,
        typer.Option(metavar="NAME|INDEX", help="Which output of a network that has several."),
    ] = None,
    region: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|all|predicted",
            help="For dense outputs: the mean over this region. FILE: a picture, white is inside; "
            "predicted: the pixels where a class wins.",
        ),
    ] = None,
    baseline: Annotated[
        str,
        typer.Option(
            metavar="COLOR|NAME",
            help="What covers: training (the mean pixel of the training data), mean (the photo's "
            "mean colour), blur, noise, inpaint (filled in from around), black, gray, white, one "
            "value, or R,G,B.",
        ),
    ] = "training",
    baseline_units: Annotated[
        str,
        typer.Option(
            metavar="pixel|normalised",
            help="Of a value or R,G,B: pixels in 0..255, or what the network sees.",
        ),
    ] = "pixel",
    memory: Annotated[
        str | None,
        typer.Option(metavar="BYTES", help="Memory for the windows, such as 500MB or 2GiB."),
    ] = None,
    readings: Annotated[
        bool,
        typer.Option(
            "--readings",
            help="Write NAME.readings.* too: for each position the class's probability, the total "
            "activation of the strongest feature map, and the most probable class; and that map "
            "projected back to the pixels.",
        ),
    ] = False,
) -> int:
    """Cover photos piece by piece and measure what each box costs a class. Writes an overlay
    (.png), the raw result (.npz) and what was found (.json) of each photo into DIR, as
    NAME.occlusion.*: all of them, or none.
    """
    given = options_of(**locals())
    from backsight.cli.occlusion import occlude_photos

    return occlude_photos(
        [Path(photo) for photo in photos],
        given,
        output=shared.output,
        quiet=shared.quiet,
        as_json=shared.as_json,
    )


def options_of(shared: Shared, photos: list[str], **own: Any) -> "Options":
    """The options of a sweep: those of the network, and its own."""
    from backsight.cli.task import Options

    return Options(**asdict(shared.source), **own)
