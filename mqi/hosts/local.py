"""This machine as a host: jobs that outlive the process that submitted them."""

from __future__ import annotations

import os
import selectors
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from mqi.case import FileFact
from mqi.errors import HostConnectionError, MQIError, ProcessingError, ResourceError
from mqi.hosts.base import Attempt, HostProbe, HostSettings, JobRequest, JobState, Slot
from mqi.hosts.gpus import read_gpus
from mqi.hosts.jobs import ANSWER_S, SILENCE_S, Completed, Jobs
from mqi.hosts.names import checked_name
from mqi.hosts.transfer import copy_folder, copy_paths, ensure_room, folder_lock

__all__ = ["LocalHost", "LocalShell"]

_GB = 1e9

_SLOTS_AGE_S = 60.0
"""How long the list of healthy GPUs is believed at a submission: NVML can take a second to start."""


class LocalShell:
    """Runs commands on this machine (`mqi.hosts.jobs.Shell`)."""

    def run(self, argv: Sequence[str], stdin: bytes = b"", timeout_s: float = ANSWER_S) -> Completed:
        """Run a command to its end. It is not ended by a Ctrl-C meant for us: submit must not be cut off."""
        try:
            done = subprocess.run(
                list(argv),
                input=stdin,
                capture_output=True,
                timeout=timeout_s,
                check=False,
                start_new_session=True,
            )
        except subprocess.TimeoutExpired as error:
            raise HostConnectionError(
                f"{argv[0]} did not end within {timeout_s:g} s", todo="Look at this machine's load and disks"
            ) from error
        except OSError as error:
            raise HostConnectionError(f"cannot run {argv[0]} ({error.strerror})") from error
        return Completed(done.returncode, done.stdout, done.stderr)

    def stream(self, argv: Sequence[str], silence_s: float = SILENCE_S) -> Generator[bytes, None, None]:
        """Run a command and give its lines as they come."""
        process = subprocess.Popen(
            list(argv), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, bufsize=0, start_new_session=True
        )
        assert process.stdout is not None
        try:
            with process.stdout as pipe, selectors.DefaultSelector() as ready:
                ready.register(pipe, selectors.EVENT_READ)
                rest = b""
                while True:
                    if not ready.select(silence_s):
                        raise HostConnectionError(f"{argv[0]} was silent for {silence_s:g} s")
                    chunk = os.read(pipe.fileno(), 1 << 16)
                    if not chunk:
                        break
                    *lines, rest = (rest + chunk).split(b"\n")
                    yield from lines
                if rest:
                    yield rest
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


