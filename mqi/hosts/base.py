"""What a host is: a place where engines run as jobs that are claimed once and found again.

A *unit* is what is computed: one beam's input, named by the hash of all that the result depends on. An
*attempt* is one run of it, named ``<unit>.a1``, ``<unit>.a2``, ... A job on a host is one attempt, and
submitting the same name again never runs it again: it answers with what is there.

``local``, ``ssh`` and ``slurm`` implement the same small protocol, so that a flow does not know which
one it talks to.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal, Protocol

from pydantic import Field, StringConstraints, field_validator, model_validator

from mqi.case import FileFact, Frozen, JobStatus
from mqi.hosts.ssh_settings import SshSettings
from mqi.retry import RetryPolicy

__all__ = [
    "NAME_PATTERN",
    "Attempt",
    "Completed",
    "Host",
    "HostProbe",
    "HostSettings",
    "JobRequest",
    "JobState",
    "Name",
    "Slot",
    "SlotKind",
]

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
"""Names of units, jobs and files: a plain folder name everywhere, never an option, never hidden."""

_MAX_NAME = 180
"""Characters of a unit's or job's name: ``.a99``, ``.lock`` and a prefix still fit into NAME_MAX (255)."""

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN, max_length=_MAX_NAME)]

SlotKind = Literal["gpu", "cpu"]

_PLAIN_PATH = re.compile(r"/[A-Za-z0-9/._+@=-]+")


class HostSettings(Frozen):
    """Where engines run, and how much of it may be used."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9-]*$",
        max_length=50,
        description="Name of the host in limits, logs and reports: lowercase letters, digits, dashes.",
    )
    kind: Literal["local", "ssh"] = Field(
        default="local",
        description="How the host is reached. local: it is the machine of the worker. ssh: over the network.",
    )
    ssh: SshSettings | None = Field(
        default=None, description="Where the SSH server is and how to log in; for kind ssh, and only there."
    )
    workspace: str = Field(
        description="Absolute folder on a local disk of the host, for this program alone. Made when it is "
        "missing. Letters, digits and / . _ + @ = - only: engines split their input files at blanks."
    )
    slots: int | None = Field(
        default=None,
        ge=1,
        description="Jobs that may run at a time. None: healthy GPUs, or CPU cores where there is no GPU.",
    )
    min_disk_space_gb: float = Field(
        default=10.0,
        ge=0,
        description="Nothing is uploaded that would leave less than this free (GB, 1e9 bytes).",
    )
    keep_failed_days: float = Field(
        default=7.0, ge=0, description="How long the folder of a failed job is kept for a person to look at."
    )

    retry: RetryPolicy = Field(
        default=RetryPolicy(),
        description="How often a step that the host or the network broke is tried again.",
    )

    @model_validator(mode="after")
    def _reachable(self) -> HostSettings:
        if (self.kind == "ssh") != (self.ssh is not None):
            raise ValueError(
                "kind ssh needs the settings ssh (address, user, ...), and only kind ssh has them"
            )
        return self

    @field_validator("workspace")
    @classmethod
    def _plain_workspace(cls, value: str) -> str:
        parts = value.rstrip("/").split("/")[1:]
        if not _PLAIN_PATH.fullmatch(value) or not parts or any(part in {"", ".", ".."} for part in parts):
            raise ValueError(
                f"workspace {value!r} must be an absolute folder of letters, digits and / . _ + @ = - "
                "without empty, '.' or '..' parts"
            )
        return value.rstrip("/")


class JobRequest(Frozen):
    """One attempt at a unit: what is to be run, on which input.

    ``input_folder`` is what ``Host.put`` returned. ``rendered`` names the file of it that is copied into
    the job folder with ``@INPUT@`` and ``@OUTPUT@`` replaced by absolute folders; ``argv`` runs with the
    job folder as its working directory and may name that file. ``time_limit_s`` counts from the start of
    the program, not from its submission.
    """

    unit: Name
    name: Name
    argv: tuple[str, ...] = Field(min_length=1)
    input_folder: str | None = None
    rendered: Name | None = None
    time_limit_s: int | None = Field(default=None, ge=1)
    needs_slot: bool = True

    @model_validator(mode="after")
    def _consistent(self) -> JobRequest:
        if not re.fullmatch(re.escape(self.unit) + r"\.a[1-9][0-9]*", self.name):
            raise ValueError(
                f"job {self.name!r} is no attempt at unit {self.unit!r} ({self.unit}.a1, .a2, ...)"
            )
        if self.rendered and not self.input_folder:
            raise ValueError("a rendered file needs an input folder")
        if any("\0" in word for word in self.argv):
            raise ValueError("argv has a NUL character")
        return self


