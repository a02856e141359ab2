"""A site's settings into the Prefect server: blocks, pool, queues, limits, deployments, automation.

Doing it twice changes nothing. Prefect is imported here, so the process's environment must already be the
installation's (`deployments.environment.environment`).
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from importlib import resources

from prefect.automations import AutomationCore, EventTrigger, Posture
from prefect.blocks.core import Block
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolCreate
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.events.actions import ChangeFlowRunState
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.workers.process import ProcessWorker

from blocks import (
    CaseFolders,
    ComputeHost,
    MachineCalibration,
    MoquiParameters,
    QaCriteria,
    SSHCredentials,
    look_up_credentials,
)
from blocks.site import ROOMS
from deployments.environment import HEARTBEAT_S, POOL, REPOSITORY
from deployments.site import LOCAL, SiteSettings
from mqi.errors import ConfigurationError, ResourceError
from mqi.hosts import connect, provide_credentials
from mqi.hosts.base import HostSettings

__all__ = ["CASE_QUEUE", "DEPLOYMENTS", "SCANNER", "ZOMBIES", "apply", "host_slots", "worker_online"]

SCANNER = "scan-cases/mqi"
DEPLOYMENTS = (SCANNER, "process-case/mqi", "clean-up/mqi")
CASE_QUEUE = "cases"
ZOMBIES = "mqi: crash runs without a heartbeat"
SCANNER_RUN_S = 60  # the scanner's process is started anew this often
FIRST_SCAN = timedelta(seconds=5)  # a scan by the clock alone would come after a whole interval
MISSED_HEARTBEATS = 3  # fewer, and a busy machine's sound runs would be crashed


def apply(site: SiteSettings, variables: Mapping[str, str], say: Callable[[str], None]) -> None:
    """Make the server hold the site's settings.

    Raises
    ------
    ConfigurationError
        `prefect deploy` refused prefect.yaml.
    """
    with get_client(sync_client=True) as client:
        _pool(client)
        # Reads every flow (seconds of import): runs beside the rest.
        deploying = subprocess.Popen(
            [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"],
            cwd=REPOSITORY,
            env=dict(variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            _blocks(client, site)
            host = site.host_settings()
            slots = _slots(client, host, say)
            client.upsert_global_concurrency_limit_by_name(f"gpu-{host.name}", slots)
            _queue(client, site.resources.max_concurrent_jobs)
            _automation(client)
        finally:
            output, _ = deploying.communicate()
        if deploying.returncode != 0:
            raise ConfigurationError(
                f"`prefect deploy --all` failed:\n{output.strip()}",
                path="prefect.yaml",
                todo="Correct what it names",
            )
        _host_of_runs(client, host.name)
        _scanner(client, site.processing.scan_interval_seconds)
    say(
        f"Settings applied: scan every {site.processing.scan_interval_seconds} s, {slots} "
        f"{'job' if slots == 1 else 'jobs'} at a time on {host.name}."
    )


def host_slots(host: HostSettings) -> int:
    """How many jobs the host takes at a time: what the site says, else what the host has.

    A host over the network is asked in any case: no more than it has now, and is it there?
    """
    if host.slots is not None and host.kind == "local":
        return host.slots
    probe = connect(host).probe()
    if not probe.slots:
        todo = "Set resources.gpu_count in site.yaml, or look at the host"
        if host.kind != "local":
            todo = "Then run `python3 -m deployments apply`; `doctor` says more"
        raise ResourceError(
            f"host {host.name} offers nothing to compute on: {probe.problem or 'no GPU, no CPU'}", todo=todo
        )
    return len(probe.slots)


def _slots(client: SyncPrefectClient, host: HostSettings, say: Callable[[str], None]) -> int:
    """The size of the host's limit. Where a host over the network says nothing now: as set, or as it was.

    A site must come up while its compute host is off, or not set up to the end.
    """
    provide_credentials(look_up_credentials)
    try:
        return host_slots(host)
    except ResourceError as error:
        if host.kind == "local":
            raise
        say(f"PROBLEM: {error}")
        if host.slots is not None:
            return host.slots
        try:
            return client.read_global_concurrency_limit_by_name(f"gpu-{host.name}").limit
        except ObjectNotFound:
            return 1


def _host_of_runs(client: SyncPrefectClient, host: str) -> None:
    """Let the flows run on the site's host, unless a person names another one."""
    for name in DEPLOYMENTS:
        deployment = client.read_deployment_by_name(name)
        if deployment.parameters.get("host") != host:
            named = deployment.parameters | {"host": host}
            client.update_deployment(deployment.id, DeploymentUpdate(parameters=named))


def _pool(client: SyncPrefectClient) -> None:
    try:
        client.read_work_pool(POOL)
        return
    except ObjectNotFound:
        pass
    pool = WorkPoolCreate(
        name=POOL,
        type=ProcessWorker.type,
        description="Flows run as processes on the worker's machine.",
        base_job_template=ProcessWorker.get_default_base_job_template(),
    )
    try:
        client.create_work_pool(pool)
    except ObjectAlreadyExists:  # another `up` was quicker
        return


