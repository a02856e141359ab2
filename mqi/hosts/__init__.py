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

__all__ = ["Attempt", "Host", "HostProbe", "HostSettings", "JobRequest", "JobState", "Slot", "connect"]


def connect(settings: HostSettings) -> Host:
    """Return the host of these settings. Nothing is asked of it before it is used."""
    return LocalHost(settings)
