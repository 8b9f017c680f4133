"""Models that are not captured."""

from __future__ import annotations


class CaptureError(Exception):
    """The model cannot be captured; the message says why. Such a model is run as it is, whole."""

    @classmethod
    def of(cls, error: Exception) -> CaptureError:
        """The one that any error met on the way amounts to."""
        if isinstance(error, cls):
            return error
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return cls(f"{type(error).__name__}: {lines[0] if lines else 'no message'}"[:200])


class NoGraphError(ValueError):
    """The model cannot be captured, and what was asked for needs its graph."""


class RefusedError(ValueError):
    """A model that has no score of its own for each image."""


def refuse_training(module: str, what: str) -> None:
    raise RefusedError(
        f"expected a model in evaluation mode, got {what} in training mode"
        f"{f' at {module!r}' if module else ''}: call model.eval() first"
    )
