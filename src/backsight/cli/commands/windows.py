"""The command that slides a classifier over photos, and the one that shows all views of them.

The annotations are the options: they are evaluated at once.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from backsight.cli import options
from backsight.cli.contents import DECISIONS, Shared, command, on_photos

if TYPE_CHECKING:
    from backsight.cli.reader import Photo, Reader
    from backsight.methods.fully_convolutional import PredictionMaps


@on_photos(DECISIONS)
def fully_convolutional(
    reader: "Reader",
    photo: "Photo",
    show_progress: bool,
    target: options.Target = None,
) -> "PredictionMaps":
    """What the classifier says all over a photo: its head as convolutions, a map of scores for each
    class; with --full or --size on more than the usual crop.
    """
    import backsight

    return backsight.prediction_maps(
        reader.network,
        photo.image,
        target,
        show_progress=show_progress,
        device=reader.device,
    )


@command(DECISIONS)
def report(
    shared: Shared,
    photos: options.Photos,
    target: options.Target = None,
    seed: options.Seed = 0,
) -> int:
    """Every view of a photo on one page, with what each says and cannot say. Writes
    NAME.report.html, which needs no network, and beside it NAME.report.json and
    NAME.report.VIEW.npz of each photo into DIR: all of them, or none.
    """
    from backsight.cli.report.run import report_photos

    return report_photos([Path(photo) for photo in photos], shared, target, seed)
