"""``history.jsonl``: what happened, one line each, appended by any process, never rewritten."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from mqi.errors import ResourceError

__all__ = ["HISTORY_NAME", "append_history", "read_history", "read_history_from"]

HISTORY_NAME: Final = "history.jsonl"


def append_history(results: Path, event: Mapping[str, Any]) -> None:
    """Append one line, with the time ``at`` (UTC) in front, and make it survive a power cut.

    Safe for several processes and machines that share the folder. A line that a crash left torn is ended
    first, so that it takes no other with it. Raises ResourceError when the disk does not take the line.
    """
    line = json.dumps(
        {"at": datetime.now(UTC).isoformat()} | dict(event), ensure_ascii=False, allow_nan=False
    )
    content = f"{line}\n".encode(errors="backslashreplace")
    path = results / HISTORY_NAME
    try:
        results.mkdir(parents=True, exist_ok=True)
        _append(path, content)
    except OSError as error:
        raise ResourceError(
            f"the history cannot be written ({error.strerror})",
            path=path,
            todo="Check the disk's free space and the folder's rights",
        ) from error


def _append(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o640)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            content = b"\n" + content
        if os.write(descriptor, content) != len(content):
            raise ResourceError("the disk did not take the whole line", path=path, todo="Free some space")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_history(results: Path) -> Iterator[dict[str, Any]]:
    """Yield all events in their order. A line that is torn or damaged is passed over."""
    for event, _ in read_history_from(results, 0):
        yield event


def read_history_from(results: Path, offset: int) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield the events from a byte offset on, each with the offset behind it. Only ended lines count."""
    try:
        stream = (results / HISTORY_NAME).open("rb")
    except FileNotFoundError:
        return
    with stream:
        stream.seek(offset)
        for line in stream:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            try:
                event = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(event, dict):
                yield event, offset
