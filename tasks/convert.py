"""convert_beam: the engine's output as a valid DICOM RT Dose."""

from __future__ import annotations

from pathlib import Path

from prefect import task
from pydicom.uid import generate_uid

from mqi.dose.rtdose import write_rtdose
from mqi.engines import moqui
from mqi.errors import ProcessingError
from mqi.files import fact_of, inside
from mqi.hosts import connect
from mqi.hosts.base import HostSettings
from mqi.plan import read_plan
from tasks.caching import WhileFilesStand
from tasks.values import BeamDose, DownloadedDose, FinishedJob

__all__ = ["convert_beam"]


@task(
    name="convert-beam",
    task_run_name="convert {downloaded.finished.prepared.unit.label}",
    persist_result=True,
    cache_policy=WhileFilesStand(),
    result_serializer="json",
)
def convert_beam(downloaded: DownloadedDose, host: HostSettings) -> BeamDose:
    """Check the engine's report and dose, and write it as RT Dose. The same job always gives the same file.

    A dose that is no good (missing, not finite, all zero, of another size) counts as a failed attempt,
    whatever the engine's exit status said: Retry runs the engine again.
    """
    prepared = downloaded.finished.prepared
    unit = prepared.unit
    manifest = unit.manifest
    try:
        moqui.check_report((unit.work / "job" / "out").read_text(errors="replace"), prepared.input)
        dose = moqui.read_dose(unit.work / "job", prepared.input, case=manifest.key, beam=unit.beam_number)
    except ProcessingError:
        _reject(downloaded.finished, host)
        raise
    path = Path(unit.folder, "doses", f"{unit.slug}.dcm")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_rtdose(
        path,
        dose,
        plan=read_plan(inside(Path(manifest.folder), manifest.plan.path)),
        beam_number=unit.beam_number,
        sop_uid=generate_uid(entropy_srcs=[prepared.name, "sop"]),
        series_uid=generate_uid(entropy_srcs=[manifest.key, manifest.fraction_id, unit.source, "series"]),
        comment=f"{unit.label}, fraction {manifest.fraction_number}",
    )
    return BeamDose(finished=downloaded.finished, dose=fact_of(path, Path(unit.folder)))


def _reject(finished: FinishedJob, host: HostSettings) -> None:
    """Make sure that nobody takes this attempt for the result: neither the host nor a cached step."""
    connect(host).ack(finished.job.name)
    finished.rejection.parent.mkdir(parents=True, exist_ok=True)
    finished.rejection.touch()
