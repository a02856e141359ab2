"""The verbs of job.sh in Python, over the one seam to a host: running a command there.

`Shell` is that seam. ``local`` fills it with subprocesses, ``ssh`` with channels; everything else about
jobs (quoting, protocol, parsing, the rule of attempts) stands here once.
"""

from __future__ import annotations

import hashlib
import math
import re
import secrets
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from importlib.resources import files
from typing import Literal, Protocol

from mqi.case import JobStatus
from mqi.errors import ConfigurationError, HostConnectionError, MQIError, ResourceError, TransferError
from mqi.hosts.base import Attempt, Completed, JobRequest, JobState, Slot

__all__ = ["ANSWER_S", "SILENCE_S", "Completed", "Jobs", "Shell", "choose_attempt", "parse_state"]

SILENCE_S = 30.0
"""``follow`` says something every second: a host that is silent for so long does not answer."""

ANSWER_S = 60.0
"""A verb answers in milliseconds; submit waits at most 5 s for its supervisor."""

_MAX_PARTIAL = 65536
"""Bytes of an unfinished line that are kept before they count as a line."""

# Exit status of job.sh, see its header.
_REFUSED, _USAGE, _NO_INPUT, _UNFIT, _NO_SPACE = 1, 64, 65, 69, 73

_INSTALL = """\
set -u; umask 077; root=$1; name=$2
if [ -d "$root" ]; then
  # Asked twice: another process may be making it between the first look and the second.
  [ -d "$root/jobs" ] || [ -z "$(ls -A "$root")" ] || [ -d "$root/jobs" ] || exit 65
else
  mkdir -p "$root" || exit 73
fi
chmod 700 "$root" && mkdir -p "$root/jobs" "$root/bin" "$root/input" "$root/slots" || exit 73
[ -f "$root/bin/$name" ] && exit 0
cat >"$root/bin/.$name.$$" && mv -f "$root/bin/.$name.$$" "$root/bin/$name" || exit 73
"""


class Shell(Protocol):
    """Runs commands on a host. Both methods raise HostConnectionError when it does not answer."""

    def run(self, argv: Sequence[str], stdin: bytes = b"", timeout_s: float = ANSWER_S) -> Completed:
        """Run a command to its end."""
        ...

    def stream(self, argv: Sequence[str], silence_s: float = SILENCE_S) -> Generator[bytes, None, None]:
        """Run a command and give its output line by line, without the line feeds.

        Closing the generator ends the command. Raises HostConnectionError after ``silence_s`` without
        a line.
        """
        ...


_STATE = re.compile(r"(ABSENT|CLAIMED|PENDING|RUNNING|ORPHAN|EXITED|LOST)((?: [a-z]+=[^\s=]*)*)")


def parse_state(name: str, line: str) -> JobState:
    """Read a status line of job.sh.

    Raises HostConnectionError for anything else: a host that says something else has not answered.
    """
    match = _STATE.fullmatch(line.strip(" \r\n"))
    if not match:
        raise HostConnectionError(
            f"the host answered with {line[:120]!r} where the state of job {name} was asked",
            todo="A login shell on the host that prints something into every session would explain it",
        )
    word = match[1]
    fields = dict(item.split("=", 1) for item in match[2].split())
    why = fields.get("why", "")
    try:
        exit_code = int(fields["rc"]) if word == "EXITED" else None
        started_at = _epoch(fields.get("start", "-"))
        ended_at = _epoch(fields.get("end", "-"))
    except (KeyError, ValueError) as error:
        raise HostConnectionError(
            f"the host's record of job {name} cannot be read: {line[:120]!r}",
            todo="Look at the file exit in the job's folder",
        ) from error
    if word == "EXITED":
        status = JobStatus.FAILED
        if why == "cancelled":
            status = JobStatus.CANCELLED
        elif why == "exit" and exit_code == 0:
            status = JobStatus.COMPLETED
    elif word in {"RUNNING", "ORPHAN"}:
        status, why = JobStatus.RUNNING, "orphan" if word == "ORPHAN" else ""
    elif word in {"PENDING", "CLAIMED"}:
        status, why = JobStatus.PENDING, why or "claimed"
    else:
        status, why = JobStatus.UNKNOWN, f"lost:{why}" if word == "LOST" else "absent"
    slot = fields.get("slot", "-")
    return JobState(
        name=name,
        status=status,
        exit_code=exit_code,
        reason=why,
        slot=None if slot == "-" else slot,
        acked=fields.get("acked") == "1",
        started_at=started_at,
        ended_at=ended_at,
    )


