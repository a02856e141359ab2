"""Files written whole or not at all, and known by their content."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from mqi.case import FileFact
from mqi.errors import ValidationError

__all__ = ["atomic_path", "fact_of", "inside", "sha256_of", "sync_folder", "write_atomically"]


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, hex. Raises OSError as open() does."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fact_of(path: Path, root: Path) -> FileFact:
    """Size and hash of a file, named relative to ``root``."""
    return FileFact(path=path.relative_to(root).as_posix(), size=path.stat().st_size, sha256=sha256_of(path))


def sync_folder(folder: Path) -> None:
    """Make the folder's entries (renames, new files) survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a ``.part`` path to write to; on success it is synced and renamed to ``path``, else removed."""
    part = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        yield part
        with part.open("rb+") as stream:
            os.fsync(stream.fileno())
        part.replace(path)
        sync_folder(path.parent)
    finally:
        part.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a small file so that a reader sees the old content or the new one, never half of it."""
    with atomic_path(path) as part:
        part.write_bytes(content)


def inside(folder: Path, relative: str) -> Path:
    """The file that ``relative`` names below ``folder``.

    Raises ValidationError when it leads out of the folder, by ``..``, as an absolute path or by a link.
    """
    pure = PurePosixPath(relative)
    path = folder / pure
    if pure.is_absolute() or ".." in pure.parts or not path.resolve().is_relative_to(folder.resolve()):
        raise ValidationError(
            "the name leads out of its folder",
            path=relative,
            todo="Remove the link or the name; nothing was read",
        )
    return path
