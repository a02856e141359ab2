"""How a host is reached over SSH, and, apart from it, what must stay secret.

Settings travel: into task parameters, cached results, logs and the Prefect database. So they hold no secret,
only the *name* under which the secrets are found (``credentials``). `SshCredentials` holds them, as
``SecretStr``, and is asked for at the moment of a login.
"""

from __future__ import annotations

from collections.abc import Callable

from pydantic import Field, SecretStr, field_validator

from mqi.case import Frozen
from mqi.errors import ConfigurationError

__all__ = [
    "CredentialsProvider",
    "SshCredentials",
    "SshHop",
    "SshSettings",
    "find_credentials",
    "provide_credentials",
]


class SshCredentials(Frozen):
    """What a login may use besides a key file or an agent. Never printed, never part of a host's settings."""

    key_text: SecretStr | None = Field(
        default=None, description="A private key in OpenSSH's or PEM format, as text, in place of a key file."
    )
    passphrase: SecretStr | None = Field(default=None, description="Passphrase of the key file or key text.")
    password: SecretStr | None = Field(
        default=None, description="Password of the account, where keys are not allowed or not enough."
    )


class SshHop(Frozen):
    """An SSH server and how to log in to it: a host itself, or the bastion before it."""

    address: str = Field(
        pattern=r"^[A-Za-z0-9]([A-Za-z0-9._:-]*[A-Za-z0-9])?$",
        max_length=253,
        description="Name or IP address of the SSH server.",
    )
    port: int = Field(default=22, ge=1, le=65535, description="Port of the SSH server.")
    user: str = Field(
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.@\\-]*$", max_length=100, description="Account to log in with."
    )
    key_file: str | None = Field(default=None, description="Private key file on the worker's machine.")
    use_agent: bool = Field(default=False, description="Offer the keys of the worker's ssh-agent.")
    credentials: str | None = Field(
        default=None, description="Name of the credentials that hold a key text, passphrase or password."
    )
    known_hosts: str = Field(
        default="~/.ssh/known_hosts", description="File with the trusted host keys, as ssh writes it."
    )
    fingerprint: str | None = Field(
        default=None,
        description="Fingerprint of the one trusted host key (SHA256:...), in place of known_hosts.",
    )

    @field_validator("fingerprint")
    @classmethod
    def _plain_fingerprint(cls, value: str | None) -> str | None:
        if value is None:
            return None
        kind, _, digest = value.strip().partition(":")
        digest = digest.rstrip("=")
        if kind != "SHA256" or len(digest) != _DIGEST_CHARACTERS or not set(digest) <= _BASE64:
            raise ValueError("a fingerprint is SHA256: and 43 characters, as `ssh-keygen -lf` prints it")
        return f"{kind}:{digest}"


_DIGEST_CHARACTERS = 43
_BASE64 = set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")


class SshSettings(SshHop):
    """How a host is reached over SSH."""

    jump: SshHop | None = Field(default=None, description="Bastion through which the host is reached.")
    connect_timeout_s: float = Field(
        default=10.0, gt=0, allow_inf_nan=False, description="Limit for the TCP connection, s."
    )
    banner_timeout_s: float = Field(
        default=15.0, gt=0, allow_inf_nan=False, description="Limit for the server's greeting, s."
    )
    auth_timeout_s: float = Field(
        default=20.0, gt=0, allow_inf_nan=False, description="Limit for the login, s."
    )
    keepalive_s: float = Field(
        default=15.0,
        gt=0,
        allow_inf_nan=False,
        description="A quiet connection says something this often, s.",
    )
    pool_size: int = Field(
        default=5, ge=1, le=50, description="Connections to the host that one process keeps at most."
    )


CredentialsProvider = Callable[[str], SshCredentials]

_providers: list[CredentialsProvider] = []


def provide_credentials(provider: CredentialsProvider) -> None:
    """Say, once per process, how the credentials of a name are found (e.g. in a Prefect block)."""
    _providers[:] = [provider]


def find_credentials(hop: SshHop, given: SshCredentials | None) -> SshCredentials:
    """Return the credentials for a login: those of the hop's name, else those given, else none.

    Raises ConfigurationError when a name is set and nobody knows how to look it up.
    """
    if hop.credentials is None or (given is not None and not _providers):
        return given or SshCredentials()
    if not _providers:
        raise ConfigurationError(
            f"the credentials {hop.credentials!r} for {hop.address} cannot be looked up here",
            todo="Hand them to mqi.hosts.connect, or name a key file or the agent instead",
        )
    return _providers[0](hop.credentials)