def _queue(client: SyncPrefectClient, at_once: int) -> None:
    """Cases have a queue of their own, so that many waiting cases never keep the scanner from running."""
    try:
        queue = client.read_work_queue_by_name(CASE_QUEUE, work_pool_name=POOL)
    except ObjectNotFound:
        queue = client.create_work_queue(CASE_QUEUE, work_pool_name=POOL)
    if queue.concurrency_limit != at_once:
        client.update_work_queue(queue.id, concurrency_limit=at_once)


def _blocks(client: SyncPrefectClient, site: SiteSettings) -> None:
    host = site.host_settings()
    CaseFolders(**site.case_folders()).save("site", overwrite=True)
    SSHCredentials.register_type_and_schema()  # a person may make one in the UI
    ComputeHost(**host.model_dump()).save(host.name, overwrite=True)
    if host.name != LOCAL and _has_block(client, LOCAL, ComputeHost):
        # Runs that were asked for before the site had this host name the one before: no case is lost to that.
        ComputeHost(**host.model_dump()).save(LOCAL, overwrite=True)
    MoquiParameters(**site.engine.model_dump()).save("site", overwrite=True)
    QaCriteria(**site.qa.model_dump()).save("site", overwrite=True)
    named = site.calibration_texts()
    for room in ROOMS:
        if room in named:
            MachineCalibration(text=named[room]).save(room.lower(), overwrite=True)
        elif not _has_block(
            client, room.lower(), MachineCalibration
        ):  # one that a person saved in the UI stays
            MachineCalibration(text=builtin_text(room)).save(room.lower())


def _has_block(client: SyncPrefectClient, name: str, kind: type[Block]) -> bool:
    try:
        client.read_block_document_by_name(name, kind.get_block_type_slug())
    except ObjectNotFound:
        return False
    return True


def builtin_text(room: str) -> str:
    """The calibration file that is shipped for a room."""
    return (resources.files("mqi.log") / "calibrations" / f"{room}.txt").read_text(encoding="utf-8")


def zombie_automation() -> AutomationCore:
    """Crash a run that gave a heartbeat and then no sign of life for three heartbeats.

    Prefect's server has no such watch of its own. Any event of the run counts as a sign of life, so that a
    run that ended, or that a person is cancelling, is left alone.
    """
    return AutomationCore(
        name=ZOMBIES,
        description="A run whose process is gone (power cut, killed worker) is marked as crashed; "
        "the scanner then runs its case again.",
        trigger=EventTrigger(
            posture=Posture.Proactive,
            match={"prefect.resource.id": "prefect.flow-run.*"},
            for_each={"prefect.resource.id"},
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.*"},
            threshold=1,
            within=timedelta(seconds=MISSED_HEARTBEATS * HEARTBEAT_S),
        ),
        actions=[
            ChangeFlowRunState(
                name="Crashed",
                force=False,
                state=StateType.CRASHED,
                message=f"No heartbeat for {MISSED_HEARTBEATS * HEARTBEAT_S} s: its process is gone.",
            )
        ],
    )


def _automation(client: SyncPrefectClient) -> None:
    """Install the automation, or bring it up to date. One that a person switched off stays off."""
    wanted = zombie_automation()
    existing = client.read_automations_by_name(ZOMBIES)
    if not existing:
        client.create_automation(wanted)
        return
    mine, *doubles = existing
    wanted = wanted.model_copy(update={"enabled": mine.enabled})
    if AutomationCore.model_validate(mine.model_dump(include=set(AutomationCore.model_fields))) != wanted:
        client.update_automation(mine.id, wanted)  # it forgets the runs that it watches: not at every start
    for double in doubles:
        client.delete_automation(double.id)


def _scanner(client: SyncPrefectClient, look_every_s: int) -> None:
    """Give the scanner its pace, the first run in a few seconds, and drop runs that nobody was there for.

    A run looks again and again until the next one is due: a look every 5 s is not a process every 5 s.
    """
    deployment = client.read_deployment_by_name(SCANNER)
    period_s = max(look_every_s, SCANNER_RUN_S)
    pace = {"look_every_s": float(look_every_s), "period_s": float(period_s)}
    client.update_deployment(deployment.id, DeploymentUpdate(parameters=deployment.parameters | pace))
    schedule = IntervalSchedule(
        interval=timedelta(seconds=period_s), anchor_date=datetime.now(UTC) + FIRST_SCAN
    )
    for one in client.read_deployment_schedules(deployment.id):
        client.update_deployment_schedule(deployment.id, one.id, schedule=schedule)
    scheduled = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED]))
    for run in client.read_flow_runs(
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id])),
        flow_run_filter=FlowRunFilter(state=scheduled),
    ):
        if run.auto_scheduled and run.expected_start_time and run.expected_start_time < datetime.now(UTC):
            client.delete_flow_run(run.id)


def worker_online(name: str, since: datetime) -> bool:
    """Whether the server has heard from this worker after a moment (not from one of its name before)."""
    with get_client(sync_client=True) as client:
        try:
            workers = client.read_workers_for_work_pool(POOL)
        except ObjectNotFound:
            return False
    return any(
        worker.name == name and worker.last_heartbeat_time is not None and worker.last_heartbeat_time > since
        for worker in workers
    )
