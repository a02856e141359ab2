"""clean-up: what nobody needs any more goes, every night."""

from __future__ import annotations

import time
from contextlib import suppress

from prefect import flow
from prefect.logging import get_run_logger

from blocks import load_site
from mqi.errors import ResourceError
from mqi.hosts import connect
from tasks import alive

__all__ = ["clean_up"]

DAY_S = 86_400.0


@flow(name="clean-up", persist_result=False)
def clean_up(host: str = "local") -> None:
    """Remove jobs that failed days ago from the host, with their inputs.

    What succeeded was removed when its case ended. How long failures are kept for a person to look at is
    ``keep_failed_days`` of the host's block.

    Args:
        host: Name of the compute host's block.
    """
    with alive():
        site = load_site(host)
        there = connect(site.host)
        before = time.time() - site.host.keep_failed_days * DAY_S
        for job in there.list():
            if job.ended and job.ended_at is not None and job.ended_at < before:
                there.remove(job.name)
                with suppress(ResourceError):  # another attempt still uses it
                    there.remove(job.name.rpartition(".a")[0])
                get_run_logger().info("Removed job %s (%s)", job.name, job.reason)
