"""What a site decides about intake, and the walk that every part of it shares."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field

from mqi.case import Frozen

__all__ = [
    "ROOM_FOLDER",
    "IntakeRules",
    "Seen",
    "delivery_kind",
    "files_below",
    "files_in",
    "irradiation_time",
    "is_delivery",
    "is_text",
    "marker_has_arrived",
    "room_of_path",
    "subfolders",
]

ROOM_FOLDER = re.compile(r"G[12]")
"""Name of a folder that sorts cases by room. It is never a case itself."""

_LOG_FILE = re.compile(r"plan(info|range)\.(txt|csv)|.*\.(ptn|mgn)", re.IGNORECASE)
_TIMESTAMP = re.compile(r"\d{16}")  # YYYYMMDDHHMMSScc
_DEEPEST_FILE = 8  # folders below a case folder that are looked into


class IntakeRules(Frozen):
    """Which folders are cases and when they are whole."""

    ready_marker: str | None = Field(
        default="_CASE_READY",
        min_length=1,
        pattern=r"^[^/\\]+$",
        description="File that says the transfer is over. It counts for the folder in which it lies and all "
        "below it; the inbox itself and the room folders G1 and G2 do not count. Empty: no marker is needed",
    )
    settle_s: float = Field(
        default=5.0,
        ge=0,
        le=3600,
        allow_inf_nan=False,
        description="A case is believed only if no name, size or time in it changed for this long, s",
    )
    session_gap_h: float = Field(
        default=4.0,
        gt=0,
        le=168,
        allow_inf_nan=False,
        description="A beam that comes again after a pause longer than this belongs to the next fraction, h; "
        "within it a person decides which delivery counts",
    )
    max_depth: int = Field(
        default=4,
        ge=1,
        le=10,
        description="How many folders below the inbox a case folder may lie (1: directly in it)",
    )
    match_study_uid: bool = Field(
        default=True,
        description="Refuse a delivery whose study instance UID is not the plan's. "
        "Switch off only where the machine writes another study than the plan has",
    )
    ignored: tuple[str, ...] = Field(
        default=("*.extracting", "*.zip.tmp", "*.backup.*", "extract_*.tmp", ".*", "*.part"),
        description="Names of files and folders that are not looked at: what a transfer is still working on",
    )

    def ignores(self, name: str) -> bool:
        """Whether a file or folder of this name is passed over."""
        return any(fnmatchcase(name, pattern) for pattern in self.ignored)


class Seen(NamedTuple):
    """A file as the file system tells it. ``path`` is POSIX, relative to the folder that was walked."""

    path: str
    size: int
    mtime_ns: int
    is_link: bool

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]

    @property
    def folder(self) -> str:
        """The part before the name; empty for a file directly in the folder that was walked."""
        return self.path.rpartition("/")[0]


def subfolders(folder: Path, rules: IntakeRules) -> tuple[Path, ...]:
    """The folders directly in ``folder``, by name; links and ignored names left out.

    A folder that vanished or may not be read has none: the walk goes on beside it.
    """
    try:
        with os.scandir(folder) as entries:
            names = sorted(
                entry.name
                for entry in entries
                if entry.is_dir(follow_symlinks=False) and not rules.ignores(entry.name)
            )
    except OSError:
        return ()
    return tuple(folder / name for name in names)


def files_in(folder: Path, rules: IntakeRules) -> tuple[Seen, ...]:
    """The files directly in ``folder``, by name; see files_below."""
    return tuple(sorted(_walk(folder, "", rules, 0), key=lambda seen: seen.path))


def files_below(folder: Path, rules: IntakeRules) -> tuple[Seen, ...]:
    """All files below ``folder`` by path, without opening one. Links to folders are listed, not entered.

    What is neither a file nor a folder (a socket, a device) is left out; a link counts with its own time
    and size.
    """
    return tuple(sorted(_walk(folder, "", rules, _DEEPEST_FILE), key=lambda seen: seen.path))


def _walk(folder: Path, prefix: str, rules: IntakeRules, depth: int) -> Iterator[Seen]:
    try:
        with os.scandir(folder) as entries:
            listed = [entry for entry in entries if not rules.ignores(entry.name)]
    except OSError:
        return
    for entry in listed:
        path = f"{prefix}{entry.name}"
        if entry.is_dir(follow_symlinks=False):
            if depth:
                yield from _walk(folder / entry.name, f"{path}/", rules, depth - 1)
            continue
        try:
            facts = entry.stat(follow_symlinks=False)
        except OSError:
            continue
        is_link = stat.S_ISLNK(facts.st_mode)
        if is_link or stat.S_ISREG(facts.st_mode):
            yield Seen(path=path, size=facts.st_size, mtime_ns=facts.st_mtime_ns, is_link=is_link)


def irradiation_time(name: str) -> datetime | None:
    """The moment that a timestamp folder's name gives (YYYYMMDDHHMMSScc), None for any other name."""
    if not _TIMESTAMP.fullmatch(name):
        return None
    try:
        moment = datetime.strptime(name, "%Y%m%d%H%M%S%f")
    except ValueError:
        return None
    return moment if name.startswith(f"{moment:%Y%m%d%H%M%S}") else None  # strptime takes one-digit months


def is_text(name: str) -> bool:
    """Whether a name of the file system is UTF-8, so that it can stand in JSON and be found again."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_delivery(folder: Path, rules: IntakeRules) -> bool:
    """Whether a folder is one irradiation: it holds log files, or bears a timestamp and is still empty."""
    return delivery_kind(folder, rules) is not None


def delivery_kind(folder: Path, rules: IntakeRules) -> Literal["logs", "empty"] | None:
    """How a folder is known as a delivery: by its log files, or, while it is empty, by its name alone."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if not rules.ignores(entry.name)]
    except OSError:
        return None
    if any(_LOG_FILE.fullmatch(name) for name in names):
        return "logs"
    return "empty" if not names and irradiation_time(folder.name) is not None else None


def room_of_path(folder: Path, root: Path) -> str | None:
    """The room folder ("G1" or "G2") in which a case lies below the root, if any."""
    for part in folder.relative_to(root).parts[:-1]:
        if ROOM_FOLDER.fullmatch(part):
            return part
    return None


def marker_has_arrived(folder: Path, root: Path, rules: IntakeRules) -> bool:
    """Whether the ready marker lies in the case folder or in a folder between it and the root."""
    if rules.ready_marker is None:
        return True
    while folder not in (root, folder.parent):
        if not ROOM_FOLDER.fullmatch(folder.name) and (folder / rules.ready_marker).is_file():
            return True
        folder = folder.parent
    return False
