"""The words of the project as values: case, fraction, delivery, beam, job and their statuses.

Everything here is frozen, small and JSON, so that it can be handed from task to task, written to
``case.json`` and read again years later. Arrays never stand in these models, only paths and hashes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict

__all__ = [
    "BeamManifest",
    "CaseManifest",
    "CaseStatus",
    "Delivery",
    "DoseSource",
    "FileFact",
    "Frozen",
    "JobStatus",
    "LayerLog",
    "Verdict",
    "case_key",
    "settled_status",
    "worst",
]


class Frozen(BaseModel):
    """A value: immutable, compared by content, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class CaseStatus(StrEnum):
    """Where a fraction of a case stands."""

    NEW = "new"
    WAITING = "waiting"  # not whole: something has not arrived
    QUEUED = "queued"
    PROCESSING = "processing"
    COMPLETED = "completed"
    PARTIAL = "partial"  # some beams are finished, some failed
    FAILED = "failed"


class JobStatus(StrEnum):
    """Where an engine's run stands on its host. UNKNOWN: the host does not say."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    UNKNOWN = "unknown"
    CANCELLED = "cancelled"


class Verdict(StrEnum):
    """What the comparison says, by the limits of the QaCriteria (AAPM TG-218)."""

    PASS = "pass"
    ACTION = "action"  # between tolerance and action limit: a physicist looks
    FAIL = "fail"
    NOT_EVALUABLE = "not evaluable"


class DoseSource(StrEnum):
    """What a dose was computed from."""

    LOG = "log"  # what the machine delivered
    PLAN = "plan"  # what was planned, through the same engine


class FileFact(Frozen):
    """A file as it was when the case was accepted. ``path`` is POSIX, relative to the case folder."""

    path: str
    size: int
    sha256: str


class LayerLog(Frozen):
    """One row of PlanRange: an energy layer and the files that logged it.

    ``number`` counts from 1, as the machine does. Range codes are the dose monitors' full-scale
    codes 1 to 5, as delivered and as planned.
    """

    number: int
    energy_mev: float
    dose1_range: int
    dose2_range: int
    plan_dose1_range: int
    plan_dose2_range: int
    ptn: str
    mgn: str


class Delivery(Frozen):
    """One timestamp folder: one irradiation of one beam, whole or interrupted."""

    id: str  # name of the timestamp folder, YYYYMMDDHHMMSScc
    folder: str  # relative to the case folder
    patient_id: str
    study_uid: str
    beam_number: int  # DICOM beam number
    irradiated_at: datetime  # the machine's clock, without a time zone
    start_layer: int
    stop_layer: int
    layers: tuple[LayerLog, ...]


class BeamManifest(Frozen):
    """One treatment beam of a fraction, and the deliveries that together cover its layers."""

    number: int
    name: str
    layer_count: int
    meterset_mu: float
    deliveries: tuple[Delivery, ...]
    files: tuple[FileFact, ...]
    tps_dose: FileFact | None = None


class CaseManifest(Frozen):
    """One fraction of one case, frozen: what will be computed, from which bytes.

    ``plan``, ``ct`` and doses are files below ``folder``; ``machine`` is the calibration set's room
    ("G1" or "G2"); ``fraction_id`` is the id of the fraction's first delivery.
    """

    key: str
    patient_id: str
    plan_uid: str
    folder: str
    plan: FileFact
    machine: str
    fraction_id: str
    fraction_number: int
    beams: tuple[BeamManifest, ...]
    ct: tuple[FileFact, ...] = ()
    tps_plan_dose: FileFact | None = None
    warnings: tuple[str, ...] = ()

    def beam(self, number: int) -> BeamManifest:
        """Return the beam with this DICOM number. Raises KeyError when the manifest has none."""
        for beam in self.beams:
            if beam.number == number:
                return beam
        raise KeyError(number)


def case_key(patient_id: str, plan_uid: str) -> str:
    """Name a case: readable, safe as a folder name, different for a re-plan of the same patient.

    The patient ID is kept as far as it is plain (other characters become ``_``); eight hex digits
    of the SHA-256 over the exact patient ID and plan SOP instance UID keep two cases apart whatever
    their names look like.

    >>> case_key("QA 01", "1.2.3")
    'QA_01-7738fced'
    """
    digest = hashlib.sha256(f"{patient_id}\0{plan_uid}".encode()).hexdigest()[:8]
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", patient_id)[:48] or "_"
    return f"{plain}-{digest}"


def settled_status(beams: Iterable[bool]) -> CaseStatus:
    """Status of a fraction whose beams have all ended: True for finished, False for failed.

    A failed beam never rewrites a finished one: the case is then PARTIAL.
    """
    outcomes = list(beams)
    if outcomes and all(outcomes):
        return CaseStatus.COMPLETED
    return CaseStatus.PARTIAL if any(outcomes) else CaseStatus.FAILED


_SEVERITY = (Verdict.PASS, Verdict.ACTION, Verdict.NOT_EVALUABLE, Verdict.FAIL)


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """Combine verdicts: the worst one stands; nothing to combine is not evaluable, never a pass."""
    return max(verdicts, key=_SEVERITY.index, default=Verdict.NOT_EVALUABLE)
