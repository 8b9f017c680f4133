"""Commands that make pictures for a network.

The annotations are the options: they are evaluated at once.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from backsight.cli import options
from backsight.cli.contents import PICTURES, app, on_photos

if TYPE_CHECKING:
    from backsight.cli.reader import Photo, Reader
    from backsight.methods.dream import Dream
    from backsight.methods.fool import Fool
    from backsight.methods.style import Style

Seed = Annotated[int, typer.Option(metavar="N", help="The same seed makes the same picture.")]
Mixture = Annotated[
    list[str],
    typer.Option(
        metavar="NAME[=WEIGHT]",
        help="A layer; may be given several times. backsight layers lists them.",
    ),
]
Levels = Annotated[
    float, typer.Option(metavar="LEVELS", help="The mean change of a step, in levels of 0..255.")
]
Octaves = Annotated[int, typer.Option(metavar="N", help="How many sizes.")]
Scale = Annotated[float, typer.Option(metavar="X", help="From each size to the next.")]
Jitter = Annotated[int, typer.Option(metavar="PIXELS", help="Shifts at random, up to so far.")]


@app.command("class-model", rich_help_panel=PICTURES)
def class_model(
    target: Annotated[
        list[str],
        typer.Option(
            metavar="NAME|INDEX",
            help="A class; with --layer, a channel, or a neuron CHANNEL,ROW,COLUMN. May be given "
            "several times.",
        ),
    ],
    layer: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The layer of the units. [the network's output]"),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(metavar="N", help="Pictures of N x N pixels. [the network's usual size]"),
    ] = None,
    steps: Annotated[int, typer.Option(metavar="N", help="Steps of ascent.")] = 200,
    step: Levels = 6.0,
    decay: Annotated[
        float, typer.Option(metavar="0..1", help="The share of each value that a step takes away.")
    ] = 0.02,
    blur: Annotated[
        float, typer.Option(metavar="PIXELS", help="Sigma of a Gaussian, at least 0.3; 0: none.")
    ] = 1.0,
    blur_every: Annotated[
        int, typer.Option(metavar="N", help="It comes after every so many steps.")
    ] = 2,
    clip_norm: Annotated[
        float,
        typer.Option(metavar="PERCENT", help="So many pixels of the smallest norm become 0."),
    ] = 0.0,
    clip_contribution: Annotated[
        float, typer.Option(metavar="PERCENT", help="So many that contribute least become 0.")
    ] = 0.0,
    seed: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N", help="Of the noise that it grows from; several: a picture of each. [0]"
        ),
    ] = None,
    model: options.Model = "squeezenet",
    weights: options.Weights = None,
    classes: options.Classes = None,
    mean: options.Mean = None,
    std: options.Std = None,
    dtype: options.Dtype = "float32",
    device: options.Device = "cpu",
    out: options.Out = ".",
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """The picture that a class, a channel or a neuron likes best, grown from noise. Writes
    class-model.png, .npz and .json into DIR.
    """
    import backsight
    from backsight.cli.pictures import units
    from backsight.cli.reader import Reader, Source
    from backsight.cli.view import alone
    from backsight.results import Result

    def make(reader: Reader) -> Result:
        return backsight.class_model(
            reader.network,
            units(target),
            layer=layer,
            shape=None if size is None else (3, size, size),
            steps=steps,
            step=step,
            decay=decay,
            blur=blur,
            blur_every=blur_every,
            clip_norm=clip_norm,
            clip_contribution=clip_contribution,
            seed=seed or 0,
            show_progress=not quiet,
            device=reader.device,
        )

    source = Source(
        model=model,
        weights=weights,
        classes=classes,
        mean=mean,
        std=std,
        dtype=dtype,
        device=device,
    )
    alone("class-model", source, make, output=Path(out), as_json=as_json)


@on_photos(PICTURES)
def dream(
    reader: "Reader",
    photo: "Photo",
    show_progress: bool,
    layer: Mixture,
    steps: Annotated[int, typer.Option(metavar="N", help="Steps at each size.")] = 10,
    step: Levels = 1.5,
    octaves: Octaves = 4,
    scale: Scale = 1.4,
    jitter: Jitter = 32,
    seed: Seed = 0,
) -> "Dream":
    """A photo changed so that a layer sees more of what it sees in it already."""
    import backsight
    from backsight.cli.pictures import mixture

    return backsight.dream(
        reader.network,
        photo.image,
        layer=mixture("--layer", layer),
        steps=steps,
        step=step,
        octaves=octaves,
        scale=scale,
        jitter=jitter,
        seed=seed,
        show_progress=show_progress,
        device=reader.device,
    )


@app.command("dream-frames", rich_help_panel=PICTURES)
def dream_frames(
    photos: Annotated[
        list[str],
        typer.Argument(metavar="PHOTO|FOLDER", help="The frames of a video, in order."),
    ],
    layer: Mixture,
    carry: Annotated[
        float,
        typer.Option(
            metavar="0..1",
            help="How much of the last frame's dream each frame starts with; 0: each for itself.",
        ),
    ] = 0.5,
    steps: Annotated[int, typer.Option(metavar="N", help="Steps at each size.")] = 10,
    step: Levels = 1.5,
    octaves: Octaves = 4,
    scale: Scale = 1.4,
    jitter: Jitter = 32,
    seed: Seed = 0,
    model: options.Model = "squeezenet",
    weights: options.Weights = None,
    size: options.Size = None,
    full: options.Full = False,
    short_side: options.ShortSide = None,
    crop: options.Crop = None,
    mean: options.Mean = None,
    std: options.Std = None,
    dtype: options.Dtype = "float32",
    device: options.Device = "cpu",
    out: options.Out = ".",
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """A video dreamt frame by frame. Writes each dream, bare, as NAME.dream.png into DIR."""
    from torch import Tensor

    import backsight
    from backsight.cli.pictures import dream_of_frames, mixture
    from backsight.cli.reader import Reader, Source
    from backsight.methods.dream import Dream

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
    layers = mixture("--layer", layer)

    def make(reader: Reader, image: Tensor) -> Dream:
        return backsight.dream(
            reader.network,
            image,
            layer=layers,
            steps=steps,
            step=step,
            octaves=octaves,
            scale=scale,
            jitter=jitter,
            seed=seed,
            show_progress=not quiet,
            device=reader.device,
        )

    paths = [Path(photo) for photo in photos]
    code = dream_of_frames(paths, source, make, carry, output=Path(out), as_json=as_json)
    raise typer.Exit(code)


@on_photos(PICTURES)
def style(
    reader: "Reader",
    photo: "Photo",
    show_progress: bool,
    painting: Annotated[
        str, typer.Option(metavar="FILE", help="The picture whose style it shall have.")
    ],
    content_layer: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[=WEIGHT]", help="Where content is compared. [relu4_2]"),
    ] = None,
    style_layer: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[=WEIGHT]", help="Where style is. [relu1_1, ..., relu5_1]"),
    ] = None,
    style_weight: Annotated[
        float, typer.Option(metavar="X", help="What style counts for, against content.")
    ] = 1e8,
    start: Annotated[
        str, typer.Option(metavar="content|noise", help="What the picture grows from.")
    ] = "content",
    max_pools: Annotated[
        bool, typer.Option("--max-pools", help="Do not average where the network takes maxima.")
    ] = False,
    steps: Annotated[
        int, typer.Option(metavar="N", help="How often the loss is computed, at most.")
    ] = 100,
    seed: Seed = 0,
    model: options.Model = "vgg16-features",
) -> "Style":
    """The content of a photo in the style of a painting."""
    import backsight
    from backsight.cli.pictures import mixture
    from backsight.methods.style import CONTENT, STYLE

    return backsight.style(
        reader.network,
        photo.image,
        reader.open(Path(painting)).image,
        content_layer=mixture("--content-layer", content_layer) if content_layer else CONTENT,
        style_layer=mixture("--style-layer", style_layer) if style_layer else STYLE,
        style_weight=style_weight,
        start=start,
        average_pools=not max_pools,
        steps=steps,
        seed=seed,
        show_progress=show_progress,
        device=reader.device,
    )


@on_photos(PICTURES)
def fool(
    reader: "Reader",
    photo: "Photo",
    show_progress: bool,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|INDEX", help="The class to be taken for. [any other than before]"
        ),
    ] = None,
    confidence: Annotated[
        float, typer.Option(metavar="0..1", help="The probability it shall have.")
    ] = 0.9,
    method: Annotated[
        str, typer.Option(metavar="pgd|fgsm", help="Many steps, or one of length --epsilon.")
    ] = "pgd",
    norm: Annotated[
        str,
        typer.Option(metavar="linf|l2", help="What is bounded: each value's change, or all."),
    ] = "linf",
    epsilon: Annotated[
        float | None,
        typer.Option(metavar="LEVELS", help="The bound, in levels of 0..255. [what it takes]"),
    ] = None,
    smallest: Annotated[
        bool, typer.Option("--smallest", help="Search for the smallest change that does it.")
    ] = False,
    noise: Annotated[
        bool, typer.Option("--noise", help="Change noise of the photo's size, not the photo.")
    ] = False,
    steps: Annotated[int, typer.Option(metavar="N", help="Steps, at most.")] = 40,
    seed: Seed = 0,
) -> "Fool":
    """How little must change for the network to see something else."""
    import backsight

    return backsight.fool(
        reader.network,
        None if noise else photo.image,
        target,
        confidence=confidence,
        method=method,
        norm=norm,
        epsilon=epsilon,
        smallest=smallest,
        shape=tuple(photo.image.shape[1:]) if noise else None,
        steps=steps,
        seed=seed,
        show_progress=show_progress,
        device=reader.device,
    )
