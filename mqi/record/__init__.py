"""``case.json`` beside the results: the lasting truth about a fraction, readable without Prefect.

::

    results/history.jsonl                        one line for each thing that happened, only ever appended
    results/<case key>/<fraction id>/case.json   this fraction: status, manifest, beams, jobs, verdict
                                     case.json.bak      the version before
                                     manifest.json      the manifest, written once
                                     .lock              who works on it

A reader sees the old record or the new one, never half of one. What cannot be read is set aside, never
deleted, and the record is taken from its backup, or rebuilt from the history and the files that are there.
"""

from mqi.record.history import HISTORY_NAME, append_history, read_history, read_history_from
from mqi.record.locks import LockHolder, case_lock, try_case_lock
from mqi.record.store import (
    BACKUP_NAME,
    HISTORY_EVENT,
    MANIFEST_NAME,
    RECORD_NAME,
    read_record,
    rebuild,
    record_folder,
    write_record,
)
from mqi.record.values import (
    SCHEMA_VERSION,
    TERMINAL,
    BeamRecord,
    CaseRecord,
    DoseRecord,
    advance,
    with_beam,
)

__all__ = [
    "BACKUP_NAME",
    "HISTORY_EVENT",
    "HISTORY_NAME",
    "MANIFEST_NAME",
    "RECORD_NAME",
    "SCHEMA_VERSION",
    "TERMINAL",
    "BeamRecord",
    "CaseRecord",
    "DoseRecord",
    "LockHolder",
    "advance",
    "append_history",
    "case_lock",
    "read_history",
    "read_history_from",
    "read_record",
    "rebuild",
    "record_folder",
    "try_case_lock",
    "with_beam",
    "write_record",
]
