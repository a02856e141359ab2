"""What a report says, before it is laid out. No patient name, no birth date: there is no place for them."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from mqi.qa import BeamVerdict, QaVerdict

__all__ = [
    "BeamPage",
    "CalibrationFacts",
    "EngineFacts",
    "FileHash",
    "Picture",
    "ReportContent",
    "ReportFiles",
]


@dataclass(frozen=True)
class Picture:
    """A PNG with its heading and a sentence that says how to read it."""

    title: str
    caption: str
    png: bytes
    width_px: int
    height_px: int

    @property
    def data_uri(self) -> str:
        """The picture as a ``data:`` address, so that a page holds it and needs no second file."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")


@dataclass(frozen=True)
class BeamPage:
    """A judged beam with its pictures. ``overview`` is the small one for summaries and artifacts."""

    verdict: BeamVerdict
    overview: Picture | None = None
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class EngineFacts:
    """What computed the doses. ``analytic``: the embedded model, which is no clinical engine."""

    name: str
    version: str
    analytic: bool
    seed: int | None = None
    parameters: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class CalibrationFacts:
    """The machine's calibration set: name, version, and the SHA-256 of its content."""

    name: str
    version: str
    sha256: str


@dataclass(frozen=True)
class FileHash:
    """A file that went in or came out, relative to the case or result folder, and its SHA-256."""

    path: str
    sha256: str


@dataclass(frozen=True)
class ReportContent:
    """Everything that the report of one fraction says.

    ``pages`` hold the beams of ``verdict`` in the same order, with pictures. ``irradiated_at`` is on the
    machine's clock, without a time zone; ``generated_at`` has one.
    """

    case_key: str
    patient_id: str
    plan_label: str
    plan_uid: str
    fraction_number: int
    machine: str
    irradiated_at: datetime
    engine: EngineFacts
    calibration: CalibrationFacts
    verdict: QaVerdict
    pages: tuple[BeamPage, ...]
    software_version: str
    generated_at: datetime
    inputs: tuple[FileHash, ...] = ()
    outputs: tuple[FileHash, ...] = ()
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if [page.verdict for page in self.pages] != list(self.verdict.beams):
            raise ValueError("the report's pages are not the beams of its verdict")
        if self.generated_at.tzinfo is None:
            raise ValueError("generated_at has no time zone")


@dataclass(frozen=True)
class ReportFiles:
    """Where the report was written."""

    html: Path
    pdf: Path
