"""The command `doctor`: each setting tried for real, and what to do about what does not work."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from deployments import bootstrap, credentials, processes, service
from deployments.environment import Home, ui_url
from deployments.host_checks import Finding, host_findings, writable
from deployments.site import load_site_file
from mqi.errors import MQIError

__all__ = ["Finding", "examine", "run"]


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
    yield writable("results", Path(site.results_folder()), site.resources.min_disk_space_gb)
    credentials.provide(home)
    yield from host_findings(site)
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
