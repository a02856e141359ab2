"""Logging in over SSH: to the right host, or not at all.

A host key must be in known_hosts or have the pinned fingerprint; nothing is ever trusted on first use. What
goes wrong is told apart for an administrator, because the ways out differ: no such name, refused, filtered,
another host key, key refused.
"""

from __future__ import annotations

import base64
import hashlib
import io
import logging
import random
import re
import shlex
import socket
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import paramiko
from paramiko.hostkeys import HostKeyEntry, InvalidHostKey
from paramiko.ssh_exception import (
    AuthenticationException,
    BadAuthenticationType,
    ChannelException,
    IncompatiblePeer,
    PasswordRequiredException,
    SSHException,
)

from mqi.errors import ConfigurationError, HostConnectionError
from mqi.hosts.ssh_settings import SshCredentials, SshHop, SshSettings, find_credentials

__all__ = ["Link", "fingerprint_of", "log_in", "open_key"]

_LOG_CHANNEL = "paramiko.mqi"
logging.getLogger(_LOG_CHANNEL).setLevel(logging.CRITICAL)  # it logs tracebacks of what we raise ourselves

_ATTEMPTS = 6
"""A busy server (MaxStartups) resets a connection before its greeting: try again, a little later."""

_PAUSE_S = 0.1

_WINDOW_BYTES = 1 << 24
"""Of one channel: 16 MiB are 0.8 GB/s at 20 ms round trip."""

_PACKET_BYTES = 1 << 17

_AGENT_KEYS = 4
"""Servers close the connection after six refusals (MaxAuthTries)."""


@dataclass
class Link:
    """A login: its transport, what it goes through, and the socket below both."""

    transport: paramiko.Transport
    sock: socket.socket
    through: paramiko.Transport | None = None

    def close(self) -> None:
        """End it, with all its channels and its thread."""
        self.transport.close()
        if self.through:
            self.through.close()


def log_in(settings: SshSettings, credentials: SshCredentials | None = None) -> Link:
    """Log in to the host of these settings, through its bastion where it has one.

    Raises HostConnectionError (it does not answer), ConfigurationError (host key or login refused, a key
    that cannot be used), each with what an administrator can do about it.
    """
    trouble: BaseException = EOFError()
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_PAUSE_S * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))
        try:
            return _log_in_once(settings, credentials)
        except _Broken as error:
            trouble = error.__cause__ or error
    raise HostConnectionError(
        f"{_named(settings)} closed {_ATTEMPTS} connections before the login was done ({_said(trouble)})",
        todo="Look at its log (journalctl -u ssh): too many logins at a time (MaxStartups), "
        "or an address that is banned (fail2ban, hosts.deny)",
    ) from trouble


class _Broken(Exception):
    """The connection was cut during the login; nothing was refused."""


def _log_in_once(settings: SshSettings, credentials: SshCredentials | None) -> Link:
    first: SshHop = settings.jump or settings
    sock = _connect(first, settings.connect_timeout_s)
    if not settings.jump:
        return Link(_authenticated(settings, settings, sock, credentials), sock)
    bastion = _authenticated(settings.jump, settings, sock, credentials)
    try:
        tunnel = _tunnel(bastion, settings)
        return Link(_authenticated(settings, settings, tunnel, credentials), sock, bastion)
    except BaseException:  # also an interrupt: no connection stays open behind it
        bastion.close()
        raise


def _connect(hop: SshHop, timeout_s: float) -> socket.socket:
    try:
        sock = socket.create_connection((hop.address, hop.port), timeout_s)
    except socket.gaierror as error:
        raise HostConnectionError(
            f"no host of the name {hop.address} is found ({error.strerror})",
            todo="Check the address in the host's settings, and the name server of this machine",
        ) from error
    except ConnectionRefusedError as error:
        raise HostConnectionError(
            f"{_named(hop)} refuses connections",
            todo="Start the SSH server there (systemctl start ssh), or correct the port",
        ) from error
    except TimeoutError as error:
        raise HostConnectionError(
            f"{_named(hop)} did not answer within {timeout_s:g} s",
            todo="The machine is off, or a firewall drops the connection: ask for this TCP port to be opened",
        ) from error
    except ConnectionResetError as error:
        raise _Broken from error
    except OSError as error:
        raise HostConnectionError(
            f"{_named(hop)} cannot be reached ({error.strerror})",
            todo="Check this machine's network and the address",
        ) from error
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 60_000)  # ms: a dead peer is noticed
    return sock


def _tunnel(bastion: paramiko.Transport, settings: SshSettings) -> paramiko.Channel:
    assert settings.jump
    try:
        return bastion.open_channel(
            "direct-tcpip",
            (settings.address, settings.port),
            ("127.0.0.1", 0),
            timeout=settings.connect_timeout_s,
        )
    except ChannelException as error:
        if error.code == _PROHIBITED:
            raise ConfigurationError(
                f"the bastion {_named(settings.jump)} forbids connections to {_named(settings)}",
                todo="Set AllowTcpForwarding yes (and PermitOpen) in its sshd_config",
            ) from error
        raise HostConnectionError(
            f"the bastion {_named(settings.jump)} cannot connect to {_named(settings)} ({error.text})",
            todo="Check the address as seen from the bastion, and that the SSH server runs there",
        ) from error
    except (SSHException, OSError, EOFError) as error:
        raise _Broken from error


