"""Up and down: the server and the worker of one home, and the settings they run with."""

from __future__ import annotations

import os
import shlex
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from deployments import processes
from deployments.environment import POOL, Home, api_url, environment, ui_url, worklist_url
from deployments.site import SiteSettings, describe, load_site_file, make_site_file
from mqi.errors import ConfigurationError, ResourceError

__all__ = [
    "SERVER",
    "Service",
    "apply_file",
    "bring_down",
    "bring_up",
    "connect",
    "down",
    "print_environment",
    "up",
    "worker_command",
]

FIRST_PORT = 4200
HEALTHY_S = 120.0  # a first start on a slow machine migrates the database; usual: 4 to 11 s
WORKER_S = 60.0
SERVER_STOP_S = 15.0
WORKER_STOP_S = 15.0
RUNS_STOP_S = 10.0
PORT_ATTEMPTS = 5
PREFECT = [sys.executable, "-m", "prefect"]
SERVER = [sys.executable, "-m", "deployments.prefect_server"]

Say = Callable[[str], None]


@dataclass(frozen=True)
class Service:
    """A running installation, and which of its processes this command started."""

    home: Home
    site: SiteSettings
    port: int
    started: tuple[str, ...]


def connect(home: Home, port: int) -> dict[str, str]:
    """Point this process at the home's server. To be called before Prefect is first imported."""
    variables = environment(home, port)
    os.environ.update(variables)
    return variables


def bring_up(home: Home, port: int | None, say: Say, site_text: str | None = None) -> Service:
    """Start what does not run yet, apply the settings, find the runs whose process died.

    Parameters
    ----------
    port
        Asked for by the user; None: as last time, else 4200 or the next free one.
    site_text
        Content of site.yaml where there is none yet.

    Raises
    ------
    ConfigurationError
        site.yaml is wrong (nothing was started), or the port is not free.
    ResourceError
        The server or the worker did not come up; their log's end is in the message.
    """
    home.make()
    with processes.alone(home, say):
        make_site_file(home, site_text)
        site = load_site_file(home)
        site.make_folders()
        started: list[str] = []
        try:
            port = _bring_up(home, site, port, started, say)
        except BaseException:  # nothing half started stays behind, also after Ctrl-C
            for name in reversed(started):
                processes.stop(home, name, SERVER_STOP_S)
            raise
        return Service(home, site, port, tuple(started))


def _bring_up(home: Home, site: SiteSettings, port: int | None, started: list[str], say: Say) -> int:
    """Start what does not run, noting its name first; return the server's port."""
    server = processes.read(home, "server")
    if server is not None and processes.alive(server):
        if port not in (None, server.port):
            raise ConfigurationError(
                f"the server runs already, on port {server.port}",
                path=home.folder,
                todo="Leave --port out, or run `python3 -m deployments down` first",
            )
        say(f"The server runs already: {ui_url(server.port)}")
        _await_health(home, server)
    else:
        started.append("server")
        server = _start_server(home, port, say)
    variables = connect(home, server.port)
    from deployments.apply import apply
    from tasks.recovery import recover_runs

    apply(site, variables, say)
    worker = processes.read(home, "worker")
    if processes.alive(worker) and worker is not None and worker.port != server.port:
        processes.stop(home, "worker", WORKER_STOP_S)  # it asks a port where no server is any more
        worker = None
    if processes.alive(worker):
        say("The worker runs already.")
    else:
        for sentence in recover_runs():
            say(f"  {sentence}")
        started.append("worker")
        _start_worker(home, server.port, variables, say)
    return server.port


def _start_server(home: Home, asked: int | None, say: Say) -> processes.Record:
    """Start the server on the port asked for, else on the last one or the next free one."""
    before = processes.read(home, "server")
    first = asked or (before.port if before else FIRST_PORT)
    for _ in range(PORT_ATTEMPTS):
        port = processes.free_port(first)
        if asked and port != asked:
            raise ConfigurationError(
                f"port {asked} is taken by another program", todo=f"Use another --port, for example {port}"
            )
        say(f"Starting the Prefect server on port {port} (about 10 s the first time) ...")
        variables = environment(home, port)
        # Prefect's import costs seconds: it goes on while the server starts.
        connect(home, port)
        threading.Thread(target=_import_prefect, daemon=True).start()
        record = processes.start(home, "server", SERVER, variables, port)
        _up_or_dead(record)
        if processes.alive(record) and processes.answers(port) and processes.listens(record):
            return record
        if processes.alive(record) or "already in use" not in processes.log_tail(home, "server"):
            break
        first = port + 1  # somebody took the port between our look and the server's
    tail = processes.log_tail(home, "server")
    processes.stop(home, "server", SERVER_STOP_S)
    raise ResourceError(
        f"the Prefect server did not come up; the end of its log:\n{tail}\n",
        path=home.logs / "server.log",
        todo="Look at its log",
    )


