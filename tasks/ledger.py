"""The record of a case while a run works on it: taken in hand, begun, ended."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from prefect import runtime
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed

from mqi.case import CaseManifest, CaseStatus, DoseSource, JobStatus, Verdict, settled_status
from mqi.engines.settings import EngineSettings
from mqi.log.calibration import CalibrationSet
from mqi.qa import QaVerdict
from mqi.record import (
    BeamRecord,
    CaseRecord,
    DoseRecord,
    advance,
    case_lock,
    read_record,
    record_folder,
    try_case_lock,
    with_beam,
    write_record,
)
from mqi.words import VERDICT_WORDS
from tasks.recovery import first_run
from tasks.runs import OUTCOME, being_cancelled, present_run, tag_outcome
from tasks.values import BeamDose, Outcomes, Report, Unit

__all__ = ["begin_case", "case_in_hand", "end_case", "units_of"]

CANCELLED = "Cancelled by a person; nothing more is computed. Press Retry of its run to go on"


@contextmanager
def case_in_hand(results: str, manifest: CaseManifest) -> Iterator[Path]:
    """Give the fraction's results folder, held by this run alone; a second run waits and says for whom."""
    folder = record_folder(Path(results), manifest.key, manifest.fraction_id)
    run_id = str(runtime.flow_run.id)
    with try_case_lock(folder, run_id) as holder:
        if holder.acquired:
            _discard_parts(folder)
            with _last_word(folder):
                yield folder
            return
    get_run_logger().info("Another run works on this fraction; waiting for %s", holder)
    with case_lock(folder, run_id), _last_word(folder):
        _discard_parts(folder)
        yield folder


@contextmanager
def _last_word(folder: Path) -> Iterator[None]:
    """Let the record say why a run ended before its end: an error outside the beams' steps, or a Cancel.

    A run whose process is only told to stop (the worker stops, the machine shuts down) goes on later: its
    record stays as it is.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, Exception):
            _write_failure(folder, str(error) or type(error).__name__)
        elif being_cancelled():
            _write_failure(folder, CANCELLED)
        raise


def _write_failure(folder: Path, message: str) -> None:
    record = read_record(folder)
    if record and record.status is CaseStatus.PROCESSING and record.flow_run == str(runtime.flow_run.id):
        ended = {"status": advance(record.status, CaseStatus.FAILED), "message": message}
        write_record(folder, record.model_copy(update={**ended, "updated_at": datetime.now(UTC)}))


def _discard_parts(folder: Path) -> None:
    """Remove what a killed run was writing; nobody else writes, since the fraction is in our hand."""
    for part in list(folder.rglob("*.part")):
        if part.is_dir():
            shutil.rmtree(part)
        else:
            part.unlink(missing_ok=True)


def begin_case(folder: Path, manifest: CaseManifest, *, recalculate: bool) -> State[None] | None:
    """Write down that this run works on the fraction; answer with a state when there is nothing to do.

    The record decides: what is COMPLETED from the same files is not computed again.
    """
    before = read_record(folder)
    if before and before.status is CaseStatus.COMPLETED and before.manifest == manifest and not recalculate:
        verdict = QaVerdict.model_validate(before.verdict).verdict
        return _judged(
            verdict,
            f"Done before, on {before.updated_at:%Y-%m-%d %H:%M} UTC; nothing was computed. "
            "Run it with recalculate to compute it again.",
        )
    now = datetime.now(UTC)
    write_record(
        folder,
        CaseRecord(
            status=advance(before.status if before else None, CaseStatus.PROCESSING),
            key=manifest.key,
            fraction_id=manifest.fraction_id,
            fraction_number=manifest.fraction_number,
            manifest=manifest,
            beams=before.beams if before and before.manifest == manifest and not recalculate else (),
            flow_run=str(runtime.flow_run.id),
            attempt=before.attempt + 1 if before and recalculate else before.attempt if before else 1,
            created_at=before.created_at if before else now,
            updated_at=now,
        ),
    )
    return None


def units_of(manifest: CaseManifest, folder: Path, *, recalculate: bool) -> list[Unit]:
    """The engine runs of a fraction: each beam from its logs, and from the plan through the same engine."""
    again = str(first_run(present_run()))[:8] if recalculate else ""
    return [
        Unit(manifest=manifest, beam_number=beam.number, source=source, folder=str(folder), again=again)
        for beam in manifest.beams
        for source in DoseSource
    ]


def end_case(
    folder: Path,
    outcomes: Outcomes,
    verdict: QaVerdict,
    report: Report,
    engine: EngineSettings,
    calibration: CalibrationSet,
) -> State[None]:
    """Write the record's last word and give the run the state that says the truth."""
    record = read_record(folder)
    assert record is not None and record.manifest is not None  # begin_case wrote it
    for beam in record.manifest.beams:
        doses = {
            dose.unit.source: _dose_record(dose, engine, calibration)
            for dose in outcomes.doses
            if dose.unit.beam_number == beam.number
        }
        error = outcomes.failed.get(beam.number)
        ended = JobStatus.FAILED if error else JobStatus.COMPLETED
        record = with_beam(
            record, BeamRecord(number=beam.number, name=beam.name, status=ended, error=error, doses=doses)
        )
    status = settled_status(beam.status is JobStatus.COMPLETED for beam in record.beams)
    message = _message(outcomes.failed, verdict)
    write_record(
        folder,
        record.model_copy(
            update={
                "status": advance(record.status, status),
                "verdict": verdict.model_dump(mode="json"),
                "reports": (report.html.path, report.pdf.path),
                "message": message,
                "updated_at": datetime.now(UTC),
            }
        ),
    )
    if status is CaseStatus.COMPLETED:
        return _judged(verdict.verdict, message)
    return Failed(name=status.value.capitalize(), message=message)


def _judged(verdict: Verdict, message: str) -> State[None]:
    """The state of a run with a verdict: red where a person must act, whatever went well on the way."""
    words = VERDICT_WORDS[verdict]
    tag_outcome(words)
    state = Failed if verdict in (Verdict.FAIL, Verdict.NOT_EVALUABLE) else Completed
    return state(name=f"{OUTCOME}{words}", message=message)


def _message(failed: Mapping[int, str], verdict: QaVerdict) -> str:
    if failed:
        return "; ".join(f"beam {number}: {why}" for number, why in sorted(failed.items()))
    return "; ".join(verdict.reasons) or "All beams within tolerance."


def _dose_record(dose: BeamDose, engine: EngineSettings, calibration: CalibrationSet) -> DoseRecord:
    job = dose.finished.job
    prepared = dose.finished.prepared
    seconds = job.ended_at - job.started_at if job.ended_at and job.started_at else None
    return DoseRecord(
        job=job.name,
        attempt=int(job.name.rpartition(".a")[2]),
        host=dose.finished.host,
        slot=job.slot or "",
        engine=engine.engine,
        engine_version=prepared.engine_version,
        parameters_sha256=hashlib.sha256(engine.model_dump_json().encode()).hexdigest(),
        seed=engine.random_seed,
        calibration=calibration.name,
        calibration_sha256=calibration.sha256,
        input_digest=prepared.input.digest,
        output=dose.dose,
        timings={"engine": seconds} if seconds is not None else {},
    )
