"""The command that slides a classifier over photos.

The annotations are the options: they are evaluated at once.
"""

from typing import TYPE_CHECKING

from backsight.cli import options
from backsight.cli.contents import DECISIONS, on_photos

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
