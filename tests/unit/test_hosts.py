"""The local host from end to end, with a shell script as the engine: jobs run once and are found again."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pydantic
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from mqi.case import JobStatus
from mqi.errors import (
    ConfigurationError,
    HostConnectionError,
    MQIError,
    ProcessingError,
    ResourceError,
    TransferError,
)
from mqi.hosts import Attempt, Host, HostSettings, JobRequest, JobState, connect
from mqi.hosts.base import Slot
from mqi.hosts.gpus import read_gpus
from mqi.hosts.jobs import Completed, Jobs, choose_attempt, parse_state
from mqi.hosts.local import LocalHost, LocalShell
from tests.processes import CLEAN

ENGINE = """\
. ./run.in
echo "computing on $MQI_SLOT"
echo x >>"$INPUT/../../ran"
[ ! -e "$INPUT/script" ] || . "$INPUT/script"
cp "$INPUT/spots.csv" "$OUTPUT/dose.raw"
echo done
"""


@pytest.fixture
def settings(tmp_path: Path) -> HostSettings:
    return HostSettings(name="here", workspace=str(tmp_path / "workspace"), slots=2, min_disk_space_gb=0)


@pytest.fixture
def host(settings: HostSettings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setattr("mqi.hosts.local.read_gpus", lambda: ((), ""))  # the same slots on any machine
    host = connect(settings)
    yield host
    for state in host.list():
        if not state.ended:
            host.cancel(state.name, 0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "beam"
    folder.mkdir()
    (folder / "run.in").write_text("INPUT=@INPUT@ OUTPUT=@OUTPUT@\n")
    (folder / "spots.csv").write_text("1,2,3\n")
    (folder / "engine.sh").write_text(ENGINE)
    return folder


def request(host: Host, folder: Path, unit: str = "u", script: str = "", **more: Any) -> JobRequest:
    (folder / "script").write_text(script)
    remote = host.put(folder, unit)
    name = more.pop("name", None) or host.attempt(unit).name
    argv = ("sh", f"{remote}/engine.sh")
    return JobRequest(unit=unit, name=name, argv=argv, input_folder=remote, rendered="run.in", **more)


def wait(host: Host, name: str) -> JobState:
    return host.wait(name, lambda line: None, threading.Event())


def runs(settings: HostSettings) -> int:
    return len((Path(settings.workspace) / "ran").read_text().splitlines())


def until_running(host: Host, name: str) -> JobState:
    end = time.monotonic() + 10
    while (state := host.state(name)).status is not JobStatus.RUNNING:
        assert time.monotonic() < end, state
        time.sleep(0.02)
    return state


def supervisor(settings: HostSettings, name: str) -> int:
    return int((Path(settings.workspace) / "jobs" / name / "pid").read_text().split()[1])


def test_a_beam_goes_to_the_host_is_computed_and_its_dose_comes_back(
    host: Host, folder: Path, settings: HostSettings, tmp_path: Path
) -> None:
    job = request(host, folder)
    assert job.name == "u.a1"
    host.submit(job)
    lines: list[str] = []
    state = host.wait("u.a1", lines.append, threading.Event())
    assert state.status is JobStatus.COMPLETED
    assert (state.exit_code, state.reason, state.acked) == (0, "exit", False)
    assert state.started_at and state.ended_at and state.started_at < state.ended_at <= time.time()
    assert lines == [f"computing on {state.slot}", "done"]
    (fact,) = host.get("u.a1", ["output/dose.raw"], tmp_path / "results")
    assert (tmp_path / "results" / fact.path).read_text() == "1,2,3\n"
    assert Path(settings.workspace).stat().st_mode & 0o777 == 0o700
    assert host.attempt("u") == Attempt(name="u.a1", number=1, state=state)
    assert host.submit(job) == state  # found again, not run again
    assert runs(settings) == 1
    host.remove("u.a1")
    host.remove("u")
    assert host.list() == ()
    assert host.state("u.a1").absent


def _compute(settings: HostSettings, folder: Path, results: Any) -> None:
    host = connect(settings)
    remote = host.put(folder, "u")
    argv = ("sh", f"{remote}/engine.sh")
    while True:
        name = host.attempt("u").name
        host.submit(JobRequest(unit="u", name=name, argv=argv, input_folder=remote, rendered="run.in"))
        if not (state := wait(host, name)).interrupted:
            break
    results.put(state)


def test_eight_processes_that_compute_the_same_beam_at_once_run_it_once(
    host: Host, folder: Path, settings: HostSettings
) -> None:
    (folder / "script").write_text("sleep 0.3")
    results = CLEAN.Queue()
    processes = [CLEAN.Process(target=_compute, args=(settings, folder, results)) for _ in range(8)]
    for process in processes:
        process.start()
    states = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert len(set(states)) == 1
    assert states[0].status is JobStatus.COMPLETED
    assert runs(settings) == 1


def test_eight_processes_that_find_the_same_lost_job_run_the_next_attempt_once(
    host: Host, folder: Path, settings: HostSettings
) -> None:
    host.submit(request(host, folder, script="sleep 60"))
    until_running(host, "u.a1")
    for pid in (supervisor(settings, "u.a1"), _payload(settings, "u.a1")):
        os.kill(pid, signal.SIGKILL)
    (Path(settings.workspace) / "ran").unlink()
    (folder / "script").write_text("")
    test_eight_processes_that_compute_the_same_beam_at_once_run_it_once(host, folder, settings)
    assert host.attempt("u").name == "u.a2"
    assert host.state("u.a1").fenced


def _payload(settings: HostSettings, name: str) -> int:
    return int((Path(settings.workspace) / "jobs" / name / "child").read_text().split()[0])


def _wait(settings: HostSettings, begun: Any) -> None:
    host = connect(settings)
    begun.set()
    wait(host, "u.a1")


def test_whoever_waits_may_be_killed_and_another_goes_on_waiting(
    host: Host, folder: Path, settings: HostSettings
) -> None:
    host.submit(request(host, folder, script="sleep 5"))
    begun = CLEAN.Event()
    waiting = CLEAN.Process(target=_wait, args=(settings, begun))
    waiting.start()
    assert begun.wait(60)
    time.sleep(0.3)
    assert waiting.pid
    os.kill(waiting.pid, signal.SIGKILL)
    waiting.join()
    assert wait(host, "u.a1").status is JobStatus.COMPLETED
    assert runs(settings) == 1


def test_an_interrupt_of_the_whole_process_group_leaves_the_job_alone(
    host: Host, folder: Path, settings: HostSettings
) -> None:
    job = request(host, folder, script="while [ ! -e ../../go ]; do sleep 0.05; done")
    code = (
        "import signal, sys, threading; from mqi.hosts import *\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background job's parent ignores it
        "host = connect(HostSettings.model_validate_json(sys.argv[1]))\n"
        "host.submit(JobRequest.model_validate_json(sys.argv[2])); print('submitted', flush=True)\n"
        "host.wait('u.a1', print, threading.Event())"
    )
    argv = [sys.executable, "-c", code, settings.model_dump_json(), job.model_dump_json()]
    process = subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )
    assert process.stdout
    process.stdout.readline()
    os.killpg(process.pid, signal.SIGINT)
    process.communicate()
    assert process.returncode != 0
    assert host.state("u.a1").status is JobStatus.RUNNING
    (Path(settings.workspace) / "go").touch()
    assert wait(host, "u.a1").status is JobStatus.COMPLETED


def test_kill_9_of_the_supervisor_leads_over_orphan_and_lost_to_a_second_attempt(
    host: Host, folder: Path, settings: HostSettings
) -> None:
    host.submit(request(host, folder, script="[ -e ../../second ] || sleep 60"))
    until_running(host, "u.a1")
    os.kill(supervisor(settings, "u.a1"), signal.SIGKILL)
    state = until_orphan(host)
    assert state.reason == "orphan"
    assert host.attempt("u").state == state  # it runs: it is the one
    assert host.fence("u.a1").status is JobStatus.RUNNING  # refused
    state = host.cancel("u.a1", 1)
    assert state.lost and state.reason == "lost:supervisor-died"
    assert wait(host, "u.a1") == state
    (Path(settings.workspace) / "second").touch()
    job = request(host, folder, script="[ -e ../../second ] || sleep 60")
    assert job.name == "u.a2"
    assert host.state("u.a1").fenced
    host.submit(job)
    assert wait(host, "u.a2").status is JobStatus.COMPLETED


def until_orphan(host: Host) -> JobState:
    end = time.monotonic() + 5
    while (state := host.state("u.a1")).reason != "orphan":
        assert time.monotonic() < end, state
        time.sleep(0.02)
    return state


def commands() -> set[bytes]:
    """Command lines of all processes that run; zombies have none."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.add(path.read_bytes())
    return found


