"""Commands about a network, its data, and the package.

The annotations are the options: they are evaluated at once.
"""

import inspect
from pathlib import Path
from typing import Annotated, Any

import typer

from backsight.cli import options
from backsight.cli.commands.occlusion import occlusion, options_of
from backsight.cli.contents import NETWORK, PACKAGE, Shared, app, command


def plan(shared: Shared, photos: options.Photos, **own: Any) -> int:
    """Print what occlusion with the same options would compute."""
    from backsight.cli.occlusion import plan_photos

    given = options_of(shared, photos, **own)
    return plan_photos([Path(photo) for photo in photos], given, as_json=shared.as_json)


plan.__signature__ = inspect.signature(occlusion)  # type: ignore[attr-defined]


@command(NETWORK)
def feature_map(
    shared: Shared,
    photos: options.Photos,
    layer: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Whose output counts, after its ReLU. [what the classifier takes]",
        ),
    ] = None,
    seed: options.Seed = 0,
) -> int:
    """All photos as the network sees them: nearest neighbours, and a map by t-SNE where those lie
    near each other that are alike to it. Writes feature-map.png, feature-map.neighbours.png, .npz
    and .json into DIR.
    """
    from backsight.cli.feature_map import map_photos

    return map_photos([Path(photo) for photo in photos], shared, layer, seed)


@app.command(rich_help_panel=NETWORK)
def layers(
    model: options.Model = "squeezenet",
    weights: options.Weights = None,
    size: Annotated[
        int | None,
        typer.Option(metavar="N", help="For images of N x N pixels. [the network's usual size]"),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """List the network's layers that put out maps: what --layer can name, and what a unit sees."""
    from backsight.cli.layers import show_layers
    from backsight.cli.reader import Source

    source = Source(model=model, weights=weights, size=size)
    raise typer.Exit(show_layers(source, as_json=as_json))


@app.command(rich_help_panel=PACKAGE)
def config() -> None:
    """Print the instruction set, CUDA, threads and versions in use."""
    from backsight.config import show_config

    typer.echo(show_config())
