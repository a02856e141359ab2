"""Writing and reading ``case.json``: whole or not at all, and found again when it was damaged."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError as ModelError

from mqi.case import CaseManifest, CaseStatus, FileFact, JobStatus, settled_status
from mqi.errors import ConfigurationError, ResourceError, ValidationError
from mqi.files import inside, sha256_of, write_atomically
from mqi.record.history import append_history, read_history
from mqi.record.values import SCHEMA_VERSION, TERMINAL, BeamRecord, CaseRecord

__all__ = [
    "BACKUP_NAME",
    "HISTORY_EVENT",
    "MANIFEST_NAME",
    "RECORD_NAME",
    "read_record",
    "rebuild",
    "record_folder",
    "write_record",
]

RECORD_NAME: Final = "case.json"
BACKUP_NAME: Final = "case.json.bak"
MANIFEST_NAME: Final = "manifest.json"
HISTORY_EVENT: Final = "record"

_MIGRATIONS: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""From a schema version to the next: takes the parsed record, gives the one of the following version."""

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


def record_folder(results: Path, key: str, fraction_id: str) -> Path:
    """Where a fraction's results stand. Raises ValidationError for names that are no plain folder names."""
    for name in (key, fraction_id):
        if not _PLAIN_NAME.fullmatch(name):
            raise ValidationError(f"{name[:60]!r} cannot name a results folder", case=key[:60])
    return results / key / fraction_id


def write_record(folder: Path, record: CaseRecord) -> None:
    """Write ``case.json``; the last good one is kept beside it, and the history gets a line.

    The caller holds the fraction's lock (mqi.locks). A kill at any moment leaves the old record or the new
    one. Raises ValidationError when the folder is another fraction's, ResourceError when the disk refuses.
    """
    if (folder.parent.name, folder.name) != (record.key, record.fraction_id):
        raise ValidationError("the record belongs into another folder", case=record.key, path=folder)
    try:
        _write(folder, record)
    except OSError as error:
        raise ResourceError(
            f"the record cannot be written ({error.strerror})",
            case=record.key,
            path=folder,
            todo="Check the disk's free space and the folder's rights",
        ) from error
    append_history(folder.parent.parent, {"event": HISTORY_EVENT} | _without_manifest(record))


def _write(folder: Path, record: CaseRecord) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for left_over in folder.glob("*.json*.part"):
        left_over.unlink(missing_ok=True)
    path = folder / RECORD_NAME
    if path.exists():
        if _parsed(path) is None:
            _set_aside(path)
        else:
            write_atomically(folder / BACKUP_NAME, path.read_bytes())
    if record.manifest is not None:
        manifest = record.manifest.model_dump_json(indent=1).encode()
        manifest_path = folder / MANIFEST_NAME
        if not manifest_path.exists() or manifest_path.read_bytes() != manifest:
            write_atomically(manifest_path, manifest)
    write_atomically(path, record.model_dump_json(indent=1).encode())


def read_record(folder: Path) -> CaseRecord | None:
    """Read a fraction's record; None where there is none (a person who deletes it wants the case run again).

    A damaged one is set aside as ``case.json.damaged-<UTC>``; what ``rebuild`` finds, or else the backup, is
    written in its place: the history has the last state, the backup the one before it.

    Raises
    ------
    ConfigurationError
        The record was written by a newer version of this program.
    """
    path = folder / RECORD_NAME
    if not path.exists():
        return None
    record = _parsed(path)
    if record is not None:
        return record
    _set_aside(path)
    restored = rebuild(folder) if _last_state(folder) else _parsed(folder / BACKUP_NAME) or rebuild(folder)
    write_record(folder, restored)
    return restored