class LocalHost:
    """Runs engines on this machine. Implements `mqi.hosts.base.Host`, which says what each method promises.

    >>> host = LocalHost(HostSettings(name="here", workspace="/data/mqi"))    # doctest: +SKIP
    >>> folder = host.put(Path("beam_2"), unit="Q1-2-8f0c")                   # doctest: +SKIP
    """

    def __init__(self, settings: HostSettings, shell: LocalShell | None = None) -> None:
        self.settings = settings
        self._root = Path(settings.workspace)
        self._shell = shell or LocalShell()
        self._jobs = Jobs(self._shell, settings.workspace, settings.name)
        self._known_slots: tuple[float, tuple[Slot, ...]] | None = None

    def probe(self) -> HostProbe:
        """See `Host.probe`."""
        disk_free_gb: float | None = None
        problems = []
        try:
            self._prepared()
            disk_free_gb = shutil.disk_usage(self._root).free / _GB
            if disk_free_gb < self.settings.min_disk_space_gb:
                problems.append(
                    f"{disk_free_gb:.3g} GB free, {self.settings.min_disk_space_gb:g} GB are wanted"
                )
        except (MQIError, OSError) as error:
            problems.append(str(error))
        slots, trouble = self._read_slots()
        return HostProbe(
            host=self.settings.name,
            when=datetime.now(UTC),
            reachable=True,
            disk_free_gb=disk_free_gb,
            slot_kind=slots[0].kind if slots else None,
            slots=slots,
            problem="; ".join([*problems, *([trouble] if trouble else [])]),
        )

    def run(self, argv: Sequence[str]) -> Completed:
        """See `Host.run`."""
        return self._shell.run(argv)

    def put(self, local_folder: Path, unit: str) -> str:
        """See `Host.put`."""
        self._prepared()
        folder = self._root / "input" / checked_name(unit)
        with folder_lock(folder.parent / f".{unit}.lock"):
            copy_folder(local_folder, folder, reserve_bytes=self._reserve_bytes)
        return str(folder)

    def attempt(self, unit: str) -> Attempt:
        """See `Host.attempt`."""
        return self._prepared().attempt(checked_name(unit))

    def submit(self, request: JobRequest) -> JobState:
        """See `Host.submit`."""
        jobs = self._prepared()
        known = jobs.state(request.name)
        if not known.absent:  # found again, whatever has become of the disk and the GPUs since
            return known
        ensure_room(self._root, 0, self._reserve_bytes)
        return jobs.submit(request, self._slots() if request.needs_slot else ())

    def state(self, name: str) -> JobState:
        """See `Host.state`."""
        return self._prepared().state(checked_name(name))

    def wait(self, name: str, on_output: Callable[[str], None], stop: threading.Event) -> JobState:
        """See `Host.wait`."""
        return self._prepared().wait(checked_name(name), on_output, stop)

    def cancel(self, name: str, grace_s: float = 5.0) -> JobState:
        """See `Host.cancel`."""
        return self._prepared().cancel(checked_name(name), grace_s)

    def fence(self, name: str) -> JobState:
        """See `Host.fence`."""
        return self._prepared().fence(checked_name(name))

    def ack(self, name: str) -> JobState:
        """See `Host.ack`."""
        return self._prepared().ack(checked_name(name))

    def tail(self, name: str, stream: Literal["out", "err"] = "err", size: int = 4000) -> str:
        """See `Host.tail`."""
        return self._prepared().tail(checked_name(name), stream, size)

    def get(self, name: str, paths: Sequence[str], local_folder: Path) -> tuple[FileFact, ...]:
        """See `Host.get`."""
        folder = self._root / "jobs" / checked_name(name)
        if not folder.is_dir():
            raise ProcessingError(f"job {name} has no folder", path=folder, todo="Run it again")
        return copy_paths(folder, paths, local_folder)

    def remove(self, name: str) -> None:
        """See `Host.remove`."""
        jobs = self._prepared()
        state = jobs.state(checked_name(name))
        if state.lost:
            state = jobs.fence(name)
        if not state.absent:
            jobs.remove("jobs", name)
            return
        lock = self._root / "input" / f".{name}.lock"
        with folder_lock(lock):
            jobs.remove("input", name)
            lock.unlink(missing_ok=True)

    def list(self, prefix: str = "") -> tuple[JobState, ...]:
        """See `Host.list`."""
        return self._prepared().list(prefix)

    @property
    def _reserve_bytes(self) -> int:
        return int(self.settings.min_disk_space_gb * _GB)

    def _prepared(self) -> Jobs:
        """Return the jobs, after making sure of the workspace: somebody may have removed it."""
        if not Path(self._jobs.script_path).is_file():
            self._jobs.install()
        return self._jobs

    def _slots(self) -> tuple[Slot, ...]:
        """Return the slots that a job may take, all of one kind. Raises ResourceError without any."""
        if self._known_slots and time.monotonic() - self._known_slots[0] < _SLOTS_AGE_S:
            return self._known_slots[1]
        slots, trouble = self._read_slots()
        if not slots:
            raise ResourceError(
                f"host {self.settings.name} has no GPU that works: {trouble}",
                todo="Look at nvidia-smi on this machine; a reboot after a driver update often helps",
            )
        return slots

    def _read_slots(self) -> tuple[tuple[Slot, ...], str]:
        slots, trouble = read_gpus()
        if not slots and not trouble:
            cores = self.settings.slots or len(os.sched_getaffinity(0))
            slots = tuple(Slot(name=f"cpu{index}", kind="cpu") for index in range(cores))
        slots = slots[: self.settings.slots]
        self._known_slots = (time.monotonic(), slots) if slots else None
        return slots, trouble