_PROHIBITED = 1  # RFC 4254, section 5.1: SSH_OPEN_ADMINISTRATIVELY_PROHIBITED


def _authenticated(
    hop: SshHop,
    settings: SshSettings,
    sock: socket.socket | paramiko.Channel,
    credentials: SshCredentials | None,
) -> paramiko.Transport:
    """Return a transport that is logged in. Whatever happens, none is left open."""
    try:
        transport = paramiko.Transport(
            sock, default_window_size=_WINDOW_BYTES, default_max_packet_size=_PACKET_BYTES
        )
    except (SSHException, OSError, EOFError) as error:
        sock.close()
        raise _Broken from error
    try:
        trusted = _trusted_keys(hop)
        transport.set_log_channel(_LOG_CHANNEL)
        transport.banner_timeout = settings.banner_timeout_s
        transport.auth_timeout = settings.auth_timeout_s
        options = transport.get_security_options()
        # GCM needs no separate MAC: half the work per byte.
        options.ciphers = tuple(sorted(options.ciphers, key=lambda name: "gcm" not in name))
        options.key_types = tuple(sorted(options.key_types, key=lambda name: _key_type(name) not in trusted))
        began = time.monotonic()
        try:
            transport.start_client(timeout=settings.banner_timeout_s + settings.connect_timeout_s)
        except IncompatiblePeer as error:
            raise ConfigurationError(
                f"{_named(hop)} and this program have no {_said(error)} in common",
                todo="Update the SSH server: it offers nothing that is still considered safe",
            ) from error
        except (SSHException, OSError, EOFError) as error:
            if time.monotonic() - began < settings.banner_timeout_s:
                raise _Broken from error
        if not transport.initial_kex_done:
            raise HostConnectionError(
                f"{_named(hop)} accepted the connection but did not answer as an SSH server in time",
                todo="Is this port really the SSH server's? If so, look at the load of the host",
            )
        _check_host_key(hop, settings, transport.get_remote_server_key(), trusted)
        _log_in_as(hop, transport, find_credentials(hop, credentials))
        transport.set_keepalive(max(1, round(settings.keepalive_s)))
        return transport
    except BaseException:  # as above
        transport.close()
        raise


# ---- the host's key


def fingerprint_of(key: paramiko.PKey) -> str:
    """Fingerprint as ``ssh-keygen -l`` prints it: SHA256 and base64 without padding."""
    digest = hashlib.sha256(key.asbytes()).digest()
    return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"


def _key_type(algorithm: str) -> str:
    return "ssh-rsa" if algorithm.startswith("rsa-sha2") else algorithm


def _listed(hop: SshHop) -> str:
    return hop.address if hop.port == 22 else f"[{hop.address}]:{hop.port}"


def _trusted_keys(hop: SshHop) -> dict[str, paramiko.PKey]:
    """Keys of known_hosts for this host, by type."""
    if hop.fingerprint:
        return {}
    path = Path(hop.known_hosts).expanduser()
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigurationError(
            "the file with the trusted host keys cannot be read", path=path, todo="Check its owner and mode"
        ) from error
    keys = paramiko.HostKeys()
    for line in lines:
        if line.strip() and not line.startswith(("#", "@")):  # paramiko does not know the markers
            with suppress(SSHException, InvalidHostKey):
                entry = HostKeyEntry.from_line(line)
                if entry and entry.hostnames and entry.key:
                    for name in entry.hostnames:
                        keys.add(name, entry.key.get_name(), entry.key)
    return dict((keys.lookup(_listed(hop)) or {}).items())


def _check_host_key(
    hop: SshHop, settings: SshSettings, key: paramiko.PKey, trusted: dict[str, paramiko.PKey]
) -> None:
    shown = f"{key.get_name()} {fingerprint_of(key)}"
    if hop.fingerprint:
        if hop.fingerprint != fingerprint_of(key):
            raise ConfigurationError(
                f"{_named(hop)} shows the host key {shown}, and {hop.fingerprint} is the one that is trusted",
                todo="Nothing was sent. Ask its administrator; if the key was changed on purpose, "
                "put the new fingerprint into the host's settings",
            )
        return
    path = Path(hop.known_hosts).expanduser()
    scan = f"ssh-keyscan -p {hop.port} -t {key.get_name().removeprefix('ssh-')} {hop.address}"
    if hop is settings and settings.jump:
        bastion = settings.jump
        scan = f"ssh -p {bastion.port} {shlex.quote(f'{bastion.user}@{bastion.address}')} {scan}"
    trust = f"{scan} >> {shlex.quote(str(path))}"
    compare = (
        "compare the fingerprint with `ssh-keygen -lf /etc/ssh/ssh_host_*_key.pub` on the host, then run"
    )
    if trusted.get(key.get_name()) == key and not _is_revoked(path, key):
        return
    if trusted:
        known = ", ".join(f"{name} {fingerprint_of(one)}" for name, one in sorted(trusted.items()))
        forget = f"ssh-keygen -f {shlex.quote(str(path))} -R {shlex.quote(_listed(hop))}"
        raise ConfigurationError(
            f"THE HOST KEY OF {_named(hop)} HAS CHANGED, or somebody answers in its place: "
            f"it shows {shown}, known is {known}",
            path=path,
            todo=f"Nothing was sent. Ask its administrator; if it was installed anew, "
            f"{compare}: {forget}; {trust}",
        )
    raise ConfigurationError(
        f"the host key of {_named(hop)} is not known: {shown}",
        path=path,
        todo=f"Nothing was sent. To trust it, {compare}: {trust}",
    )


