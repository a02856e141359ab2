"""A run that is told to end: its waiting steps let go at once, and a cancelled run ends its engines.

A run ends in two ways while engines compute. A person presses Cancel: the engines are ended. The worker is
stopped, or the machine shut down: the engines go on on their host and the run finds them again.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
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

_lock = threading.Lock()
_jobs: dict[str, HostSettings] = {}


class Stopped(HostConnectionError):
    """The run was told to end while this step waited. What runs on the host is left to its owner."""


@contextmanager
def running(host: HostSettings, job: str) -> Iterator[None]:
    """Note that this run waits for a job, so that a Cancel reaches it."""
    with _lock:
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
        if being_cancelled():
            _cancel_jobs()
        STOP.set()
        raise


def _cancel_jobs() -> None:
    with _lock:
        jobs = dict(_jobs)
    for job, host in jobs.items():
        get_run_logger().warning("Cancelled: ending %s on %s", job, host.name)
        connect(host).cancel(job, CANCEL_GRACE_S)
