"""Admission to a host's GPUs: the Prefect concurrency limit ``gpu-<host>``.

The limit admits, is seen in the UI, and can be lowered by hand to lend GPUs to others. Which GPU a job gets
is decided on the host, by locks that the job itself holds: a slot that a crashed run has left taken here
(until the run is found dead, or for at most its lease) never lets two jobs onto one GPU, and never keeps a
job from being found.

Prefect's ``concurrency()`` is not used: it queues the waiters of a process one behind the other, cannot be
left on a Cancel, and logs an error for each time that it finds no room.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client

from mqi.errors import ConfigurationError
from tasks.progress import BeamProgress
from tasks.recovery import note_lease
from tasks.stopping import STOP, Stopped

__all__ = ["gpu_slot", "limit_name"]

LEASE_S = 60.0
"""The shortest that the server allows: a killed process leaves its slot taken for about this long."""
RENEW_EVERY_S = LEASE_S / 4
POLL_S = 0.3
NO_ROOM = 423
_TURN = threading.Lock()
"""One beam of a run asks at a time: each question is a write to the server's database, which SQLite does one
by one; dozens of waiting beams would keep everything else out. A run has one host."""
_TOLD_TO_END = "the run was told to end while it waited for a GPU"
TOO_SMALL = 422


def limit_name(host: str) -> str:
    """Name of the concurrency limit that stands for a host's GPUs."""
    return f"gpu-{host}"


@contextmanager
def gpu_slot(host: str, progress: BeamProgress) -> Iterator[None]:
    """Hold one slot of the host's limit; say what is waited for.

    A lease that could not be renewed (the server restarts) is no reason to end a calculation.

    Raises ConfigurationError when the limit is missing, Stopped when the run is told to end.
    """
    with get_client(sync_client=True) as client:
        lease = _wait_for_room(client, host, progress)
        note_lease(lease)
        released = threading.Event()
        renewer = threading.Thread(target=_renew, args=(lease, released), name=f"lease {host}", daemon=True)
        renewer.start()
        try:
            yield
        finally:
            released.set()
            renewer.join()
            with suppress(httpx.HTTPError):  # the lease ends by itself
                client.release_concurrency_slots_with_lease(lease)


def _wait_for_room(client: SyncPrefectClient, host: str, progress: BeamProgress) -> UUID:
    waits_for = ""
    while not _TURN.acquire(timeout=POLL_S):
        if not waits_for:
            waits_for = "a free GPU"
            progress.says(f"waiting for {waits_for} on {host}")
        if STOP.is_set():
            raise Stopped(_TOLD_TO_END)
    try:
        while True:
            lease, reason = _ask_for_room(client, limit_name(host))
            if lease is not None:
                return lease
            if reason != waits_for:
                progress.says(f"waiting for {reason} on {host}")
                waits_for = reason
            if STOP.wait(POLL_S * random.uniform(0.5, 1.5)):
                raise Stopped(_TOLD_TO_END)
    finally:
        _TURN.release()


def _ask_for_room(client: SyncPrefectClient, limit: str) -> tuple[UUID | None, str]:
    try:
        answer = client.increment_concurrency_slots_with_lease([limit], 1, "concurrency", LEASE_S).json()
    except httpx.HTTPStatusError as error:
        if error.response.status_code == NO_ROOM:
            return None, "a free GPU"
        if error.response.status_code == TOO_SMALL:
            return None, f"a free GPU (a person has set the limit {limit} to 0)"
        raise
    except httpx.TransportError:
        return None, "the Prefect server, to ask for a GPU"
    if [found["name"] for found in answer["limits"]] != [limit]:
        raise ConfigurationError(
            f"the concurrency limit {limit} is missing", todo="Run `python3 -m deployments apply`"
        )
    return UUID(answer["lease_id"]), ""


def _renew(lease: UUID, released: threading.Event) -> None:
    with get_client(sync_client=True) as client:
        while not released.wait(RENEW_EVERY_S):
            with suppress(httpx.HTTPError):
                client.renew_concurrency_lease(lease, LEASE_S)
