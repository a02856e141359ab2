"""Flow runs as the Prefect server knows them: started once, named, found dead, run again by themselves.

A run whose process died is found in one of three ways: the worker that started it saw it end (at once);
its lock on this machine is free although the server says Running (the next look of the scanner, or `up`);
its heartbeat stopped (the automation that `deployments apply` installs: any machine, 90 s). All three leave
it Crashed, and a crashed run is scheduled again here, a bounded number of times.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TextIO
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
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings
from prefect.states import AwaitingRetry, Crashed, Running

from mqi.scan import Ready, ScanRow

__all__ = [
    "MAX_RUNS",
    "OUTCOME",
    "alive",
    "being_cancelled",
    "name_run",
    "note_lease",
    "read_run",
    "recover_runs",
    "start_case",
    "start_refused",
    "tag_outcome",
]

CASE_FLOW = "process-case"
DEPLOYMENT = "mqi"
OUTCOME = "QA "
"""How the state's name and the tag of a run with a verdict begin."""
MAX_RUNS = 5
"""Starts of one run that may end with its process before a crashed run is left to a person."""
STUCK_PENDING = timedelta(minutes=3)
"""A worker starts a run within seconds of claiming it (a minute on a swamped machine, measured); one that is
Pending for longer lost its worker. If it was only slow, nothing is done twice: the lock of its fraction
and the names of its jobs see to that."""

_LEASE = re.compile(r"^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$", re.MULTILINE)


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


def _runs_in(client: SyncPrefectClient, flow: str | None, *types: StateType) -> list[FlowRun]:
    return client.read_flow_runs(
        flow_filter=FlowFilter(name=FlowFilterName(any_=[flow])) if flow else None,
        flow_run_filter=FlowRunFilter(
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(types)))
        ),
    )


def recover_runs() -> list[str]:
    """Crash the runs that died unseen on this machine, and schedule crashed case runs again.

    Returns a sentence for each run that was touched.
    """
    told: list[str] = []
    with get_client(sync_client=True) as client:
        for run_id, leases in _died_here():
            for lease in leases:
                client.release_concurrency_slots_with_lease(lease)  # harmless when it was released
            run = _read(client, run_id)
            if run and run.state and run.state.type in (StateType.RUNNING, StateType.CANCELLING):
                client.set_flow_run_state(run_id, Crashed(message="Its process ended unseen."), force=True)
                told.append(f"{run.name}: its process ended unseen; marked as crashed")
        overdue = datetime.now(UTC) - STUCK_PENDING
        for run in _runs_in(client, CASE_FLOW, StateType.PENDING):
            if run.deployment_id and run.state and run.state.timestamp < overdue:
                client.set_flow_run_state(
                    run.id, Crashed(message="Its worker vanished before it began."), force=True
                )
                told.append(f"{run.name}: its worker vanished; marked as crashed")
        for run in _runs_in(client, CASE_FLOW, StateType.CRASHED):
            if _lives_here(run.id):
                _set_running_again(client, run)
                told.append(f"{run.name}: marked as crashed, but it runs; set right")
            elif run.deployment_id and (deaths := _deaths(client, run)) < MAX_RUNS:
                again: State[None] = AwaitingRetry(
                    message=f"Crashed; run again by itself ({deaths} of {MAX_RUNS} starts used)."
                )
                client.set_flow_run_state(run.id, again, force=True)
                told.append(f"{run.name}: crashed; run again by itself")
    return told


def _deaths(client: SyncPrefectClient, run: FlowRun) -> int:
    """How many starts of a run ended with its process.

    Not the run's own count: that also rises when a report that came too late hits the run's next start.
    """
    if run.run_count < MAX_RUNS:
        return run.run_count
    states = sorted(client.read_flow_run_states(run.id), key=lambda state: state.timestamp)
    types = [state.type for state in states]
    return sum(
        (before, crash) == (StateType.RUNNING, StateType.CRASHED) and after is not StateType.RUNNING
        for before, crash, after in zip(types, types[1:], [*types[2:], None], strict=False)
    )


