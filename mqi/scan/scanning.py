"""One scan: what has changed since the last one, and what can start."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sqlite3
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter

from mqi.case import CaseStatus
from mqi.errors import MQIError, ValidationError
from mqi.intake import CaseLook, IntakeRules, looks, resolved_root, signature_of
from mqi.intake.rules import marker_has_arrived, subfolders
from mqi.record import RECORD_NAME, TERMINAL, CaseRecord, read_record
from mqi.scan.folders import case_paths, changed_folders
from mqi.scan.fractions import CaseState, finished_before, state_of
from mqi.scan.index import Known, ScanIndex
from mqi.scan.values import REFUSED, Ready, ScanResult, ScanRow

__all__ = ["WORKLIST_DAYS", "rules_digest", "scan"]

WORKLIST_DAYS: Final = 14
"""A case that completed stays in the worklist for this long. One that failed stays until it is run again."""

_LONGEST_TRUST_S: Final = 600.0
_TRUST_SHARE: Final = 60.0
"""A case that did not change for t is walked file by file only every t / 60, at most every ten minutes;
between, the times of its folders tell that nothing arrived."""

_RENAME: Final = "Rename the folder"
_ROWS: Final = TypeAdapter(tuple[ScanRow, ...])
_LOOKS: Final = TypeAdapter(tuple[CaseLook, ...])


def scan(root: Path, results: Path, rules: IntakeRules, index: ScanIndex, now: datetime) -> ScanResult:
    """Find what has arrived, and say of everything that is not finished where it stands.

    A settled case (all its fractions have ended) costs a ``stat`` of its folders and record files: its
    ``case.json`` is read again only when it changed or its folder did.

    Parameters
    ----------
    root, results
        The inbox, and where the records stand.
    now
        The time of this scan (with a time zone).

    Raises
    ------
    ConfigurationError
        The inbox cannot be read.
    """
    inbox = resolved_root(root)
    try:
        with index.transaction():
            return _Scan(inbox, results.resolve(), rules, index, now).run()
    except sqlite3.DatabaseError as error:
        index.restart_if_damaged(error)
        with index.transaction():
            return _Scan(inbox, results.resolve(), rules, index, now).run()


def rules_digest(inbox: Path, results: Path, rules: IntakeRules) -> str:
    """What the remembered looks depend on, beside the files."""
    return hashlib.sha256(f"{inbox!a}\0{results!a}\0{rules.model_dump_json()}".encode()).hexdigest()


class _Scan:
    def __init__(
        self, inbox: Path, results: Path, rules: IntakeRules, index: ScanIndex, now: datetime
    ) -> None:
        self.inbox = inbox
        self.results = results
        self.rules = rules
        self.index = index
        self.now = now
        self.rows: list[ScanRow] = []
        self.ready: list[Ready] = []
        self.recorded: dict[str, list[CaseRecord]] = {}  # by case folder; only for a scan that knows nothing

    def run(self) -> ScanResult:
        self.index.forget_other_rules(rules_digest(self.inbox, self.results, self.rules))
        known = self.index.folders()
        if not known:
            self.recorded = self._records_by_folder()
        changes = changed_folders(self.inbox, self.rules, known, self.now.timestamp())
        self.index.drop_folders(changes.gone)
        self.index.set_folders((path, *facts) for path, facts in changes.found.items())
        kinds = {path: kind for path, (_, kind) in known.items() if path not in changes.gone}
        kinds |= {path: kind for path, (_, kind) in changes.found.items()}
        for name in changes.unnameable:
            self._refuse(name, self.inbox / name, ValidationError("is not UTF-8", path=name, todo=_RENAME))
        settled = self.index.settled()
        finished = 0
        for path in case_paths(kinds):
            remembered = None if path in changes.found else settled.get(path)
            if remembered is None or not self._records_unchanged(remembered[0]):
                self._look(path)
            elif remembered[1] > self.now.timestamp():
                self.rows.extend(_ROWS.validate_json(self.index.rows_of(path)))
            else:
                finished += 1
        return ScanResult(rows=tuple(self.rows), ready=tuple(self.ready), finished=finished)

    def _records_by_folder(self) -> dict[str, list[CaseRecord]]:
        recorded: dict[str, list[CaseRecord]] = {}
        for path in sorted(self.results.glob(f"*/*/{RECORD_NAME}")):
            try:
                record = read_record(path.parent)
            except MQIError:
                continue  # the look at its case says so
            if record is not None and record.manifest is not None:
                recorded.setdefault(record.manifest.folder, []).append(record)
        return recorded

    def _records_unchanged(self, records: list[list[str | int]]) -> bool:
        stat, prefix = os.stat, f"{self.results}/"
        try:
            return all(stat(f"{prefix}{path}").st_mtime_ns == mtime_ns for path, mtime_ns in records)
        except OSError:
            return False

    def _look(self, path: str) -> None:
        """Look at a case that is not settled, or no longer."""
        folder = self.inbox / path
        try:
            state = finished_before(folder, self.recorded.get(str(folder), ()), self.results, self.rules)
            if state is not None:
                known = Known("recorded", self.now.timestamp(), 0.0, "", "[]", "[]")
            else:
                known, found = self._found(path, folder)
                state = state_of(found, self._settled_for(known), self.results, self.index, self.now)
        except MQIError as error:
            self._refuse(path, folder, error)
            return
        self.rows.extend(state.rows)
        self.ready.extend(state.ready)
        records, listed_until = self._settlement(state)
        rows = _ROWS.dump_json(state.rows).decode()
        self.index.set_case(path, known._replace(rows=rows), records, listed_until)

    def _found(self, path: str, folder: Path) -> tuple[Known, tuple[CaseLook, ...]]:
        """The looks at a case: those of the last scan when no file changed since."""
        now = self.now.timestamp()
        known = self.index.known(path)
        times = self._folder_times(folder)
        if known and known.folder_times == times:
            trusted_s = min((now - known.since) / _TRUST_SHARE, _LONGEST_TRUST_S)
            if now - known.walked_at < trusted_s:
                return known, _LOOKS.validate_json(known.looks)
        if known and known.signature == signature_of(folder, self.inbox, self.rules):
            return known._replace(walked_at=now, folder_times=times), _LOOKS.validate_json(known.looks)
        found = looks(folder, self.inbox, self.rules)
        stored = _LOOKS.dump_json(found).decode()
        return Known(found[0].signature, now, now, times, stored, "[]"), found

    def _folder_times(self, folder: Path) -> str:
        """Digest over the times of the case folder and its subfolders, and the ready marker."""
        marker = marker_has_arrived(folder, self.inbox, self.rules)
        times = [str(marker)]
        for one in (folder, *subfolders(folder, self.rules)):
            try:
                times.append(f"{one.name!a} {one.stat().st_mtime_ns}")
            except OSError:
                times.append(f"{one.name!a} gone")
        return hashlib.sha256("\n".join(times).encode()).hexdigest()

    def _settled_for(self, known: Known) -> bool:
        return self.now.timestamp() - known.since >= self.rules.settle_s

    def _refuse(self, path: str, folder: Path, error: MQIError) -> None:
        since = self.index.first_seen(path, "", self.now)
        self.rows.append(
            ScanRow(
                key=error.case,
                folder=str(folder),
                status=CaseStatus.WAITING if error.retryable else REFUSED,
                waiting_for=(str(error),),
                since=since,
            )
        )

    def _settlement(self, state: CaseState) -> tuple[str, float]:
        """The record files of a case that is settled, and until when it is listed; "" when it is not."""
        if not state.rows or not all(_ended(row) for row in state.rows):
            return "", 0.0
        try:
            records = [
                [str(path.relative_to(self.results)), path.stat().st_mtime_ns] for path in state.record_files
            ]
        except OSError:
            return "", 0.0
        if any(row.status is not CaseStatus.COMPLETED or row.unused_deliveries for row in state.rows):
            return json.dumps(records), math.inf
        newest = max(row.since for row in state.rows)
        return json.dumps(records), (newest + timedelta(days=WORKLIST_DAYS)).timestamp()


def _ended(row: ScanRow) -> bool:
    return isinstance(row.status, CaseStatus) and row.status in TERMINAL
