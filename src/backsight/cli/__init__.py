"""The command line. This file alone is imported at the start: no typer, no torch, no figures."""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["BAD_INPUT", "complain", "main", "refusals", "run"]

BAD_INPUT = 2
INTERRUPTED = 130


def main() -> None:
    """What the installed command ``backsight`` calls."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code.

    0: done. 2: bad input, explained in one sentence on stderr. 130: interrupted by Ctrl-C.
    Anything else that is raised is a defect and keeps its traceback.
    """
    try:
        from backsight.cli.app import app

        code = app(list(arguments) or ["--help"], prog_name="backsight", standalone_mode=False)
    except KeyboardInterrupt:
        return complain("interrupted", INTERRUPTED)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "typer":
            return complain('the command line needs typer: pip install "backsight[cli]"')
        return complain(str(error))
    except refusals() as error:
        memory = "out of memory" if isinstance(error, MemoryError) else None
        return complain(str(error) or memory or type(error).__name__)
    except Exception as error:
        # typer's complaints about the arguments, whatever class its version raises them as
        if type(error).__name__ == "Abort":
            return complain("interrupted", INTERRUPTED)
        if not hasattr(error, "format_message"):
            raise
        return complain(error.format_message())
    # some versions of typer turn Ctrl-C into this code, others into Abort
    if code == INTERRUPTED:
        return complain("interrupted", INTERRUPTED)
    return code if isinstance(code, int) else 0


def refusals() -> tuple[type[Exception], ...]:
    """What is raised for bad input. Anything else is a defect."""
    # RuntimeError is how torch refuses an image that its layers cannot take.
    return (ValueError, TypeError, OSError, ImportError, RuntimeError, MemoryError)


def complain(text: str, code: int = BAD_INPUT) -> int:
    """Say on stderr, in one line, what is wrong; return the exit code."""
    print("backsight:", " ".join(text.split()), file=sys.stderr)
    return code
