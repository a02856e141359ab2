"""What the scanner remembers between two scans. A cache only: deleted, it costs one slow scan."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

from mqi.record import HISTORY_EVENT, HISTORY_NAME, TERMINAL, read_history_from

__all__ = ["CASE", "INDEX_NAME", "PASSAGE", "PLAN_ONLY", "Known", "ScanIndex"]

INDEX_NAME: Final = "scan-index.sqlite"
PASSAGE: Final = "passage"  # a folder on the way to cases
CASE: Final = "case"
PLAN_ONLY: Final = "plan only"  # a case with a plan and no delivery yet

_VERSION = 1
_BUSY_S = 20.0
_SCHEMA = """
CREATE TABLE folders (
    path TEXT PRIMARY KEY,          -- relative to the inbox
    mtime_ns INTEGER NOT NULL,
    kind TEXT NOT NULL,
    records TEXT NOT NULL DEFAULT '',       -- JSON [[path in results, mtime_ns], ...]; '' while not settled
    listed_until REAL NOT NULL DEFAULT 0,   -- UNIX time until which a settled case stays in the worklist
    signature TEXT NOT NULL DEFAULT '',
    since REAL NOT NULL DEFAULT 0,          -- when the signature was first seen, UNIX time
    walked_at REAL NOT NULL DEFAULT 0,
    folder_times TEXT NOT NULL DEFAULT '',
    looks TEXT NOT NULL DEFAULT '',
    rows TEXT NOT NULL DEFAULT ''
) WITHOUT ROWID;
CREATE TABLE fractions (
    key TEXT NOT NULL,
    fraction_id TEXT NOT NULL,
    first_seen REAL,
    submitted_attempt INTEGER,
    submitted_at REAL,
    PRIMARY KEY (key, fraction_id)
) WITHOUT ROWID;
CREATE TABLE attempts (
    key TEXT NOT NULL,
    fraction_id TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    ended INTEGER NOT NULL,
    PRIMARY KEY (key, fraction_id)
) WITHOUT ROWID;
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""


class Known(NamedTuple):
    """What is remembered of an unsettled case folder."""

    signature: str
    since: float
    walked_at: float
    folder_times: str
    looks: str
    rows: str