class JobState(Frozen):
    """What the host says about a job. Times are seconds of the epoch by the host's clock.

    ``reason`` says more than the status: for PENDING what it waits for (``slots-busy``, ``gpu-in-use``),
    for an ended job how it ended (``exit``, ``signal``, ``timeout``, ``cancelled``, ``no-space``,
    ``fenced:reboot``), for UNKNOWN ``absent`` or ``lost:...``, for RUNNING ``orphan`` when its supervisor
    has died. COMPLETED means exit status 0; whether the output is right is for the caller to judge.
    """

    name: str
    status: JobStatus
    exit_code: int | None = None
    reason: str = ""
    slot: str | None = None
    acked: bool = False
    started_at: float | None = None
    ended_at: float | None = None

    @property
    def ended(self) -> bool:
        """Whether it has ended for good and said so."""
        return self.status in {JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED}

    @property
    def absent(self) -> bool:
        """Whether the host knows no such job."""
        return self.status is JobStatus.UNKNOWN and self.reason == "absent"

    @property
    def lost(self) -> bool:
        """Whether it no longer runs and nobody knows how it ended: fence it before the next attempt."""
        return self.status is JobStatus.UNKNOWN and self.reason.startswith("lost")

    @property
    def fenced(self) -> bool:
        """Whether it was lost and its end was made final."""
        return self.reason.startswith("fenced")

    @property
    def interrupted(self) -> bool:
        """Whether it was lost, by no fault of its own: ask `Host.attempt` for the next attempt."""
        return self.lost or self.fenced


class Attempt(Frozen):
    """Which attempt at a unit counts now. ``state`` is None where it is yet to be submitted."""

    name: str
    number: int
    state: JobState | None = None


class Slot(Frozen):
    """A GPU (``name`` is its UUID) or a share of the CPU (``cpu0``, ...) that one job has to itself.

    ``pids`` are the processes that compute on it now, ours or a stranger's. ``index`` is the driver's number
    of the GPU, which may change at a reboot; ``load_percent`` is the share of time in which it computed.
    """

    name: str
    kind: SlotKind
    label: str = ""
    memory_gb: float | None = None
    pids: tuple[int, ...] = ()
    index: int | None = None
    load_percent: float | None = None
    temperature_c: float | None = None


@dataclass(frozen=True)
class Completed:
    """A command that has ended on a host."""

    exit_code: int
    stdout: bytes
    stderr: bytes


class HostProbe(Frozen):
    """How a host was at a moment.

    ``problem`` says in words what keeps jobs from running there, ``warning`` what does not but should be
    looked at. ``clock_offset_s`` is the host's clock minus ours.
    """

    host: str
    when: datetime
    reachable: bool
    disk_free_gb: float | None = None
    slot_kind: SlotKind | None = None
    slots: tuple[Slot, ...] = ()
    problem: str = ""
    warning: str = ""
    clock_offset_s: float | None = None


class Host(Protocol):
    """Where engines run. Every method may raise HostConnectionError, which says nothing about the jobs there.

    A host is safe to use from several threads and processes at once.
    """

    settings: HostSettings

    def probe(self) -> HostProbe:
        """Look at the host now: disk, GPUs. Never raises for a host in trouble: ``problem`` says it."""
        ...

    def run(self, argv: Sequence[str]) -> Completed:
        """Run a short command to its end, e.g. to ask an engine for its version."""
        ...

    def put(self, local_folder: Path, unit: str) -> str:
        """Copy a folder to the host as the input of ``unit``; return its absolute path there.

        Every file's SHA-256 is compared on both sides; what is there and verified is not sent again.
        Raises TransferError (changed, unreadable, a link), ResourceError (no room).
        """
        ...

    def attempt(self, unit: str) -> Attempt:
        """Find the attempt at a unit that counts now and fence lost ones (see ``jobs.choose_attempt``)."""
        ...

    def submit(self, request: JobRequest) -> JobState:
        """Start a job once. A name that exists is never run again: its state is returned.

        Raises ResourceError (no GPU, no disk space), ConfigurationError.
        """
        ...

    def state(self, name: str) -> JobState:
        """Ask how a job is. One that is not there is UNKNOWN with reason ``absent``."""
        ...

    def wait(self, name: str, on_output: Callable[[str], None], stop: threading.Event) -> JobState:
        """Give the job's output line by line until it has ended; return at once when it does.

        Returns the state as it is within about a second after ``stop`` is set: the job goes on. A job
        that turns out lost, or that another process has fenced meanwhile, is returned as such
        (``interrupted``). Raises ResourceError for a job that is not there.
        """
        ...

    def cancel(self, name: str, grace_s: float = 5.0) -> JobState:
        """End a job and all that it started: TERM, and KILL after the grace. Harmless when it has ended."""
        ...

    def fence(self, name: str) -> JobState:
        """Make the end of a lost job final. Refused (its state is returned) while anything of it runs."""
        ...

    def ack(self, name: str) -> JobState:
        """Mark an ended attempt as judged and reported, so that a retry makes the next attempt."""
        ...

    def tail(self, name: str, stream: Literal["out", "err"] = "err", size: int = 4000) -> str:
        """Last ``size`` bytes of what the job printed."""
        ...

    def get(self, name: str, paths: Sequence[str], local_folder: Path) -> tuple[FileFact, ...]:
        """Copy files or folders (POSIX paths below the job folder) into ``local_folder``, checked by SHA-256.

        Returned paths are relative to ``local_folder``. Raises ProcessingError for one that is not there.
        """
        ...

    def remove(self, name: str) -> None:
        """Remove the folder of an ended job, or the input of a unit. Refused (ResourceError) while in use."""
        ...

    def list(self, prefix: str = "") -> tuple[JobState, ...]:
        """States of all jobs whose name starts with ``prefix``."""
        ...
