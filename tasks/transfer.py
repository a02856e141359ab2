"""upload_beam and download_beam: verified copies to the host and back."""

from __future__ import annotations

from pathlib import Path

from prefect import task

from mqi.hosts import connect
from mqi.hosts.base import HostSettings
from tasks.caching import WhileFilesStand
from tasks.values import DownloadedDose, FinishedJob, PreparedBeam, UploadedBeam

__all__ = ["download_beam", "upload_beam"]


@task(
    name="upload-beam",
    task_run_name="upload {prepared.unit.label}",
    persist_result=True,
    cache_policy=WhileFilesStand(within_run=True),
    result_serializer="json",
)
def upload_beam(prepared: PreparedBeam, host: HostSettings) -> UploadedBeam:
    """Put the input folder on the host; what is there and verified is not sent again."""
    remote = connect(host).put(prepared.unit.work / "input", prepared.name)
    return UploadedBeam(prepared=prepared, host=host.name, remote_folder=remote)


@task(
    name="download-beam",
    task_run_name="download {finished.prepared.unit.label}",
    persist_result=True,
    cache_policy=WhileFilesStand(),
    result_serializer="json",
)
def download_beam(finished: FinishedJob, host: HostSettings) -> DownloadedDose:
    """Bring the engine's output and its log home, verified."""
    unit = finished.prepared.unit
    wanted = (finished.prepared.input.output.path, "out", "err")
    files = connect(host).get(finished.job.name, wanted, Path(unit.work, "job"))
    return DownloadedDose(finished=finished, files=files)
