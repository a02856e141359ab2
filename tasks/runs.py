"""Flow runs as the Prefect server knows them: started once, named, tagged, cancelled."""

from __future__ import annotations

import hashlib
from uuid import UUID

from prefect import runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound

from mqi.scan import Ready, ScanRow

__all__ = [
    "CASE_FLOW",
    "OUTCOME",
    "being_cancelled",
    "name_run",
    "present_run",
    "read_run",
    "start_case",
    "start_refused",
    "tag_outcome",
]

CASE_FLOW = "process-case"
DEPLOYMENT = "mqi"
OUTCOME = "QA "
"""How the state's name and the tag of a run with a verdict begin."""


def read_run(run_id: str) -> FlowRun | None:
    """The run with this id, or None when the server does not know it (any more)."""
    with get_client(sync_client=True) as client:
        try:
            return client.read_flow_run(UUID(run_id))
        except ObjectNotFound:
            return None


def present_run() -> FlowRun:
    """The run of this process."""
    run = read_run(str(runtime.flow_run.id))
    assert run is not None  # it runs
    return run


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
