"""The private SSH server (`deployments.private_sshd`) as tests drive it, also by OpenSSH's client."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from deployments import private_sshd
from deployments.private_sshd import children
from tests.requirement import program

__all__ = ["Sshd", "children", "running_sshd"]


@dataclass(frozen=True)
class Sshd(private_sshd.Sshd):
    """A running server, and OpenSSH's client for it."""

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


@contextlib.contextmanager
def running_sshd(
    folder: Path,
    *,
    environment: Mapping[str, str] | None = None,
    max_sessions: int = 10,
    options: Mapping[str, str] | None = None,
) -> Iterator[Sshd]:
    """Start a server with keys of its own in ``folder``, and stop it with all its sessions.

    Where there is no sshd the test is skipped, but in CI it fails.
    """
    program("sshd", package="openssh-server")
    with private_sshd.running_sshd(
        folder, environment=environment, max_sessions=max_sessions, options=options
    ) as server:
        yield Sshd(**asdict(server))