def until_commands(wanted: bytes) -> set[bytes]:
    end = time.monotonic() + 5
    while wanted not in (found := commands()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def test_cancel_ends_the_whole_tree_of_an_engine_that_ignores_term(
    host: Host, folder: Path, settings: HostSettings
) -> None:
    host.submit(request(host, folder, script="trap '' TERM; sleep 964 & sleep 965"))
    until_running(host, "u.a1")
    assert {b"sleep\x00964\0", b"sleep\x00965\0"} <= until_commands(b"sleep\x00965\0")
    begin = time.monotonic()
    state = host.cancel("u.a1", grace_s=0.5)
    assert time.monotonic() - begin < 4
    assert (state.status, state.reason) == (JobStatus.CANCELLED, "cancelled")
    assert not {b"sleep\x00964\0", b"sleep\x00965\0"} & commands()
    assert host.attempt("u").state == state  # not run again before somebody has been told
    host.ack("u.a1")
    assert host.attempt("u") == Attempt(name="u.a2", number=2)


def test_two_slots_never_run_more_than_two_jobs(host: Host, folder: Path, settings: HostSettings) -> None:
    log = Path(settings.workspace) / "events"
    script = f'echo "+ $MQI_SLOT" >>{log}; sleep 0.25; echo "- $MQI_SLOT" >>{log}'
    for number in range(8):
        host.submit(request(host, folder, unit=f"u{number}", script=script))
    states = [wait(host, f"u{number}.a1") for number in range(8)]
    assert all(state.status is JobStatus.COMPLETED for state in states)
    assert {state.slot for state in states} == {"cpu0", "cpu1"}
    held: set[str] = set()
    for line in log.read_text().splitlines():
        what, slot = line.split()
        if what == "+":
            assert slot not in held
            held.add(slot)
        else:
            held.remove(slot)


def test_a_job_that_needs_no_slot_does_not_wait_for_one(host: Host, folder: Path) -> None:
    for unit in ("a", "b"):
        host.submit(request(host, folder, unit=unit, script="sleep 60"))
        until_running(host, f"{unit}.a1")
    host.submit(request(host, folder, unit="c"))
    assert host.state("c.a1").status is JobStatus.PENDING
    host.submit(request(host, folder, unit="d", needs_slot=False))
    assert wait(host, "d.a1").status is JobStatus.COMPLETED


def test_the_time_limit_fails_a_job(host: Host, folder: Path) -> None:
    host.submit(request(host, folder, script="sleep 60", time_limit_s=1))
    state = wait(host, "u.a1")
    assert (state.status, state.reason) == (JobStatus.FAILED, "timeout")


def test_a_failure_is_reported_before_it_is_run_again(
    host: Host, folder: Path, settings: HostSettings
) -> None:
    script = "echo 'no such material' >&2; exit 3"
    host.submit(request(host, folder, script=script))
    state = wait(host, "u.a1")
    assert (state.status, state.exit_code) == (JobStatus.FAILED, 3)
    assert host.tail("u.a1") == "no such material\n"
    assert host.tail("u.a1", "out", 3) == "u0\n" or host.tail("u.a1", "out", 3) == "u1\n"
    assert host.tail("u.a1", size=0) == ""
    host.submit(request(host, folder, script=script))
    assert runs(settings) == 1  # whoever lost the answer gets it again
    assert host.ack("u.a1").acked
    host.submit(request(host, folder, script=script))
    assert wait(host, "u.a2").exit_code == 3
    assert runs(settings) == 2


def test_waiting_can_be_stopped_and_the_job_goes_on(host: Host, folder: Path) -> None:
    host.submit(request(host, folder, script="sleep 60"))
    until_running(host, "u.a1")
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    begin = time.monotonic()
    assert host.wait("u.a1", lambda line: None, stop).status is JobStatus.RUNNING
    assert time.monotonic() - begin < 2.5


def test_lines_arrive_whole_in_order_and_while_the_job_runs(host: Host, folder: Path) -> None:
    script = "printf '10%%\\r20%%\\r'; printf 'ha'; sleep 1.3; printf 'lf\\n\\n\\377\\n'; printf 'last'; exit"
    host.submit(request(host, folder, script=script))
    seen: list[tuple[float, str]] = []
    host.wait("u.a1", lambda line: seen.append((time.monotonic(), line)), threading.Event())
    assert [line for _, line in seen][1:] == ["10%", "20%", "half", "", "\ufffd", "last"]
    assert seen[-1][0] - seen[0][0] > 0.6


def test_a_very_long_line_does_not_fill_the_memory(host: Host, folder: Path) -> None:
    host.submit(request(host, folder, script="head -c 300000 /dev/zero | tr '\\0' x; sleep 1; echo"))
    lines: list[str] = []
    host.wait("u.a1", lines.append, threading.Event())
    assert sum(len(line) for line in lines if set(line) <= {"x"}) == 300000


def test_an_error_of_whoever_reads_the_output_ends_the_waiting_only(host: Host, folder: Path) -> None:
    def refuse(line: str) -> None:
        raise RuntimeError(line)

    host.submit(request(host, folder, script="sleep 0.5"))
    with pytest.raises(RuntimeError, match="computing"):
        host.wait("u.a1", refuse, threading.Event())
    assert wait(host, "u.a1").status is JobStatus.COMPLETED


def test_a_job_in_use_is_not_removed_and_a_lost_one_is(
    host: Host, folder: Path, settings: HostSettings
) -> None:
    host.submit(request(host, folder, script="sleep 60"))
    until_running(host, "u.a1")
    for name in ("u.a1", "u"):
        with pytest.raises(ResourceError, match="RUNNING"):
            host.remove(name)
    os.kill(supervisor(settings, "u.a1"), signal.SIGKILL)
    host.cancel("u.a1", 0)
    host.remove("u.a1")
    assert host.state("u.a1").absent


def test_waiting_for_a_job_that_is_not_there_is_an_error_not_an_end(host: Host) -> None:
    with pytest.raises(ResourceError, match="not on host here"):
        wait(host, "u.a1")
    with pytest.raises(ProcessingError):
        host.get("u.a1", ["out"], Path("/nowhere"))


def test_a_command_that_is_not_there_fails_with_its_reason(host: Host, folder: Path) -> None:
    job = request(host, folder)
    host.submit(job.model_copy(update={"argv": ("no-such-engine",)}))
    assert wait(host, "u.a1").exit_code == 127
    assert "no-such-engine" in host.tail("u.a1")


def test_an_ugly_argument_is_only_an_argument(host: Host, folder: Path) -> None:
    ugly = ("$(rm -rf ~)", "a b", "'", "*", "", "-n", "ü\n")
    job = request(host, folder).model_copy(update={"argv": ("printf", "%s|", *ugly)})
    host.submit(job)
    wait(host, "u.a1")
    assert host.tail("u.a1", "out") == "".join(f"{word}|" for word in ugly)


@pytest.mark.parametrize("name", ["", "../x", "-x", ".x", "a/b", "a b", "x" * 181, "$(id)", "x\n"])
def test_a_name_that_is_no_plain_name_is_refused_everywhere(host: Host, folder: Path, name: str) -> None:
    actions = (host.state, host.cancel, host.fence, host.ack, host.remove, host.tail, host.attempt)
    for action in actions:
        with pytest.raises(ConfigurationError, match="cannot name"):
            action(name)
    with pytest.raises(ConfigurationError):
        host.put(folder, name)
    with pytest.raises(pydantic.ValidationError):
        JobRequest(unit=name, name=f"{name}.a1", argv=("true",))


def test_a_request_must_fit_together() -> None:
    for wrong in ({"name": "v.a1"}, {"name": "u.a0"}, {"rendered": "x.in"}, {"argv": ()}, {"argv": ("a\0",)}):
        with pytest.raises(pydantic.ValidationError):
            JobRequest.model_validate({"unit": "u", "name": "u.a1", "argv": ("true",), **wrong})


@pytest.mark.parametrize("workspace", ["relative", "/", "/a b", "/a/../b", "/a//b", "/a/$HOME", "/a\n", ""])
def test_a_workspace_that_an_engine_could_not_read_is_refused(workspace: str) -> None:
    with pytest.raises(pydantic.ValidationError, match="workspace"):
        HostSettings(name="here", workspace=workspace)


def test_a_workspace_with_other_files_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    tmp_path.chmod(0o755)
    host = connect(HostSettings(name="here", workspace=str(tmp_path)))
    with pytest.raises(ConfigurationError, match="holds other files"):
        host.list()
    assert tmp_path.stat().st_mode & 0o777 == 0o755
    assert "holds other files" in host.probe().problem


def test_an_empty_folder_becomes_the_workspace(tmp_path: Path) -> None:
    host = LocalHost(HostSettings(name="here", workspace=f"{tmp_path}/"))
    host._prepared().selftest()
    assert host.list() == ()
    assert tmp_path.stat().st_mode & 0o777 == 0o700


def test_a_disk_without_the_wanted_room_takes_no_job_but_finds_its_old_ones(
    host: Host, folder: Path, settings: HostSettings
) -> None:
    job = request(host, folder)
    host.submit(job)
    wait(host, "u.a1")
    full = connect(settings.model_copy(update={"min_disk_space_gb": 1e9}))
    with pytest.raises(ResourceError, match="must stay free"):
        full.submit(job.model_copy(update={"name": "u.a2"}))
    with pytest.raises(ResourceError):
        full.put(folder, "other")
    assert full.submit(job).status is JobStatus.COMPLETED
    assert "are wanted" in full.probe().problem


def test_an_input_that_has_gone_is_sent_again_not_guessed(host: Host, folder: Path) -> None:
    job = request(host, folder)
    host.remove("u")
    with pytest.raises(TransferError, match="is not there"):
        host.submit(job)
    assert host.state("u.a1").absent


def test_a_probe_says_what_the_host_has(host: Host) -> None:
    probe = host.probe()
    assert probe.reachable and probe.disk_free_gb and probe.disk_free_gb > 0
    assert (probe.slot_kind, [slot.name for slot in probe.slots], probe.problem) == (
        "cpu",
        ["cpu0", "cpu1"],
        "",
    )
    assert probe.when.tzinfo is not None


# ---- GPUs


class Nvml:
    """NVML as nvidia-ml-py presents it, on a machine with the GPUs that a test wants."""

    class NVMLError(Exception):
        pass

    class NVMLError_LibraryNotFound(NVMLError):
        pass

    class NVMLError_DriverNotLoaded(NVMLError):
        pass

    def __init__(self, gpus: Sequence[str] = (), failure: Exception | None = None) -> None:
        self.gpus, self.failure, self.open = gpus, failure, 0

    def nvmlInit(self) -> None:
        if self.failure:
            raise self.failure
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        if "driver lost" in self.gpus:
            raise self.NVMLError("Unknown Error")
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        return self.gpus[index]

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:
        if handle == "lost":
            raise self.NVMLError("GPU is lost")
        return type("Memory", (), {"total": 80_000_000_000})

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[Any]:
        if handle == "GPU-old":
            raise self.NVMLError("Not Supported")
        return [type("Process", (), {"pid": 4711})]

    def nvmlDeviceGetUUID(self, handle: str) -> str:
        return handle

    def nvmlDeviceGetName(self, handle: str) -> bytes:
        return b"H100"


def test_healthy_gpus_are_slots_and_a_lost_one_is_named() -> None:
    nvml = Nvml(["GPU-a", "lost", "GPU-old"])
    slots, problem = read_gpus(nvml)
    assert slots == (
        Slot(name="GPU-a", kind="gpu", label="H100", memory_gb=80.0, pids=(4711,)),
        Slot(name="GPU-old", kind="gpu", label="H100", memory_gb=80.0),
    )
    assert problem == "GPU 1 does not answer (GPU is lost)"
    assert nvml.open == 0


def test_a_driver_that_is_broken_is_a_problem_and_no_machine_without_gpus(tmp_path: Path) -> None:
    card = tmp_path / "0000:01:00.0"
    card.mkdir()
    (tmp_path / "nothing").mkdir()
    (card / "vendor").write_text("0x10de\n")
    (card / "class").write_text("0x030200\n")
    assert read_gpus(Nvml(failure=Nvml.NVMLError_LibraryNotFound())) == ((), "")
    not_loaded = Nvml(failure=Nvml.NVMLError_DriverNotLoaded("Driver Not Loaded"))
    assert read_gpus(not_loaded, tmp_path / "none") == ((), "")
    assert "not loaded" in read_gpus(not_loaded, tmp_path)[1]
    assert "mismatch" in read_gpus(Nvml(failure=Nvml.NVMLError("mismatch")))[1]
    assert "Unknown" in read_gpus(Nvml(["driver lost"]))[1]


def test_a_host_with_gpus_uses_as_many_as_it_may_and_none_where_they_are_broken(
    settings: HostSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mqi.hosts.local.read_gpus", lambda: read_gpus(Nvml(["GPU-a", "GPU-b", "GPU-c"])))
    host = connect(settings)
    assert (host.probe().slot_kind, len(host.probe().slots)) == ("gpu", 2)
    argv = ("sh", "-c", 'echo "$CUDA_VISIBLE_DEVICES"')
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    host.submit(JobRequest(unit="u", name="u.a1", argv=argv))
    wait(host, "u.a1")
    assert host.tail("u.a1", "out") == "GPU-a\n"
    monkeypatch.setattr(
        "mqi.hosts.local.read_gpus", lambda: read_gpus(Nvml(failure=Nvml.NVMLError("mismatch")))
    )
    host = connect(settings)
    assert "mismatch" in host.probe().problem
    with pytest.raises(ResourceError, match="no GPU that works"):
        host.submit(JobRequest(unit="u", name="u.a2", argv=argv))


# ---- the rule of attempts, and what a host may answer


def state(number: int, status: JobStatus, **more: Any) -> JobState:
    return JobState(name=f"u.a{number}", status=status, **more)


def test_the_first_attempt_that_counts_is_the_one() -> None:
    lost = state(1, JobStatus.UNKNOWN, reason="lost:reboot")
    fenced = state(1, JobStatus.FAILED, reason="fenced:reboot")
    acked = state(2, JobStatus.FAILED, reason="exit", acked=True)
    failed = state(2, JobStatus.FAILED, reason="exit")
    good = state(3, JobStatus.COMPLETED, reason="exit")
    rejected = state(3, JobStatus.COMPLETED, reason="exit", acked=True)  # ended well, its dose was all zero
    assert choose_attempt("u", []) == Attempt(name="u.a1", number=1)
    assert choose_attempt("u", [good, acked, lost]) == lost
    assert lost.interrupted and fenced.interrupted and not failed.interrupted
    assert choose_attempt("u", [fenced]) == Attempt(name="u.a2", number=2)
    assert choose_attempt("u", [good, failed, fenced]) == Attempt(name="u.a2", number=2, state=failed)
    assert choose_attempt("u", [fenced, acked, good]) == Attempt(name="u.a3", number=3, state=good)
    assert choose_attempt("u", [fenced, acked, rejected]) == Attempt(name="u.a4", number=4)
    running = state(12, JobStatus.RUNNING)
    assert choose_attempt("u", [acked, running, rejected]) == Attempt(name="u.a12", number=12, state=running)
    others = [running.model_copy(update={"name": name}) for name in ("u.a1.a1", "u.b1", "uu.a1", "u.a01")]
    assert choose_attempt("u", others) == Attempt(name="u.a1", number=1)


@examples(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 6), st.sampled_from(JobStatus), st.booleans(), st.booleans())))
def test_a_new_attempt_is_made_only_where_every_other_is_over(
    rows: list[tuple[int, JobStatus, bool, bool]],
) -> None:
    states = {
        number: state(number, status, acked=acked, reason="fenced" if fenced else "lost:x")
        for number, status, acked, fenced in rows
    }
    choice = choose_attempt("u", states.values())
    if isinstance(choice, Attempt) and choice.state is None:
        assert choice.number == max(states, default=0) + 1
        assert all(one.acked or one.fenced for one in states.values())
    else:
        assert choice in states.values() or (isinstance(choice, Attempt) and choice.state in states.values())


