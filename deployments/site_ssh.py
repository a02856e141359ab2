"""Section ssh of site.yaml: where the compute host is, and how to log in to it. Never a secret."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from mqi.case import Frozen
from mqi.hosts.ssh_settings import SshHop, SshSettings

__all__ = ["NAME", "SshJump", "SshSection"]

OWN_NAMES = {
    "host": "address",
    "username": "user",
    "agent": "use_agent",
    "connection_pool_size": "pool_size",
    "connect_timeout_seconds": "connect_timeout_s",
    "banner_timeout_seconds": "banner_timeout_s",
    "auth_timeout_seconds": "auth_timeout_s",
    "keepalive_seconds": "keepalive_s",
}
"""The names of the specification, and of the other keys of site.yaml, for those of SshSettings."""

SECRETS = ("password", "passphrase", "key", "key_text", "private_key", "secret", "token")
FILES = ("key_file", "known_hosts")
NAME = r"^[a-z0-9][a-z0-9-]*$"
"""Of a block: the host's, the credentials'."""
LONGEST_NAME = 50


def _default(name: str) -> Any:
    return SshSettings.model_fields[OWN_NAMES.get(name, name)].default


class SshJump(Frozen):
    """An SSH server and how to log in to it: the bastion before the compute host."""

    host: str
    port: int = _default("port")
    username: str
    key_file: str | None = None
    agent: bool = False
    credentials: str | None = Field(default=None, pattern=NAME, max_length=LONGEST_NAME)
    known_hosts: str = _default("known_hosts")
    fingerprint: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _no_secret(cls, values: Any) -> Any:
        """Refuse a secret where it stands, and do not repeat it."""
        if isinstance(values, dict):
            found = [name for name in values if str(name).lower() in SECRETS]
            found += [name for name in FILES if "\n" in str(values.get(name, "")).strip()]
            if found:
                raise ValueError(
                    f"{found[0]} is a secret and does not belong in this file. Remove it (and change it, if "
                    "others may read this file), keep it with `python3 -m deployments credentials NAME` "
                    "(--help says how) and set credentials: NAME"
                )
        return values

    @field_validator("*")
    @classmethod
    def _as_a_login_takes_it(cls, value: Any, info: ValidationInfo) -> Any:
        name = OWN_NAMES.get(str(info.field_name), str(info.field_name))
        if name not in SshSettings.model_fields or name == "jump":
            return value
        try:
            SshSettings.model_validate({"address": "host", "user": "user"} | {name: value})
        except ValidationError as error:
            first = error.errors(include_input=False)[0]
            reason = str(first["msg"]).removeprefix("Value error, ")
            if first["type"] == "string_pattern_mismatch":
                reason = "this has a character that no host name, address or account has"
            raise ValueError(reason) from None
        return value

    @model_validator(mode="after")
    def _some_way_in(self) -> SshJump:
        if not (self.key_file or self.agent or self.credentials):
            raise ValueError(
                f"no way to log in to {self.host} is set: name a key_file, set agent: true, "
                "or name the credentials"
            )
        return self

    def hop(self, placed: Callable[[str], str]) -> SshHop:
        """As a login takes it; ``placed`` makes the files' paths absolute."""
        return SshHop.model_validate(self._values(placed))

    def _values(self, placed: Callable[[str], str]) -> dict[str, Any]:
        given = {OWN_NAMES.get(name, name): getattr(self, name) for name in type(self).model_fields}
        return given | {name: placed(given[name]) for name in FILES if given[name] is not None}


class SshSection(SshJump):
    """The compute host behind SSH."""

    name: str | None = Field(default=None, pattern=NAME, max_length=LONGEST_NAME)
    jump: SshJump | None = None
    connection_pool_size: int = _default("connection_pool_size")
    connect_timeout_seconds: float = _default("connect_timeout_seconds")
    banner_timeout_seconds: float = _default("banner_timeout_seconds")
    auth_timeout_seconds: float = _default("auth_timeout_seconds")
    keepalive_seconds: float = _default("keepalive_seconds")

    @field_validator("name")
    @classmethod
    def _another_than_this_machine(cls, value: str | None) -> str | None:
        if value == "local":
            raise ValueError("local is the name of this machine; give the host another one")
        return value

    def host_name(self) -> str:
        """Name of the host in blocks, limits and reports: the one given, else its address as a name."""
        if self.name:
            return self.name
        is_number = re.fullmatch(r"[0-9.]+|.*:.*", self.host)
        label = self.host if is_number else self.host.partition(".")[0]
        plain = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")[:LONGEST_NAME]
        return f"host-{plain}" if plain in ("", "local") else plain

    def settings(self, placed: Callable[[str], str]) -> SshSettings:
        """As a login takes it; ``placed`` makes the files' paths absolute."""
        values = {name: value for name, value in self._values(placed).items() if name != "name"}
        return SshSettings.model_validate(values | {"jump": self.jump and self.jump.hop(placed)})
