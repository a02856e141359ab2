"""What `doctor` tries on the compute host: this machine, or one behind SSH."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deployments.site import SiteSettings
from mqi.engines.settings import EngineSettings
from mqi.errors import MQIError
from mqi.hosts import Host, HostProbe, HostSettings, connect
from mqi.hosts.ssh_settings import SshHop, SshSettings

__all__ = ["Finding", "host_findings", "probe_findings", "writable"]

GB = 1e9

HAS_PROGRAM = """\
case $1 in
*/*) [ -e "$1" ] || exit 127; [ -x "$1" ] && [ ! -d "$1" ] || exit 126 ;;
*) command -v -- "$1" >/dev/null 2>&1 || exit 127 ;;
esac
"""
"""POSIX sh: 127 where there is no such program, 126 where it may not be executed."""


@dataclass(frozen=True)
class Finding:
    """What one check found. ``todo`` is empty when all is well."""

    what: str
    said: str
    todo: str = ""


def writable(what: str, folder: Path, min_gb: float) -> Finding:
    """Write, sync, rename and remove a file, as the records are written."""
    try:
        handle, name = tempfile.mkstemp(dir=folder, prefix=".doctor-")
        with os.fdopen(handle, "wb") as file:
            file.write(b"doctor")
            file.flush()
            os.fsync(file.fileno())
        renamed = Path(name).rename(f"{name}.part")
        renamed.unlink()
        free_gb = shutil.disk_usage(folder).free / GB
    except OSError as error:
        return Finding(
            what, f"{folder}: {error.strerror}", "Mount or create it, and let this user write there"
        )
    if free_gb < min_gb:
        return Finding(
            what, f"{folder}: only {free_gb:.1f} GB free", f"Make room: at least {min_gb:g} GB are set"
        )
    return Finding(what, f"{folder} can be written, {free_gb:.0f} GB free")


def host_findings(site: SiteSettings) -> Iterator[Finding]:
    """Log in to the host, write there, ask for its disk, clock and GPUs, and look for the engine."""
    settings = site.host_settings()
    host = connect(settings)
    if settings.ssh is None:
        yield writable("workspace", Path(settings.workspace), settings.min_disk_space_gb)
    else:
        login = [*_keys(settings.ssh), _login(host, settings.ssh)]
        yield from login
        if login[-1].todo:
            return
        yield _workspace(host)
    yield from probe_findings(host.probe(), settings)
    yield _engine(host, site.engine)


def _keys(ssh: SshSettings) -> Iterator[Finding]:
    """Private keys that others on this machine may read."""
    hops: list[SshHop] = [*([ssh.jump] if ssh.jump else []), ssh]
    for hop in hops:
        path = Path(hop.key_file).expanduser() if hop.key_file else None
        if path and path.is_file() and path.stat().st_mode & 0o077:
            yield Finding("key", f"{path} may be read by others", f"chmod 600 {path}")


def _login(host: Host, ssh: SshSettings) -> Finding:
    name = host.settings.name
    try:
        host.run(["true"])
    except MQIError as error:
        return Finding(
            "host", f"{name}: {error.what}", error.todo or "Look at the host; nothing is computed until then"
        )
    through = f" through {ssh.jump.address}" if ssh.jump else ""
    return Finding("host", f"{name}: logged in as {ssh.user} to {ssh.address} port {ssh.port}{through}")


def _workspace(host: Host) -> Finding:
    """Make the workspace and try the job script there: the listing of jobs needs both."""
    folder = host.settings.workspace
    try:
        jobs = host.list()
    except MQIError as error:
        return Finding("workspace", error.what, error.todo or f"Look at {folder} on the host")
    return Finding("workspace", f"{folder} on {host.settings.name} can be written, {len(jobs)} jobs there")


def probe_findings(probe: HostProbe, settings: HostSettings) -> Iterator[Finding]:
    """What a host said about itself: disk, clock, what there is to compute on."""
    said = f"{settings.name}: {len(probe.slots)} {probe.slot_kind or 'slots'} to compute on"
    if settings.ssh and probe.disk_free_gb is not None:
        said += f", {probe.disk_free_gb:.0f} GB free"
    if probe.problem or not probe.slots:
        yield Finding(
            "host", f"{said}; {probe.problem}", "Look at the host; nothing is computed until it is well"
        )
    elif settings.slots is not None and settings.slots > len(probe.slots):
        todo = f"Set resources.gpu_count to {len(probe.slots)} or less, or leave it out"
        yield Finding("host", f"{said}, but resources.gpu_count is {settings.slots}", todo)
    else:
        yield Finding("host", said)
    if probe.warning:
        what, _, todo = probe.warning.partition(": ")
        yield Finding("clock", f"{settings.name}: {what}", todo or "Look at the host")


def _engine(host: Host, engine: EngineSettings) -> Finding:
    """See that the engine is there and may be started, and ask for its version."""
    name, program, ask = engine.engine, engine.argv()[0], engine.version_command
    where = f"on {host.settings.name}"
    embedded = name == "analytic" and not engine.command
    try:
        found = host.run(["sh", "-c", HAS_PROGRAM, "sh", program]).exit_code
        if not found and embedded and host.settings.ssh:
            found = host.run([program, "-c", "import mqi.engines.analytic"]).exit_code
        if found and embedded:
            return Finding(
                "engine",
                f"the embedded engine needs this installation, with {program}, {where} as well",
                "Name the engine of that host in site.yaml: engine.engine and engine.command",
            )
        if found:
            how = "may not be executed" if found == 126 else "is not found"
            return Finding(
                "engine",
                f"{program} {how} {where}",
                f"chmod +x {program} there" if found == 126 else "Correct engine.command in site.yaml",
            )
        if not ask:
            said = "analytic, embedded (no clinical engine)" if name == "analytic" else f"{name}, {program}"
            return Finding("engine", f"{said} {where}" if host.settings.ssh else said)
        told = host.run(ask)
    except (MQIError, OSError) as error:
        return Finding("engine", f"{name}: {error}", "Correct engine.version_command in site.yaml")
    lines = (told.stdout or told.stderr).decode("utf-8", "replace").split("\n")
    if told.exit_code:
        said = f"{ask[0]} ended with status {told.exit_code}: {lines[0][:100]}"
        return Finding("engine", said, "Correct engine.version_command in site.yaml, or the installation")
    return Finding("engine", f"{name}, version {lines[0][:100]}")
