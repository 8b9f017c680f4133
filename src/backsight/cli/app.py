"""The commands and their options; the work is done in modules that are imported when it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from backsight.cli.commands import pictures, views
from backsight.cli.contents import DECISIONS, NETWORK, PACKAGE, UNITS, app
from backsight.cli.options import (
    Classes,
    Crop,
    Device,
    Dtype,
    Full,
    Json,
    Layer,
    Mean,
    Model,
    Out,
    Photos,
    Quiet,
    Rule,
    ShortSide,
    Size,
    Std,
    Weights,
)

__all__ = ["app", "pictures", "views"]


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


@app.command(rich_help_panel=PACKAGE)
def config() -> None:
    """Print the instruction set, CUDA, threads and versions in use."""
    from backsight.config import show_config

    typer.echo(show_config())


@app.command(
    "occlusion",
    rich_help_panel=DECISIONS,
    help="Cover photos piece by piece and measure what each box costs a class. "
    "Writes an overlay (.png), the raw result (.npz) and what was found (.json) of each photo "
    "into DIR, as NAME.occlusion.*: all of them, or none.",
)
@app.command(
    "plan",
    rich_help_panel=DECISIONS,
    help="Print what occlusion with the same options would compute.",
)
def occlusion(
    context: typer.Context,
    photos: Photos,
    model: Model = "squeezenet",
    weights: Weights = None,
    classes: Classes = None,
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
    size: Size = None,
    full: Full = False,
    short_side: ShortSide = None,
    crop: Crop = None,
    mean: Mean = None,
    std: Std = None,
    dtype: Dtype = "float32",
    memory: Annotated[
        str | None,
        typer.Option(metavar="BYTES", help="Memory for the windows, such as 500MB or 2GiB."),
    ] = None,
    device: Device = "cpu",
    readings: Annotated[
        bool,
        typer.Option(
            "--readings",
            help="Write NAME.readings.* too: for each position the class's probability, the total "
            "activation of the strongest feature map, and the most probable class; and that map "
            "projected back to the pixels.",
        ),
    ] = False,
    out: Out = ".",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    from backsight.cli.occlusion import occlude_photos, plan_photos
    from backsight.cli.task import Options

    options = Options(
        model=model,
        weights=weights,
        classes=classes,
        window=window,
        stride=stride,
        edge=edge,
        rows=rows,
        columns=columns,
        boxes=boxes,
        target=target,
        top=top,
        probability=probability,
        layer=layer,
        model_output=model_output,
        region=region,
        baseline=baseline,
        baseline_units=baseline_units,
        size=size,
        full=full,
        short_side=short_side,
        crop=crop,
        mean=mean,
        std=std,
        dtype=dtype,
        memory=memory,
        device=device,
        readings=readings,
    )
    paths = [Path(photo) for photo in photos]
    if context.info_name == "plan":
        code = plan_photos(paths, options, as_json=as_json)
    else:
        code = occlude_photos(paths, options, output=Path(out), quiet=quiet, as_json=as_json)
    raise typer.Exit(code)


@app.command(rich_help_panel=NETWORK)
def layers(
    model: Model = "squeezenet",
    weights: Weights = None,
    size: Annotated[
        int | None,
        typer.Option(metavar="N", help="For images of N x N pixels. [the network's usual size]"),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the network's layers that put out maps: what --layer can name, and what a unit sees."""
    from backsight.cli.layers import show_layers
    from backsight.cli.reader import Source

    source = Source(model=model, weights=weights, size=size)
    raise typer.Exit(show_layers(source, as_json=as_json))


@app.command(
    rich_help_panel=UNITS,
    help="Send units of a layer back to the pixels that they see, photo by photo. "
    "Writes a picture (.png), the raw projections (.npz) and what was found (.json) of each photo "
    "into DIR, as NAME.deconv.*: all of them, or none.",
)
def deconv(
    photos: Photos,
    layer: Layer,
    channel: Annotated[
        list[int],
        typer.Option(metavar="N", help="A channel of the layer; may be given several times."),
    ],
    position: Annotated[
        str | None,
        typer.Option(
            metavar="ROW,COLUMN",
            help="Of the unit in the layer's map. [where the channel is strongest]",
        ),
    ] = None,
    rule: Rule = "deconvnet",
    model: Model = "squeezenet",
    weights: Weights = None,
    size: Size = None,
    full: Full = False,
    short_side: ShortSide = None,
    crop: Crop = None,
    mean: Mean = None,
    std: Std = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    out: Out = ".",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    from backsight.cli.deconv import Wanted, project_photos
    from backsight.cli.reader import Source

    source = Source(
        model=model,
        weights=weights,
        size=size,
        full=full,
        short_side=short_side,
        crop=crop,
        mean=mean,
        std=std,
        dtype=dtype,
        device=device,
    )
    code = project_photos(
        [Path(photo) for photo in photos],
        source,
        Wanted(layer, channel, position, rule),
        output=Path(out),
        quiet=quiet,
        as_json=as_json,
    )
    raise typer.Exit(code)


@app.command(
    rich_help_panel=UNITS,
    help="Find the pictures that excite each channel of a layer most, and send those units back "
    "to the pixels. Writes a sheet (units.png: what excites a channel, and below it what of it), "
    "the raw projections (units.npz) and what was found (units.json) into DIR: all of them, or "
    "none.",
)
def units(
    photos: Photos,
    layer: Layer,
    top: Annotated[int, typer.Option(metavar="N", help="Pictures a channel.")] = 9,
    channels: Annotated[
        str | None,
        typer.Option(
            metavar="N|LIST",
            help="The N channels with the strongest activations; or those of a list such as 0,5,7 "
            "(a single one: 5,). [8]",
        ),
    ] = None,
    rule: Rule = "deconvnet",
    checkpoint: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Where to keep what was found so far. If it is there, the search goes on from it.",
        ),
    ] = None,
    model: Model = "squeezenet",
    weights: Weights = None,
    size: Size = None,
    full: Full = False,
    short_side: ShortSide = None,
    crop: Crop = None,
    mean: Mean = None,
    std: Std = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    out: Out = ".",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    from backsight.cli.reader import Source
    from backsight.cli.units import Wanted, draw_units

    source = Source(
        model=model,
        weights=weights,
        size=size,
        full=full,
        short_side=short_side,
        crop=crop,
        mean=mean,
        std=std,
        dtype=dtype,
        device=device,
    )
    code = draw_units(
        [Path(photo) for photo in photos],
        source,
        Wanted(layer, top, channels, rule, None if checkpoint is None else Path(checkpoint)),
        output=Path(out),
        quiet=quiet,
        as_json=as_json,
    )
    raise typer.Exit(code)
