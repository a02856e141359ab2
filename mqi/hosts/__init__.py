"""Where engines run. ``connect`` gives the host that the settings describe."""

from __future__ import annotations

from mqi.hosts.base import (
    Attempt,
    Host,
    HostProbe,
    HostSettings,
    JobRequest,
    JobState,
    Slot,
)
from mqi.hosts.local import LocalHost
from mqi.hosts.ssh import SshHost
from mqi.hosts.ssh_settings import SshCredentials, SshSettings, provide_credentials

__all__ = [
    "Attempt",
    "Host",
    "HostProbe",
    "HostSettings",
    "JobRequest",
    "JobState",
    "Slot",
    "SshCredentials",
    "SshSettings",
    "connect",
    "provide_credentials",
]


def connect(settings: HostSettings, credentials: SshCredentials | None = None) -> Host:
    """Return the host of these settings. Nothing is asked of it before it is used.

    ``credentials`` are for a host behind SSH whose settings do not name any (see `provide_credentials`).
    """
    if settings.kind == "ssh":
        return SshHost(settings, credentials)
    return LocalHost(settings)
