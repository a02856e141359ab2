"""clean_up_host: what a finished case leaves on the host and in its staging folder goes."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from prefect import task
from prefect.logging import get_run_logger
from prefect.settings import get_current_settings

from mqi.errors import MQIError, ResourceError
from mqi.hosts import connect
from mqi.hosts.base import Host, HostSettings
from mqi.record import read_record

__all__ = ["clean_up_host", "forget_old_results", "remove_old_failures"]


@task(name="clean-up-host", task_run_name="clean up", persist_result=False)
def clean_up_host(folder: str, host: HostSettings) -> None:
    """Remove a finished fraction's jobs and inputs from the host, and its staging folders here.

    The record names them, so that a run which finds a fraction done clears what the one before it, killed at
    this very step, has left. Attempts that failed are left to the nightly clean-up, for a person to look at;
    so is everything on a host that does not answer now: a finished case must not fail for it.
    """
    record = read_record(Path(folder))
    assert record is not None  # end_case wrote it
    there = connect(host)
    for beam in record.beams:
        for dose in beam.doses.values():
            if dose.host == host.name:
                try:
                    _remove(there, dose.job)
                except MQIError as error:
                    get_run_logger().warning("Left on %s for the nightly clean-up: %s", host.name, error)
    shutil.rmtree(Path(folder, "work"), ignore_errors=True)


def _remove(there: Host, job: str) -> None:
    """Remove a unit's finished job, the attempts before it that were lost, and its input."""
    unit = job.rpartition(".a")[0]
    for attempt in there.list(f"{unit}.a"):
        if attempt.name == job or attempt.interrupted:
            there.remove(attempt.name)
    there.remove(unit)


@task(name="remove-old-failures", task_run_name="remove old failures", persist_result=False)
def remove_old_failures(host: HostSettings, before: float) -> int:
    """Remove the jobs that ended before a moment (seconds of the epoch), and the inputs only they used."""
    there = connect(host)
    old = [job for job in there.list() if job.ended and job.ended_at is not None and job.ended_at < before]
    for job in old:
        there.remove(job.name)
        with suppress(ResourceError):  # another attempt still uses it
            there.remove(job.name.rpartition(".a")[0])
        get_run_logger().info("Removed job %s (%s)", job.name, job.reason)
    return len(old)


@task(name="forget-old-results", task_run_name="forget old results", persist_result=False)
def forget_old_results(before: float) -> int:
    """Remove what finished steps handed on before a moment. Doses, reports and records are not among it."""
    storage = get_current_settings().results.local_storage_path
    old = [path for path in storage.iterdir() if path.stat().st_mtime < before] if storage.is_dir() else []
    for path in old:
        path.unlink(missing_ok=True)
    return len(old)