def test_status_lines_are_read() -> None:
    line = "EXITED rc=-1 why=fenced:reboot slot=GPU-1 start=1.5 end=2.25 acked=1\n"
    assert parse_state("j", line) == JobState(
        name="j",
        status=JobStatus.FAILED,
        exit_code=-1,
        reason="fenced:reboot",
        slot="GPU-1",
        acked=True,
        started_at=1.5,
        ended_at=2.25,
    )
    assert parse_state("j", "EXITED rc=0 why=timeout slot=- start=1 end=2 acked=0").status is JobStatus.FAILED
    assert parse_state("j", "PENDING why=gpu-in-use").reason == "gpu-in-use"
    assert parse_state("j", "CLAIMED").status is JobStatus.PENDING
    assert parse_state("j", "LOST why=reboot slot=- start=-").lost
    assert parse_state("j", "ABSENT").absent
    with pytest.raises(HostConnectionError, match="cannot be read"):
        parse_state("j", "RUNNING pid=1 slot=- start=nan")


words = st.sampled_from(["ABSENT", "CLAIMED", "PENDING", "RUNNING", "ORPHAN", "EXITED", "LOST", "exited", ""])
values = st.sampled_from(["", "-", "0", "-1", "1.5", "nan", "1e999", "exit", "=", "\x1f", "1 2", "\n", "²"])
fields = st.lists(
    st.tuples(st.sampled_from(["rc", "why", "slot", "start", "end", "acked", "x", "É"]), values)
)


