"""What the tests of whole sweeps over large images share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import Tensor, nn

from forked import Nursery
from nets import of_small_fields, random_images


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """Where sweeps are run that may be killed."""
    from large_runs import warmed

    with Nursery() as found:
        found.do(warmed, tmp_path_factory.mktemp("warm"))
        yield found


@pytest.fixture(scope="session")
def scenery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the command finds its image."""
    from large_runs import picture

    path = tmp_path_factory.mktemp("scenery")
    picture(path)
    return path


@pytest.fixture(scope="session")
def complete(nursery: Nursery, scenery: Path) -> dict[str, bytes]:
    """What the command writes."""
    from large_runs import command, files

    assert nursery.run(command, "store", folder=scenery)[0] == 0
    return files(scenery / "store")


@pytest.fixture(scope="module")
def near() -> nn.Module:
    """A network that looks at few pixels around each."""
    return of_small_fields()


@pytest.fixture(scope="module")
def scene() -> Tensor:
    """An image of several of its units, where the memory is small."""
    return random_images((3, 300, 280), 1, seed=9)[0]
