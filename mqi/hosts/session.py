"""A shell on a host that stays, and runs one script after the other.

Starting a command over SSH starts the account's login shell, and what its ``.bashrc`` does (conda, modules:
often half a second) is done for each. So it is started once: the one line that it ever sees is constant and
means the same to every shell (sh, bash, zsh, csh, fish), and starts a ``sh`` that reads scripts from its
standard input, each after a line with its size. Neither the login shell's quoting nor the limits of a command
line matter. A script's output stands between markers that nobody can guess: what a ``.bashrc`` or a banner
prints is not taken for it.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterator

import paramiko
from paramiko.common import cMSG_CHANNEL_REQUEST
from paramiko.ssh_exception import SSHException

from mqi.errors import HostConnectionError
from mqi.hosts.base import Completed
from mqi.hosts.jobs import SILENCE_S

__all__ = ["ConnectionCutError", "InputClosed", "Session", "Silence"]

_BOOT = 'exec sh -c \'while read -r size; do eval "$(head -c "$size")"; done\''

_SLICE_S = 0.25
"""How often standard error is looked at while standard output is waited for: both share one window."""

_BEGIN_S = 10.0
"""A script begins after one round trip and one login: a host that takes longer is taken for dead."""

_READ_BYTES = 1 << 18
_ERRORS_KEPT = 1 << 16


class ConnectionCutError(HostConnectionError):
    """The connection ended before the command had. What can be asked again is asked on another one."""


class Silence(Exception):
    """The host did not answer in time. No OSError: it must not be taken for one of a file here."""


class InputClosed(Exception):
    """Nobody reads what is sent any more: the script has ended, or the connection."""


class Session:
    """A shell on a host. One thread at a time talks with it; every read and write is limited in time.

    Raises Silence where the host is silent, HostConnectionError where the connection is cut.
    """

    def __init__(self, channel: paramiko.Channel, host: str) -> None:
        self._channel = channel
        self._host = host
        self.clean = True  # whether the last script has ended and left nothing behind
        self.used_at = time.monotonic()
        _execute(channel, _BOOT)

    def begin(self, script: str) -> None:
        """Run a script of POSIX sh, in a subshell. Its input is what is sent now."""
        marker = f"@{secrets.token_hex(16)}"
        self._begin = b"\n%s\n" % marker.encode()
        self._end = re.compile(rb"\n%s (\d+)\n" % marker.encode())
        self._output, self._errors, self._noise = b"", b"", b""
        self._begun, self.clean = False, False
        begin, end = rf"printf '\n%s\n' {marker}", rf"printf '\n%s %s\n' {marker} $?"
        text = f"{begin}; {begin} >&2\n(\n{script}\n)\nset -- $?\n{end.replace('$?', '$1')}; " + (
            f"{end.replace('$?', '$1')} >&2\n"
        )
        data = text.encode("utf-8", "surrogateescape")
        self.send(b"%d\n%s" % (len(data), data))

    def answers(self) -> bool:
        """Whether it still runs scripts: one round trip."""
        try:
            self.begin(":")
            return self.finish(_BEGIN_S).exit_code == 0
        except (Silence, InputClosed, HostConnectionError):
            return False

    def close(self) -> None:
        """End it. What it runs is not told, and ends when it writes."""
        try:
            self._channel.close()
        except (SSHException, OSError, EOFError):
            return  # the connection has gone, and the channel with it

    def send(self, data: bytes, timeout_s: float = SILENCE_S) -> None:
        """Give the script input. Raises InputClosed when nobody reads it any more."""
        self._channel.settimeout(timeout_s)
        try:
            self._channel.sendall(data)
        except TimeoutError as error:
            raise Silence(self._silent(timeout_s)) from error
        except OSError as error:
            raise InputClosed from error
        except (SSHException, EOFError) as error:
            raise self._cut() from error

    def some(self, timeout_s: float) -> bytes:
        """Return some of its output, b"" when it has gone."""
        if self._output:
            data, self._output = self._output, b""
            return data
        end = time.monotonic() + timeout_s
        begin_end = time.monotonic() + _BEGIN_S
        while True:
            self._drain()
            try:
                self._channel.settimeout(max(0.001, min(_SLICE_S, end - time.monotonic())))
                data = self._channel.recv(_READ_BYTES)
            except TimeoutError:
                if time.monotonic() >= (end if self._begun else min(end, begin_end)):
                    raise Silence(self._silent(timeout_s if self._begun else _BEGIN_S)) from None
                continue
            if self._begun or not data:
                return data
            before, found, after = (self._noise + data).partition(self._begin)
            if not found:
                self._noise = before[-len(self._begin) :]
                continue
            self._begun = True
            if after:
                return after

    def until(self, separator: bytes, timeout_s: float = SILENCE_S) -> bytes:
        """Return its output up to a separator, without it. Raises EOFError when it ends before."""
        data = b""
        while separator not in data:
            if match := self._end.search(data):
                self._output = data[match.start() :]
                raise EOFError
            more = self.some(timeout_s)
            if not more:
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

    def lines(self, silence_s: float) -> Iterator[bytes]:
        """Give the rest of its output line by line, as it comes, without the line feeds."""
        rest, empty = b"", False
        while data := self.some(silence_s):
            *whole, rest = (rest + data).split(b"\n")
            for line in whole:
                if self._end.fullmatch(b"\n%s\n" % line):
                    self._output = b"\n%s\n%s" % (line, rest)
                    self.finish(silence_s)
                    return
                if empty:
                    yield b""
                empty = not line  # held: the line feed before the end marker belongs to the marker
                if line:
                    yield line
        raise self._cut()

    def finish(self, timeout_s: float) -> Completed:
        """Return the rest of its output and its exit status, as soon as it has ended."""
        end = time.monotonic() + timeout_s
        parts, tail, match = [], b"", None
        while not match:
            data = self.some(max(0.0, end - time.monotonic()))
            if not data:
                raise self._cut()
            parts.append(data)
            tail = tail[-80:] + data
            match = self._end.search(tail)
        output = b"".join(parts)
        while not self._end.search(self._errors):
            if self._channel.closed or time.monotonic() > end:
                break
            if not self._drain():
                time.sleep(0.0005)
        errors = self._errors.partition(self._begin)[2]
        found = self._end.search(errors)
        whole = self._end.search(output)
        assert whole
        self.clean = found is not None and whole.end() == len(output)
        self.used_at = time.monotonic()
        return Completed(int(match[1]), output[: whole.start()], errors[: found.start()] if found else errors)

    def _drain(self) -> bool:
        drained = False
        while self._channel.recv_stderr_ready():
            self._errors += self._channel.recv_stderr(_READ_BYTES)
            drained = True
        if len(self._errors) > 2 * _ERRORS_KEPT:  # the beginning and the end tell most
            self._errors = self._errors[:_ERRORS_KEPT] + self._errors[-_ERRORS_KEPT:]
        return drained

    def _silent(self, timeout_s: float) -> str:
        return f"host {self._host} did not answer within {timeout_s:g} s"

    def _cut(self) -> ConnectionCutError:
        return ConnectionCutError(
            f"the connection to host {self._host} was cut before the command had ended",
            todo="It is tried again; if this repeats, look at the network and at the host's log",
        )


def _execute(channel: paramiko.Channel, command: str) -> None:
    """Ask for a command without waiting for the answer, which saves a round trip and cannot hang.

    Where it is refused, paramiko closes the channel, and the next read ends.
    """
    message = paramiko.Message()
    message.add_byte(cMSG_CHANNEL_REQUEST)
    message.add_int(channel.remote_chanid)
    message.add_string("exec")
    message.add_boolean(True)
    message.add_string(command)
    channel.get_transport()._send_user_message(message)  # type: ignore[attr-defined]
