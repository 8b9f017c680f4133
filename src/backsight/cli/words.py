"""Values as words, for text and figures."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["article", "by", "short"]


def by(sides: Sequence[int]) -> str:
    """``(32, 48)`` as "32 x 48"."""
    return " x ".join(map(str, sides))


def short(name: str) -> str:
    """A name that fits in a figure."""
    return name if len(name) <= 40 else f"{name[:24]}...{name[-13:]}"


def article(word: str) -> str:
    """A word behind its indefinite article."""
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"
