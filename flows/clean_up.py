"""clean-up: what nobody needs any more goes, every night."""

from __future__ import annotations

import time

from prefect import flow

from blocks import load_site
from tasks import alive, forget_old_results, remove_old_failures

__all__ = ["clean_up"]

DAY_S = 86_400.0
RESULT_DAYS = 90
"""As long as the server keeps runs: after that nobody can press Retry on them."""


@flow(name="clean-up", flow_run_name="clean up", persist_result=False)
def clean_up(host: str = "local") -> None:
    """Remove jobs that failed days ago from the host, and what old runs' steps handed on.

    What succeeded was removed when its case ended. How long failures are kept for a person to look at is
    ``keep_failed_days`` of the host's block. Results and records are never removed.

    Args:
        host: Name of the compute host's block.
    """
    with alive():
        site = load_site(host)
        remove_old_failures(site.host, time.time() - site.host.keep_failed_days * DAY_S)
        forget_old_results(time.time() - RESULT_DAYS * DAY_S)
