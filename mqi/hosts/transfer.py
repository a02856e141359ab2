"""Copying folders so that what arrives is what was sent, or nothing.

A *manifest* (`FileFact` per file: path, size, SHA-256) is taken of the source, the bytes are compared with
it while they are copied and again where they arrived. A file is written beside its place under a name
ending in ``.part``, synced, verified and renamed: a name that can be seen is whole. What is there and has
the right bytes is not copied again, so that an interrupted copy goes on where it stopped.

Manifest, names and the comparison are the same for every host; only the copying itself is local here.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path, PurePosixPath

from mqi.case import FileFact
from mqi.errors import MQIError, ProcessingError, ResourceError, TransferError
from mqi.files import sync_folder

__all__ = [
    "check_relative",
    "copy_folder",
    "copy_paths",
    "ensure_room",
    "explained",
    "folder_lock",
    "missing_files",
    "open_regular",
    "scan_folder",
    "verify_folder",
    "walk_folder",
]

_CHUNK_BYTES = 1 << 20
_GB = 1e9
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")  # also what is not UTF-8 (surrogate escapes)


def check_relative(path: str) -> PurePosixPath:
    """Return a path that stays below its folder. Raises TransferError for any other."""
    parts = path.split("/")
    if _CONTROL.search(path):
        raise TransferError(
            f"a file name has control characters or is not UTF-8: {path!r}", todo="Rename the file"
        )
    if not path or any(part in {"", ".", ".."} for part in parts):
        raise TransferError(
            f"the path {path!r} may lead out of its folder", todo="Only plain relative paths are copied"
        )
    return PurePosixPath(path)


def scan_folder(folder: Path) -> tuple[FileFact, ...]:
    """Take the manifest of a folder: every file below it, sorted by path. Empty folders do not count.

    Raises TransferError for links, devices, names that cannot be kept, and what cannot be read.
    """
    return tuple(_fact(folder, path) for path in sorted(walk_folder(folder)))


def verify_folder(folder: Path, manifest: Iterable[FileFact]) -> None:
    """Compare a folder with a manifest. Raises TransferError naming a missing, other or additional file."""
    wanted = {fact.path: fact for fact in manifest}
    found = {fact.path: fact for fact in scan_folder(folder)}
    for path in sorted(wanted.keys() | found.keys()):
        if path not in found:
            raise TransferError(
                "a file is missing", path=folder / path, todo="It is copied again by the next try"
            )
        if path not in wanted:
            raise TransferError("a file is there that was not sent", path=folder / path, todo="Remove it")
        if wanted[path] != found[path]:
            raise TransferError(
                "a file is not what was sent", path=folder / path, todo="It is copied again by the next try"
            )


def missing_files(folder: Path, manifest: Iterable[FileFact]) -> tuple[FileFact, ...]:
    """Return what of a manifest is not yet in a folder with the right bytes."""
    with explained("cannot look at what was copied", folder):
        return tuple(fact for fact in manifest if not _is_there(folder / fact.path, fact))


def ensure_room(folder: Path, needed_bytes: int, reserve_bytes: int = 0) -> None:
    """Ask for disk space before using it. Raises ResourceError."""
    with explained("cannot ask for disk space", folder):
        free = shutil.disk_usage(folder).free
    if free - needed_bytes < reserve_bytes:
        raise ResourceError(
            f"{needed_bytes / _GB:.3g} GB are needed and {reserve_bytes / _GB:.3g} GB must stay free, "
            f"but {free / _GB:.3g} GB are free",
            path=folder,
            todo="Make room on this disk",
        )


def copy_folder(source: Path, target: Path, *, reserve_bytes: int = 0) -> tuple[FileFact, ...]:
    """Make ``target`` hold exactly what ``source`` holds, and return its manifest.

    What does not belong there (parts of an interrupted copy) is removed. Two copies into the same target
    at a time need a `folder_lock`. Raises TransferError, or ResourceError when less than
    ``reserve_bytes`` would stay free.
    """
    manifest = scan_folder(source)
    with explained("cannot write the copy", target):
        if target.is_symlink():
            raise TransferError("the target is a link", path=target, todo="Remove it")
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        _discard_others(target, {fact.path for fact in manifest})
    missing = missing_files(target, manifest)
    ensure_room(target, sum(fact.size for fact in missing), reserve_bytes)
    _copy_all(source, target, missing)
    return manifest


def copy_paths(source: Path, paths: Sequence[str], target: Path) -> tuple[FileFact, ...]:
    """Copy files, and folders with all that is in them, keeping their paths below ``source``.

    Raises ProcessingError for a path that is not there, TransferError for one that leads out (``..``, link).
    """
    facts: dict[str, FileFact] = {}
    for path in paths:
        _refuse_links(source, path)
        place = source / path
        if place.is_dir():
            inner = [f"{path}/{name}" for name in walk_folder(place)]
        elif place.is_file():
            inner = [path]
        else:
            raise ProcessingError(
                "an expected file is not there", path=place, todo="Look at the output of the job beside it"
            )
        facts.update({name: _fact(source, name) for name in inner})
    manifest = tuple(facts[name] for name in sorted(facts))
    with explained("cannot write the copy", target):
        target.mkdir(parents=True, exist_ok=True)
    missing = missing_files(target, manifest)
    ensure_room(target, sum(fact.size for fact in missing))
    _copy_all(source, target, missing)
    return manifest


@contextmanager
def folder_lock(path: Path) -> Generator[None, None, None]:
    """Hold a lock file while the folder that it stands for is changed. It is free when its holder dies."""
    with explained("cannot lock", path), path.open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def walk_folder(folder: Path) -> Iterator[str]:
    """Give the paths of all files below a folder, POSIX and relative to it."""
    pending = [""]
    while pending:
        prefix = pending.pop()
        with explained("cannot read the folder", folder / prefix), os.scandir(folder / prefix) as entries:
            for entry in entries:
                path = prefix + entry.name
                check_relative(path)
                if entry.is_symlink():
                    raise TransferError(
                        "links are not copied", path=folder / path, todo="Replace it by the file"
                    )
                if entry.is_dir(follow_symlinks=False):
                    pending.append(f"{path}/")
                elif entry.is_file(follow_symlinks=False):
                    yield path
                else:
                    raise TransferError(
                        "only files and folders are copied", path=folder / path, todo="Remove it"
                    )


def _fact(folder: Path, path: str) -> FileFact:
    with open_regular(folder / path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileFact(path=path, size=file.tell(), sha256=digest)


def _is_there(path: Path, fact: FileFact) -> bool:
    try:
        found = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    if not stat.S_ISREG(found.st_mode) or found.st_size != fact.size:
        return False
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == fact.sha256


def _refuse_links(folder: Path, path: str) -> None:
    place = folder
    for part in check_relative(path).parts:
        place = place / part
        if place.is_symlink():
            raise TransferError(
                "links are not followed", path=place, todo="Make the program write a file there"
            )


def _discard_others(folder: Path, wanted: Collection[str]) -> None:
    """Remove what is not wanted below a folder, links as links; folders that become empty go too."""
    for root, folders, names in os.walk(folder, topdown=False):
        for name in [*names, *(name for name in folders if (Path(root) / name).is_symlink())]:
            place = Path(root) / name
            if place.is_symlink() or place.relative_to(folder).as_posix() not in wanted:
                place.unlink()
        if Path(root) != folder and not any(Path(root).iterdir()):
            Path(root).rmdir()


def _copy_all(source: Path, target: Path, facts: Iterable[FileFact]) -> None:
    folders = set()
    for fact in facts:
        place = target / fact.path
        with explained("cannot write the copy", place):
            place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _copy_file(source / fact.path, place, fact)
        folders.add(place.parent)
    for folder in folders:
        with explained("cannot write the copy", folder):
            sync_folder(folder)


def _copy_file(source: Path, target: Path, fact: FileFact) -> None:
    part = target.parent / f".{secrets.token_hex(8)}.part"
    try:
        with open_regular(source) as old, explained("cannot write the copy", target):
            descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            with os.fdopen(descriptor, "w+b") as new:
                sent = hashlib.sha256()
                while chunk := old.read(_CHUNK_BYTES):
                    sent.update(chunk)
                    new.write(chunk)
                if sent.hexdigest() != fact.sha256:
                    raise TransferError(
                        "the file changed while it was copied",
                        path=source,
                        todo="Wait until nobody writes to it",
                    )
                new.flush()
                os.fsync(new.fileno())
                new.seek(0)
                if hashlib.file_digest(new, "sha256").hexdigest() != fact.sha256:
                    raise TransferError("the copy is not what was sent", path=target, todo="Check this disk")
            part.replace(target)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def open_regular(path: Path) -> Generator[BufferedReader, None, None]:
    """Open a regular file for reading, never through a link and never a device that would block."""
    with explained("cannot read the file", path):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise TransferError("not a regular file", path=path, todo="Only files and folders are copied")
            yield file


@contextmanager
def explained(what: str, path: Path) -> Generator[None, None, None]:
    """Turn what the operating system refuses into an error that says what and where."""
    try:
        yield
    except OSError as error:
        kind: type[MQIError] = ResourceError if error.errno in _NO_ROOM else TransferError
        todo = "Make room on this disk" if kind is ResourceError else "Check that it is there and may be used"
        raise kind(f"{what} ({error.strerror})", path=path, todo=todo) from error
