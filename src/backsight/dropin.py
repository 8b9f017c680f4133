"""What the drop-ins of other libraries share: a sweep by windows, where there can be one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from .methods.occlusion import Request, Task
from .sweep.result import Occlusion


class ImagesFirst(nn.Module):
    """A callable as a module that takes the callable's argument `index` before the others, and
    none by name.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        index: int = 0,
        keywords: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.function = function
        self.index = index
        self.keywords = dict(keywords or {})

    def forward(self, images: Tensor, *others: Any) -> Any:
        return self.function(*others[: self.index], images, *others[self.index :], **self.keywords)


def windowed(model: nn.Module, images: Tensor, **arguments: Any) -> Task | None:
    """A sweep of a model that was captured; None where it was not or a sweep takes no such
    arguments: the drop-in then runs the model on whole copies, and whatever failed fails there.
    """
    try:
        task = Task(Request(model, images, **arguments))
        return task if task.prepared().graph is not None else None
    except Exception:
        return None


def swept(task: Task) -> Occlusion | None:
    """What windows find; None where they cannot be run after all: for instance, the model mixes the
    batch, or what was captured does not compute what the model does.
    """
    try:
        result = task.run()
    except (ValueError, RuntimeError):
        return None
    return result if task.prepared().graph is not None else None