def rebuild(folder: Path) -> CaseRecord:
    """Make a record from the history, ``manifest.json`` and the doses that are there with their hashes.

    A beam is finished only if all its doses are still there, byte by byte. Of what nothing is known, the
    record says so: FAILED, to be run again by a person.
    """
    key, fraction_id = folder.parent.name, folder.name
    manifest = _manifest(folder)
    now = datetime.now(UTC)
    record = CaseRecord(
        status=CaseStatus.FAILED,
        key=key,
        fraction_id=fraction_id,
        fraction_number=manifest.fraction_number if manifest else 0,
        message="the record was damaged and nothing is known of this fraction: run it again",
        created_at=now,
        updated_at=now,
    )
    record = _last_state(folder) or record
    beams = tuple(_verified(folder, beam) for beam in record.beams)
    if beams != record.beams or record.status not in TERMINAL:
        status = settled_status(beam.status is JobStatus.COMPLETED for beam in beams)
        message = "the record was rebuilt, some of it was lost: run the fraction again"
        record = record.model_copy(update={"status": status, "message": message})
    return record.model_copy(update={"manifest": manifest, "beams": beams, "updated_at": now})


def _last_state(folder: Path) -> CaseRecord | None:
    """The fraction's last state in the history, without its manifest."""
    wanted = (HISTORY_EVENT, folder.parent.name, folder.name)
    last = None
    for event in read_history(folder.parent.parent):
        if (event.get("event"), event.get("key"), event.get("fraction_id")) == wanted:
            last = _record_of(event) or last
    return last


def _parsed(path: Path) -> CaseRecord | None:
    """A record, or None when the file is missing or damaged."""
    try:
        raw = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return _record_of(raw, path)


def _record_of(raw: object, path: Path | None = None) -> CaseRecord | None:
    if not isinstance(raw, dict):
        return None
    try:
        return CaseRecord.model_validate_json(json.dumps(_migrated(_without_event(raw), path)))
    except (ModelError, ValueError):
        return None


def _migrated(raw: dict[str, Any], path: Path | None) -> dict[str, Any]:
    """Bring a record of an older schema to this one, step by step."""
    version = raw.get("schema_version")
    if not isinstance(version, int):
        raise ValueError("no schema version")
    if version > SCHEMA_VERSION:
        raise ConfigurationError(
            f"the record has schema version {version}, this program knows {SCHEMA_VERSION}",
            path=path,
            todo="Update MQI Communicator to the version that wrote it",
        )
    while version < SCHEMA_VERSION:
        if version not in _MIGRATIONS:
            raise ValueError(f"schema version {version} was never in use")
        raw = _MIGRATIONS[version](raw)
        version += 1
    return raw


def _without_event(raw: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in raw.items() if name not in ("event", "at")}


def _without_manifest(record: CaseRecord) -> dict[str, Any]:
    dumped: dict[str, Any] = record.model_dump(mode="json", exclude={"manifest"})
    return dumped


def _set_aside(path: Path) -> None:
    now = datetime.now(UTC)
    with suppress(FileNotFoundError):  # another process was first
        path.replace(path.with_name(f"{path.name}.damaged-{now:%Y%m%dT%H%M%S.%f}Z"))


def _manifest(folder: Path) -> CaseManifest | None:
    try:
        manifest = CaseManifest.model_validate_json((folder / MANIFEST_NAME).read_bytes())
    except (OSError, ModelError):
        return None
    return manifest if (manifest.key, manifest.fraction_id) == (folder.parent.name, folder.name) else None


def _verified(folder: Path, beam: BeamRecord) -> BeamRecord:
    """The beam as it was, if its doses are still there with their hashes; else a failed one."""
    if beam.status is JobStatus.COMPLETED and beam.doses:
        if all(_is_there(folder, dose.output) for dose in beam.doses.values()):
            return beam
        return beam.model_copy(update={"status": JobStatus.FAILED, "error": "its dose was lost or changed"})
    if beam.status is JobStatus.FAILED:
        return beam
    return beam.model_copy(
        update={"status": JobStatus.FAILED, "error": "its record was lost before it ended"}
    )


def _is_there(folder: Path, fact: FileFact) -> bool:
    try:
        path = inside(folder, fact.path)
        return path.stat().st_size == fact.size and sha256_of(path) == fact.sha256
    except (OSError, ValidationError):
        return False
