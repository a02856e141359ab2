"""What a scan finds: a worklist for people, and the fractions that can start."""

from __future__ import annotations

from datetime import datetime
from typing import Final, Literal

from mqi.case import CaseStatus, Frozen, Verdict

__all__ = ["REFUSED", "Ready", "ScanResult", "ScanRow"]

REFUSED: Final = "refused"


class ScanRow(Frozen):
    """One line of the worklist: a fraction, or a case that has none yet.

    ``status`` is the record's, or "waiting", or "refused" when the files contradict each other and a
    person must look. ``since`` is when it was first seen waiting, else when it last changed (UTC).
    ``unused_deliveries``: more was delivered than the result contains, as ``message`` says.
    """

    key: str | None
    folder: str
    plan_uid: str | None = None  # only where the row is about the whole case
    fraction_id: str | None = None
    fraction_number: int | None = None
    status: CaseStatus | Literal["refused"]
    waiting_for: tuple[str, ...] = ()
    since: datetime
    verdict: Verdict | None = None
    report: str | None = None
    flow_run: str | None = None
    message: str = ""
    unused_deliveries: bool = False
    attempt: int | None = None


class Ready(Frozen):
    """A fraction that is whole, settled, and has not been started."""

    key: str
    folder: str
    plan_uid: str
    fraction_id: str
    fraction_number: int
    attempt: int

    @property
    def idempotency_key(self) -> str:
        """The same for the same attempt, whoever asks and how often."""
        return f"{self.key}/{self.fraction_id}/{self.attempt}"


class ScanResult(Frozen):
    """What one scan found. ``finished`` counts settled cases that are too old for the worklist."""

    rows: tuple[ScanRow, ...]
    ready: tuple[Ready, ...]
    finished: int
