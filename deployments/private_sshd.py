"""A private OpenSSH server on a loopback port: for the demonstration over SSH, and for tests.

It has a folder of its own with its keys, its settings and its log. Nothing is installed, nothing under
/etc/ssh is read or written, and only the key pair that is made here may log in. As root, sshd also wants the
empty folder /run/sshd, which is made; as a plain user it does not.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from deployments.environment import LOOPBACK
from mqi.errors import ConfigurationError, ResourceError

__all__ = ["SEARCH", "Sshd", "children", "find_sshd", "running_sshd"]

SEARCH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
"""Where programs are looked for: a plain user's PATH often lacks the folder of sshd."""

START_S = 10.0
STOP_S = 5.0
PORT_ATTEMPTS = 5

CONFIG = """\
{options}
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_ed25519
PidFile {folder}/sshd.pid
AuthorizedKeysFile {folder}/authorized_keys
AuthenticationMethods publickey
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
UsePAM no
StrictModes no
AllowTcpForwarding no
X11Forwarding no
PrintMotd no
UseDNS no
LoginGraceTime 20
MaxSessions {max_sessions}
MaxStartups 100:30:200
Subsystem sftp internal-sftp
PermitUserEnvironment no
{environment}
"""


@dataclass(frozen=True)
class Sshd:
    """A running server: where it listens, who may log in, and the client's key for it."""

    host: str
    port: int
    user: str
    folder: Path
    pid: int

    @property
    def key(self) -> Path:
        """The private key that may log in."""
        return self.folder / "client_ed25519"

    @property
    def known_hosts(self) -> Path:
        """A file with this server's host key."""
        return self.folder / "known_hosts"

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the host key, as ``ssh-keygen -l`` prints it."""
        shown = subprocess.run(
            ["ssh-keygen", "-lf", str(self.folder / "host_ed25519.pub")],
            capture_output=True,
            text=True,
            check=True,
        )
        return shown.stdout.split()[1]

    def cut(self) -> None:
        """Kill the server's side of every connection."""
        for pid in children(self.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def children(pid: int) -> list[int]:
    """Direct children of a process."""
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(word) for thread in threads for word in (thread / "children").read_text().split()]
    except OSError:
        return []


def find_sshd() -> str:
    """Path of sshd. Raises ConfigurationError, which names the Debian package, where there is none."""
    path = shutil.which("sshd", path=SEARCH)
    if path is None or shutil.which("ssh-keygen", path=SEARCH) is None:
        raise ConfigurationError(
            "sshd, the SSH server, is not installed on this machine",
            todo="Install the Debian package openssh-server (apt install openssh-server), "
            "or run the demonstration without --host ssh",
        )
    return path


@contextlib.contextmanager
def running_sshd(
    folder: Path,
    *,
    port: int | None = None,
    environment: Mapping[str, str] | None = None,
    max_sessions: int = 10,
    options: Mapping[str, str] | None = None,
) -> Iterator[Sshd]:
    """Start a server with keys of its own in ``folder``, and stop it with all its sessions.

    Keys that are there already are kept, and a server that was left running in this folder is ended first.

    Parameters
    ----------
    port
        Where to listen if it is free; else, and without one, the system chooses.
    environment
        Variables of each session.
    options
        Of sshd_config; they win over those that stand here.

    Raises
    ------
    ConfigurationError
        There is no sshd on this machine, or another command runs one in this folder.
    ResourceError
        It did not start; the end of its log is in the message.
    """
    sshd = find_sshd()
    _make_keys(folder)
    with _alone(folder):
        _end_leftover(folder)
        yield from _run(sshd, folder, port, environment or {}, max_sessions, options or {})


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigurationError(
                "another command runs an SSH server in this folder", path=folder, todo="End that one first"
            ) from None
        yield


def _run(
    sshd: str,
    folder: Path,
    port: int | None,
    environment: Mapping[str, str],
    max_sessions: int,
    options: Mapping[str, str],
) -> Iterator[Sshd]:
    text = CONFIG.replace("{max_sessions}", str(max_sessions)).replace("{folder}", str(folder))
    # sshd keeps the first of two options, and so it does with SetEnv: all variables stand in one line.
    text = text.replace("{options}", "\n".join(f"{name} {value}" for name, value in options.items()))
    pairs = " ".join(f'"{name}={value}"' for name, value in environment.items())
    text = text.replace("{environment}", f"SetEnv {pairs}" if pairs else "")
    process, port = _start(sshd, folder, text, port)
    kind, key, *_ = (folder / "host_ed25519.pub").read_text().split()
    (folder / "known_hosts").write_text(f"[{LOOPBACK}]:{port} {kind} {key}\n")
    server = Sshd(host=LOOPBACK, port=port, user=getpass.getuser(), folder=folder, pid=process.pid)
    try:
        yield server
    finally:
        server.cut()  # TERM ends only the listener, its sessions go on
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _make_keys(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, parents=True, exist_ok=True)
    for name in ("host_ed25519", "client_ed25519"):
        if not (folder / f"{name}.pub").exists():
            (folder / name).unlink(missing_ok=True)
            keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "mqi", "-f", str(folder / name)]
            subprocess.run(keygen, check=True, stdin=subprocess.DEVNULL)
    if not (folder / "authorized_keys").exists():
        (folder / "authorized_keys").write_text((folder / "client_ed25519.pub").read_text())


def _end_leftover(folder: Path) -> None:
    """End the server of this very folder that a killed process has left behind, and its sessions."""
    try:
        pid = int((folder / "sshd.pid").read_text())
        ours = str(folder / "sshd_config").encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return
    if ours:
        for one in (*children(pid), pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
        _wait_until_gone(pid)


def _wait_until_gone(pid: int) -> None:
    end = time.monotonic() + STOP_S
    while Path(f"/proc/{pid}").exists() and time.monotonic() < end:
        time.sleep(0.02)


def _start(sshd: str, folder: Path, text: str, wanted: int | None) -> tuple[subprocess.Popen[bytes], int]:
    log_path = folder / "sshd.log"
    for attempt in range(PORT_ATTEMPTS):  # a port may be taken between the look and the start
        port = wanted if wanted and not attempt and _is_free(wanted) else _free_port()
        (folder / "sshd_config").write_text(text.replace("{port}", str(port)))
        with log_path.open("ab") as log:
            # -D: Popen's pid is the server's; -e: it logs to stderr.
            argv = [sshd, "-D", "-e", "-f", str(folder / "sshd_config")]
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        if _answers(process, port):
            return process, port
        if process.poll() is None:
            process.kill()
        process.wait()
    tail = "\n".join(log_path.read_text(errors="replace").splitlines()[-10:])
    raise ResourceError(f"sshd did not start; the end of its log:\n{tail}\n", path=log_path)


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    end = time.monotonic() + START_S
    while time.monotonic() < end and process.poll() is None:
        try:
            with socket.create_connection((LOOPBACK, port), 0.5) as connection:
                return connection.recv(4) == b"SSH-"
        except OSError:
            time.sleep(0.02)
    return False


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port
