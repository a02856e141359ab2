"""Folders to a host over SSH and back, in one session each: few round trips, every byte checked by SHA-256.

Up: the host says what it has, the rest is sent (small files as one tar stream), hashed while it is read here,
read back and hashed there, and gets its name by one rename when all is right. Down: contents come as one
stream, are hashed on the host while they are sent, and here by reading back what was written.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shlex
import tarfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.resources import files
from pathlib import Path

from mqi.case import FileFact
from mqi.errors import HostConnectionError, MQIError, ProcessingError, ResourceError, TransferError
from mqi.files import sync_folder
from mqi.hosts.base import Completed
from mqi.hosts.session import InputClosed, Session
from mqi.hosts.ssh_shell import SshShell
from mqi.hosts.transfer import check_relative, ensure_room, explained, open_regular, walk_folder

__all__ = ["NoWorkspaceError", "Progress", "get_paths", "put_folder"]

Progress = Callable[[int, int], None]
"""Told how many bytes have been copied, of how many in all."""

_SMALL_BYTES = 1 << 20
"""Files up to this size travel together."""

_CHUNK_BYTES = 1 << 18
_GB = 1e9

_HASH_S = 600.0
"""How long the host may take to read what it has: 100 GB from a slow disk."""

_RACY_S = 2.0
"""A file younger than this may change without its time stamp telling."""

_LINK, _DAMAGED, _MISSING, _NO_WORKSPACE, _NO_SPACE = 65, 66, 67, 71, 73  # exit status of tree.sh


class NoWorkspaceError(TransferError):
    """The workspace is not there, or not any more."""


def put_folder(
    shell: SshShell, root: str, unit: str, source: Path, reserve_bytes: int, progress: Progress | None = None
) -> str:
    """Make ``input/UNIT`` below ``root`` on the host hold exactly what ``source`` holds; return its path.

    Raises TransferError, or ResourceError when less than ``reserve_bytes`` would stay free there.
    """
    wanted = {path: _size(source / path) for path in sorted(walk_folder(source), key=os.fsencode)}
    with shell.talk(_script("tree_put", root, unit)) as session:
        with suppress(EOFError, InputClosed):  # it ended before its time: below it says why
            _put(session, source, wanted, reserve_bytes, progress)
        if not _ended_well(session, f"{root}/input/{unit}").endswith(b"DONE\n"):
            raise TransferError(
                "the host ended the copy before its time",
                path=f"{root}/input/{unit}",
                todo="It is tried again",
            )
    return f"{root}/input/{unit}"


def _put(
    session: Session, source: Path, wanted: dict[str, int], reserve_bytes: int, progress: Progress | None
) -> None:
    first, there = _read_hashes(session)
    _, free, packer, others = first.split()
    sums = {path: _hash(source / path) for path in wanted if path in there}
    missing = [path for path in wanted if sums.get(path) != there.get(path) or path not in there]
    strangers = sorted(set(there) - set(wanted))
    if wanted and not missing and not strangers and others == "0":
        session.send(b"KEEP\n")
        return
    total = sum(wanted[path] for path in missing)
    if int(free) - total < reserve_bytes:
        raise ResourceError(
            f"{total / _GB:.3g} GB are needed on the host and {reserve_bytes / _GB:.3g} GB must stay free, "
            f"but {int(free) / _GB:.3g} GB are free",
            todo="Make room on its disk",
        )
    _say(session, "DROP", _joined([*strangers, *missing]))
    folders = sorted({str(Path(path).parent) for path in missing} - {"."})
    if folders:
        _say(session, "FOLDERS", _joined(folders))
    out = _Output(session, total, progress)
    small = [path for path in missing if packer == "tar" and wanted[path] <= _SMALL_BYTES]
    if small:
        headers = {path: _tar_header(path, wanted[path]) for path in small}
        length = sum(len(header) + wanted[path] + -wanted[path] % 512 for path, header in headers.items())
        out.write(b"TAR %d\n" % (length + _TAR_END))
        for path, header in headers.items():
            out.write(header)
            sums[path] = _send_file(out, source / path, wanted[path])
            out.write(b"\0" * (-wanted[path] % 512))
        out.write(b"\0" * _TAR_END)
    for path in missing:
        if packer != "tar" or wanted[path] > _SMALL_BYTES:
            name = b"./" + os.fsencode(path)
            out.write(b"FILE %d %d\n%s" % (wanted[path], len(name), name))
            sums[path] = _send_file(out, source / path, wanted[path])
    out.flush()
    _say(session, "SUMS", _written_hashes(sums))


_TAR_END = 1024  # two empty blocks


def _send_file(out: _Output, path: Path, size: int) -> str:
    """Send one file and return the hash of what was sent. Raises TransferError when it changes meanwhile."""
    digest, sent = hashlib.sha256(), 0
    with open_regular(path) as file:
        before = os.fstat(file.fileno())
        while chunk := file.read(min(_CHUNK_BYTES, size - sent)):
            digest.update(chunk)
            out.write(chunk, counted=True)
            sent += len(chunk)
        grew = file.read(1)
        after = os.fstat(file.fileno())
        same = (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size)
        if same and time.time() - before.st_mtime < _RACY_S:
            file.seek(0)
            same = hashlib.file_digest(file, "sha256").digest() == digest.digest()
    if grew or sent != size or not same:
        raise TransferError(
            "the file changed while it was copied", path=path, todo="Wait until nobody writes to it"
        )
    return digest.hexdigest()


class _Output:
    """Gathers small writes, and tells how far it is."""

    def __init__(self, session: Session, total: int, progress: Progress | None) -> None:
        self._session, self._total, self._progress = session, total, progress
        self._gathered: list[bytes] = []
        self._size = self._done = 0

    def write(self, data: bytes, *, counted: bool = False) -> None:
        self._gathered.append(data)
        self._size += len(data)
        self._done += len(data) if counted else 0
        if self._size >= _CHUNK_BYTES:
            self.flush()

    def flush(self) -> None:
        self._session.send(b"".join(self._gathered))
        self._gathered, self._size = [], 0
        if self._progress:
            self._progress(self._done, self._total)


def get_paths(
    shell: SshShell, root: str, job: str, paths: Sequence[str], target: Path, progress: Progress | None = None
) -> tuple[FileFact, ...]:
    """Copy files and folders of a job into ``target``, keeping their paths. What is there already is kept.

    Raises ProcessingError for a path that is not there, TransferError for one that leads out (``..``, link).
    """
    for path in paths:
        check_relative(path)
    folder = f"{root}/jobs/{job}"
    if not paths:
        return ()
    with shell.talk(_script("tree_get", root, job, *paths)) as session:
        try:
            facts = _get(session, paths, target, progress)
        except (EOFError, InputClosed):
            facts = ()
        _ended_well(session, folder)
    return facts


def _get(
    session: Session, paths: Sequence[str], target: Path, progress: Progress | None
) -> tuple[FileFact, ...]:
    sizes: dict[str, int] = {}
    for row in session.until(b"\0\0", _HASH_S).split(b"\0")[1:]:
        size, _, name = row.decode("utf-8", "surrogateescape").partition(" ./")
        check_relative(name)
        if not any(name == path or name.startswith(f"{path}/") for path in paths):
            raise TransferError(f"the host sends {name!r}, which was not asked for")
        sizes[name] = int(size)
    with explained("cannot write the copy", target):
        target.mkdir(parents=True, exist_ok=True)
    sums: dict[str, str] = {}
    known = [name for name, size in sizes.items() if _may_be_there(target / name, size)]
    if known:
        _say(session, "HASH", _lines(known))
        sums = {name: sha for name, sha in _read_hashes(session)[1].items() if _hash(target / name) == sha}
    missing = [name for name in sizes if name not in sums]
    total = sum(sizes[name] for name in missing)
    ensure_room(target, total)
    if missing:
        sums |= _fetch(session, missing, sizes, target, progress)
    session.send(b"END 0\n")
    return tuple(FileFact(path=name, size=sizes[name], sha256=sums[name]) for name in sorted(sizes))


def _fetch(
    session: Session, names: Sequence[str], sizes: dict[str, int], target: Path, progress: Progress | None
) -> dict[str, str]:
    """Write the files beside their places, and give them their names when every hash is right."""
    _say(session, "SEND", _lines(names))
    total, done = sum(sizes[name] for name in names), 0
    parts: dict[str, Path] = {}
    try:
        for name in names:
            place = target / name
            with explained("cannot write the copy", place):
                place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                part = place.parent / f".{secrets.token_hex(8)}.part"
                parts[name] = part
                descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
                with os.fdopen(descriptor, "wb", buffering=0) as file:
                    for piece in session.pieces(sizes[name]):
                        file.write(piece)
                        done += len(piece)
                        if progress:
                            progress(done, total)
        _, sums = _read_hashes(session)
        _sync_files(parts.values())
        for name, part in parts.items():
            if _hash(part) != sums.get(name):
                raise TransferError(
                    "the copy is not what the host has",
                    path=target / name,
                    todo="It is copied again by the next try; if this repeats, check the disks on both sides",
                )
        for name, part in parts.items():
            with explained("cannot write the copy", target / name):
                part.replace(target / name)
        for folder in {part.parent for part in parts.values()}:
            with explained("cannot write the copy", folder):
                sync_folder(folder)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)
    return sums


# ---- what both sides write


def _script(*words: str) -> str:
    library = files("mqi.hosts").joinpath("tree.sh").read_text(encoding="utf-8")
    return f"set -u; umask 077\n{library}\n{shlex.join(words)}"


def _say(session: Session, word: str, data: bytes) -> None:
    session.send(b"%s %d\n%s" % (word.encode(), len(data), data))


def _joined(paths: Iterable[str]) -> bytes:
    return b"".join(b"./%s\0" % os.fsencode(path) for path in paths)


def _lines(paths: Iterable[str]) -> bytes:
    return b"\n".join(b"./%s" % os.fsencode(path) for path in paths)


_HASH_LINE = re.compile(rb"(\\?)([0-9a-f]{64})  \./(.*)")


def _read_hashes(session: Session) -> tuple[str, dict[str, str]]:
    """Read a first line and what sha256sum says after it, up to an empty line.

    It escapes backslashes, and marks such a line with one.
    """
    found: dict[str, str] = {}
    first, *lines = session.until(b"\n\n", _HASH_S).split(b"\n")
    for line in lines:
        match = _HASH_LINE.fullmatch(line)
        if not match:
            raise HostConnectionError(
                f"the host answered with {line[:80]!r} where a hash was expected",
                todo="Look at sha256sum on the host",
            )
        name = match[3]
        if match[1]:
            name = re.sub(rb"\\(.)", lambda one: {b"n": b"\n", b"r": b"\r"}.get(one[1], one[1]), name)
        found[os.fsdecode(name)] = match[2].decode()
    return first.decode("ascii", "replace"), found


def _written_hashes(sums: dict[str, str]) -> bytes:
    """Write hashes as ``tree_hashes`` does."""
    rows = []
    for path in sorted(sums, key=os.fsencode):
        name = os.fsencode(path)
        mark = b"\\" if b"\\" in name else b""
        rows.append(b"%s%s  ./%s\n" % (mark, sums[path].encode(), name.replace(b"\\", b"\\\\")))
    return b"".join(rows)


def _tar_header(path: str, size: int) -> bytes:
    info = tarfile.TarInfo(f"./{path}")
    info.size, info.mode, info.mtime = size, 0o600, int(time.time())
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


# ---- local files


def _size(path: Path) -> int:
    with explained("cannot read the file", path):
        return path.lstat().st_size


def _sync_files(paths: Iterable[Path]) -> None:
    """Bring files to the disk. Many at a time share the file system's commits."""

    def sync(path: Path) -> None:
        with explained("cannot write the copy", path), path.open("rb") as file:
            os.fsync(file.fileno())

    with ThreadPoolExecutor(_SYNC_THREADS) as pool:
        list(pool.map(sync, paths))


