"""Runs in forked children of one process of a single thread, which has imported what they need: a
run begins at once, can be killed at any instant, and shares nothing with the tests' own process.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

__all__ = ["Child", "Nursery"]


@dataclass(frozen=True)
class Child:
    """A run that was begun."""

    nursery: Nursery
    pid: int
    output: Path

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """Its exit code once it has ended; that of a signal is negative."""
        code: int = self.nursery._ask("wait", self.pid)
        return code

    def said(self) -> str:
        """What it has written to stdout and stderr."""
        return self.output.read_text(encoding="utf-8")


class Nursery:
    """The process whose children the runs are. A context manager, which ends it and them.

    Args:
        before: a command that starts it, such as one that makes a namespace of its own.
    """

    def __init__(self, *before: str) -> None:
        # One thread, or a fork would copy the locks of the others.
        single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        paths = os.pathsep.join(map(os.path.abspath, filter(None, sys.path)))
        self._process = subprocess.Popen(
            [*before, sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **single, "PYTHONPATH": paths},
        )
        self._outputs = tempfile.TemporaryDirectory()
        self._count = 0

    def do(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Do something in the process itself, so that its children find it done."""
        return self._ask("do", work, arguments)

    def start(
        self,
        work: Callable[..., Any],
        *arguments: Any,
        folder: Path | str = "/",
        environment: dict[str, str] | None = None,
    ) -> Child:
        """Do something in a child; its exit code is the integer that `work` returns, 0 without one,
        1 if it raises.
        """
        self._count += 1
        output = Path(self._outputs.name, f"{self._count}.txt")
        told = (str(output), str(folder), environment or {})
        return Child(self, self._ask("start", work, arguments, *told), output)

    def run(self, work: Callable[..., Any], *arguments: Any, **more: Any) -> tuple[int, str]:
        """`start`, and what came of it: exit code and output."""
        child = self.start(work, *arguments, **more)
        return child.wait(), child.said()

    def _ask(self, *question: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(pickle.dumps(question))
        self._process.stdin.flush()
        answer, error = pickle.load(self._process.stdout)
        if error:
            raise RuntimeError(error)
        return answer

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()
        self._outputs.cleanup()


def _serve(questions: IO[bytes], answers: IO[bytes]) -> None:
    running: set[int] = set()
    try:
        for kind, *details in _read(questions):
            answer, error = None, ""
            try:
                answer = _answer(kind, details, running)
            except Exception:
                error = traceback.format_exc()
            answers.write(pickle.dumps((answer, error)))
            answers.flush()
    finally:
        for pid in running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _read(questions: IO[bytes]) -> Iterator[tuple[Any, ...]]:
    with contextlib.suppress(EOFError):
        while True:
            yield pickle.load(questions)


def _answer(kind: str, details: list[Any], running: set[int]) -> Any:
    if kind == "wait":
        _, status = os.waitpid(details[0], 0)
        running.discard(details[0])
        return os.waitstatus_to_exitcode(status)
    if kind == "do":
        work, arguments = details
        return work(*arguments)
    tasks = Path("/proc/self/task")
    threads = len(list(tasks.iterdir())) if tasks.exists() else 1
    assert threads == 1, f"a fork of {threads} threads"
    pid = os.fork()
    if not pid:
        _child(*details)
    running.add(pid)
    return pid


def _child(
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
    output: str,
    folder: str,
    environment: dict[str, str],
) -> None:
    """Do it and end, whatever happens."""
    code = 1
    try:
        handle = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o666)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for target, source in ((0, nothing), (1, handle), (2, handle)):
            os.dup2(source, target)
        os.environ.update(environment)
        os.chdir(folder)
        found = work(*arguments)
        code = found if isinstance(found, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    # Whatever else is printed must not get among the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    _serve(sys.stdin.buffer, answers)
