"""The connections of this process to one host, shared by its threads and by all that is connected to it.

A connection is opened when it is wanted and kept. It carries many sessions (a waiting job holds one), which
are kept too, so that the next command costs one round trip. A server that allows fewer of them (MaxSessions)
is believed, and another connection is opened, up to the size of the pool. One that has died is replaced.
After a fork the child starts with an empty pool and says nothing on its parent's connections.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from paramiko.ssh_exception import ChannelException, SSHException

from mqi.errors import HostConnectionError, ResourceError
from mqi.hosts.login import Link, log_in
from mqi.hosts.session import ConnectionCutError, Session, Silence
from mqi.hosts.ssh_settings import SshCredentials, SshSettings

__all__ = ["Pool", "close_pools", "pool_of"]

CHANNELS = 10
"""Channels on one connection: what OpenSSH's MaxSessions allows by default."""

_OPEN_S = 10.0
"""A channel is opened in one round trip: a connection that takes longer is taken for dead."""

_PATIENCE_S = 60.0
"""How long a command waits for a free channel."""

_REFUSED_PAUSE_S = 0.05

_IDLE_SESSIONS = 4
"""Sessions that a connection keeps for the next command."""

_TRUSTED_S = 10.0
"""A session that was quiet for longer is asked before it is used: a firewall may have forgotten it."""


@dataclass(eq=False)
class _Connection:
    link: Link
    limit: int = CHANNELS
    busy: int = 0
    long: int = 0
    retired: bool = False
    idle: list[Session] = field(default_factory=list)

    @property
    def alive(self) -> bool:
        return self.link.transport.is_active()

    def has_room(self, long: bool) -> bool:
        """Whether it may carry one more. A long one leaves one channel to short commands."""
        return self.busy < self.limit and not (long and self.limit > 1 and self.long >= self.limit - 1)


class Pool:
    """Connections to one host.

    Parameters
    ----------
    login
        Opens a connection. What it raises is handed to whoever wanted a session.
    size
        Connections at most.
    name
        Of the host, for messages.
    """

    def __init__(self, login: Callable[[], Link], size: int, name: str) -> None:
        self.name = name
        self._login = login
        self._size = size
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
    def session(
        self, *, long: bool = False, alone: bool = False, patience_s: float = _PATIENCE_S
    ) -> Iterator[Session]:
        """Give a session for one script. It is kept for the next one if this one ended well.

        ``long``: it will be held for as long as a job runs. ``alone``: it is closed afterwards. Raises
        HostConnectionError, ConfigurationError (see `log_in`), ResourceError where all are taken. A
        Silence or cut that leaves the body retires the connection: it is used for nothing new.
        """
        connection, session = self._take(long, time.monotonic() + patience_s)
        try:
            yield session
        except (Silence, ConnectionCutError):
            connection.retired = True
            raise
        finally:
            if not self._give_back(connection, long, None if alone else session):
                session.close()

    def close(self) -> None:
        """Close all connections. The pool can be used again."""
        with self._changed:
            connections, self._connections = self._connections, []
        for connection in connections:
            connection.link.close()

    def _take(self, long: bool, end: float) -> tuple[_Connection, Session]:
        broken = 0
        while True:
            connection, session = self._reserve(long, end)
            try:
                if session is None:
                    channel = connection.link.transport.open_session(timeout=_OPEN_S)
                    return connection, Session(channel, self.name)
                if time.monotonic() - session.used_at < _TRUSTED_S or session.answers():
                    return connection, session
                connection.retired = True
                self._give_back(connection, long)
            except ChannelException as error:
                with self._changed:  # MaxSessions: that many it has, and no more
                    connection.limit = max(1, connection.busy - 1)
                self._give_back(connection, long)
                if time.monotonic() > end:
                    raise self._all_taken() from error
                time.sleep(_REFUSED_PAUSE_S)
            except (SSHException, OSError, EOFError) as error:
                connection.retired = True
                self._give_back(connection, long)
                broken += 1
                if broken > self._size:
                    raise HostConnectionError(
                        f"connections to {self.name} break as soon as they are used ({error or 'cut'})",
                        todo="Look at the network and at the host's load",
                    ) from error

    def _reserve(self, long: bool, end: float) -> tuple[_Connection, Session | None]:
        """Return a connection with room, counted as taken, and a session that waits there, if one does."""
        with self._changed:
            while True:
                self._drop_dead()
                usable = [one for one in self._connections if not one.retired]
                free = [one for one in usable if one.has_room(long)]
                if free:
                    connection = min(free, key=lambda one: (not one.idle, one.busy))
                    connection.busy += 1
                    connection.long += long
                    return connection, connection.idle.pop() if connection.idle else None
                if len(usable) + self._opening < self._size:
                    self._opening += 1
                    break
                if not self._changed.wait(end - time.monotonic()):
                    raise self._all_taken()
        opened: _Connection | None = None
        try:
            opened = _Connection(self._login(), busy=1, long=int(long))
        finally:
            with self._changed:
                self._opening -= 1
                if opened:
                    self._connections.append(opened)
                self._changed.notify_all()
        return opened, None

    def _give_back(self, connection: _Connection, long: bool, session: Session | None = None) -> bool:
        """Count a session as free, keep it where it is of use, and say whether it was kept."""
        with self._changed:
            connection.busy -= 1
            connection.long -= long
            keep = (
                session is not None
                and session.clean
                and not connection.retired
                and len(connection.idle) < _IDLE_SESSIONS
                and connection.busy + len(connection.idle) < connection.limit
            )
            if session and keep:
                connection.idle.append(session)
            if not connection.busy:
                connection.limit = CHANNELS  # what was refused may have been sessions that were just ending
            self._drop_dead()
            self._changed.notify_all()
            return keep

    def _drop_dead(self) -> None:
        """Close what is dead, and what is retired and no longer used. Holds the lock."""
        for connection in list(self._connections):
            if not connection.alive or (connection.retired and not connection.busy):
                self._connections.remove(connection)
                # Closing waits for the transport's thread: not while others wait for the lock.
                threading.Thread(target=connection.link.close, daemon=True).start()

    def _all_taken(self) -> ResourceError:
        return ResourceError(
            f"all connections to {self.name} are in use",
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
