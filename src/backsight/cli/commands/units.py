"""Commands that show what single units see.

The annotations are the options: they are evaluated at once.
"""

from pathlib import Path
from typing import Annotated

import typer

from backsight.cli import options
from backsight.cli.contents import UNITS, Shared, command


@command(UNITS, without=["classes"])
def deconv(
    shared: Shared,
    photos: options.Photos,
    layer: options.Layer,
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
    rule: options.Rule = "deconvnet",
) -> int:
    """Send units of a layer back to the pixels that they see, photo by photo. Writes a picture
    (.png), the raw projections (.npz) and what was found (.json) of each photo into DIR, as
    NAME.deconv.*: all of them, or none.
    """
    from backsight.cli.deconv import Wanted, project_photos

    return project_photos(
        [Path(photo) for photo in photos],
        shared.source,
        Wanted(layer, channel, position, rule),
        output=shared.output,
        quiet=shared.quiet,
        as_json=shared.as_json,
    )


@command(UNITS, without=["classes"])
def units(
    shared: Shared,
    photos: options.Photos,
    layer: options.Layer,
    top: Annotated[int, typer.Option(metavar="N", help="Pictures a channel.")] = 9,
    channels: Annotated[
        str | None,
        typer.Option(
            metavar="N|LIST",
            help="The N channels with the strongest activations; or those of a list such as 0,5,7 "
            "(a single one: 5,). [8]",
        ),
    ] = None,
    rule: options.Rule = "deconvnet",
    checkpoint: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Where to keep what was found so far. If it is there, the search goes on from it.",
        ),
    ] = None,
) -> int:
    """Find the pictures that excite each channel of a layer most, and send those units back to the
    pixels. Writes a sheet (units.png: what excites a channel, and below it what of it), the raw
    projections (units.npz) and what was found (units.json) into DIR: all of them, or none.
    """
    from backsight.cli.units import Wanted, draw_units

    return draw_units(
        [Path(photo) for photo in photos],
        shared.source,
        Wanted(layer, top, channels, rule, None if checkpoint is None else Path(checkpoint)),
        output=shared.output,
        quiet=shared.quiet,
        as_json=shared.as_json,
    )
