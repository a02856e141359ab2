"""A host behind SSH: the same jobs, the same promises, one or two round trips each."""

from __future__ import annotations

import shlex
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from mqi.case import FileFact
from mqi.errors import ConfigurationError, HostConnectionError, MQIError, ResourceError
from mqi.hosts.base import Attempt, Completed, HostProbe, HostSettings, JobRequest, JobState, Slot
from mqi.hosts.jobs import ANSWER_S, SILENCE_S, Jobs
from mqi.hosts.names import checked_name
from mqi.hosts.pool import Pool, pool_of
from mqi.hosts.session import ConnectionCutError
from mqi.hosts.smi import LOOK, HostFacts, parse_facts
from mqi.hosts.ssh_settings import SshCredentials
from mqi.hosts.ssh_shell import SshShell
from mqi.hosts.ssh_tree import NoWorkspaceError, Progress, get_paths, put_folder

__all__ = ["SshHost"]

_GB = 1e9

_SLOTS_AGE_S = 60.0
"""How long the list of healthy GPUs is believed at a submission."""

_CLOCK_WARNING_S = 5.0
"""A clock that is so far off makes times in logs and records contradict each other."""

_LOOK_S = 60.0

_NOT_THERE = 71
"""Exit status where job.sh is not on the host (any more)."""

_NOT_OURS = ("Permission denied", "Read-only file system", "Not a directory", "Operation not permitted")


class SshHost:
    """Runs engines on a machine behind SSH. Implements `mqi.hosts.base.Host`, which says what is promised.

    Connections are shared by all `SshHost` of the same settings in this process.

    >>> ssh = SshSettings(address="gpu1", user="qa", key_file="~/.ssh/id_ed25519")         # doctest: +SKIP
    >>> host = SshHost(HostSettings(name="gpu1", kind="ssh", ssh=ssh, workspace="/data/mqi")) # doctest: +SKIP
    """

    def __init__(self, settings: HostSettings, credentials: SshCredentials | None = None) -> None:
        if settings.ssh is None:
            raise ConfigurationError(f"host {settings.name} has no settings for SSH", todo="Set kind and ssh")
        self.settings = settings
        self._root = settings.workspace
        self._pool: Pool = pool_of(settings.ssh, credentials)
        self._shell = SshShell(self._pool)
        self._jobs = Jobs(_JobShell(self), settings.workspace, settings.name)
        self._known_slots: tuple[float, tuple[Slot, ...]] | None = None

    def probe(self) -> HostProbe:
        """See `Host.probe`."""
        problems, warnings = [], []
        facts, offset_s = HostFacts(None, None, 1, (), ""), None
        reachable = False
        try:
            facts, offset_s = self._look()
            reachable = True
            self._prepare()
            facts, offset_s = self._look()  # again: the workspace may not have been there
        except MQIError as error:
            problems.append(str(error))
        free_gb = None if facts.free_bytes is None else facts.free_bytes / _GB
        if free_gb is not None and free_gb < self.settings.min_disk_space_gb:
            problems.append(f"{free_gb:.3g} GB free, {self.settings.min_disk_space_gb:g} GB are wanted")
        if facts.trouble:
            problems.append(facts.trouble)
        if offset_s is not None and abs(offset_s) > _CLOCK_WARNING_S:
            warnings.append(
                f"its clock is {abs(offset_s):.0f} s {'ahead of' if offset_s > 0 else 'behind'} "
                "this machine's: set up time synchronisation (chrony) on both"
            )
        slots = self._slots_of(facts) if reachable else ()
        return HostProbe(
            host=self.settings.name,
            when=datetime.now(UTC),
            reachable=reachable,
            disk_free_gb=free_gb,
            slot_kind=slots[0].kind if slots else None,
            slots=slots,
            problem="; ".join(problems),
            warning="; ".join(warnings),
            clock_offset_s=offset_s,
        )

    def run(self, argv: Sequence[str]) -> Completed:
        """See `Host.run`."""
        return self._shell.run(argv, alone=True)

    def put(self, local_folder: Path, unit: str, progress: Progress | None = None) -> str:
        """See `Host.put`. ``progress`` is told the bytes that were sent, and those to be sent in all."""
        checked_name(unit)
        for last in (False, True):
            try:
                return put_folder(self._shell, self._root, unit, local_folder, self._reserve_bytes, progress)
            except NoWorkspaceError:
                if last:
                    raise
                self._prepare()
        raise AssertionError

    def attempt(self, unit: str) -> Attempt:
        """See `Host.attempt`."""
        return self._jobs.attempt(checked_name(unit))

    def submit(self, request: JobRequest) -> JobState:
        """See `Host.submit`."""
        slots: tuple[Slot, ...] = ()
        if request.needs_slot:
            if not self._slots_are_fresh():
                known = self._jobs.state(request.name)
                if not known.absent:  # found again, whatever has become of the GPUs since
                    return known
            slots = self._slots()
        return self._jobs.submit(request, slots)

    def state(self, name: str) -> JobState:
        """See `Host.state`."""
        return self._jobs.state(checked_name(name))

    def wait(self, name: str, on_output: Callable[[str], None], stop: threading.Event) -> JobState:
        """See `Host.wait`."""
        return self._jobs.wait(checked_name(name), on_output, stop)

    def cancel(self, name: str, grace_s: float = 5.0) -> JobState:
        """See `Host.cancel`."""
        return self._jobs.cancel(checked_name(name), grace_s)

    def fence(self, name: str) -> JobState:
        """See `Host.fence`."""
        return self._jobs.fence(checked_name(name))

    def ack(self, name: str) -> JobState:
        """See `Host.ack`."""
        return self._jobs.ack(checked_name(name))

    def tail(self, name: str, stream: Literal["out", "err"] = "err", size: int = 4000) -> str:
        """See `Host.tail`."""
        return self._jobs.tail(checked_name(name), stream, size)

    def get(
        self, name: str, paths: Sequence[str], local_folder: Path, progress: Progress | None = None
    ) -> tuple[FileFact, ...]:
        """See `Host.get`. ``progress`` is told the bytes that have come, and those to come in all."""
        return get_paths(self._shell, self._root, checked_name(name), paths, local_folder, progress)

    def remove(self, name: str) -> None:
        """See `Host.remove`."""
        state = self._jobs.state(checked_name(name))
        if state.lost:
            state = self._jobs.fence(name)
        self._jobs.remove("input" if state.absent else "jobs", name)

    def list(self, prefix: str = "") -> tuple[JobState, ...]:
        """See `Host.list`."""
        return self._jobs.list(prefix)

    # ---- how it is done

    @property
    def _reserve_bytes(self) -> int:
        return int(self.settings.min_disk_space_gb * _GB)

    def _is_new(self) -> bool:
        return self._shell.run(["test", "-f", self._tested]).exit_code != 0

    @property
    def _tested(self) -> str:
        return f"{self._jobs.script_path}.works"

    def _prepare(self) -> None:
        """Make the workspace and put job.sh there; where it is new, see that it works on this host."""
        if not self._is_new():
            return
        try:
            self._jobs.install()
        except ResourceError as error:
            if any(words in error.what for words in _NOT_OURS):
                raise ConfigurationError(
                    f"the workspace on host {self.settings.name} cannot be written: {error.what}",
                    path=self._root,
                    todo="Make the folder there and give it to the account that logs in (chown), "
                    "or name another workspace",
                ) from error
            raise
        self._jobs.selftest()
        self._shell.run(["touch", self._tested])

    def _slots_are_fresh(self) -> bool:
        return self._known_slots is not None and time.monotonic() - self._known_slots[0] < _SLOTS_AGE_S

    def _slots(self) -> tuple[Slot, ...]:
        """Return the slots that a job may take, all of one kind. Raises ResourceError without any."""
        if not self._slots_are_fresh():
            facts, _ = self._look()
            slots = self._slots_of(facts)
            if not slots:
                raise ResourceError(
                    f"host {self.settings.name} has no GPU that works: {facts.trouble}",
                    todo="Look at nvidia-smi there; a reboot after a driver update often helps",
                )
        assert self._known_slots
        return self._known_slots[1]

    def _slots_of(self, facts: HostFacts) -> tuple[Slot, ...]:
        slots = facts.gpus
        if not slots and not facts.trouble:
            cores = self.settings.slots or facts.cores
            slots = tuple(Slot(name=f"cpu{index}", kind="cpu") for index in range(cores))
        slots = slots[: self.settings.slots]
        self._known_slots = (time.monotonic(), slots) if slots else None
        return slots

    def _look(self) -> tuple[HostFacts, float | None]:
        """Ask the host for its facts, and compare its clock with ours."""
        before = time.time()
        with self._shell.talk(f"{LOOK}\nlook {shlex.quote(self._root)}") as session:
            done = session.finish(_LOOK_S)
        facts = parse_facts(done.stdout.decode("utf-8", "replace"))
        if facts.time_s is None:
            raise HostConnectionError(
                f"host {self.settings.name} does not say its time",
                todo="It needs Linux with GNU coreutils (date, df, nproc)",
            )
        # Between sending the question and having the answer: without a doubt outside of that is off.
        return facts, facts.time_s - min(max(facts.time_s, before), time.time())


