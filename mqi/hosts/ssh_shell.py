"""Commands on a host over SSH, whatever its login shell prints or is.

The login shell only ever sees one constant line, which every shell understands (sh, bash, zsh, csh, fish):
start ``sh`` and let it read a script of so many bytes. The script, with every word quoted once and here,
comes over standard input, so that neither a shell's quoting nor the limits of a command line matter, and no
argument of ours stands in the list of processes longer than the command itself runs. What is between two
markers that nobody can guess is the command's; what a ``.bashrc`` or a banner prints is not.
"""

from __future__ import annotations

import re
import secrets
import shlex
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager

import paramiko
from paramiko.common import cMSG_CHANNEL_REQUEST
from paramiko.ssh_exception import SSHException

from mqi.errors import HostConnectionError
from mqi.hosts.base import Completed
from mqi.hosts.jobs import ANSWER_S, SILENCE_S
from mqi.hosts.pool import Pool

__all__ = ["SshShell", "Talk"]

_BOOT = "exec sh -c 'eval \"$(head -c {size})\"'"

_SLICE_S = 0.25
"""How often standard error is looked at while standard output is waited for: both share one window."""

_READ_BYTES = 1 << 20
_ERRORS_KEPT = 1 << 16


class Talk:
    """A command that runs on a host, with its standard streams. Every read is limited in time."""

    def __init__(self, channel: paramiko.Channel, marker: bytes, host: str) -> None:
        self._channel = channel
        self._host = host
        self._begin = b"\n" + marker + b"\n"
        self._end = re.compile(rb"\n" + marker + rb" (\d+)\n")
        self._output = b""
        self._errors = b""
        self._begun = False

    def send(self, data: bytes | memoryview, timeout_s: float = SILENCE_S) -> None:
        """Give the command input. Raises BrokenPipeError when it takes none any more: `finish` says why."""
        self._channel.settimeout(timeout_s)
        try:
            self._channel.sendall(data)
        except TimeoutError as error:
            raise TimeoutError(self._silent(timeout_s)) from error
        except OSError as error:
            raise BrokenPipeError from error
        except (SSHException, EOFError) as error:
            raise self._cut() from error

    def end_input(self) -> None:
        """Let the command see the end of its input."""
        try:
            self._channel.shutdown_write()
        except (SSHException, OSError, EOFError) as error:
            raise self._cut() from error

    def some(self, timeout_s: float) -> bytes:
        """Return some of its output, b"" at the end of it."""
        if self._output:
            data, self._output = self._output, b""
            return data
        end = time.monotonic() + timeout_s
        while True:
            self._drain()
            try:
                self._channel.settimeout(_SLICE_S)
                data = self._channel.recv(_READ_BYTES)
            except TimeoutError:
                if time.monotonic() > end:
                    raise TimeoutError(self._silent(timeout_s)) from None
                continue
            if self._begun or not data:
                return data
            # Noise of the login shell stands before the first marker.
            before, found, after = (self._noise + data).partition(self._begin)
            if found:
                self._begun = True
                if after:
                    return after
            else:
                self._noise = before[-len(self._begin) :]

    _noise = b"\n"  # so that a marker at the very beginning is found too

    def until(self, separator: bytes, timeout_s: float = SILENCE_S) -> bytes:
        """Return its output up to a separator, without it."""
        data = b""
        while separator not in data:
            more = self.some(timeout_s)
            if not more:
                self._output = data
                raise self._cut()
            data += more
        found, _, self._output = data.partition(separator)
        return found

    def pieces(self, size: int, timeout_s: float = SILENCE_S) -> Iterator[bytes]:
        """Give exactly so many bytes of its output, as they come."""
        while size:
            data = self.some(timeout_s)
            if not data:
                raise self._cut()
            piece, self._output = data[:size], data[size:]
            size -= len(piece)
            yield piece

    def finish(self, timeout_s: float) -> Completed:
        """Return the rest of its output and its exit status, as soon as it has ended."""
        end = time.monotonic() + timeout_s
        parts, tail = [], b""
        while not (match := self._end.search(tail)):
            data = self.some(max(0.0, end - time.monotonic()))
            if not data:
                raise self._cut()
            parts.append(data)
            tail = tail[-64:] + data
        output = b"".join(parts)
        output = output[: self._end.search(output).start()]  # type: ignore[union-attr]
        while not self._end.search(self._errors) and time.monotonic() < end and not self._channel.closed:
            if not self._drain():
                time.sleep(0.001)
        errors = self._errors.partition(self._begin)[2]
        found = self._end.search(errors)
        return Completed(int(match[1]), output, errors[: found.start()] if found else errors)

    @property
    def ended_well(self) -> bool:
        """Whether the host said that the session is over, rather than the connection."""
        return self._channel.status_event.wait(_SLICE_S * 8) and self._channel.exit_status != -1

    def _drain(self) -> bool:
        drained = False
        while self._channel.recv_stderr_ready():
            self._errors += self._channel.recv_stderr(_READ_BYTES)
            drained = True
        if len(self._errors) > 2 * _ERRORS_KEPT:  # the beginning and the end tell most
            self._errors = self._errors[:_ERRORS_KEPT] + self._errors[-_ERRORS_KEPT:]
        return drained

    def _silent(self, timeout_s: float) -> str:
        return f"{self._host} did not answer within {timeout_s:g} s"

    def _cut(self) -> HostConnectionError:
        return HostConnectionError(
            f"the connection to {self._host} was cut before the command had ended",
            todo="It is tried again; if this repeats, look at the network and at the host's log (journalctl -u ssh)",
        )


