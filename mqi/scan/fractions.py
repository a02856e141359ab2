"""Where a case's fractions stand: what the look found, against what the records say."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple

from mqi.case import CaseStatus, Verdict
from mqi.errors import ConfigurationError, ValidationError
from mqi.intake import CaseLook, FractionLook, IntakeRules
from mqi.intake.rules import is_delivery, subfolders
from mqi.record import (
    RECORD_NAME,
    TERMINAL,
    CaseRecord,
    read_record,
    record_folder,
    try_case_lock,
)
from mqi.scan.index import ScanIndex
from mqi.scan.values import REFUSED, Ready, ScanRow

__all__ = ["ASK_AGAIN_S", "SETTLING", "CaseState", "finished_before", "recorded_row", "state_of"]

ASK_AGAIN_S: Final = 600.0
"""A run that was asked for and did not begin, or that died without a trace, is asked for again after this
long. The idempotency key makes that harmless where the first one is only late."""

SETTLING: Final = "the files may still be arriving: they are looked at once more"


class CaseState(NamedTuple):
    """One folder's lines of the worklist, the fractions that can start, and the record files read."""

    rows: tuple[ScanRow, ...]
    ready: tuple[Ready, ...]
    record_files: tuple[Path, ...]


def state_of(
    found: Iterable[CaseLook], settled: bool, results: Path, index: ScanIndex, now: datetime
) -> CaseState:
    """Compare looks with records. ``settled``: no file changed for as long as the rules ask.

    Raises MQIError when a record cannot be read (it is of a newer version).
    """
    rows: list[ScanRow] = []
    ready: list[Ready] = []
    files: list[Path] = []
    for one in found:
        state = _state(one, settled, results, index, now)
        rows += state.rows
        ready += state.ready
        files += state.record_files
    return CaseState(tuple(rows), tuple(ready), tuple(files))


def _state(one: CaseLook, settled: bool, results: Path, index: ScanIndex, now: datetime) -> CaseState:
    records = _records(one, results)
    rows: list[ScanRow] = []
    ready: list[Ready] = []
    named: set[str] = set()
    used = {d.id for r in records.values() if r.manifest for b in r.manifest.beams for d in b.deliveries}
    for fraction in one.fractions:
        named.add(fraction.fraction_id)
        record = records.get(fraction.fraction_id)
        if record is not None and record.status in TERMINAL:
            rows.append(recorded_row(one.folder, record, results, _unused(fraction, record)))
        elif record is not None and record.status in (CaseStatus.QUEUED, CaseStatus.PROCESSING):
            rows.append(recorded_row(one.folder, record, results, ""))
            if _has_died(record, results, now):
                ready += _asked(one, fraction, record.attempt, index, now)
        elif fraction.deliveries and all(d.id in used for d in fraction.deliveries):
            continue  # a person made another fraction of them
        elif one.problems:
            continue
        elif fraction.whole and settled and one.key:
            attempt = index.next_attempt(one.key, fraction.fraction_id)
            asked = _asked(one, fraction, attempt, index, now)
            ready += asked
            rows.append(
                _waiting(one, fraction, CaseStatus.NEW if asked else CaseStatus.QUEUED, (), index, now)
            )
        else:
            waiting_for = fraction.waiting_for or (SETTLING,)
            rows.append(_waiting(one, fraction, CaseStatus.WAITING, waiting_for, index, now))
    rows += [
        recorded_row(one.folder, record, results, "") for name, record in records.items() if name not in named
    ]
    if one.problems or (not one.fractions and not records):
        rows.append(_about_case(one, settled, index, now))
    files = tuple(record_file(results, record) for record in records.values())
    return CaseState(tuple(rows), tuple(ready), files)


def finished_before(
    folder: Path, records: Iterable[CaseRecord], results: Path, rules: IntakeRules
) -> CaseState | None:
    """The state of a case whose records account for all its deliveries and have all ended, else None.

    For a scan that remembers nothing: so it need not look into every case that was ever finished.
    """
    ended = [record for record in records if record.status in TERMINAL]
    used = {d.id for r in ended if r.manifest for b in r.manifest.beams for d in b.deliveries}
    present = {child.name for child in subfolders(folder, rules) if is_delivery(child, rules)}
    if not used or not present <= used:
        return None
    rows = tuple(recorded_row(str(folder), record, results, "") for record in ended)
    return CaseState(rows, (), tuple(record_file(results, record) for record in ended))


