"""The files of a result: all of them, or none."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

__all__ = ["check_folder", "write_all"]


def check_folder(folder: Path) -> None:
    """Say before the work, not after it, that its results cannot be written."""
    existing = folder.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise ValueError(f"expected a folder for the results, and {existing} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"the results cannot be written: no permission to write in {existing}")


def write_all(folder: Path, files: Mapping[Path, Callable[[Path], None]]) -> None:
    """Write all files next to where they go, and move them there when all are whole."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".backsight-", dir=folder) as staging:
        for path, write in files.items():
            write(Path(staging) / path.name)
        for path in files:
            os.replace(Path(staging) / path.name, path)