def _is_revoked(path: Path, key: paramiko.PKey) -> bool:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return any(line.startswith("@revoked") and key.get_base64() in line.split() for line in lines)


# ---- the login


def _log_in_as(hop: SshHop, transport: paramiko.Transport, credentials: SshCredentials) -> None:
    tried = []
    for name, method in _methods(hop, transport, credentials):
        tried.append(name)
        try:
            method()
        except BadAuthenticationType as error:
            tried[-1] += f" (not allowed there, only {', '.join(error.allowed_types)})"
        except AuthenticationException as error:
            if not transport.is_active():  # paramiko says so of a connection that was cut, too
                raise _Broken from error
        except (SSHException, OSError, EOFError) as error:
            raise _Broken from error
        if transport.is_authenticated():
            return
    if not tried:
        raise ConfigurationError(
            f"no way to log in to {_named(hop)} is set",
            todo="Name a key file, the agent, or credentials with a key or password",
        )
    raise ConfigurationError(
        f"{_named(hop)} refused the login of {hop.user} by {'; '.join(tried)}",
        todo=f"Append the public key to ~/.ssh/authorized_keys of {hop.user} there (mode 600, folder 700), "
        "or correct user, key or password; the reason stands in its log (journalctl -u ssh)",
    )


def _methods(
    hop: SshHop, transport: paramiko.Transport, credentials: SshCredentials
) -> Iterator[tuple[str, Callable[[], object]]]:
    if credentials.key_text or hop.key_file:
        key = _load_key(hop, credentials)
        yield f"the key {fingerprint_of(key)}", lambda: transport.auth_publickey(hop.user, key)
    if hop.use_agent:
        agent = paramiko.Agent()
        try:
            for agent_key in agent.get_keys()[:_AGENT_KEYS]:
                yield (
                    f"the agent's key {fingerprint_of(agent_key)}",
                    lambda key=agent_key: transport.auth_publickey(hop.user, key),  # type: ignore[misc]
                )
        finally:
            agent.close()
    if credentials.password:
        password = credentials.password.get_secret_value()
        yield "password", lambda: transport.auth_password(hop.user, password)


def _load_key(hop: SshHop, credentials: SshCredentials) -> paramiko.PKey:
    """Read the private key. Raises ConfigurationError, in which nothing of the key stands."""
    passphrase = credentials.passphrase.get_secret_value() if credentials.passphrase else None
    path = None if credentials.key_text else Path(hop.key_file or "").expanduser()
    where = f"the private key {path}" if path else f"the key text for {hop.address}"
    try:
        text = (
            credentials.key_text.get_secret_value() if credentials.key_text else (path or Path()).read_text()
        )
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"{where} cannot be read", todo="Check the path, its owner and mode"
        ) from error
    return open_key(text, passphrase, where)


def open_key(text: str, passphrase: str | None, where: str) -> paramiko.PKey:
    """Open the text of a private key. ``where`` names it in the ConfigurationError of one that cannot be."""
    for kind in (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey):
        try:
            return kind.from_private_key(io.StringIO(_normal(text)), passphrase)
        except PasswordRequiredException as error:
            raise ConfigurationError(
                f"{where} needs a passphrase", todo="Put it into the credentials"
            ) from error
        except (SSHException, ValueError, TypeError, IndexError, AssertionError):
            continue  # of another kind, or another passphrase
    raise ConfigurationError(
        f"{where} cannot be opened: " + ("wrong passphrase, or " if passphrase else "") + "no private key",
        todo="Ed25519, ECDSA and RSA keys in OpenSSH's or PEM format are understood",
    ) from None


_ONE_LINE = re.compile(r"(-----BEGIN [A-Z ]+-----)([A-Za-z0-9+/= \t]+)(-----END [A-Z ]+-----)")


def _normal(text: str) -> str:
    """Text of a key as a form may have changed it: line ends, blanks around it, all in one line."""
    if one_line := _ONE_LINE.fullmatch(text.strip()):
        begin, body, end = one_line.groups()
        text = "\n".join([begin, *textwrap.wrap("".join(body.split()), 64), end])
    return "\n".join(line.strip() for line in text.strip().splitlines()) + "\n"


def _named(hop: SshHop) -> str:
    return f"{hop.address} port {hop.port}"


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__