def _epoch(text: str) -> float | None:
    if text == "-":
        return None
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def choose_attempt(unit: str, states: Iterable[JobState]) -> Attempt | JobState:
    """Decide which attempt at a unit counts: the rule that makes a unit run once.

    Attempts are looked at in the order of their numbers. The first that waits, runs, has ended well or has
    failed without anybody having been told (not acked) is the one. A failed one that was acked, and one
    that was fenced, is passed over. A lost one must be fenced first: it is returned as it is.
    Where none is left, the next number is a new attempt (``state`` None).
    """
    numbered = re.compile(re.escape(unit) + r"\.a([1-9][0-9]*)")
    known: dict[int, JobState] = {}
    for state in states:
        match = numbered.fullmatch(state.name)
        if match and not state.absent:
            known[int(match[1])] = state
    for number, state in sorted(known.items()):
        if state.lost:
            return state
        if not state.fenced and not state.acked:
            return Attempt(name=state.name, number=number, state=state)
    number = max(known, default=0) + 1
    return Attempt(name=f"{unit}.a{number}", number=number)


class Jobs:
    """The jobs below one workspace of one host.

    Parameters
    ----------
    shell
        Runs commands on the host.
    root
        The workspace (``HostSettings.workspace``).
    host
        Name of the host, for messages.
    """

    def __init__(self, shell: Shell, root: str, host: str) -> None:
        self._shell = shell
        self._root = root
        self._host = host
        script = files("mqi.hosts").joinpath("job.sh").read_bytes()
        self._script = script
        self._script_name = f"job-{hashlib.sha256(script).hexdigest()[:12]}.sh"

    @property
    def script_path(self) -> str:
        """Where job.sh of this version stands on the host."""
        return f"{self._root}/bin/{self._script_name}"

    def install(self) -> None:
        """Make the workspace (mode 0700) and put job.sh there, under its hash: running jobs keep theirs.

        Raises ConfigurationError for a folder that holds somebody else's files.
        """
        done = self._shell.run(["sh", "-c", _INSTALL, "install", self._root, self._script_name], self._script)
        if done.exit_code == _NO_INPUT:
            raise ConfigurationError(
                f"the workspace on host {self._host} holds other files",
                path=self._root,
                todo="Name a folder of its own as the host's workspace; it is made when it is missing",
            )
        self._check(done, "prepare the workspace")

    def selftest(self) -> None:
        """Run a trivial job. Raises ConfigurationError that names what the host lacks."""
        self._verb("selftest", doing="run its self-test")

    def submit(self, request: JobRequest, slots: Sequence[Slot]) -> JobState:
        """Start a job once, on the first of ``slots`` that is free; they are all of one kind."""
        argv = ["submit", self._root, request.name]
        if request.input_folder:
            argv += ["-i", request.input_folder]
        if request.rendered:
            argv += ["-f", request.rendered]
        if request.needs_slot and slots:
            argv += ["-s", ",".join(slot.name for slot in slots), "-k", slots[0].kind]
        if request.time_limit_s:
            argv += ["-t", str(request.time_limit_s)]
        answer = self._run([*argv, "--", *request.argv], doing=f"submit job {request.name}")
        return parse_state(request.name, _last_line(answer).partition(" ")[2])

    def state(self, name: str) -> JobState:
        """See `Host.state`."""
        return self._state_after("status", name)

    def cancel(self, name: str, grace_s: float) -> JobState:
        """See `Host.cancel`."""
        grace = math.ceil(max(grace_s, 0))
        return self._state_after("cancel", name, str(grace), timeout_s=grace + ANSWER_S)

    def fence(self, name: str) -> JobState:
        """See `Host.fence`."""
        return self._state_after("fence", name)

    def ack(self, name: str) -> JobState:
        """See `Host.ack`."""
        return self._state_after("ack", name)

    def attempt(self, unit: str) -> Attempt:
        """See `Host.attempt`.

        Processes that decide at the same time need no lock: fencing the same attempt twice is harmless,
        and whoever comes second to a new name is answered with the first one's job.
        """
        for _ in range(100):  # more lost attempts than any unit has
            choice = choose_attempt(unit, self.list(f"{unit}.a"))
            if isinstance(choice, Attempt):
                return choice
            self.fence(choice.name)  # where it is refused, it turned out to run: look again
        raise ResourceError(f"an attempt at {unit} is lost and cannot be fenced", todo=self._look())

    def list(self, prefix: str = "") -> tuple[JobState, ...]:
        """See `Host.list`."""
        answer = self._verb("list", *([prefix] if prefix else []), doing="list its jobs")
        rows = (line.partition(" ") for line in answer.decode("utf-8", "replace").splitlines())
        return tuple(parse_state(name, state) for name, _, state in rows)

    def tail(self, name: str, stream: Literal["out", "err"], size: int) -> str:
        """See `Host.tail`."""
        if size <= 0:
            return ""
        answer = self._verb(
            "tail", name, str(-size), str(size), stream, doing=f"read what job {name} printed"
        )
        return answer.partition(b"\n")[2].decode("utf-8", "replace")

    def remove(self, what: Literal["jobs", "input"], name: str) -> None:
        """See `Host.remove`."""
        self._verb("remove", what, name, doing=f"remove {name}")

    def wait(
        self, name: str, on_output: Callable[[str], None], stop: threading.Event, offset: int = 0
    ) -> JobState:
        """See `Host.wait`. Output is given from the byte ``offset`` on."""
        marker = f"@{secrets.token_hex(16)}"  # so that nothing a program prints looks like our protocol
        argv = self._argv("follow", self._root, name, str(offset), marker)
        partial, held = b"", None
        with closing(self._shell.stream(argv)) as lines:
            for line in lines:
                if not line.startswith(marker.encode()):
                    if held is not None:
                        partial = _emit(partial + held + b"\n", on_output)
                    held = line
                    continue
                # The line feed before a marker is the marker's own: what stands there is unfinished.
                partial, held = _emit(partial + (held or b""), on_output), None
                word, _, rest = line.decode("utf-8", "replace").partition(" ")[2].partition(" ")
                if word == "END":
                    if partial:
                        _emit(partial + b"\n", on_output)
                    state = parse_state(name, rest.partition(" ")[2])
                    if state.absent:
                        raise ResourceError(
                            f"job {name} is not on host {self._host}: it was withdrawn or removed",
                            todo="It is submitted again by the next try",
                        )
                    return state
                if stop.is_set():
                    return self.state(name)
        raise HostConnectionError(
            f"host {self._host} stopped answering while job {name} was waited for",
            todo="The job is not affected; it is found again by its name",
        )

    def _state_after(self, verb: str, name: str, *more: str, timeout_s: float = ANSWER_S) -> JobState:
        argv = [verb, self._root, name, *more]
        answer = self._run(argv, doing=f"{verb} job {name}", timeout_s=timeout_s, refusal_is_answer=True)
        return parse_state(name, _last_line(answer))

    def _verb(self, verb: str, *more: str, doing: str) -> bytes:
        return self._run([verb, self._root, *more], doing=doing)

    def _argv(self, *verb: str) -> tuple[str, ...]:
        return ("sh", self.script_path, *verb)

    def _run(
        self, verb: Sequence[str], *, doing: str, timeout_s: float = ANSWER_S, refusal_is_answer: bool = False
    ) -> bytes:
        done = self._shell.run(self._argv(*verb), timeout_s=timeout_s)
        if not (refusal_is_answer and done.exit_code == _REFUSED):
            self._check(done, doing)
        return done.stdout

    def _check(self, done: Completed, doing: str) -> None:
        if done.exit_code == 0:
            return
        said = done.stderr.decode("utf-8", "replace").strip()[-500:] or f"exit status {done.exit_code}"
        kind: type[MQIError]
        kind, todo = {
            _REFUSED: (ResourceError, "Wait for it to end, or cancel it"),
            _USAGE: (ConfigurationError, "Correct the setting or name"),
            _NO_INPUT: (TransferError, "Upload the input again"),
            _UNFIT: (ConfigurationError, "Install what is missing on the host, or choose another workspace"),
            _NO_SPACE: (ResourceError, "Make room in the workspace"),
        }.get(done.exit_code, (HostConnectionError, self._look()))
        raise kind(f"host {self._host} could not {doing}: {said}", path=self._root, todo=todo)

    def _look(self) -> str:
        return f"Look at the workspace {self._root} on host {self._host}"


def _last_line(answer: bytes) -> str:
    """Return what a verb said last: a login shell may have printed something before it."""
    lines = answer.decode("utf-8", "replace").splitlines()
    return lines[-1] if lines else ""


def _emit(data: bytes, on_output: Callable[[str], None]) -> bytes:
    """Give the whole lines of ``data`` to ``on_output`` and return the rest.

    A carriage return ends a line too: that is how programs redraw their progress.
    """
    *lines, rest = re.split(rb"\r?\n|\r(?!$)", data)
    for line in lines:
        on_output(line.decode("utf-8", "replace"))
    if len(rest) > _MAX_PARTIAL:
        on_output(rest.decode("utf-8", "replace"))
        return b""
    return rest
