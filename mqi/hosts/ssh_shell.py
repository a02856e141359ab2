"""Commands on a host over SSH: every word quoted once, and here."""

from __future__ import annotations

import shlex
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress

from mqi.errors import HostConnectionError
from mqi.hosts.base import Completed
from mqi.hosts.jobs import ANSWER_S, SILENCE_S
from mqi.hosts.pool import Pool
from mqi.hosts.session import InputClosed, Session, Silence

__all__ = ["SshShell"]


class SshShell:
    """Runs commands on a host over SSH (`mqi.hosts.jobs.Shell`).

    Every method raises HostConnectionError when the host does not answer, ConfigurationError when it or its
    key is refused, ResourceError when all its channels are taken.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def run(
        self,
        argv: Sequence[str],
        stdin: bytes = b"",
        timeout_s: float = ANSWER_S,
        *,
        alone: bool = False,
        before: str = "",
    ) -> Completed:
        """Run a command to its end.

        ``alone``: nothing else is run in this session later; for a program that may leave others behind,
        which still write. ``before``: a script that is run first, and may exit in place of the command.
        """
        words = shlex.join(argv)
        source = f"head -c {len(stdin)} | {words}" if stdin else f"{words} </dev/null"
        with self.talk(f"{before}\n{source}", alone=alone or bool(stdin)) as session:
            if stdin:
                with suppress(InputClosed):  # not read to the end: its exit status says whether it matters
                    session.send(stdin)
            return session.finish(timeout_s)

    def stream(
        self, argv: Sequence[str], silence_s: float = SILENCE_S, *, before: str = ""
    ) -> Generator[bytes, None, None]:
        """Run a command and give its lines as they come."""
        with self.talk(f"{before}\n{shlex.join(argv)} </dev/null", long=True) as session:
            yield from session.lines(silence_s)

    @contextmanager
    def talk(self, script: str, *, long: bool = False, alone: bool = False) -> Iterator[Session]:
        """Run a script of POSIX sh and give the session, to talk with it. Leaving the body ends it."""
        host = self._pool.name
        try:
            with self._pool.session(long=long, alone=alone) as session:
                session.begin(script)
                yield session
        except Silence as error:
            raise HostConnectionError(
                str(error) or f"host {host} does not answer",
                todo="Look at the network and at the host's load and disks; jobs there are not affected",
            ) from error
        except (InputClosed, EOFError) as error:
            raise HostConnectionError(
                f"host {host} ended the session at once",
                todo="Check that the account may run commands: its login shell, ForceCommand in sshd_config",
            ) from error