def _records(one: CaseLook, results: Path) -> dict[str, CaseRecord]:
    """All records of this case, by fraction id, in their order."""
    if one.key is None:
        return {}
    folder = results / one.key
    try:
        names = sorted(child.name for child in folder.iterdir() if (child / RECORD_NAME).exists())
    except OSError:
        return {}
    records = {}
    for name in names:
        try:
            record = read_record(record_folder(results, one.key, name))
        except ConfigurationError as error:
            raise ValidationError(error.what, case=one.key, path=error.path, todo=error.todo) from error
        if record is not None:
            records[name] = record
    return records


def record_file(results: Path, record: CaseRecord) -> Path:
    """Where a fraction's record stands."""
    return record_folder(results, record.key, record.fraction_id) / RECORD_NAME


def _unused(fraction: FractionLook, record: CaseRecord) -> str:
    """Say which deliveries of a finished fraction its computation did not use."""
    if record.manifest is None:
        return ""
    used = {delivery.id for beam in record.manifest.beams for delivery in beam.deliveries}
    unused = [delivery.id for delivery in fraction.deliveries if delivery.id not in used]
    return f"also delivered and not part of this result: {', '.join(unused)}" if unused else ""


def recorded_row(case_folder: str, record: CaseRecord, results: Path, note: str) -> ScanRow:
    """The line of the worklist for a fraction that has a record."""
    folder = record_folder(results, record.key, record.fraction_id)
    return ScanRow(
        key=record.key,
        folder=case_folder,
        fraction_id=record.fraction_id,
        fraction_number=record.fraction_number,
        status=record.status,
        since=record.updated_at,
        verdict=_verdict(record),
        report=str(folder / record.reports[0]) if record.reports else None,
        flow_run=record.flow_run,
        message="; ".join(filter(None, (record.message, note))),
        unused_deliveries=bool(note),
        attempt=record.attempt,
    )


def _verdict(record: CaseRecord) -> Verdict | None:
    word = (record.verdict or {}).get("verdict")
    return Verdict(word) if isinstance(word, str) and word in set(Verdict) else None


def _waiting(
    one: CaseLook,
    fraction: FractionLook,
    status: CaseStatus,
    waiting_for: tuple[str, ...],
    index: ScanIndex,
    now: datetime,
) -> ScanRow:
    return ScanRow(
        key=one.key,
        folder=one.folder,
        fraction_id=fraction.fraction_id,
        fraction_number=fraction.number,
        status=status,
        waiting_for=waiting_for,
        since=index.first_seen(one.key or one.folder, fraction.fraction_id, now),
    )


def _about_case(one: CaseLook, settled: bool, index: ScanIndex, now: datetime) -> ScanRow:
    """The case as a whole: refused, or without a fraction so far."""
    refused = bool(one.problems) and settled
    settling = (SETTLING,) if one.problems and not settled else ()
    return ScanRow(
        key=one.key,
        folder=one.folder,
        plan_uid=one.plan_uid,
        status=REFUSED if refused else CaseStatus.WAITING,
        waiting_for=(one.problems or one.waiting_for) + settling,
        since=index.first_seen(one.key or one.folder, "", now),
    )


def _has_died(record: CaseRecord, results: Path, now: datetime) -> bool:
    """Whether nobody has worked on a begun fraction for a while: its process holds no lock."""
    if now - record.updated_at.astimezone(UTC) < timedelta(seconds=ASK_AGAIN_S):
        return False
    with try_case_lock(record_folder(results, record.key, record.fraction_id)) as holder:
        return holder.acquired


def _asked(
    one: CaseLook, fraction: FractionLook, attempt: int, index: ScanIndex, now: datetime
) -> list[Ready]:
    """The fraction as one that can start, unless its run was asked for a moment ago."""
    if one.key is None or one.plan_uid is None:
        return []
    asked_at = index.submitted_at(one.key, fraction.fraction_id, attempt)
    if asked_at is not None and now.timestamp() - asked_at < ASK_AGAIN_S:
        return []
    return [
        Ready(
            key=one.key,
            folder=one.folder,
            plan_uid=one.plan_uid,
            fraction_id=fraction.fraction_id,
            fraction_number=fraction.number,
            attempt=attempt,
        )
    ]
