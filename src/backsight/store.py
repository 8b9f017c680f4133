"""Results on disk: files that are written whole or not at all, and read back with one clear error.

A file appears under its name only once every byte of it is on the disk; an interrupted or failed
write leaves what was there before.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import zipfile
from collections.abc import Collection, Iterator, Mapping
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt

__all__ = ["load_npz", "save_npz", "whole", "write_bytes", "write_json"]

Array = npt.NDArray[Any]
Pathlike = str | os.PathLike[str]

_META = "meta"


@contextlib.contextmanager
def whole(path: Pathlike) -> Iterator[BinaryIO]:
    """Open ``path`` for writing so that the file is replaced whole or not at all.

    The bytes go to a temporary file in the same folder, are flushed to the disk, and the file is
    renamed over ``path`` at the end. If the body raises, the temporary file is removed and
    ``path`` is as it was.

    Raises:
        OSError: the folder does not exist, or cannot be written to.
    """
    # A link keeps pointing where it pointed; its target is what gets replaced.
    target = os.path.realpath(path)
    folder, name = os.path.split(target)
    temporary = os.path.join(folder, f".{name[:100]}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    # Not tempfile: its files are private (0600), and a result is an ordinary file of its user.
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_BINARY", 0)
    handle = os.open(temporary, flags, 0o666)
    try:
        with os.fdopen(handle, "w+b") as file:
            yield cast(BinaryIO, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    _sync_folder(folder)


def write_bytes(path: Pathlike, data: bytes) -> None:
    """Write ``data`` to ``path``, whole or not at all."""
    with whole(path) as file:
        file.write(data)


def write_json(path: Pathlike, value: object) -> None:
    """Write ``value`` to ``path`` as indented UTF-8 JSON, whole or not at all.

    Raises:
        ValueError: ``value`` holds a NaN or an infinity, which JSON has no words for.
        TypeError: ``value`` holds something that is not JSON.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    write_bytes(path, (text + "\n").encode())


def save_npz(path: Pathlike, arrays: Mapping[str, Array], meta: Mapping[str, Any]) -> None:
    """Write arrays and their description to one ``.npz`` file, whole or not at all.

    Args:
        path: where the file goes; the name is used as it is, no ending is added.
        arrays: name to array of any shape and any numeric dtype. ``meta`` is not a free name.
        meta: anything JSON can say; stored as a JSON string array under ``meta``.

    The same arrays and description give the same bytes. ``numpy.load`` reads the file too.

    Raises:
        ValueError: an array is called ``meta``, or holds Python objects.
        TypeError: ``meta`` is not JSON.
    """
    if _META in arrays:
        raise ValueError('expected array names other than "meta", which holds the description')
    members = {name: np.asanyarray(array) for name, array in arrays.items()}
    for name, array in members.items():
        if array.dtype.hasobject:
            raise ValueError(f"array {name!r} holds Python objects; expected numbers")
    members[_META] = np.array(json.dumps(dict(meta)))
    with whole(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in members.items():
            # ZipInfo's fixed date, rather than the clock's, keeps equal results equal in bytes.
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def load_npz(path: Pathlike, required: Collection[str]) -> tuple[dict[str, Array], dict[str, Any]]:
    """Read what :func:`save_npz` wrote.

    Args:
        path: the file.
        required: names of the arrays that must be in it; others are returned as well.

    Returns:
        ``(arrays, meta)``: name to array, and the description.

    Raises:
        ValueError: the file is truncated, damaged, or not of this kind; one sentence with its path.
        OSError: the file cannot be opened.
    """
    name = os.fspath(path)
    with open(path, "rb") as file:
        try:
            arrays = _read_members(file)
        # zipfile and numpy between them raise a dozen types for a damaged file.
        except Exception as error:
            raise ValueError(
                f"{name} is not a whole .npz file (truncated, damaged, or of another kind): {error}"
            ) from error
    missing = sorted({*required, _META} - arrays.keys())
    if missing:
        raise ValueError(
            f"{name} is an .npz file of another kind: expected arrays "
            f"{', '.join(sorted({*required, _META}))}, and {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing"
        )
    try:
        meta = json.loads(str(arrays.pop(_META)[()]))
    except (ValueError, IndexError) as error:
        raise ValueError(f"{name} holds a description that is not JSON: {error}") from error
    if not isinstance(meta, dict):
        raise ValueError(f"{name} holds a description that is not a JSON object")
    return arrays, meta


def _read_members(file: BinaryIO) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    with zipfile.ZipFile(file) as archive:
        for entry in archive.namelist():
            with archive.open(entry) as member:
                array = np.lib.format.read_array(member, allow_pickle=False)
                arrays[entry.removesuffix(".npy")] = array
                # zipfile compares the checksum when it meets the end of the member.
                if member.read(1):
                    raise ValueError(f"{entry} is longer than its array")
    return arrays


def _sync_folder(folder: str) -> None:
    """Put the renaming itself on the disk, where the system lets a folder be opened."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
