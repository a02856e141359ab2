"""What one step hands to the next: small, frozen, JSON. Arrays stay in files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mqi.case import CaseManifest, DoseSource, FileFact, Frozen
from mqi.engines.contract import EngineInput
from mqi.files import fact_of
from mqi.hosts.base import JobState
from mqi.log.account import BeamAccount

__all__ = [
    "BeamDose",
    "DownloadedDose",
    "FinishedJob",
    "Outcomes",
    "PreparedBeam",
    "Report",
    "Unit",
    "UploadedBeam",
    "artifact_key",
    "report_of",
]


class Unit(Frozen):
    """One engine run of a case: a beam's dose from one source.

    ``folder`` is the fraction's results folder. ``again`` is empty, or names the run that was told to
    recalculate: it makes new jobs and leaves old ones alone.
    """

    manifest: CaseManifest
    beam_number: int
    source: DoseSource
    folder: str
    again: str = ""

    @property
    def label(self) -> str:
        """Short name for people: ``beam 2 (log)``."""
        return f"beam {self.beam_number} ({self.source})"

    @property
    def slug(self) -> str:
        """Short name for files and artifact keys: ``beam-2-log``."""
        return f"beam-{self.beam_number}-{self.source}"

    @property
    def work(self) -> Path:
        """Local staging folder of this unit; removed once the case is finished."""
        return Path(self.folder, "work", self.slug)


class PreparedBeam(Frozen):
    """A beam's engine input, written and counted. ``account`` and ``spots`` are for source LOG only."""

    unit: Unit
    input: EngineInput
    engine_version: str
    account: BeamAccount | None
    files: tuple[FileFact, ...]
    spots: FileFact | None = None

    def standing_files(self) -> Iterator[tuple[Path, str]]:
        """The files that must stand, with their hashes, for this value to be believed."""
        for file in self.files:
            yield self.unit.work / file.path, file.sha256
        if self.spots:
            yield Path(self.unit.folder, self.spots.path), self.spots.sha256

    @property
    def name(self) -> str:
        """The job's identity: case, beam, source, fraction and the hash of all inputs.

        The plan's dose is the same in every fraction: without the fraction in its name, one fraction's run
        would clean up the job that another one still reads.
        """
        unit, fraction = self.unit, self.unit.manifest.fraction_id
        again = f".r{unit.again}" if unit.again else ""
        what = f"{unit.manifest.key}.b{unit.beam_number:02d}.{unit.source}"
        return f"{what}.{fraction}.{self.input.digest[:16]}{again}"


class UploadedBeam(Frozen):
    """A verified input folder on the host."""

    prepared: PreparedBeam
    host: str
    remote_folder: str


class FinishedJob(Frozen):
    """An engine run that ended well on its host."""

    prepared: PreparedBeam
    host: str
    job: JobState

    @property
    def rejection(self) -> Path:
        """The note that this run's dose is no good, although its engine said that all went well."""
        return self.prepared.unit.work / "rejected" / self.job.name

    @property
    def rejected(self) -> bool:
        """Whether this run is not to be believed any more: a retry makes the next attempt."""
        return self.rejection.exists()


class DownloadedDose(Frozen):
    """The engine's output, verified, on this side: ``files`` below the unit's ``work/job``."""

    finished: FinishedJob
    files: tuple[FileFact, ...]

    def standing_files(self) -> Iterator[tuple[Path, str]]:
        """The files that must stand, with their hashes, for this value to be believed."""
        for file in self.files:
            yield self.finished.prepared.unit.work / "job" / file.path, file.sha256


class BeamDose(Frozen):
    """A valid DICOM RT Dose. ``dose.path`` is relative to the fraction's results folder."""

    finished: FinishedJob
    dose: FileFact

    @property
    def unit(self) -> Unit:
        """The engine run that this dose came from."""
        return self.finished.prepared.unit

    def standing_files(self) -> Iterator[tuple[Path, str]]:
        """The files that must stand, with their hashes, for this value to be believed."""
        yield Path(self.finished.prepared.unit.folder, self.dose.path), self.dose.sha256


class Outcomes(Frozen):
    """What became of a fraction's beams: the doses of those that are whole, and why the others failed."""

    doses: tuple[BeamDose, ...]
    failed: dict[int, str]


class Report(Frozen):
    """The report's files, relative to ``folder``, the fraction's results folder."""

    folder: str
    html: FileFact
    pdf: FileFact

    def standing_files(self) -> Iterator[tuple[Path, str]]:
        """The files that must stand, with their hashes, for this value to be believed."""
        for file in (self.html, self.pdf):
            yield Path(self.folder, file.path), file.sha256


def artifact_key(case_key: str, fraction_number: int, what: str) -> str:
    """Key of an artifact, in the signs that Prefect allows: ``qa-01-7738fced-fraction-1-verdict``."""
    return f"{case_key}-fraction-{fraction_number}-{what}".lower().replace("_", "-")


def report_of(folder: Path, html: Path, pdf: Path) -> Report:
    """The report's files as they were written."""
    return Report(folder=str(folder), html=fact_of(html, folder), pdf=fact_of(pdf, folder))
