"""The connections of this process to one host, shared by its threads and by all that is connected to it.

A connection is opened when it is wanted and kept. It carries many channels (a waiting job holds one); a
server that allows fewer of them (MaxSessions) is believed, and another connection is opened, up to the size
of the pool. One that has died is replaced. After a fork the child starts with an empty pool and says nothing
on its parent's connections.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import paramiko
from paramiko.ssh_exception import ChannelException, SSHException

from mqi.errors import HostConnectionError, ResourceError
from mqi.hosts.login import Link, log_in
from mqi.hosts.ssh_settings import SshCredentials, SshSettings

__all__ = ["Pool", "close_pools", "pool_of"]

CHANNELS = 10
"""Channels on one connection: what OpenSSH's MaxSessions allows by default."""

_OPEN_S = 10.0
"""A channel is opened in one round trip: a connection that takes longer is taken for dead."""

_PATIENCE_S = 60.0
"""How long a command waits for a free channel."""

_REFUSED_PAUSE_S = 0.05


@dataclass(eq=False)
class _Connection:
    link: Link
    limit: int = CHANNELS
    channels: int = 0
    retired: bool = False

    @property
    def alive(self) -> bool:
        return self.link.transport.is_active()


class Pool:
    """Connections to one host.

    Parameters
    ----------
    login
        Opens a connection. What it raises is handed to whoever wanted a channel.
    size
        Connections at most.
    name
        Of the host, for messages.
    """

    def __init__(self, login: Callable[[], Link], size: int, name: str) -> None:
        self._login = login
        self._size = size
        self._name = name
        self._start()
        _pools.add(self)

    def _start(self) -> None:
        self._changed = threading.Condition()
        self._connections: list[_Connection] = []
        self._opening = 0

    @property
    def connections(self) -> int:
        """How many are open now."""
        with self._changed:
            return sum(connection.alive for connection in self._connections)

    @contextmanager
    def channel(self, *, long: bool = False, patience_s: float = _PATIENCE_S) -> Iterator[paramiko.Channel]:
        """Give a new channel, and close it at the end.

        ``long``: it will be held for as long as a job runs; one channel of each connection is left to short
        commands. Raises HostConnectionError, ConfigurationError (see `log_in`), ResourceError where all are
        taken. A TimeoutError that leaves the body retires the connection: it is used for nothing new.
        """
        connection, channel = self._open(long, time.monotonic() + patience_s)
        try:
            yield channel
        except TimeoutError:
            connection.retired = True
            raise
        finally:
            with suppress(SSHException, OSError, EOFError):
                channel.close()
            self._release(connection)

    def close(self) -> None:
        """Close all connections. The pool can be used again."""
        with self._changed:
            connections, self._connections = self._connections, []
        for connection in connections:
            connection.link.close()

    def _open(self, long: bool, end: float) -> tuple[_Connection, paramiko.Channel]:
        broken = 0
        while True:
            connection = self._reserve(long, end)
            try:
                return connection, connection.link.transport.open_session(timeout=_OPEN_S)
            except ChannelException as error:
                with self._changed:  # MaxSessions: that many it has, and no more
                    connection.limit = max(1, connection.channels - 1)
                self._release(connection)
                if time.monotonic() > end:
                    raise self._busy() from error
                time.sleep(_REFUSED_PAUSE_S)
            except (SSHException, OSError, EOFError) as error:
                connection.retired = True
                self._release(connection)
                broken += 1
                if broken > self._size:
                    raise HostConnectionError(
                        f"connections to {self._name} break as soon as they are used ({error or 'cut'})",
                        todo="Look at the network and at the host's load",
                    ) from error

    def _reserve(self, long: bool, end: float) -> _Connection:
        """Return a connection with room, and count a channel on it."""
        with self._changed:
            while True:
                self._drop_dead()
                usable = [one for one in self._connections if not one.retired]
                free = [one for one in usable if one.channels < one.limit - (long and one.limit > 1)]
                if free:
                    connection = min(free, key=lambda one: one.channels)
                    connection.channels += 1
                    return connection
                if len(usable) + self._opening < self._size:
                    self._opening += 1
                    break
                if not self._changed.wait(end - time.monotonic()):
                    raise self._busy()
        connection = None
        try:
            connection = _Connection(self._login(), channels=1)
        finally:
            with self._changed:
                self._opening -= 1
                if connection:
                    self._connections.append(connection)
                self._changed.notify_all()
        return connection

    def _release(self, connection: _Connection) -> None:
        with self._changed:
            connection.channels -= 1
            if not connection.channels:
                connection.limit = CHANNELS  # what was refused may have been sessions that were just ending
            self._drop_dead()
            self._changed.notify_all()

    def _drop_dead(self) -> None:
        """Close what is dead, and what is retired and no longer used. Holds the lock."""
        for connection in list(self._connections):
            if not connection.alive or (connection.retired and not connection.channels):
                self._connections.remove(connection)
                # Closing waits for the transport's thread: not while others wait for the lock.
                threading.Thread(target=connection.link.close, daemon=True).start()

    def _busy(self) -> ResourceError:
        return ResourceError(
            f"all connections to {self._name} are in use",
            todo="Raise pool_size in the host's settings, or MaxSessions in its sshd_config",
        )

    def forget(self) -> None:
        """In a forked child: leave the parent's connections alone and start anew."""
        for connection in self._connections:
            with suppress(OSError):
                connection.link.sock.close()  # ours of the two descriptors: nothing is sent
            _not_ours.append(connection)  # its objects would say good-bye on the wire when collected
        self._start()


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()
_shared: dict[tuple[SshSettings, SshCredentials | None], Pool] = {}
_shared_lock = threading.Lock()
_not_ours: list[_Connection] = []


def pool_of(settings: SshSettings, credentials: SshCredentials | None = None) -> Pool:
    """Return this process's pool for a host: the same for the same settings."""
    with _shared_lock:
        key = (settings, credentials)
        if key not in _shared:
            _shared[key] = Pool(
                lambda: log_in(settings, credentials),
                settings.pool_size,
                f"{settings.address} port {settings.port}",
            )
        return _shared[key]


def close_pools() -> None:
    """Close all connections of this process, e.g. before it ends."""
    for pool in list(_pools):
        pool.close()


def _after_fork() -> None:
    global _shared_lock  # noqa: PLW0603 - another thread of the parent may have held it
    _shared_lock = threading.Lock()
    for pool in list(_pools):
        pool.forget()


os.register_at_fork(after_in_child=_after_fork)
