"""The command line. This file alone is imported at the start: no typer, no torch, no figures."""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main", "run"]

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
        return _complain("interrupted", INTERRUPTED)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "typer":
            return _complain('the command line needs typer: pip install "backsight[cli]"')
        return _complain(str(error))
    # RuntimeError is how torch refuses an image that its layers cannot take.
    except (ValueError, TypeError, OSError, ImportError, RuntimeError, MemoryError) as error:
        return _complain(str(error) or type(error).__name__)
    except Exception as error:
        # typer's complaints about the arguments, whatever class its version raises them as
        if type(error).__name__ == "Abort":
            return _complain("interrupted", INTERRUPTED)
        if not hasattr(error, "format_message"):
            raise
        return _complain(error.format_message())
    # some versions of typer turn Ctrl-C into this code, others into Abort
    if code == INTERRUPTED:
        return _complain("interrupted", INTERRUPTED)
    return code if isinstance(code, int) else 0


def _complain(text: str, code: int = BAD_INPUT) -> int:
    print("backsight:", " ".join(text.split()), file=sys.stderr)
    return code
