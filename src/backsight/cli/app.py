"""The application: all commands, in the order of the help page within its sections."""

from __future__ import annotations

from typing import Annotated

import typer

from backsight.cli.commands import large, network, occlusion, pictures, units, views, windows
from backsight.cli.contents import DECISIONS, app, command

__all__ = ["app", "large", "network", "occlusion", "pictures", "units", "views", "windows"]


command(DECISIONS)(network.plan)  # behind all that it could be taken for


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
