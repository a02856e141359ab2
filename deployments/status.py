"""The command `status`: what runs, when the scanner last looked, where the cases stand, what hosts offer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

from deployments import credentials, processes, service
from deployments.environment import Home, ui_url, worklist_url
from deployments.site import SiteSettings, load_site_file
from mqi.hosts import connect
from mqi.record import HISTORY_EVENT, read_history

__all__ = ["cases_by_status", "run"]

SHOWN_ROWS = 10


def run(home: Home, say: Callable[[str], None]) -> int:
    """Print the status. Returns 0 only if the server and the worker run."""
    if not home.site.exists():
        say(f"Nothing was set up in {home.folder}. `python3 -m deployments up` does it.")
        return 1
    site = load_site_file(home)
    name = " ".join(filter(None, (site.app.name, site.app.version)))
    say(f"{name} ({site.app.environment}) in {home.folder}")
    server, worker = processes.read(home, "server"), processes.read(home, "worker")
    healthy = server is not None and processes.alive(server) and processes.answers(server.port)
    say(f"server    {_process(server)}{f', {ui_url(server.port)}' if server and healthy else ''}")
    say(f"worker    {_process(worker)}")
    if server is not None and healthy:
        say(f"worklist  {worklist_url(server.port)}")
        service.connect(home, server.port)
        for line in _from_server():
            say(line)
    counts = cases_by_status(Path(site.results_folder()))
    credentials.provide(home)
    said = ", ".join(f"{number} {status}" for status, number in sorted(counts.items()))
    say(f"cases     {said or 'none yet'}")
    say(f"host      {_host(site)}")
    return 0 if healthy and processes.alive(worker) else 1


def _process(record: processes.Record | None) -> str:
    if record is None:
        return "was never started"
    since = datetime.fromtimestamp(record.started_at).astimezone()
    if processes.alive(record):
        return f"runs since {since:%Y-%m-%d %H:%M} (process {record.pid})"
    return (
        "is stopped"
        if record.pid == 0
        else "has died: see its log; `python3 -m deployments up` starts it again"
    )


def _from_server() -> Iterator[str]:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import (
        FlowFilter,
        FlowFilterName,
        FlowRunFilter,
        FlowRunFilterStartTime,
        FlowRunFilterState,
        FlowRunFilterStateType,
    )
    from prefect.client.schemas.objects import StateType
    from prefect.client.schemas.sorting import FlowRunSort

    from deployments.follow import worklist

    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=["scan-cases"])),
            flow_run_filter=FlowRunFilter(
                start_time=FlowRunFilterStartTime(is_null_=False),
                # A run that found another one at work was cancelled by Prefect; that says nothing.
                state=FlowRunFilterState(type=FlowRunFilterStateType(not_any_=[StateType.CANCELLED])),
            ),
            sort=FlowRunSort.START_TIME_DESC,
            limit=1,
        )
        if runs and runs[0].start_time:
            began = runs[0].start_time.astimezone()
            yield f"scanner   {runs[0].state_name}, started {began:%Y-%m-%d %H:%M:%S}"
        else:
            yield "scanner   has not run yet"
        open_rows = [row for row in worklist(client) if row.get("status") != "completed"]
        for row in open_rows[:SHOWN_ROWS]:
            news = "; ".join(filter(None, (row.get("waiting for"), row.get("message"))))
            yield f"          {row.get('status')}: {row.get('case')}{f' ({news})' if news else ''}"
        if len(open_rows) > SHOWN_ROWS:
            yield f"          and {len(open_rows) - SHOWN_ROWS} more; see the worklist"


def cases_by_status(results: Path) -> Counter[str]:
    """How many fractions stand at each status, by the history beside the results."""
    last: dict[tuple[str, str], str] = {}
    for event in read_history(results):
        if event.get("event") == HISTORY_EVENT:
            last[str(event.get("key")), str(event.get("fraction_id"))] = str(event.get("status"))
    return Counter(last.values())


def _host(site: SiteSettings) -> str:
    settings = site.host_settings()
    probe = connect(settings).probe()
    offers = f"{len(probe.slots)} {probe.slot_kind or ''} {'slot' if len(probe.slots) == 1 else 'slots'}"
    free = f", {probe.disk_free_gb:.0f} GB free" if probe.disk_free_gb is not None else ""
    return f"{settings.name}: {offers}{free}{f'; {probe.problem}' if probe.problem else ''}"