class SshShell:
    """Runs commands on a host over SSH (`mqi.hosts.jobs.Shell`).

    Every method raises HostConnectionError when the host does not answer, ConfigurationError when it or its
    key is refused, ResourceError when all its channels are taken.
    """

    def __init__(self, pool: Pool, host: str) -> None:
        self._pool = pool
        self._host = host

    def run(self, argv: Sequence[str], stdin: bytes = b"", timeout_s: float = ANSWER_S) -> Completed:
        """Run a command to its end."""
        with self.talk(shlex.join(argv)) as talk:
            try:
                talk.send(stdin)
                talk.end_input()
            except BrokenPipeError:
                pass  # it did not read its input to the end: its exit status says whether that is right
            return talk.finish(timeout_s)

    def stream(self, argv: Sequence[str], silence_s: float = SILENCE_S) -> Generator[bytes, None, None]:
        """Run a command and give its lines as they come."""
        with self.talk(shlex.join(argv), long=True, framed_end=False) as talk:
            talk.end_input()
            rest = b""
            while data := talk.some(silence_s):
                *lines, rest = (rest + data).split(b"\n")
                yield from lines
            if not talk.ended_well:
                raise HostConnectionError(
                    f"the connection to {self._host} was cut", todo="It is connected again by the next try"
                )
            if rest:
                yield rest

    @contextmanager
    def talk(self, script: str, *, long: bool = False, framed_end: bool = True) -> Iterator[Talk]:
        """Start a POSIX sh script and give its streams. Leaving the body ends it."""
        marker = f"@{secrets.token_hex(16)}"
        frame = rf"printf '\n%s\n' {marker}; printf '\n%s\n' {marker} >&2"
        text = f"{frame}\n{script}\n"
        if framed_end:
            end = rf"printf '\n%s %s\n' {marker} $_code"
            text += f"_code=$?; {end}; {end} >&2\n"
        try:
            with self._pool.channel(long=long) as channel:
                talk = Talk(channel, marker.encode(), f"host {self._host}")
                data = text.encode("utf-8", "surrogateescape")
                _execute(channel, _BOOT.format(size=len(data)))
                talk.send(data)
                yield talk
        except TimeoutError as error:
            raise HostConnectionError(
                str(error), todo="Look at the network and at the host's load and disks; jobs there are not affected"
            ) from error
        except BrokenPipeError as error:
            raise HostConnectionError(
                f"host {self._host} ended the session at once",
                todo="Check that the account may run commands: its login shell, a ForceCommand in sshd_config",
            ) from error


def _execute(channel: paramiko.Channel, command: str) -> None:
    """Ask for a command without waiting for the answer, which saves a round trip and cannot hang.

    Where it is refused, the channel is closed, and the next read ends.
    """
    message = paramiko.Message()
    message.add_byte(cMSG_CHANNEL_REQUEST)
    message.add_int(channel.remote_chanid)
    message.add_string("exec")
    message.add_boolean(True)
    message.add_string(command)
    try:
        channel.transport._send_user_message(message)
    except (SSHException, OSError, EOFError) as error:
        raise HostConnectionError(f"the connection was cut ({error or 'EOF'})") from error