@examples(max_examples=60, deadline=None)
@given(st.text() | st.builds(lambda word, all_: " ".join([word, *map("=".join, all_)]), words, fields))
def test_any_other_answer_is_no_answer(line: str) -> None:
    try:
        state = parse_state("j", line)
    except HostConnectionError:
        return
    assert JobState.model_validate_json(state.model_dump_json()) == state


class Answers:
    """A shell to a host that answers the same to everything."""

    def __init__(self, code: int = 0, stdout: bytes = b"", lines: Sequence[bytes] = ()) -> None:
        self.answer, self.lines = Completed(code, stdout, b"because\n"), lines

    def run(self, argv: Sequence[str], stdin: bytes = b"", timeout_s: float = 1) -> Completed:
        return self.answer

    def stream(self, argv: Sequence[str], silence_s: float = 1) -> Generator[bytes, None, None]:
        yield from self.lines


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (1, ResourceError),
        (64, ConfigurationError),
        (65, TransferError),
        (69, ConfigurationError),
        (73, ResourceError),
        (127, HostConnectionError),
        (-9, HostConnectionError),
    ],
)
def test_each_refusal_of_the_script_says_who_can_help(code: int, error: type[MQIError]) -> None:
    with pytest.raises(error, match="host there could not list its jobs: because"):
        Jobs(Answers(code), "/workspace", "there").list()


