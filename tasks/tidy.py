"""clean_up_host: what a finished case leaves on the host and in its staging folder goes."""

from __future__ import annotations

import shutil
from pathlib import Path

from prefect import task
from prefect.logging import get_run_logger

from mqi.errors import MQIError
from mqi.hosts import connect
from mqi.hosts.base import HostSettings
from tasks.values import BeamDose

__all__ = ["clean_up_host"]


@task(name="clean-up-host", task_run_name="clean up", persist_result=False)
def clean_up_host(folder: str, doses: tuple[BeamDose, ...], host: HostSettings) -> None:
    """Remove a finished fraction's jobs and inputs from the host, and its staging folders here.

    While a beam has failed everything is kept: for a person to look at, and for another run to find. The
    nightly clean-up removes it after some days. A host that does not answer now is left to that clean-up
    too: a finished case must not fail for it.
    """
    there = connect(host)
    for dose in doses:
        prepared = dose.finished.prepared
        try:
            there.remove(dose.finished.job.name)
            there.remove(prepared.name)
        except MQIError as error:
            get_run_logger().warning("Left on %s for the nightly clean-up: %s", host.name, error)
        shutil.rmtree(prepared.unit.work, ignore_errors=True)
    work = Path(folder, "work")
    if work.is_dir() and not any(work.iterdir()):
        work.rmdir()
