"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

Photos = Annotated[
    list[str],
    typer.Argument(metavar="PHOTO|FOLDER", help="The pictures to look at."),
]
Model = Annotated[
    str,
    typer.Option(
        help="squeezenet, efficientnet-lite0, vgg16-features, torchvision:NAME, timm:NAME, or "
        "MODULE:FACTORY, found in the working folder too: an nn.Module or something that returns "
        "one."
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="State dict for the network (weights_only=True)."),
]
Classes = Annotated[
    str | None,
    typer.Option(
        metavar="FILE", help="Class names, one a line; or imagenet for its 1,000 classes."
    ),
]
Size = Annotated[
    int | None,
    typer.Option(metavar="N", help="Scale the shorter side to N pixels and keep the whole photo."),
]
Full = Annotated[bool, typer.Option("--full", help="Keep the whole photo at its own size.")]
ShortSide = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Scale the shorter side to N before the crop. This and the next three are for "
        "MODULE:FACTORY, torchvision and timm. [256, or the library's]",
    ),
]
Crop = Annotated[int | None, typer.Option(metavar="N", help="Square from the middle. [224, or so]")]
Mean = Annotated[
    str | None, typer.Option(metavar="R,G,B", help="Of pixels 0..1. [ImageNet's, or so]")
]
Std = Annotated[
    str | None, typer.Option(metavar="R,G,B", help="Of pixels 0..1. [ImageNet's, or so]")
]
Dtype = Annotated[str, typer.Option(metavar="float32|bfloat16|float64", help="What to compute in.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")]
Target = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|INDEX",
        help="The class: index, name or unambiguous part of a name. [the strongest one]",
    ),
]
Seed = Annotated[int, typer.Option(metavar="N", help="Of all that is drawn by chance.")]
Out = Annotated[str, typer.Option("-o", "--out", metavar="DIR", help="Where the results go.")]
Json = Annotated[
    bool, typer.Option("--json", help="Print a JSON object for each result, a line each.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")]
Layer = Annotated[
    str, typer.Option(metavar="NAME", help="The layer of the units; backsight layers lists them.")
]
Rule = Annotated[
    str,
    typer.Option(
        metavar="deconvnet|guided|gradient",
        help="What passes a ReLU on the way back: what is positive, where its input was "
        "positive (gradient), or what is both (guided).",
    ),
]