def test_a_host_that_says_something_else_has_not_answered() -> None:
    for answer in (b"", b"Welcome!\n", b"\xff"):
        with pytest.raises(HostConnectionError):
            Jobs(Answers(stdout=answer), "/workspace", "there").state("u.a1")
    noisy = Jobs(Answers(stdout=b"Welcome!\nRUNNING pid=1 slot=- start=1.0\n"), "/workspace", "there")
    assert noisy.state("u.a1").status is JobStatus.RUNNING


def test_a_connection_that_ends_while_waiting_says_nothing_about_the_job() -> None:
    for lines in ([], [b"computing"], [b"@@MQI END 0 EXITED rc=0 why=exit slot=- start=1 end=2 acked=0"]):
        with pytest.raises(HostConnectionError, match="stopped answering"):
            Jobs(Answers(lines=lines), "/workspace", "there").wait("u.a1", print, threading.Event())


def test_a_lost_attempt_that_cannot_be_fenced_is_an_error_and_no_second_run() -> None:
    answer = Answers(stdout=b"u.a1 LOST why=reboot slot=- start=-\n")
    answer.run = lambda argv, stdin=b"", timeout_s=1: (  # type: ignore[method-assign]
        Completed(0, b"LOST why=reboot slot=- start=-\n" if "fence" in argv else answer.answer.stdout, b"")
    )
    with pytest.raises(ResourceError, match="cannot be fenced"):
        Jobs(answer, "/workspace", "there").attempt("u")


def test_a_command_that_hangs_is_given_up() -> None:
    shell = LocalShell()
    with pytest.raises(HostConnectionError, match="did not end"):
        shell.run(["sleep", "60"], timeout_s=0.1)
    with pytest.raises(HostConnectionError, match="cannot run"):
        shell.run(["/no/such/program"])
    with pytest.raises(HostConnectionError, match="silent"):
        list(shell.stream(["sleep", "60"], silence_s=0.1))
    assert list(shell.stream(["printf", "a\\nb\\n\\nrest"])) == [b"a", b"b", b"", b"rest"]