class _JobShell:
    """Runs job.sh on the host (`mqi.hosts.jobs.Shell`), after putting it there where it is missing.

    What has to be true before a job is submitted (disk space) is asked in the same round trip.
    """

    def __init__(self, host: SshHost) -> None:
        self._host = host

    def run(self, argv: Sequence[str], stdin: bytes = b"", timeout_s: float = ANSWER_S) -> Completed:
        """Run a command to its end."""
        before = self._before(argv)
        try:
            done = self._host._shell.run(argv, stdin, timeout_s, before=before)
        except ConnectionCutError:  # every verb may be said twice: a name that exists is never run again
            done = self._host._shell.run(argv, stdin, timeout_s, before=before)
        if done.exit_code != _NOT_THERE:
            return done
        self._host._prepare()
        return self._host._shell.run(argv, stdin, timeout_s)

    def stream(self, argv: Sequence[str], silence_s: float = SILENCE_S) -> Generator[bytes, None, None]:
        """Run a command and give its lines as they come."""
        answered = False
        with closing(self._host._shell.stream(argv, silence_s, before=self._before(argv))) as lines:
            for line in lines:
                answered = True
                yield line
        if not answered:
            self._host._prepare()
            yield from self._host._shell.stream(argv, silence_s)

    def _before(self, argv: Sequence[str]) -> str:
        script = self._host._jobs.script_path
        if tuple(argv[:2]) != ("sh", script):
            return "export LC_ALL=C"
        guard = f"[ -f {shlex.quote(script)} ] || exit {_NOT_THERE}"
        if argv[2] == "submit":
            job = shlex.quote(f"{argv[3]}/jobs/{argv[4]}")
            guard += f"\n[ -d {job} ] || room {shlex.quote(argv[3])} {self._host._reserve_bytes}"
            guard = _ROOM + guard
        return guard


_ROOM = r"""
room() { # FOLDER BYTES
  free=$(df -Pk -- "$1" | awk -v wanted="$2" 'END { if ($4 * 1024 < wanted) printf "%.3g", $4 * 1024 / 1e9 }')
  [ -n "$free" ] || return 0
  echo "$free GB are free there, and $(($2 / 1000000000)) GB must stay free" >&2
  exit 73
}
"""
