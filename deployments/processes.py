"""The server and the worker as detached processes: started, found again, stopped, never confused with others.

A process is known by its number *and* its start time, because numbers are given out again. The record
``run/<name>.json`` is written by the process itself before it becomes the server or the worker, so there
is none without a record, whenever the starting command is killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from deployments.environment import LOOPBACK, Home

__all__ = [
    "Record",
    "alive",
    "alone",
    "answers",
    "end_runs",
    "free_port",
    "listens",
    "log_tail",
    "read",
    "start",
    "stop",
    "wait_until",
]

POLL_S = 0.1
START_S = 10.0  # for the child to write its record: only the interpreter's start
KILL_S = 5.0


@dataclass(frozen=True)
class Record:
    """What ``run/<name>.json`` says. ``pid`` is 0 after an orderly stop."""

    name: str
    pid: int
    identity: str
    port: int
    started_at: float


def identity(pid: int) -> str | None:
    """What tells a process from others of the same number: boot and start tick. None when it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    # The name in brackets may hold anything; the state is the 1st and the start tick the 20th field after it.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else f"{boot}:{fields[19]}"


def alive(record: Record | None) -> bool:
    """Whether the very process of this record still runs."""
    return record is not None and record.pid > 0 and identity(record.pid) == record.identity


def read(home: Home, name: str) -> Record | None:
    """The last record of a process, None when there is none or it cannot be read."""
    try:
        return Record(**json.loads((home.run / f"{name}.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _write(home: Home, record: Record) -> None:
    part = home.run / f"{record.name}.json.part"
    part.write_text(json.dumps(asdict(record), indent=1))
    part.replace(home.run / f"{record.name}.json")


@contextlib.contextmanager
def alone(home: Home, say: Callable[[str], None]) -> Iterator[None]:
    """Let one command at a time change what runs in this home; a second one waits and says so."""
    with (home.run / "command.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            say(f"Another command (process {holder}) is at work here; waiting for it.")
            fcntl.flock(lock, fcntl.LOCK_EX)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def start(home: Home, name: str, argv: Sequence[str], variables: Mapping[str, str], port: int) -> Record:
    """Start a process that outlives this one, in its own session, its output in ``logs/<name>.log``."""
    log = home.logs / f"{name}.log"
    with log.open("a") as out:
        child = subprocess.Popen(
            [sys.executable, "-m", "deployments.processes", str(home.folder), name, str(port), *argv],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=Path(__file__).resolve().parent.parent,
            env=dict(variables),
            start_new_session=True,
        )

    def recorded() -> bool:
        record = read(home, name)
        return (record is not None and record.pid == child.pid) or child.poll() is not None

    wait_until(recorded, START_S)
    record = read(home, name)
    if record is None or record.pid != child.pid:
        raise ChildProcessError(f"{name} did not start: {log_tail(home, name)}")
    return record


def become(folder: str, name: str, port: str, argv: Sequence[str]) -> None:
    """Note this process in ``run/<name>.json``, then turn into the program."""
    mine = identity(os.getpid())
    assert mine is not None  # this process runs
    _write(Home(Path(folder)), Record(name, os.getpid(), mine, int(port), time.time()))
    os.execv(argv[0], list(argv))


def stop(home: Home, name: str, timeout_s: float) -> bool:
    """Stop a process of this home and what it started in its own process group. False when none ran.

    Asks first (SIGTERM), and kills what is left after `timeout_s`. Engines, which run in sessions of their
    own, go on and are found again.
    """
    record = read(home, name)
    if record is None or not alive(record):
        return False
    members = [(pid, identity(pid)) for pid in _group(record.pid)]
    with contextlib.suppress(ProcessLookupError):
        os.kill(record.pid, signal.SIGTERM)
    wait_until(lambda: _ended(record), timeout_s)
    for pid, known in members:
        if known is not None and identity(pid) == known:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    wait_until(lambda: _ended(record), KILL_S)
    _write(home, Record(name, 0, "", record.port, record.started_at))
    return True


def end_runs(home: Home, timeout_s: float) -> int:
    """End the flow runs of this home that are still at work; return how many there were.

    Each is a session of its own and may have outlived its worker. Asked first, so that it says on the server
    that it crashed; killed when it does not end. The next `up` runs its case again.
    """
    runs = {pid: known for pid in _runs(home) if (known := identity(pid)) is not None}
    for number, wait_s in ((signal.SIGTERM, timeout_s), (signal.SIGKILL, KILL_S)):
        for pid, known in runs.items():
            if identity(pid) == known:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        if wait_until(lambda: all(identity(pid) != known for pid, known in runs.items()), wait_s):
            break
    return len(runs)


def _runs(home: Home) -> Iterator[int]:
    """Processes of flow runs: known by what the worker put into their environment."""
    here = f"MQI_HOME={home.folder}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended, or is another user's
                words = (entry / "environ").read_bytes().split(b"\0")
                if here in words and any(word.startswith(b"PREFECT__FLOW_RUN_ID=") for word in words):
                    yield int(entry.name)


def _ended(record: Record) -> bool:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(record.pid, os.WNOHANG)  # where this process is the parent
    return not alive(record)


def _group(leader: int) -> list[int]:
    """Processes of the process group that this leader leads."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(ProcessLookupError):
                if os.getpgid(int(entry.name)) == leader:
                    found.append(int(entry.name))
    return found


def wait_until(condition: Callable[[], bool], timeout_s: float, poll_s: float = POLL_S) -> bool:
    """Ask until the condition holds. False when it did not within the time."""
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(poll_s)
    return True


def free_port(first: int) -> int:
    """The first port from `first` on that nobody listens on."""
    for port in range(first, 65536):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
            return port
    raise OSError(f"no free port from {first} on")


def answers(port: int, timeout_s: float = 2.0) -> bool:
    """Whether a healthy Prefect server answers on the port. No proxy is asked."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{LOOPBACK}:{port}/api/health", timeout=timeout_s) as reply:
            return bool(reply.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def listens(record: Record) -> bool:
    """Whether it is this process that listens on its port, and no other."""
    import psutil

    try:
        connections = psutil.Process(record.pid).net_connections(kind="tcp")
    except psutil.Error:
        return False
    return any(one.status == psutil.CONN_LISTEN and one.laddr.port == record.port for one in connections)


def log_tail(home: Home, name: str, lines: int = 10) -> str:
    """The last lines of a process's log."""
    try:
        text = (home.logs / f"{name}.log").read_text(errors="replace")
    except OSError:
        return "(no log)"
    return "\n".join(text.splitlines()[-lines:])


if __name__ == "__main__":
    become(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:])
