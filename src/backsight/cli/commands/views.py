"""Commands that show what a network makes of one photo.

The annotations are the options: they are evaluated at once.
"""

from typing import TYPE_CHECKING, Annotated

import typer

from backsight.cli import options
from backsight.cli.contents import DECISIONS, on_photos

if TYPE_CHECKING:
    from backsight.cli.reader import Photo, Reader
    from backsight.methods.saliency import Saliency


@on_photos(DECISIONS)
def saliency(
    reader: "Reader",
    photo: "Photo",
    show_progress: bool,
    target: options.Target = None,
    threshold: Annotated[
        float,
        typer.Option(metavar="0..1", help="The share of the pixels that the mask leaves out."),
    ] = 0.95,
) -> "Saliency":
    """Which pixels would change a class's score most: the gradient's size at each pixel."""
    import backsight

    return backsight.saliency(
        reader.network,
        photo.image,
        target,
        threshold=threshold,
        show_progress=show_progress,
        device=reader.device,
    )