def _set_running_again(client: SyncPrefectClient, run: FlowRun) -> None:
    """Take back a report of a crash that came too late.

    Prefect's worker reports the end of a killed process twice, the second time after its hooks (seconds on
    an idle machine, half a minute on a busy one): by then the run has been started again.
    """
    not_counted = run.empirical_policy.model_copy(update={"resuming": True})  # as a start
    client.update_flow_run(run.id, empirical_policy=not_counted)
    state: State[None] = Running(message="Reported as crashed, but its process lives.")
    client.set_flow_run_state(run.id, state, force=True)


def _read(client: SyncPrefectClient, run_id: UUID) -> FlowRun | None:
    try:
        return client.read_flow_run(run_id)
    except ObjectNotFound:
        return None


def read_run(run_id: str) -> FlowRun | None:
    """The run with this id, or None when the server does not know it (any more)."""
    with get_client(sync_client=True) as client:
        return _read(client, UUID(run_id))


def start_case(ready: Ready, host: str) -> str:
    """Start the case flow for a fraction, once, however often and by whomever it is asked.

    Returns what a person should know of a run that was started before and has ended badly; else "".
    """
    return _start(
        {"case": ready.folder, "plan": ready.plan_uid, "fraction": ready.fraction_id, "host": host},
        key=ready.idempotency_key,
        name=f"{ready.key} · fraction {ready.fraction_number}",
        tags=[ready.key],
    )


def start_refused(row: ScanRow, host: str) -> str:
    """Start the case flow for a case that intake refuses: it fails at once, with the reason, for all to see.

    The same refusal is told once; when the files change, what is wrong with them then is told anew.
    """
    reasons = hashlib.sha256("\0".join([row.folder, row.key or "", *row.waiting_for]).encode()).hexdigest()[
        :16
    ]
    name = f"{row.key or 'unknown case'} · refused"
    _start(
        {"case": row.folder, "plan": row.plan_uid, "host": host},
        key=f"refused/{reasons}",
        name=name,
        tags=[row.key] if row.key else [],
    )
    return f"Correct the files: the scanner looks again by itself. Run {name} says the same"


def _start(parameters: dict[str, str | None], *, key: str, name: str, tags: list[str]) -> str:
    run = run_deployment(
        f"{CASE_FLOW}/{DEPLOYMENT}",
        parameters=parameters,
        flow_run_name=name,
        tags=tags,
        timeout=0,
        as_subflow=False,  # otherwise every repeated scan leaves an orphan task run behind
        idempotency_key=key,
    )
    assert isinstance(run, FlowRun)  # run_deployment is typed as FlowRun | Coroutine
    if run.state is None or not run.state.is_final() or run.state.is_completed():
        return ""
    why = (run.state.message or "").rstrip(".")
    return f"run {run.name} ended {run.state.name}: {why}. Mend the case; press Retry there"


def name_run(name: str, tags: list[str]) -> None:
    """Name the present run so that a person finds the case by it, however it was started."""
    run_id = runtime.flow_run.id
    if run_id is None:
        return
    with get_client(sync_client=True) as client:
        kept = {tag for tag in runtime.flow_run.tags if not tag.startswith(OUTCOME)}
        client.update_flow_run(UUID(str(run_id)), name=name, tags=sorted({*tags, *kept}))


def tag_outcome(words: str) -> None:
    """Tag the present run with its verdict, by which the Runs page can be filtered."""
    run_id = runtime.flow_run.id
    if run_id is None:
        return
    with get_client(sync_client=True) as client:
        before = client.read_flow_run(UUID(str(run_id))).tags
        kept = {tag for tag in before if not tag.startswith(OUTCOME)}
        client.update_flow_run(UUID(str(run_id)), tags=sorted({*kept, f"{OUTCOME}{words}"}))


def being_cancelled() -> bool:
    """Whether a person asked to cancel the present run (and not only its process was told to end)."""
    run_id = runtime.flow_run.id
    if run_id is None:
        return False
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(UUID(str(run_id))).state
    return state is not None and state.type in (StateType.CANCELLING, StateType.CANCELLED)
