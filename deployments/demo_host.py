"""The compute host of ``demo --host ssh``: this machine, reached through an SSH server of its own."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from deployments.environment import Home
from deployments.private_sshd import Sshd, running_sshd
from mqi.errors import ConfigurationError

__all__ = ["host_over_ssh", "needs_server"]

KEY_FILE = "ssh/client_ed25519"
PORT = re.compile(r"(?m)^  port: ([0-9]+)$")

SECTIONS = """\
paths:
  remote_workspace: {workspace}
# A private SSH server, which the demonstration starts and stops. All of it lies in the folder ssh.
ssh:
  name: demo-host
  host: {server.host}
  port: {server.port}
  username: {server.user}
  key_file: {key_file}
  fingerprint: {server.fingerprint}
"""


def needs_server(home: Home) -> bool:
    """Whether this home's settings are those of a demonstration over SSH."""
    return home.site.exists() and f"\n  key_file: {KEY_FILE}\n" in home.site.read_text()


@contextlib.contextmanager
def host_over_ssh(home: Home) -> Iterator[str]:
    """Run the private server; give the sections of site.yaml that describe the host behind it.

    A site.yaml that is there already gets the server's port: it may be another one than the last time.

    Raises ConfigurationError where there is no sshd, or where the home is one without SSH.
    """
    text = home.site.read_text() if home.site.exists() else None
    known = PORT.search(text) if text is not None else None
    if text is not None and known is None:
        raise ConfigurationError(
            "the settings in this home have no section ssh", path=home.site, todo="Use another --home"
        )
    with running_sshd(home.folder / "ssh", port=int(known[1]) if known else None) as server:
        if text is not None:
            home.site.write_text(PORT.sub(f"  port: {server.port}", text, count=1))
        yield _sections(home, server)


def _sections(home: Home, server: Sshd) -> str:
    return SECTIONS.format(workspace=home.folder / "host" / "workspace", key_file=KEY_FILE, server=server)
