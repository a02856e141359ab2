"""A run whose process died is found, marked as crashed, and its case is run again by itself.

It is found in one of three ways: the worker that started it saw it end (at once); its lock on this machine is
free although the server says Running (the next look of the scanner, or `up`); its heartbeat stopped (the
automation that `deployments apply` installs: any machine, 90 s). All three leave it Crashed, and a new run
takes its place, a bounded number of times. It finds results beside the case, and jobs by their names.

It is a new run, and not the same one started again, because Prefect's worker reports a killed process twice,
the second time after looking for hooks (seconds later on an idle machine, half a minute on a busy one): that
would crash the run which has just begun anew.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple, TextIO
from uuid import UUID

from prefect import runtime
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.settings import get_current_settings
from prefect.states import Crashed, Running

from tasks.runs import CASE_FLOW, read_run

__all__ = ["MAX_RUNS", "RUN_AGAIN", "alive", "first_run", "note_lease", "recover_runs"]

MAX_RUNS = 5
"""Runs in a row that may crash at work before a case is left to a person."""
MAX_TRIES = 20
"""Runs in a row, also those that crashed before they began: the server or the worker was just not there."""
RUN_AGAIN = "run again"
"""Tag of a crashed run whose place another one has taken."""
STUCK_PENDING = timedelta(minutes=3)
"""A worker starts a run within seconds of claiming it (a minute on a swamped machine, measured); one that is
Pending for longer lost its worker. If it was only slow, nothing is done twice: the lock of its fraction
and the names of its jobs see to that."""

_UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_LEASE = re.compile(rf"^{_UUID}$", re.MULTILINE)
_SUCCESSOR = re.compile(rf"({_UUID})~([0-9]+)~([0-9]+)")


def _alive_folder() -> Path:
    folder = get_current_settings().home / "alive"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def alive() -> Iterator[None]:
    """Hold a lock in this run's name for as long as its process lives, however it ends."""
    path = _alive_folder() / str(runtime.flow_run.id)
    unseen = path.with_name(f".{path.name}.{os.getpid()}")
    with unseen.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        unseen.replace(path)  # locked before it can be seen: nobody takes a run that begins for a dead one
        try:
            yield
        finally:
            if _is_at(stream, path):  # a second process of the same run may have taken its place
                path.unlink(missing_ok=True)


def _is_at(stream: TextIO, path: Path) -> bool:
    """Whether an open file still has its name."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except FileNotFoundError:
        return False


def note_lease(lease: UUID) -> None:
    """Note a slot that the present run holds: whoever finds the run dead gives it back at once."""
    path = _alive_folder() / str(runtime.flow_run.id)
    with suppress(FileNotFoundError), path.open("r+") as stream:
        stream.seek(0, os.SEEK_END)
        stream.write(f"{lease}\n")


def _died_here() -> Iterator[tuple[UUID, list[UUID]]]:
    """The runs whose process on this machine is gone, and the slots that they held."""
    for path in _alive_folder().glob("[!.]*"):
        with _unless_held(path) as stream:
            if stream is not None:
                yield UUID(path.name), [UUID(lease) for lease in _LEASE.findall(stream.read())]
                path.unlink(missing_ok=True)


def _lives_here(run_id: UUID) -> bool:
    """Whether the run's process lives on this machine."""
    path = _alive_folder() / str(run_id)
    with _unless_held(path) as stream:
        return stream is None and path.exists()


@contextmanager
def _unless_held(path: Path) -> Iterator[TextIO | None]:
    """The file, locked, or None when a live process holds it, or when it is no longer there."""
    try:
        stream = path.open("r+")
    except FileNotFoundError:
        yield None
        return
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        yield stream if _is_at(stream, path) else None


def _runs(client: SyncPrefectClient, state: StateType, *flows: str) -> list[FlowRun]:
    """The newest runs of the deployed flows in a state; not those that a person started at a prompt."""
    found = client.read_flow_runs(
        flow_filter=FlowFilter(name=FlowFilterName(any_=list(flows))) if flows else None,
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[state]))),
        sort=FlowRunSort.EXPECTED_START_TIME_DESC,
    )
    return [run for run in found if run.deployment_id]


def recover_runs() -> list[str]:
    """Crash the runs that died unseen on this machine, and run the cases of crashed runs again.

    Returns a sentence for each run that was touched.
    """
    told: list[str] = []
    with get_client(sync_client=True) as client:
        for run_id, leases in _died_here():
            for lease in leases:
                client.release_concurrency_slots_with_lease(lease)  # harmless when it was released
            run = read_run(str(run_id))
            if run and run.state and run.state.type in (StateType.RUNNING, StateType.CANCELLING):
                client.set_flow_run_state(run_id, Crashed(message="Its process ended unseen."), force=True)
                told.append(f"{run.name}: its process ended unseen; marked as crashed")
        overdue = datetime.now(UTC) - STUCK_PENDING
        for run in _runs(client, StateType.PENDING):
            if run.state and run.state.timestamp < overdue:
                vanished: State[None] = Crashed(message="Its worker vanished before it began.")
                client.set_flow_run_state(run.id, vanished, force=True)
                told.append(f"{run.name}: its worker vanished; marked as crashed")
        for run in _runs(client, StateType.CRASHED, CASE_FLOW):
            if _lives_here(run.id):
                lives: State[None] = Running(message="Marked as crashed, but its process lives.")
                client.set_flow_run_state(run.id, lives, force=True)
                told.append(f"{run.name}: marked as crashed, but its process lives; set right")
            elif RUN_AGAIN not in run.tags and (successor := _place_in_row(run).successor(run)):
                told.append(_run_again(client, run, successor))
    return told


def first_run(run: FlowRun) -> UUID:
    """The run at the head of the row of crashed ones that this run stands in; itself where it has none."""
    return _place_in_row(run).first


class _Place(NamedTuple):
    """Where a run stands in a row of crashed ones: the ``number``-th; ``began`` of those before it began."""

    first: UUID
    number: int
    began: int

    def successor(self, run: FlowRun) -> _Place | None:
        """The place of the run that is to follow this crashed one; None: it is left to a person."""
        following = _Place(self.first, self.number + 1, self.began + (run.run_count > 0))
        return following if following.number <= MAX_TRIES and following.began < MAX_RUNS else None


def _place_in_row(run: FlowRun) -> _Place:
    match = _SUCCESSOR.fullmatch(run.idempotency_key or "")
    return _Place(UUID(match[1]), int(match[2]), int(match[3])) if match else _Place(run.id, 1, 0)


def _run_again(client: SyncPrefectClient, run: FlowRun, place: _Place) -> str:
    """Start the run that takes the place of a crashed one; once, whoever looks at it how often."""
    assert run.deployment_id is not None
    client.create_flow_run_from_deployment(
        run.deployment_id,
        parameters=run.parameters,
        name=run.name,
        tags=run.tags,
        idempotency_key=f"{place.first}~{place.number}~{place.began}",
        work_queue_name=run.work_queue_name,
        job_variables=run.job_variables,
    )
    client.update_flow_run(run.id, tags=[*run.tags, RUN_AGAIN])
    return f"{run.name}: crashed; run again by itself ({place.began} of {MAX_RUNS} runs crashed at work)"
