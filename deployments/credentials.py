"""The command `credentials`: what an SSH login needs and nobody may read goes into its block, and only there.

Secrets are read from files, from the environment, or at a prompt: never from site.yaml, never from the
command line, where everybody on the machine would see them.
"""

from __future__ import annotations

import getpass
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from deployments import processes, service
from deployments.environment import SECRET_PREFIX, Home
from deployments.site_ssh import NAME
from mqi.errors import ConfigurationError, ResourceError
from mqi.hosts import SshCredentials, provide_credentials
from mqi.hosts.login import fingerprint_of, open_key

__all__ = ["Given", "connect", "provide", "run"]


@dataclass(frozen=True)
class Given:
    """What the command line says: where each secret is, none of the secrets."""

    key: Path | None = None
    passphrase: bool = False
    passphrase_file: Path | None = None
    password: bool = False
    password_file: Path | None = None


def run(home: Home, name: str, given: Given, say: Callable[[str], None]) -> int:
    """Keep the credentials under a name, in place of those that had it before. Returns 0."""
    if not re.fullmatch(NAME, name):
        raise ConfigurationError(
            f"{name!r} cannot be a name of credentials", todo="Use lowercase letters, digits and dashes"
        )
    key_text = _of_file(given.key) if given.key else None
    passphrase = _secret("passphrase", given.passphrase, given.passphrase_file)
    password = _secret("password", given.password, given.password_file)
    if not (key_text or passphrase or password):
        raise ConfigurationError(
            "no secret is given", todo="Give --key FILE, --passphrase or --password; --help says more"
        )
    said = [text for text, there in (("passphrase", passphrase), ("password", password)) if there]
    if key_text:
        key = open_key(key_text, passphrase, f"the private key {given.key}")
        said.insert(0, f"key {fingerprint_of(key)}")
    connect(home)
    from blocks import SSHCredentials

    block = SSHCredentials(
        key_text=SecretStr(key_text) if key_text else None,
        passphrase=SecretStr(passphrase) if passphrase else None,
        password=SecretStr(password) if password else None,
    )
    block.save(name, overwrite=True)
    say(f"Kept as {SSHCredentials.get_block_type_slug()}/{name}: {', '.join(said)}.")
    say(f"site.yaml uses them by `credentials: {name}` in section ssh; each new login takes these.")
    return 0


def _of_file(path: Path) -> str:
    try:
        return path.expanduser().read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError):
        raise ConfigurationError(
            "the file with the secret cannot be read", path=path, todo="Check the path, its owner and mode"
        ) from None


def _secret(what: str, wanted: bool, file: Path | None) -> str | None:
    """A secret from a file, from MQI_SSH_..., or from the person at the terminal."""
    if file is not None:
        return _of_file(file)
    if not wanted:
        return None
    variable = f"{SECRET_PREFIX}{what.upper()}"
    if variable in os.environ:
        return os.environ[variable]
    if not sys.stdin.isatty():
        raise ConfigurationError(
            f"there is no terminal to ask for the {what}",
            todo=f"Give --{what}-file FILE, or set the environment variable {variable}",
        )
    return getpass.getpass(f"{what.capitalize()}: ")


def connect(home: Home) -> None:
    """Point this process at the home's server. Raises ResourceError when it does not run."""
    server = processes.read(home, "server")
    if server is None or not processes.alive(server) or not processes.answers(server.port):
        raise ResourceError(
            "the server does not run, and the credentials are kept there",
            path=home.folder,
            todo="Run `python3 -m deployments up` first",
        )
    service.connect(home, server.port)


def provide(home: Home) -> None:
    """Let logins of this process find the credentials that a host names, as long as the server runs."""

    def look_up(name: str) -> SshCredentials:
        connect(home)
        from blocks import look_up_credentials

        return look_up_credentials(name)

    provide_credentials(look_up)