class ScanIndex:
    """The scanner's memory, an SQLite file in the results folder.

    A file that is damaged, of another version, or of other rules is begun anew.

    >>> with ScanIndex(results) as index:        # doctest: +SKIP
    ...     found = scan(root, results, rules, index, now)
    """

    def __init__(self, results: Path) -> None:
        results.mkdir(parents=True, exist_ok=True)
        self._results = results
        self._path = results / INDEX_NAME
        try:
            self._db = self._opened()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
                raise
            self._remove()
            self._db = self._opened()

    def __enter__(self) -> ScanIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _opened(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, timeout=_BUSY_S, isolation_level=None)
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=NORMAL")
            version = db.execute("PRAGMA user_version").fetchone()[0]
            db.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if version not in (0, _VERSION):
                raise sqlite3.DatabaseError("another version")
            if version == 0:
                db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version={_VERSION}; COMMIT;")
        except sqlite3.DatabaseError:
            db.close()
            raise
        return db

    def _remove(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)

    def restart_if_damaged(self, error: sqlite3.DatabaseError) -> None:
        """Begin anew after an error in the middle of a scan. Raises the error again if it is only a lock."""
        if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
            raise error
        self._db.close()
        self._remove()
        self._db = self._opened()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:  # an interrupt too: a half transaction would keep all others out
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def forget_other_rules(self, rules: str) -> None:
        """Forget all folders when the inbox or the rules are not those of the last scan."""
        if self._fact("rules") != rules:
            self._db.execute("DELETE FROM folders")
            self._set_fact("rules", rules)

    def folders(self) -> dict[str, tuple[int, str]]:
        """Modification time (ns) and kind of every known folder, by its path."""
        rows = self._db.execute("SELECT path, mtime_ns, kind FROM folders").fetchall()
        return {path: (mtime_ns, kind) for path, mtime_ns, kind in rows}

    def settled(self) -> dict[str, tuple[list[list[str | int]], float]]:
        """Record files with their times, and the end of listing, of each settled case."""
        rows = self._db.execute(
            "SELECT path, records, listed_until FROM folders WHERE records != ''"
        ).fetchall()
        texts = [row[1] for row in rows]
        parsed = json.loads(f"[{','.join(texts)}]")
        return {row[0]: (records, row[2]) for row, records in zip(rows, parsed, strict=True)}

    def known(self, path: str) -> Known | None:
        """What is remembered of a case folder."""
        row = self._db.execute(
            "SELECT signature, since, walked_at, folder_times, looks, rows FROM folders WHERE path=?", (path,)
        ).fetchone()
        return Known(*row) if row and row[0] else None

    def rows_of(self, path: str) -> str:
        """The worklist rows of a settled case, JSON."""
        row = self._db.execute("SELECT rows FROM folders WHERE path=?", (path,)).fetchone()
        return str(row[0])

    def set_folders(self, rows: Iterable[tuple[str, int, str]]) -> None:
        """Remember path, mtime_ns and kind of folders; what was known of their content stays."""
        self._db.executemany(
            "INSERT INTO folders (path, mtime_ns, kind) VALUES (?, ?, ?) "
            "ON CONFLICT (path) DO UPDATE SET mtime_ns=excluded.mtime_ns, kind=excluded.kind",
            rows,
        )

    def drop_folders(self, paths: Iterable[str]) -> None:
        """Forget folders that are gone."""
        self._db.executemany("DELETE FROM folders WHERE path=?", ((path,) for path in paths))

    def set_case(self, path: str, known: Known, records: str, listed_until: float) -> None:
        """Remember a look at a case; ``records`` is "" while it is not settled."""
        self._db.execute(
            "UPDATE folders SET signature=?, since=?, walked_at=?, folder_times=?, looks=?, rows=?, "
            "records=?, listed_until=? WHERE path=?",
            (*known, records, listed_until, path),
        )

    def first_seen(self, key: str, fraction_id: str, now: datetime) -> datetime:
        """Since when this fraction is waiting: the first time that it was asked for."""
        self._db.execute(
            "INSERT INTO fractions (key, fraction_id, first_seen) VALUES (?, ?, ?) "
            "ON CONFLICT DO UPDATE SET first_seen=coalesce(first_seen, excluded.first_seen)",
            (key, fraction_id, now.timestamp()),
        )
        row = self._db.execute(
            "SELECT first_seen FROM fractions WHERE key=? AND fraction_id=?", (key, fraction_id)
        ).fetchone()
        return datetime.fromtimestamp(row[0], UTC)

    def mark_submitted(self, key: str, fraction_id: str, attempt: int, now: datetime) -> None:
        """Remember that a run was asked for, so that the next scans do not ask again at once."""
        self._db.execute(
            "INSERT INTO fractions (key, fraction_id, submitted_attempt, submitted_at) VALUES (?, ?, ?, ?) "
            "ON CONFLICT DO UPDATE SET submitted_attempt=excluded.submitted_attempt, "
            "submitted_at=excluded.submitted_at",
            (key, fraction_id, attempt, now.timestamp()),
        )

    def submitted_at(self, key: str, fraction_id: str, attempt: int) -> float | None:
        """When this attempt was last asked for, UNIX time; None if never."""
        row = self._db.execute(
            "SELECT submitted_at FROM fractions WHERE key=? AND fraction_id=? AND submitted_attempt=?",
            (key, fraction_id, attempt),
        ).fetchone()
        return None if row is None else float(row[0])

    def next_attempt(self, key: str, fraction_id: str) -> int:
        """The attempt that a fraction without a record is at: a new one when its last one had ended."""
        self._read_history()
        row = self._db.execute(
            "SELECT attempt, ended FROM attempts WHERE key=? AND fraction_id=?", (key, fraction_id)
        ).fetchone()
        return 1 if row is None else int(row[0]) + int(row[1])

    def _read_history(self) -> None:
        path = self._results / HISTORY_NAME
        size = path.stat().st_size if path.exists() else 0
        offset = int(self._fact("history") or 0)
        if size < offset:
            offset = 0
        if size == offset:
            return
        for event, behind in read_history_from(self._results, offset):
            offset = behind
            key, fraction_id, attempt = event.get("key"), event.get("fraction_id"), event.get("attempt")
            if event.get("event") == HISTORY_EVENT and isinstance(attempt, int):
                ended = event.get("status") in {status.value for status in TERMINAL}
                self._db.execute(
                    "INSERT OR REPLACE INTO attempts VALUES (?, ?, ?, ?)",
                    (str(key), str(fraction_id), attempt, ended),
                )
        self._set_fact("history", str(offset))

    def _fact(self, name: str) -> str | None:
        row = self._db.execute("SELECT value FROM facts WHERE name=?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def _set_fact(self, name: str, value: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))
