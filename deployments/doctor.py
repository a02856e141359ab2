"""The command `doctor`: each setting tried for real, and what to do about what does not work."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from deployments import bootstrap, processes, service
from deployments.environment import Home, ui_url
from deployments.site import SiteSettings, load_site_file
from mqi.errors import MQIError
from mqi.hosts import connect

__all__ = ["Finding", "examine", "run"]

GB = 1e9


@dataclass(frozen=True)
class Finding:
    """What one check found. ``todo`` is empty when all is well."""

    what: str
    said: str
    todo: str = ""


def run(home: Home, say: Callable[[str], None]) -> int:
    """Print what was found. Returns 1 if there is a problem."""
    problems = 0
    for finding in examine(home):
        problems += bool(finding.todo)
        say(f"{'PROBLEM' if finding.todo else 'ok':8} {finding.what:12} {finding.said}")
        if finding.todo:
            say(f"{'':21} -> {finding.todo}")
    say(f"{problems} {'problem' if problems == 1 else 'problems'}" if problems else "All is well.")
    return 1 if problems else 0


def examine(home: Home) -> Iterator[Finding]:
    """Try everything, the settings file first: without it nothing else can be judged."""
    if not home.site.exists():
        yield Finding("settings", f"there is no {home.site}", "Run `python3 -m deployments up` once")
        return
    try:
        site = load_site_file(home)
    except MQIError as error:
        yield Finding("settings", str(error), "Correct site.yaml")
        return
    yield Finding("settings", f"{home.site} is right")
    yield _packages()
    yield from _secrets(home)
    for inbox in site.inboxes():
        yield _readable(Path(inbox))
    yield _writable("results", Path(site.results_folder()), site.resources.min_disk_space_gb)
    yield from _hosts(site)
    yield _engine(site)
    yield from _processes(home)


def _packages() -> Finding:
    ready = bootstrap.default_environment().ready(bootstrap.RUNTIME_LOCK)
    said = f"{bootstrap.default_environment().folder} holds what requirements.lock names"
    if ready:
        return Finding("packages", said)
    return Finding("packages", "the Python environment is not what requirements.lock names", "Run `up` again")


def _secrets(home: Home) -> Iterator[Finding]:
    for path, wanted in ((home.secrets, 0o700), (home.secrets / "encryption.key", 0o600)):
        if path.exists():
            mode = path.stat().st_mode & 0o777
            todo = f"chmod {wanted:o} {path}" if mode & ~wanted else ""
            yield Finding("secrets", f"{path} may be read by {'others' if todo else 'its owner only'}", todo)


def _readable(inbox: Path) -> Finding:
    try:
        with os.scandir(inbox) as entries:
            number = sum(1 for entry in entries if entry.is_dir())
    except OSError as error:
        return Finding("inbox", f"{inbox}: {error.strerror}", "Mount it, or let this user read it")
    return Finding("inbox", f"{inbox} can be read, {number} folders")


def _writable(what: str, folder: Path, min_gb: float) -> Finding:
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


def _hosts(site: SiteSettings) -> Iterator[Finding]:
    settings = site.host_settings()
    yield _writable("workspace", Path(settings.workspace), settings.min_disk_space_gb)
    probe = connect(settings).probe()
    said = f"{settings.name}: {len(probe.slots)} {probe.slot_kind or 'slots'} to compute on"
    if probe.problem or not probe.slots:
        yield Finding(
            "host", f"{said}; {probe.problem}", "Look at the host; nothing is computed until it is well"
        )
    elif settings.slots is not None and settings.slots > len(probe.slots):
        todo = f"Set resources.gpu_count to {len(probe.slots)} or less, or leave it out"
        yield Finding("host", f"{said}, but resources.gpu_count is {settings.slots}", todo)
    else:
        yield Finding("host", said)


def _engine(site: SiteSettings) -> Finding:
    """Ask the engine for its version, or at least see that it can be started."""
    name, ask = site.engine.engine, site.engine.version_command
    if site.engine.command and shutil.which(site.engine.command[0]) is None:
        return Finding(
            "engine", f"{site.engine.command[0]} cannot be run", "Correct engine.command in site.yaml"
        )
    if not ask:
        return Finding("engine", "analytic, embedded (no clinical engine)" if name == "analytic" else name)
    try:
        told = connect(site.host_settings()).run(ask)
    except (MQIError, OSError) as error:
        return Finding("engine", f"{name}: {error}", "Correct engine.version_command in site.yaml")
    lines = (told.stdout or told.stderr).decode("utf-8", "replace").split("\n")
    if told.exit_code:
        said = f"{ask[0]} ended with status {told.exit_code}: {lines[0][:100]}"
        return Finding("engine", said, "Correct engine.version_command in site.yaml, or the installation")
    return Finding("engine", f"{name}, version {lines[0][:100]}")


def _processes(home: Home) -> Iterator[Finding]:
    server, worker = processes.read(home, "server"), processes.read(home, "worker")
    if server is None or not processes.alive(server):
        yield Finding("server", "does not run", "Run `python3 -m deployments up`")
        return
    if not processes.answers(server.port) or not processes.listens(server):
        yield Finding(
            "server", f"does not answer on port {server.port}", f"Look at {home.logs / 'server.log'}"
        )
        return
    yield Finding("server", f"answers on {ui_url(server.port)}")
    if processes.alive(worker):
        yield Finding("worker", "runs")
    else:
        yield Finding("worker", "does not run", "Run `python3 -m deployments up`")
    service.connect(home, server.port)
    from deployments.inspect_server import findings

    for what, said, todo in findings(home.worker_name, load_site_file(home).host_settings()):
        yield Finding(what, said, todo)
