"""A run that is told to end: its waiting steps let go at once, and a cancelled run ends its engines.

A run ends in two ways while engines compute. A person presses Cancel: the engines are ended. The worker is
stopped, or the machine shut down: the engines go on on their host and the run finds them again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from prefect.logging import get_run_logger

from mqi.errors import HostConnectionError
from mqi.hosts import connect
from mqi.hosts.base import HostSettings
from tasks.runs import being_cancelled

__all__ = ["STOP", "Stopped", "running", "stoppable"]

STOP = threading.Event()
"""Set when the run of this process is told to end. A process has one run at a time."""

CANCEL_GRACE_S = 3.0
POLL_S = 0.1

_lock = threading.Lock()
_jobs: dict[str, HostSettings] = {}


class Stopped(HostConnectionError):
    """The run was told to end while this step waited. What runs on the host is left to its owner."""


@contextmanager
def running(host: HostSettings, job: str) -> Iterator[None]:
    """Hold a job in this run's hand, from before it is submitted, so that a Cancel reaches it.

    Raises Stopped when the run is told to end already.
    """
    with _lock:
        if STOP.is_set():
            raise Stopped("the run was told to end before the engine was started")
        _jobs[job] = host
    try:
        yield
    finally:
        with _lock:
            _jobs.pop(job, None)


@contextmanager
def stoppable() -> Iterator[None]:
    """Wrap a run's work: however it is told to end, its steps stop waiting, and a Cancel ends its jobs."""
    STOP.clear()
    try:
        yield
    except BaseException:
        with _lock:  # from here on no step begins a job
            STOP.set()
            jobs = dict(_jobs)
        if jobs and being_cancelled():
            for job, host in jobs.items():
                get_run_logger().warning("Cancelled: ending %s on %s", job, host.name)
            with ThreadPoolExecutor(len(jobs)) as pool:
                list(pool.map(_cancel, jobs, jobs.values()))
        raise


def _cancel(job: str, host: HostSettings) -> None:
    """End a job, also one that its step is just submitting; acknowledged, so that a Retry makes a new one."""
    there = connect(host)
    while True:
        with _lock:
            let_go = job not in _jobs
        state = there.cancel(job, CANCEL_GRACE_S)
        if not state.absent or let_go:
            break
        time.sleep(POLL_S)
    if state.ended:
        there.ack(job)