_SYNC_THREADS = 16


def _hash(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _may_be_there(path: Path, size: int) -> bool:
    return path.is_file() and not path.is_symlink() and path.stat().st_size == size


def _ended_well(session: Session, folder: str) -> bytes:
    """Return what it said last, or raise what went wrong there.

    What it was still to read then is not taken for a next script.
    """
    done = session.finish(_HASH_S)
    if done.exit_code:
        session.clean = False
        raise _refused(done, folder)
    return done.stdout


def _refused(done: Completed, folder: str) -> MQIError:
    said = done.stderr.decode("utf-8", "replace").strip()[-500:] or f"exit status {done.exit_code}"
    kind: type[MQIError]
    kind, todo = {
        _LINK: (TransferError, "Make the program write a file there, or remove the link"),
        _DAMAGED: (
            TransferError,
            "It is copied again by the next try; if this repeats, check the host's disk",
        ),
        _MISSING: (ProcessingError, "Look at the output of the job beside it, or run it again"),
        _NO_WORKSPACE: (NoWorkspaceError, "It is made by the next try"),
        _NO_SPACE: (ResourceError, "Make room in the workspace, and check its owner and mode"),
    }.get(done.exit_code, (TransferError, "Look at the workspace on the host"))
    return kind(f"the host could not copy: {said}", path=folder, todo=todo)