def _up_or_dead(server: processes.Record) -> None:
    processes.wait_until(lambda: not processes.alive(server) or processes.answers(server.port), HEALTHY_S)


def _import_prefect() -> None:
    import prefect.main  # noqa: F401


def _await_health(home: Home, server: processes.Record) -> None:
    if not processes.wait_until(lambda: processes.answers(server.port), HEALTHY_S):
        raise ResourceError(
            f"the server (process {server.pid}) runs but does not answer on port {server.port}",
            path=home.logs / "server.log",
            todo="Look at its log; `python3 -m deployments down` and `up` start it anew",
        )


def worker_command(home: Home) -> list[str]:
    """What starts the worker of this machine. Nothing is installed by it."""
    return [
        *PREFECT,
        "worker",
        "start",
        "--pool",
        POOL,
        "--name",
        home.worker_name,
        "--install-policy",
        "never",
    ]


def _start_worker(home: Home, port: int, variables: dict[str, str], say: Say) -> None:
    from deployments.apply import worker_online

    since = datetime.now(UTC)
    record = processes.start(home, "worker", worker_command(home), variables, port)

    def settled() -> bool:
        return not processes.alive(record) or worker_online(home.worker_name, since)

    if not processes.wait_until(settled, WORKER_S, poll_s=0.3) or not processes.alive(record):
        tail = processes.log_tail(home, "worker")
        raise ResourceError(
            f"the worker did not report for work; the end of its log:\n{tail}\n",
            path=home.logs / "worker.log",
            todo="Look at its log",
        )
    say("The worker is ready.")


def bring_down(home: Home, names: tuple[str, ...], say: Say) -> bool:
    """Stop the named processes, the worker first. False when none of them ran."""
    ran = False
    with processes.alone(home, say):
        for name, wait_s in (("worker", WORKER_STOP_S), ("server", SERVER_STOP_S)):
            if name in names and processes.stop(home, name, wait_s):
                say(f"The {name} is stopped.")
                ran = True
            if name == "worker" and name in names and (left := processes.end_runs(home, RUNS_STOP_S)):
                say(f"Runs that were ended: {left}. The next `up` goes on with their cases.")
    return ran


def up(home: Home, port: int | None, say: Say) -> int:
    """The command `up`."""
    service = bring_up(home, port, say)
    site = service.site
    if not service.started:
        say("Everything runs already; the settings were applied again.")
    say(f"{site.app.name} runs. UI: {ui_url(service.port)}")
    say(f"  worklist  {worklist_url(service.port)}")
    say(f"  inbox     {', '.join(site.inboxes())}")
    say(f"  results   {site.results_folder()}")
    say(f"  settings  {home.site}")
    say(f"  logs      {home.logs}")
    return 0


def down(home: Home, say: Say) -> int:
    """The command `down`."""
    if not home.run.is_dir() or not bring_down(home, ("worker", "server"), say):
        say(f"Nothing runs in {home.folder}.")
    return 0


def apply_file(home: Home, file: Path | None, *, dry_run: bool, say: Say) -> int:
    """The command `apply`: check a settings file, keep it as the home's, hand it to the running server."""
    home.make()
    if file is None:
        make_site_file(home, None)
    site = load_site_file(home, file)
    if dry_run:
        say(describe(site))
        return 0
    with processes.alone(home, say):
        if file is not None and file.resolve() != home.site.resolve():
            part = home.folder / "site.yaml.part"
            part.write_bytes(file.read_bytes())
            part.replace(home.site)
            say(f"Settings kept as {home.site}")
        site.make_folders()
        server = processes.read(home, "server")
        if server is None or not processes.alive(server):
            say("The settings are right. The server does not run: `python3 -m deployments up` applies them.")
            return 0
        _await_health(home, server)
        variables = connect(home, server.port)
        from deployments.apply import apply

        apply(site, variables, say)
    return 0


def print_environment(home: Home, say: Say) -> int:
    """The command `env`: shell lines for a person's own `prefect` calls. No secret is printed."""
    server = processes.read(home, "server")
    lines = {
        "PREFECT_API_URL": api_url(server.port if server else FIRST_PORT),
        "PREFECT_HOME": str(home.prefect),
        "MQI_HOME": str(home.folder),
    }
    for name, value in lines.items():
        say(f"export {name}={shlex.quote(value)}")
    say(f'export PATH={shlex.quote(str(Path(sys.prefix) / "bin"))}:"$PATH"')
    return 0
