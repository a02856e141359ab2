"""One installation's home folder, and the environment that each of its processes gets."""

from __future__ import annotations

import base64
import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "HEARTBEAT_S",
    "LOOPBACK",
    "POOL",
    "REPOSITORY",
    "SECRET_PREFIX",
    "Home",
    "api_url",
    "environment",
    "resolve_home",
    "ui_url",
    "worklist_url",
]

REPOSITORY = Path(__file__).resolve().parent.parent
POOL = "mqi"
HEARTBEAT_S = 30  # the least that Prefect takes; a run without three of them counts as dead
LOOPBACK = "127.0.0.1"  # Prefect's open source server knows no users: it must not listen on the network

# Kept from the caller's environment: where logs go, and another database than SQLite.
SECRET_PREFIX = (
    "MQI_SSH_"  # how `credentials` takes a secret; no process of the installation needs to have it
)
KEPT_PREFIXES = ("PREFECT_LOGGING_", "PREFECT_SERVER_DATABASE_", "PREFECT_API_DATABASE_")


@dataclass(frozen=True)
class Home:
    """The folder that holds everything an installation keeps. Move or back up this folder, and all moved."""

    folder: Path

    @property
    def site(self) -> Path:
        """The settings."""
        return self.folder / "site.yaml"

    @property
    def prefect(self) -> Path:
        """PREFECT_HOME: the database, the results of tasks, the leases of limits."""
        return self.folder / "prefect"

    @property
    def secrets(self) -> Path:
        """What only the owner may read."""
        return self.folder / "secrets"

    @property
    def logs(self) -> Path:
        """Logs of the server and the worker."""
        return self.folder / "logs"

    @property
    def run(self) -> Path:
        """Which processes run."""
        return self.folder / "run"

    @property
    def worker_name(self) -> str:
        """The worker's name on the Prefect server: one worker a machine."""
        return f"mqi-{socket.gethostname()}"

    def make(self) -> Home:
        """Create the folders that are not there yet. Others may reach the inbox and the results, no more."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for folder in (self.prefect, self.secrets, self.logs, self.run):
            folder.mkdir(mode=0o700, exist_ok=True)
        self.secrets.chmod(0o700)
        return self

    def encryption_key(self) -> str:
        """The key that encrypts blocks in the database; made at the first call, kept outside the database."""
        path = self.secrets / "encryption.key"
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return path.read_text().strip()
        with os.fdopen(descriptor, "w") as file:
            key = base64.urlsafe_b64encode(os.urandom(32)).decode()
            file.write(f"{key}\n")
            file.flush()
            os.fsync(file.fileno())
        return key


def resolve_home(option: str | None, default: str) -> Home:
    """The home that ``--home`` names, else MQI_HOME, else ``.mqi/<default>`` in the repository."""
    named = option or os.environ.get("MQI_HOME")
    folder = Path(named).expanduser() if named else REPOSITORY / ".mqi" / default
    return Home(folder.absolute())


def api_url(port: int) -> str:
    """Address of the Prefect API."""
    return f"http://{LOOPBACK}:{port}/api"


def ui_url(port: int) -> str:
    """Address of the Prefect UI, for a browser."""
    return f"http://{LOOPBACK}:{port}"


def worklist_url(port: int) -> str:
    """Address of the worklist: the UI of this Prefect version has no menu entry for it."""
    return f"{ui_url(port)}/artifacts/key/worklist"


def environment(home: Home, port: int) -> dict[str, str]:
    """The environment of the server, the worker, the flows and every Prefect call of this package.

    Prefect settings of the caller's shell (another server, a profile, a Cloud key) are left out, so that
    an installation behaves the same whoever starts it.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PREFECT_", SECRET_PREFIX)) or name.startswith(KEPT_PREFIXES)
    }
    no_proxy = {
        name for name in os.environ.get("NO_PROXY", os.environ.get("no_proxy", "")).split(",") if name
    }
    direct = ",".join(sorted(no_proxy | {LOOPBACK, "localhost"}))
    return kept | {
        "MQI_HOME": str(home.folder),
        # The environment's own `prefect` and `python` come first.
        "PATH": os.pathsep.join([str(Path(sys.prefix) / "bin"), os.environ.get("PATH", os.defpath)]),
        # A hospital's web proxy must not be asked for the server on this machine.
        # pydicom's warnings quote what stands in the files: names and birth dates do not belong into logs.
        "PYTHONWARNINGS": "ignore::UserWarning",
        "NO_PROXY": direct,
        "no_proxy": direct,
        "PREFECT_HOME": str(home.prefect),
        "PREFECT_API_URL": api_url(port),
        "PREFECT_SERVER_API_HOST": LOOPBACK,
        "PREFECT_SERVER_API_PORT": str(port),
        # Otherwise the key of the secrets lies in the same database as the secrets.
        "PREFECT_SERVER_ENCRYPTION_KEY": home.encryption_key(),
        # In memory, the default, a server that restarts leaks every held GPU slot for ever.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        # So long a scan whose worker died before it began keeps all others out (default 5 minutes); one that
        # runs renews its lease.
        "PREFECT_SERVER_CONCURRENCY_INITIAL_DEPLOYMENT_LEASE_DURATION": "60",
        # A waiter asks again after at most about this many seconds (default 30): the GPU would idle.
        "PREFECT_SERVER_CONCURRENCY_MAXIMUM_CONCURRENCY_SLOT_WAIT_SECONDS": "1",
        "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "5",
        "PREFECT_SERVER_TASKS_TAG_CONCURRENCY_SLOT_WAIT_SECONDS": "1",
        # The automation that crashes dead runs needs heartbeats (default 180 s; it would crash sound runs).
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_S),
        # A run waits for a server that restarts: 2, 4, 8, ... s between its questions. Default 5, a minute in
        # all: an update of the server would cost every run at work.
        "PREFECT_CLIENT_MAX_RETRIES": "8",
        # Default 10 s: as long waits every new case.
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        # Default 10 s: a scan that is claimed so early meets the one before it, and is cancelled.
        "PREFECT_WORKER_PREFETCH_SECONDS": "1",
        # Defaults 60 s and one hour: a scanner would start a minute late, its next hour of runs in the way.
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5",
        "PREFECT_SERVER_SERVICES_SCHEDULER_MIN_SCHEDULED_TIME": "PT5M",
        # Runs that queue up are no news. Prefect marks them as late all at once, and SQLite refuses all but
        # one of these transactions, with a page in the log for each, every 5 s (measured, 3.8.8).
        "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "false",
        # Flow runs, logs and task runs older than 90 days go; by default they stay for ever.
        "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
        # A closed network: nothing is sent out, no news is shown, no version is asked for.
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_TELEMETRY_ENABLE_RESOURCE_METRICS": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED": "false",
        # The block types of Prefect's own integrations are not used here; registering them costs start time.
        "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false",
        # Logs are files: no colour codes in them. And a run must outlive its worker: see the file.
        "PREFECT_LOGGING_COLORS": "false",
        "PREFECT_LOGGING_CONFIG_PATH": kept.get(
            "PREFECT_LOGGING_CONFIG_PATH", str(Path(__file__).with_name("logging.yml"))
        ),
    }
