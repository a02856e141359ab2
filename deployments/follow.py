"""What happens to one case, as a person reads it: the worklist's word, the run's steps, the progress.

Prefect is imported here, so the process's environment must already be the installation's.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
    ArtifactFilterType,
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterId,
)
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import ArtifactSort, FlowRunSort

__all__ = ["Follower", "worklist"]

CASE_FLOW = "process-case"
PROGRESS_STEP = 25.0  # percent: a line for each quarter of a beam


def worklist(client: SyncPrefectClient) -> list[dict[str, str]]:
    """The rows of the scanner's latest worklist."""
    found = client.read_artifacts(
        artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["worklist"])),
        sort=ArtifactSort.UPDATED_DESC,
        limit=1,
    )
    data: Any = found[0].data if found else "[]"
    rows = json.loads(data) if isinstance(data, str) else data
    return rows if isinstance(rows, list) else []


@dataclass
class Follower:
    """Follows the case with this key, and says what is new each time it looks."""

    key: str
    folder: str
    say: Callable[[str], None]
    began: float = field(default_factory=time.monotonic)
    _row: str = ""
    _run_state: str = ""
    _steps: dict[UUID, str] = field(default_factory=dict)
    _percent: dict[str, float] = field(default_factory=dict)
    waiting: str = ""

    def look(self) -> bool:
        """Say what is new. True when the case's run has ended for good."""
        try:
            with get_client(sync_client=True) as client:
                self._look_at_worklist(client)
                run = self._run(client)
                return run is not None and self._look_at_run(client, run)
        except httpx.HTTPError:  # a busy server; the next look says more
            return False

    def _holds(self, case: object) -> bool:
        """Whether a case lies in the patient's folder: one that is refused is known by its folder only."""
        return isinstance(case, str) and Path(case).is_relative_to(self.folder)

    def _tell(self, text: str) -> None:
        self.say(f"{time.monotonic() - self.began:6.0f} s  {text}")

    def _look_at_worklist(self, client: SyncPrefectClient) -> None:
        mine = [
            row for row in worklist(client) if row.get("case") == self.key or self._holds(row.get("case"))
        ]
        if not mine:
            return
        row = mine[0]
        news = "; ".join(filter(None, (row.get("waiting for"), row.get("message"))))
        said = f"the scanner says: {row['status']}{f' ({news})' if news else ''}"
        self.waiting = news if row["status"] in ("waiting", "refused") else ""
        if said != self._row:
            self._row = said
            self._tell(said)

    def _run(self, client: SyncPrefectClient) -> FlowRun | None:
        runs = client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=[CASE_FLOW])),
            sort=FlowRunSort.EXPECTED_START_TIME_DESC,
            limit=20,
        )
        mine = [run for run in runs if self.key in run.tags or self._holds(run.parameters.get("case"))]
        return mine[0] if mine else None

    def _look_at_run(self, client: SyncPrefectClient, run: FlowRun) -> bool:
        only = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
        if (state := str(run.state_name)) != self._run_state:
            self._run_state = state
            message = run.state.message if run.state and run.state.is_final() else ""
            self._tell(f"case flow '{run.name}': {state}{f' ({message})' if message else ''}")
        steps = client.read_task_runs(flow_run_filter=only, limit=200)
        for step in sorted(steps, key=lambda one: one.end_time or one.created or datetime.now(UTC)):
            said = str(step.state_name)
            if (
                self._steps.get(step.id) != said
                and step.state
                and (step.state.is_final() or said == "AwaitingRetry")
            ):
                self._steps[step.id] = said
                seconds = step.total_run_time.total_seconds()
                why = (
                    f": {step.state.message}" if not step.state.is_completed() and step.state.message else ""
                )
                self._tell(f"  {step.name}: {said} ({seconds:.1f} s){why}")
        for bar in client.read_artifacts(
            artifact_filter=ArtifactFilter(
                flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]), type=ArtifactFilterType(any_=["progress"])
            )
        ):
            self._look_at_bar(str(bar.key), float(str(bar.data or 0)), bar.description or "")
        return run.state is not None and run.state.is_final()

    def _look_at_bar(self, key: str, percent: float, description: str) -> None:
        before = self._percent.get(key, 0.0)
        if percent < before + PROGRESS_STEP:
            return
        self._percent[key] = percent - percent % PROGRESS_STEP
        self._tell(f"  {percent:3.0f} %  {description.partition(' · ')[2] or description}")
