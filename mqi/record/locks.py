"""One process for each fraction at a time: a file lock that dies with its process."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from pydantic import ValidationError as ModelError

from mqi.case import Frozen

__all__ = ["LockHolder", "case_lock", "try_case_lock"]

LOCK_NAME: Final = ".lock"


class LockHolder(Frozen):
    """Who works on a fraction. All but ``acquired`` may be unknown."""

    acquired: bool  # by the one who asked
    pid: int | None = None
    host: str | None = None
    flow_run: str | None = None
    since: datetime | None = None

    def __str__(self) -> str:
        who = f"flow run {self.flow_run}" if self.flow_run else f"process {self.pid or 'unknown'}"
        where = f" on {self.host}" if self.host else ""
        when = f" since {self.since:%Y-%m-%d %H:%M:%S} UTC" if self.since else ""
        return f"{who}{where}{when}"


@contextmanager
def case_lock(folder: Path, flow_run: str | None = None) -> Iterator[LockHolder]:
    """Hold the fraction's lock; waits for as long as another process holds it."""
    descriptor = _opened(folder)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield _signed(descriptor, flow_run)
    finally:
        os.close(descriptor)


@contextmanager
def try_case_lock(folder: Path, flow_run: str | None = None) -> Iterator[LockHolder]:
    """Hold the fraction's lock if it is free (``acquired``), else say who holds it; never waits.

    >>> with try_case_lock(folder) as holder:        # doctest: +SKIP
    ...     if not holder.acquired:
    ...         print(f"waits for {holder}")
    """
    descriptor = _opened(folder)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield _holder(descriptor)
        else:
            yield _signed(descriptor, flow_run)
    finally:
        os.close(descriptor)


def _opened(folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    return os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o640)


def _signed(descriptor: int, flow_run: str | None) -> LockHolder:
    """Write down who holds the lock: for those who wait, never to decide by."""
    holder = LockHolder(
        acquired=True, pid=os.getpid(), host=socket.gethostname(), flow_run=flow_run, since=datetime.now(UTC)
    )
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, holder.model_dump_json(exclude={"acquired"}).encode(), 0)
    return holder


def _holder(descriptor: int) -> LockHolder:
    try:
        return LockHolder(acquired=False, **json.loads(os.pread(descriptor, 4096, 0)))
    except (ValueError, TypeError, ModelError):
        return LockHolder(acquired=False)
