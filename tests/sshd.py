"""A private OpenSSH server on a loopback port, for tests. Nothing under /etc/ssh is read or written.

As root, sshd also wants the empty folder /run/sshd, which is made; as a plain user it does not.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.requirement import program

__all__ = ["Sshd", "children", "running_sshd"]

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
    key: Path
    known_hosts: Path
    pid: int

    def ssh_argv(self, command: str) -> list[str]:
        """Argv of the ssh client that runs a shell command there."""
        options = {
            "IdentitiesOnly": "yes",
            "BatchMode": "yes",
            "StrictHostKeyChecking": "yes",
            "UserKnownHostsFile": str(self.known_hosts),
            "ConnectTimeout": "5",
        }
        flags = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
        login = f"{self.user}@{self.host}"
        return ["ssh", "-F", "none", "-p", str(self.port), "-i", str(self.key), *flags, login, command]

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a shell command there, over a connection of its own."""
        return subprocess.run(self.ssh_argv(command), capture_output=True, text=True, timeout=30, check=False)

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


@contextlib.contextmanager
def running_sshd(
    folder: Path,
    *,
    environment: Mapping[str, str] | None = None,
    max_sessions: int = 10,
    options: Mapping[str, str] | None = None,
) -> Iterator[Sshd]:
    """Start a server with keys of its own in ``folder``, and stop it with all its sessions.

    ``options`` of sshd_config win over those that stand here.
    """
    sshd = program("sshd", package="openssh-server")
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, parents=True, exist_ok=True)
    for name in ("host_ed25519", "client_ed25519"):
        keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(folder / name)]
        subprocess.run(keygen, check=True)
    (folder / "authorized_keys").write_text((folder / "client_ed25519.pub").read_text())
    process, port = _start(sshd, folder, dict(environment or {}), max_sessions, options or {})
    kind, key, *_ = (folder / "host_ed25519.pub").read_text().split()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {kind} {key}\n")
    server = Sshd(
        host="127.0.0.1",
        port=port,
        user=getpass.getuser(),
        folder=folder,
        key=folder / "client_ed25519",
        known_hosts=folder / "known_hosts",
        pid=process.pid,
    )
    try:
        yield server
    finally:
        server.cut()  # TERM ends only the listener, its sessions go on
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _start(
    sshd: str, folder: Path, environment: dict[str, str], max_sessions: int, options: Mapping[str, str]
) -> tuple[subprocess.Popen[bytes], int]:
    # One SetEnv line: sshd keeps the first and ignores the later ones.
    pairs = " ".join(f'"{name}={value}"' for name, value in environment.items())
    for _ in range(5):  # the port may be taken between the probe and the start
        port = _free_port()
        text = CONFIG.format(
            port=port,
            folder=folder,
            max_sessions=max_sessions,
            options="\n".join(f"{name} {value}" for name, value in options.items()),  # sshd keeps the first
            environment=f"SetEnv {pairs}" if pairs else "",
        )
        (folder / "sshd_config").write_text(text)
        with (folder / "sshd.log").open("ab") as log:
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
    raise RuntimeError((folder / "sshd.log").read_text())


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    end = time.monotonic() + 10
    while time.monotonic() < end and process.poll() is None:
        try:
            with socket.create_connection(("127.0.0.1", port), 0.5) as connection:
                return connection.recv(4) == b"SSH-"
        except OSError:
            time.sleep(0.02)
    return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
