"""The record as values: a fraction, its beams, their doses, and the moves between statuses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Final, Literal

from pydantic import AwareDatetime, BeforeValidator, Field, JsonValue, field_validator

from mqi.case import CaseManifest, CaseStatus, DoseSource, FileFact, Frozen, JobStatus
from mqi.errors import ValidationError

__all__ = [
    "SCHEMA_VERSION",
    "TERMINAL",
    "BeamRecord",
    "CaseRecord",
    "DoseRecord",
    "advance",
    "with_beam",
]

SCHEMA_VERSION: Final = 1


def _utf8(text: object) -> object:
    """Messages quote file names, and those may be no UTF-8: a record must be written all the same."""
    return text.encode(errors="backslashreplace").decode() if isinstance(text, str) else text


_Message = Annotated[str, BeforeValidator(_utf8)]
_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]

TERMINAL: Final = frozenset({CaseStatus.COMPLETED, CaseStatus.PARTIAL, CaseStatus.FAILED})
"""Statuses in which nothing more happens by itself. From them only a new attempt leads on."""

_WAITING_TO_RUN = frozenset({CaseStatus.NEW, CaseStatus.WAITING, CaseStatus.QUEUED, CaseStatus.PROCESSING})
_MOVES: Final[Mapping[CaseStatus | None, frozenset[CaseStatus]]] = {
    None: _WAITING_TO_RUN | {CaseStatus.FAILED},
    CaseStatus.NEW: _WAITING_TO_RUN | {CaseStatus.FAILED},
    CaseStatus.WAITING: _WAITING_TO_RUN - {CaseStatus.NEW} | {CaseStatus.FAILED},
    CaseStatus.QUEUED: _WAITING_TO_RUN - {CaseStatus.NEW} | {CaseStatus.FAILED},
    CaseStatus.PROCESSING: frozenset({CaseStatus.QUEUED, CaseStatus.PROCESSING}) | TERMINAL,
    CaseStatus.COMPLETED: frozenset({CaseStatus.COMPLETED, CaseStatus.QUEUED, CaseStatus.PROCESSING}),
    CaseStatus.PARTIAL: frozenset({CaseStatus.PARTIAL, CaseStatus.QUEUED, CaseStatus.PROCESSING}),
    CaseStatus.FAILED: frozenset({CaseStatus.FAILED, CaseStatus.QUEUED, CaseStatus.PROCESSING}),
}


class DoseRecord(Frozen):
    """How one dose of one beam came about. ``output`` is relative to the fraction's results folder."""

    job: str
    attempt: int
    host: str
    slot: str
    engine: str
    engine_version: str
    parameters_sha256: str
    seed: int | None
    calibration: str
    calibration_sha256: str
    input_digest: str
    output: FileFact
    timings: dict[str, _Seconds] = Field(default_factory=dict)  # seconds by step


class BeamRecord(Frozen):
    """One treatment beam: how far it came, why it failed, and its doses by what they were computed from."""

    number: int
    name: str
    status: JobStatus
    error: _Message | None = None
    doses: dict[DoseSource, DoseRecord] = Field(default_factory=dict)


class CaseRecord(Frozen):
    """One fraction of one case. Times are UTC; ``verdict`` is the JSON of mqi.qa.QaVerdict.

    ``manifest`` is None only while the case was not accepted yet, or when it was lost with the record.
    ``reports`` are paths relative to the fraction's results folder.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    status: CaseStatus
    key: str
    fraction_id: str
    fraction_number: int
    manifest: CaseManifest | None = None
    verdict: dict[str, JsonValue] | None = None
    beams: tuple[BeamRecord, ...] = ()
    reports: tuple[str, ...] = ()
    message: _Message = ""  # what a person should know: why it failed, what it waits for
    flow_run: str | None = None
    attempt: Annotated[int, Field(ge=1)] = 1
    created_at: AwareDatetime
    updated_at: AwareDatetime

    @field_validator("verdict")
    @classmethod
    def _is_json(cls, verdict: dict[str, JsonValue] | None) -> dict[str, JsonValue] | None:
        json.dumps(verdict, allow_nan=False)  # NaN and infinity are no JSON: raises ValueError
        return verdict


def advance(old: CaseStatus | None, new: CaseStatus) -> CaseStatus:
    """Move a case to its next status: the one place that says which moves there are.

    A finished case changes only by a new attempt (QUEUED or PROCESSING first).

    Raises
    ------
    ValidationError
        There is no such move.
    """
    if new not in _MOVES[old]:
        raise ValidationError(
            f"a case cannot go from {old.value if old else 'nothing'} to {new.value}",
            todo="Start a new attempt: it is queued first",
        )
    return new


def with_beam(record: CaseRecord, beam: BeamRecord) -> CaseRecord:
    """The record with this beam in place of the one with its number; beams stay in the order of numbers.

    A finished beam is replaced by a finished one only: what failed later never rewrites it.
    """
    known = {one.number: one for one in record.beams}
    before = known.get(beam.number)
    if before and before.status is JobStatus.COMPLETED and beam.status is not JobStatus.COMPLETED:
        return record
    known[beam.number] = beam
    return record.model_copy(update={"beams": tuple(known[number] for number in sorted(known))})
