"""Whether the Prefect server holds what `apply` gave it, and works with the settings that the design needs.

Prefect is imported here, so the process's environment must already be the installation's.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import ObjectNotFound

from deployments.apply import DEPLOYMENTS, ZOMBIES, host_slots, worker_online
from deployments.site import LOCAL
from mqi.errors import ResourceError
from mqi.hosts.base import HostSettings

__all__ = ["findings"]

APPLY = "Run `python3 -m deployments apply`"
LEASES = "prefect.server.concurrency.lease_storage.filesystem"
WORKER_SILENT = timedelta(seconds=90)


def findings(worker: str, host: HostSettings) -> Iterator[tuple[str, str, str]]:
    """What was looked at, what was found, what to do (empty: nothing)."""
    heard = worker_online(worker, datetime.now(UTC) - WORKER_SILENT)
    yield (
        "worker",
        f"{'reports' if heard else 'has not reported'} to the server",
        "" if heard else "Look at worker.log; run `python3 -m deployments up`",
    )
    with get_client(sync_client=True) as client:
        yield _leases(client)
        yield _limit(client, host)
        yield _automation(client)
        for name in DEPLOYMENTS:
            yield _deployment(client, name, host.name)


def _leases(client: SyncPrefectClient) -> tuple[str, str, str]:
    settings = client.request("GET", "/admin/settings").json()
    storage = settings["server"]["concurrency"]["lease_storage"]
    if storage == LEASES:
        return "leases", "limits survive a restart of the server", ""
    return (
        "leases",
        f"kept in {storage}: a restart leaks GPU slots",
        "Start the server with `up`, not by hand",
    )


def _limit(client: SyncPrefectClient, host: HostSettings) -> tuple[str, str, str]:
    name = f"gpu-{host.name}"
    try:
        limit = client.read_global_concurrency_limit_by_name(name).limit
    except ObjectNotFound:
        return "limit", f"{name} is missing", APPLY
    try:
        wanted = host_slots(host)
    except ResourceError:  # said of the host itself already
        return "limit", f"{name} admits {limit}; what the host has is not known now", ""
    lent = f"{name} admits {limit} of {wanted}"
    return "limit", lent, APPLY if limit > wanted else ""  # fewer: a person lends slots to others


def _automation(client: SyncPrefectClient) -> tuple[str, str, str]:
    found = client.read_automations_by_name(ZOMBIES)
    if not found:
        return "automation", "dead runs are not found", APPLY
    if not found[0].enabled:
        return "automation", f"'{ZOMBIES}' is switched off", "Switch it on in the UI under Automations"
    return "automation", "dead runs are found by their missing heartbeat", ""


def _deployment(client: SyncPrefectClient, name: str, host: str) -> tuple[str, str, str]:
    try:
        deployment = client.read_deployment_by_name(name)
    except ObjectNotFound:
        return "deployment", f"{name} is missing", APPLY
    if deployment.paused or (deployment.schedules and not any(one.active for one in deployment.schedules)):
        return "deployment", f"{name} is paused", "Resume it in the UI under Deployments"
    if (named := deployment.parameters.get("host", LOCAL)) != host:
        return "deployment", f"{name} computes on {named}, not on {host}", APPLY
    return "deployment", f"{name} is there", ""
