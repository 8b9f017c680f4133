"""Commands that show what a network makes of one photo.

The annotations are the options: they are evaluated at once.
"""

from typing import TYPE_CHECKING, Annotated

import typer

from backsight.cli import options
from backsight.cli.contents import DECISIONS, NETWORK, UNITS, app, on_photos

if TYPE_CHECKING:
    from backsight.cli.reader import Photo, Reader
    from backsight.methods.activations import Activations
    from backsight.methods.cam import Cam
    from backsight.methods.faithfulness import Faithfulness
    from backsight.methods.filters import Filters
    from backsight.methods.receptive_field import ReceptiveField
    from backsight.methods.rotation import Rotation
    from backsight.methods.saliency import Saliency

Probability = Annotated[
    str, typer.Option(metavar="softmax|sigmoid|none", help="What the outputs are turned into.")
]


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


@on_photos(DECISIONS)
def cam(
    reader: "Reader",
    photo: "Photo",
    show_progress: bool,
    target: options.Target = None,
    layer: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Grad-CAM of this layer, for networks that do not end in averages of their last "
            "feature maps. [CAM]",
        ),
    ] = None,
) -> "Cam":
    """Where in the photo the evidence for a class lies: its weighted sum of feature maps."""
    import backsight

    return backsight.cam(
        reader.network,
        photo.image,
        target,
        layer=layer,
        show_progress=show_progress,
        device=reader.device,
    )


@on_photos(DECISIONS)
def rotation(
    reader: "Reader",
    photo: "Photo",
    show_progress: bool,
    target: options.Target = None,
    step: Annotated[
        float, typer.Option(metavar="DEGREES", help="The angle between two turns.")
    ] = 15.0,
    baseline: Annotated[
        str,
        typer.Option(
            metavar="COLOR|NAME",
            help="What fills the corners: training (the mean pixel of the training data), mean, "
            "blur, noise, black, gray, white, one value, or R,G,B.",
        ),
    ] = "mean",
    probability: Probability = "softmax",
) -> "Rotation":
    """How the classes' scores follow the photo as it is turned."""
    import backsight
    from backsight.cli import views

    return backsight.rotation(
        reader.network,
        photo.image,
        target,
        angles=views.turns("--step", step),
        baseline=views.blank("--baseline", baseline, reader, photo),
        probability=views.probability("--probability", probability),
        show_progress=show_progress,
        device=reader.device,
    )


@on_photos(DECISIONS)
def faithfulness(
    reader: "Reader",
    photo: "Photo",
    show_progress: bool,
    target: options.Target = None,
    of: Annotated[
        str,
        typer.Option(
            metavar="occlusion|saliency|cam|FILE",
            help="Whose map is judged: a method's as it is usually set, or one in a .npy of (height"
            ", width) numbers, as many as the prepared photo has pixels.",
        ),
    ] = "occlusion",
    steps: Annotated[
        int, typer.Option(metavar="N", help="How often pixels are deleted or inserted.")
    ] = 50,
    deletion_baseline: Annotated[
        str,
        typer.Option(
            metavar="COLOR|NAME",
            help="What stands where pixels are deleted: training, mean, blur, noise, black, gray, "
            "white, one value, or R,G,B.",
        ),
    ] = "mean",
    insertion_baseline: Annotated[
        str,
        typer.Option(metavar="COLOR|NAME", help="What stands where none are inserted yet."),
    ] = "blur",
    probability: Probability = "softmax",
) -> "Faithfulness":
    """Whether a map names the pixels that count: delete or insert them in its order."""
    import backsight
    from backsight.cli import views

    index = views.target_of(target, reader, photo)
    return backsight.faithfulness(
        reader.network,
        photo.image,
        views.judged("--of", of, index, reader, photo),
        index,
        steps=steps,
        deletion_baseline=views.blank("--deletion-baseline", deletion_baseline, reader, photo),
        insertion_baseline=views.blank("--insertion-baseline", insertion_baseline, reader, photo),
        probability=views.probability("--probability", probability),
        show_progress=show_progress,
        device=reader.device,
    )


@on_photos(UNITS)
def activations(
    reader: "Reader",
    photo: "Photo",
    show_progress: bool,
    layer: options.Layer,
    threshold: Annotated[
        float,
        typer.Option(metavar="X", help="What an activation must exceed to count as active."),
    ] = 0.0,
) -> "Activations":
    """The maps of a layer's channels side by side, and how many of its units are active."""
    import backsight

    return backsight.activations(
        reader.network,
        photo.image,
        layer=layer,
        threshold=threshold,
        show_progress=show_progress,
        device=reader.device,
    )


@on_photos(UNITS)
def receptive_field(
    reader: "Reader",
    photo: "Photo",
    show_progress: bool,
    layer: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only this layer; may be given several times. [all]"),
    ] = None,
    position: Annotated[
        str | None,
        typer.Option(metavar="ROW,COLUMN", help="The pixel whose units are shown. [the middle]"),
    ] = None,
) -> "ReceptiveField":
    """How much of the photo a unit of each layer sees."""
    import backsight
    from backsight.cli import parse

    return backsight.receptive_field(
        reader.network,
        photo.image,
        layers=layer or None,
        position=None if position is None else parse.position("--position", position),
        device=reader.device,
    )


@app.command(rich_help_panel=NETWORK)
def filters(
    model: options.Model = "squeezenet",
    weights: options.Weights = None,
    layer: Annotated[
        str | None, typer.Option(metavar="NAME", help="A convolution. [the first one]")
    ] = None,
    out: options.Out = ".",
    as_json: options.Json = False,
) -> None:
    """The filters of a convolution as pictures, and which are dead, duplicate or noisy. Writes
    filters.png, .npz and .json into DIR.
    """
    from pathlib import Path

    import backsight
    from backsight.cli.reader import Source
    from backsight.cli.view import alone

    source = Source(model=model, weights=weights)

    def look(reader: "Reader") -> "Filters":
        return backsight.filters(reader.network, layer)

    alone("filters", source, look, output=Path(out), as_json=as_json)
