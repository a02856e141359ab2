"""job.sh over a real OpenSSH server, with the faults made for real: cuts, kills, a reboot, a full disk."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import random
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path

import pytest

from tests.requirement import program
from tests.sshd import Sshd, running_sshd

JOB_SH = str(files("mqi.hosts").joinpath("job.sh"))

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts or forges pids: needs root, as in CI")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with running_sshd(tmp_path_factory.mktemp("sshd")) as sshd:
        yield sshd


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    yield (root := tmp_path / "workspace")
    if root.exists():
        for row in local("list", root).splitlines():
            if not re.search(" (EXITED|LOST) ", row):
                local("cancel", root, row.split()[0], 0)


def command(verb: str, *words: object) -> str:
    return shlex.join(["sh", JOB_SH, verb, *map(str, words)])


def remote(server: Sshd, verb: str, *words: object, code: int = 0) -> str:
    """Run a verb over ssh."""
    done = server.run(command(verb, *words))
    assert done.returncode == code, done
    return done.stdout.strip()


def local(verb: str, *words: object, code: int | None = None, env: dict[str, str] | None = None) -> str:
    """Run a verb here: the server is this machine, and this is quicker."""
    argv = ["sh", JOB_SH, verb, *map(str, words)]
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **(env or {})}
    )
    assert code is None or done.returncode == code, done
    return done.stdout.strip()


def until(look: Callable[[], str], pattern: str, timeout_s: float = 15) -> str:
    end = time.monotonic() + timeout_s
    while True:
        found = look()
        if re.search(pattern, found):
            return found
        assert time.monotonic() < end, f"{found!r} never matched {pattern}"
        time.sleep(0.05)


def ended(root: Path, name: str, timeout_s: float = 15) -> str:
    return until(lambda: local("status", root, name), "^(EXITED|LOST)", timeout_s)


def pids(root: Path, name: str) -> tuple[int, int]:
    """Pids of the supervisor and of the payload."""
    until(lambda: local("status", root, name), "^RUNNING")
    job = root / "jobs" / name
    return int((job / "pid").read_text().split()[1]), int((job / "child").read_text().split()[0])


def running(marker: str) -> bool:
    """Whether a process with these words as its command line runs (zombies have none)."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if path.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip() == marker:
                return True
    return False


def test_arguments_arrive_as_they_are_and_the_exit_status_is_recorded(server: Sshd, root: Path) -> None:
    script = 'printf "%s|" "$@"; exit 7'
    answer = remote(
        server, "submit", root, "a", "--", "sh", "-c", script, "x", "a b", "it's", "$HOME", "*", "", "a\nb"
    )
    assert answer.startswith("STARTED")
    assert re.match(r"EXITED rc=7 why=exit slot=- start=\d+\.\d+ end=\d+\.\d+ acked=0$", ended(root, "a"))
    assert (root / "jobs/a/out").read_text() == "a b|it's|$HOME|*||a\nb|"


def test_a_job_survives_kill_9_of_the_client_and_of_the_session(server: Sshd, root: Path) -> None:
    submit = command("submit", root, "a", "--", "sh", "-c", "sleep 1; exit 5")
    client = subprocess.Popen(server.ssh_argv(f"{submit}; sleep 30"), stdout=subprocess.PIPE)
    assert client.stdout
    client.stdout.readline()
    client.kill()
    server.cut()
    client.communicate()
    until(lambda: local("status", root, "a"), "^RUNNING")
    assert "rc=5" in ended(root, "a")


def test_a_submit_that_was_cut_off_at_any_moment_runs_exactly_once_after_all(
    server: Sshd, root: Path
) -> None:
    quick = {"MQI_JOB_CLAIM_S": "2"}
    for number in range(8):
        ran, name = root / f"j{number}.ran", f"j{number}.a1"
        payload = ["--", "sh", "-c", f"echo x >>{ran}"]
        client = subprocess.Popen(
            server.ssh_argv(command("submit", root, name, *payload)),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(random.uniform(0.1, 0.35))
        client.kill()
        server.cut()
        client.wait()
        root.mkdir(exist_ok=True)
        if local("submit", root, name, *payload, code=0).startswith("EXISTS"):
            look = lambda name=name: local("status", root, name, env=quick)  # noqa: E731
            if "LOST" in until(look, "^(EXITED|LOST)"):
                assert "rc=-1 why=fenced" in local("fence", root, name, code=0)
                name = f"j{number}.a2"
                local("submit", root, name, *payload, code=0)
        ended(root, name)
        assert ran.read_text() == "x\n"


@pytest.mark.parametrize("delay_ms", [0, 2, 4, 6, 8, 10, 13, 16, 20, 25, 30])
def test_kill_9_of_submit_at_any_moment_never_runs_a_job_twice(root: Path, delay_ms: int) -> None:
    root.mkdir()
    ran = root / "ran"
    payload = ["--", "sh", "-c", f"echo x >>{ran}"]
    submit = subprocess.Popen(
        ["sh", JOB_SH, "submit", str(root), "u.a1", *payload],
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    time.sleep(delay_ms / 1000)
    os.killpg(submit.pid, signal.SIGKILL)
    submit.wait()
    time.sleep(0.1)
    state = local("fence", root, "u.a1") if not (root / "jobs/u.a1/pid").exists() else ended(root, "u.a1")
    if not ran.exists():
        assert "fenced" in state
        local("submit", root, "u.a2", *payload, code=0)
        ended(root, "u.a2")
    assert ran.read_text() == "x\n"


def test_twelve_submits_of_one_name_start_one_job(server: Sshd, root: Path) -> None:
    def submit(_: int) -> str:
        return remote(server, "submit", root, "same", "--", "sh", "-c", f"echo x >>{root}/ran; sleep 0.5")

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(submit, range(12)))
    assert sorted(answer.split()[0] for answer in answers) == ["EXISTS"] * 11 + ["STARTED"]
    assert "rc=0" in ended(root, "same")
    assert (root / "ran").read_text() == "x\n"


def test_two_jobs_never_share_a_slot_and_all_slots_are_used(server: Sshd, root: Path) -> None:
    root.mkdir()
    events, slots = root / "events", "GPU-a,GPU-b,GPU-c"
    note = f'echo "$0 $CUDA_VISIBLE_DEVICES $MQI_SLOT" >>{events}'
    script = f"{note}; sleep 0.6; {note.replace('$0', 'end')}"

    def submit(number: int) -> str:
        words = ["-s", slots, "-k", "gpu", "--", "sh", "-c", script, "begin"]
        return remote(server, "submit", root, f"g{number}", *words)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(submit, range(9)))
    states = [ended(root, f"g{number}", 30) for number in range(9)]
    assert all(re.search("rc=0 why=exit slot=GPU-[abc] ", state) for state in states)
    held: set[str] = set()
    peak = 0
    for line in events.read_text().splitlines():
        what, gpu, slot = line.split()
        assert gpu == slot
        if what == "begin":
            assert gpu not in held
            held.add(gpu)
        else:
            held.remove(gpu)
        peak = max(peak, len(held))
    assert peak == 3


def test_a_gpu_that_a_stranger_uses_is_passed_over_and_told(root: Path, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    busy = tmp_path / "busy"
    busy.write_text("GPU-a, 4711\nGPU-b, 4712\n")
    (tools / "nvidia-smi").write_text(f"#!/bin/sh\n[ -f {busy} ] || exit 9\ncat {busy}\n")
    (tools / "nvidia-smi").chmod(0o755)
    env = {"PATH": f"{tools}:{os.environ['PATH']}"}
    local("submit", root, "a", "-s", "GPU-a,GPU-b", "-k", "gpu", "--", "true", code=0, env=env)
    until(lambda: local("status", root, "a"), "^PENDING why=gpu-in-use$")
    busy.unlink()
    until(lambda: local("status", root, "a"), "^PENDING why=nvidia-smi-failed$")
    busy.write_text("GPU-a, 4711\n")
    assert "rc=0 why=exit slot=GPU-b" in ended(root, "a")


def test_cancel_ends_a_tree_that_ignores_term_and_is_harmless_again(server: Sshd, root: Path) -> None:
    script = "trap '' TERM; sleep 971 & setsid sleep 972 & (env -i sleep 973) & sleep 974; sleep 975"
    remote(server, "submit", root, "a", "--", "sh", "-c", script)
    until(lambda: str(running("sleep 972")), "True")
    begin = time.monotonic()
    assert "rc=137 why=cancelled" in remote(server, "cancel", root, "a", 1)
    assert time.monotonic() - begin < 5
    assert not any(running(f"sleep 97{number}") for number in range(1, 6))
    assert "why=cancelled" in remote(server, "cancel", root, "a")
    assert remote(server, "cancel", root, "nobody") == "ABSENT"


def test_a_pending_job_is_cancelled_without_having_run(root: Path) -> None:
    local("submit", root, "a", "-s", "cpu0", "-k", "cpu", "--", "sleep", "60", code=0)
    local("submit", root, "b", "-s", "cpu0", "-k", "cpu", "--", "touch", f"{root}/ran", code=0)
    until(lambda: local("status", root, "b"), "^PENDING why=slots-busy$")
    assert "rc=143 why=cancelled slot=- start=-" in local("cancel", root, "b", 1)
    local("cancel", root, "a", 1)
    assert not (root / "ran").exists()


def test_a_payload_that_ends_takes_what_it_left_behind_with_it(root: Path) -> None:
    script = "sleep 981 & setsid sleep 982 & exit 3"
    local("submit", root, "a", "-s", "cpu0", "-k", "cpu", "--", "sh", "-c", script, code=0)
    assert "rc=3 why=exit slot=cpu0" in ended(root, "a")
    assert not running("sleep 981")
    assert not running("sleep 982")


def test_kill_9_of_the_supervisor_makes_an_orphan_that_keeps_its_slot(server: Sshd, root: Path) -> None:
    slot = ["-s", "cpu0", "-k", "cpu", "--"]
    remote(server, "submit", root, "a", *slot, "sh", "-c", "sleep 60")
    supervisor, _ = pids(root, "a")
    os.kill(supervisor, signal.SIGKILL)
    until(lambda: local("status", root, "a"), "^ORPHAN pid=[0-9]+ slot=cpu0")
    assert "ORPHAN" in remote(server, "fence", root, "a", code=1)
    remote(server, "submit", root, "b", *slot, "true")
    time.sleep(0.5)
    assert "PENDING" in local("status", root, "b")
    assert "LOST why=supervisor-died slot=cpu0" in remote(server, "cancel", root, "a", 1)
    assert "rc=0" in ended(root, "b")
    assert "LOST" in local("ack", root, "a", code=1)
    assert "rc=-1 why=fenced:supervisor-died slot=cpu0" in remote(server, "fence", root, "a")


def test_fencing_ends_what_a_dead_payload_left_running(root: Path) -> None:
    local("submit", root, "a", "--", "sh", "-c", "sleep 991; true", code=0)
    supervisor, payload = pids(root, "a")
    until(lambda: str(running("sleep 991")), "True")
    os.kill(supervisor, signal.SIGKILL)
    os.kill(payload, signal.SIGKILL)
    until(lambda: local("status", root, "a"), "^LOST")
    assert running("sleep 991")
    assert "why=fenced:supervisor-died" in local("fence", root, "a", code=0)
    until(lambda: str(running("sleep 991")), "False")


def test_a_name_that_was_fenced_before_it_came_never_runs(root: Path) -> None:
    assert "rc=-1 why=fenced " in local("fence", root, "a", code=0)
    assert local("submit", root, "a", "--", "touch", f"{root}/ran", code=0).startswith("EXISTS EXITED rc=-1")
    assert not (root / "ran").exists()


@needs_root
def test_a_stranger_with_the_same_pid_is_neither_believed_nor_signalled(root: Path) -> None:
    local("submit", root, "a", "--", "sleep", "60", code=0)
    for pid in pids(root, "a"):
        os.kill(pid, signal.SIGKILL)
    until(lambda: local("status", root, "a"), "^LOST")

    def start_time(pid: int) -> str:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]

    # The dead payload may stay a zombie where pid 1 does not reap it: let a pid of our own be used again.
    old = subprocess.Popen(["sleep", "60"])
    record = f"{old.pid} {start_time(old.pid)} 1.0\n"
    old.kill()
    old.wait()
    time.sleep(0.05)
    (root / "jobs/a/child").write_text(record)
    for _ in range(300):
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(old.pid - 1))
        stranger = subprocess.Popen(["sleep", "60"], start_new_session=True)
        if stranger.pid == old.pid:
            break
        stranger.kill()
        stranger.wait()
    try:
        assert stranger.pid == old.pid
        assert "LOST" in local("status", root, "a")
        local("cancel", root, "a", 1)
        local("fence", root, "a", code=0)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


@needs_root
def test_after_a_reboot_a_job_is_lost_whatever_its_pids_say(root: Path, tmp_path: Path) -> None:
    local("submit", root, "a", "--", "sleep", "60", code=0)
    for pid in pids(root, "a"):
        os.kill(pid, signal.SIGKILL)
    other = tmp_path / "boot_id"
    other.write_text("00000000-0000-0000-0000-000000000000\n")
    verbs = f"{command('status', root, 'a')} && {command('fence', root, 'a')}"
    script = f"mount --bind {other} /proc/sys/kernel/random/boot_id && {verbs}"
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, check=False)
    assert re.search("LOST why=reboot.*\n.*rc=-1 why=fenced:reboot", done.stdout), done


@needs_root
def test_a_disk_that_fills_up_does_not_lose_the_exit_status_and_starts_nothing_new(tmp_path: Path) -> None:
    disk, image = tmp_path / "disk", tmp_path / "image"
    disk.mkdir()
    make = f"truncate -s 4M {image} && mkfs.ext4 -q -O ^has_journal {image} && mount -o loop {image} {disk}"
    if subprocess.run(["sh", "-c", make], capture_output=True, check=False).returncode:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "none", disk], check=True)
    try:
        root = disk / "workspace"
        script = f"dd if=/dev/zero of={disk}/fill bs=1k 2>/dev/null; echo more; sleep 0.3; exit 9"
        local("submit", root, "a", "--", "sh", "-c", script, code=0)
        assert "rc=9 why=exit" in ended(root, "a")
        local("submit", root, "b", "--", "touch", tmp_path / "ran")
        time.sleep(0.3)
        assert not (tmp_path / "ran").exists()
    finally:
        subprocess.run(["umount", disk], check=True)


def test_follow_gives_the_output_as_it_grows_and_returns_when_the_job_ends(server: Sshd, root: Path) -> None:
    script = "for i in 1 2 3; do printf 'line %s\\n' $i; sleep 0.3; done; printf half; exit 2"
    remote(server, "submit", root, "a", "--", "sh", "-c", script)
    follow = server.ssh_argv(command("follow", root, "a", 5, "@@"))
    with subprocess.Popen(follow, stdout=subprocess.PIPE) as process:
        assert process.stdout
        text = process.stdout.read()
    returned = time.time()
    found = re.search(rb"\n@@ END 25 (EXITED rc=2 why=exit .* end=([0-9.]+) acked=0)\n$", text)
    assert found, text
    assert returned - float(found[2]) < 0.5  # an ssh client needs most of that to close
    assert re.sub(rb"\n@@ [^\n]*\n", b"", text) == b"1\nline 2\nline 3\nhalf"


def test_follow_notices_the_end_within_a_tenth_of_a_second(root: Path) -> None:
    delays = []
    for number in range(5):
        name = f"a{number}"
        local("submit", root, name, "--", "sleep", f"0.{number + 2}", code=0)
        answer = local("wait", root, name, code=0)
        delays.append(time.time() - float(answer.split("end=")[1].split()[0]))
    assert sorted(delays)[2] < 0.1


def test_follow_of_a_dead_connection_ends_and_the_job_does_not(server: Sshd, root: Path) -> None:
    local("submit", root, "a", "--", "sleep", "60", code=0)
    client = subprocess.Popen(
        server.ssh_argv(command("follow", root, "a", 0, "@@dead")), stdout=subprocess.PIPE
    )
    assert client.stdout
    client.stdout.readline()
    follow = f"sh {JOB_SH} follow {root} a 0 @@dead"
    assert running(follow)
    client.kill()
    server.cut()
    client.communicate()
    until(lambda: str(running(follow)), "False", 5)
    assert "RUNNING" in local("status", root, "a")


def test_tail_gives_a_part_of_either_stream(root: Path) -> None:
    local("submit", root, "a", "--", "sh", "-c", "printf 0123456789; printf wrong >&2", code=0)
    ended(root, "a")
    assert local("tail", root, "a", 4, 3) == "10\n456"
    assert local("tail", root, "a", -3) == "10\n789"
    assert local("tail", root, "a", -99) == "10\n0123456789"
    assert local("tail", root, "a", 0, 100, "err") == "5\nwrong"
    assert local("tail", root, "nobody", 0) == "0"


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_the_time_limit_ends_a_job_also_one_whose_supervisor_has_died(
    root: Path, tmp_path: Path, shell: str
) -> None:
    """Also where sh is bash, as on Red Hat's systems."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "sh").symlink_to(program(shell, package=shell))
    env = {"PATH": f"{tools}:{os.environ['PATH']}"}
    local("submit", root, "a", "-t", 1, "--", "sleep", "60", code=0, env=env)
    local("submit", root, "b", "-t", 1, "--", "sleep", "60", code=0, env=env)
    supervisor, _ = pids(root, "b")
    os.kill(supervisor, signal.SIGKILL)
    assert "rc=143 why=timeout" in ended(root, "a", 8)
    assert "LOST why=supervisor-died" in ended(root, "b", 8)


def test_the_payload_sees_no_secret_of_whoever_submits(root: Path) -> None:
    env = {
        "AWS_SECRET_ACCESS_KEY": "s",
        "PREFECT_API_KEY": "s",
        "MQI_SITE": "seen",
        "LC_TIME": "C",
        "X%": "odd",
    }
    local(
        "submit", root, "a", "--", "env", code=0, env={**env, "MQI_DB_PASSWORD": "s", "CUDA_HOME": "a'b$c d"}
    )
    ended(root, "a")
    seen = dict(line.split("=", 1) for line in (root / "jobs/a/out").read_text().splitlines())
    assert seen["MQI_SITE"] == "seen"
    assert seen["LC_TIME"] == "C"
    assert seen["CUDA_HOME"] == "a'b$c d"
    assert seen["MQI_JOB_FOLDER"] == str(root / "jobs/a")
    assert not {"AWS_SECRET_ACCESS_KEY", "PREFECT_API_KEY", "MQI_DB_PASSWORD", "X%"} & seen.keys()


def test_the_input_file_is_rendered_into_the_job_folder(root: Path) -> None:
    unit = root / "input/u"
    unit.mkdir(parents=True)
    (unit / "m.in").write_text("A @INPUT@/x @INPUT@\nB @OUTPUT@\nC 5 & | \\ @OTHER@")
    local("submit", root, "u.a1", "-i", unit, "-f", "m.in", "--", "sh", "-c", "pwd; cat m.in", code=0)
    ended(root, "u.a1")
    job = root / "jobs/u.a1"
    expected = f"{job}\nA {unit}/x {unit}\nB {job}/output\nC 5 & | \\ @OTHER@"
    assert (job / "out").read_text() == expected
    assert (job / "output").is_dir()


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["a", "-i", "{root}/input/none", "--", "true"], 65),
        (["a", "-i", "{root}", "-f", "none.in", "--", "true"], 65),
        (["a", "-i", "{root}/../x", "--", "true"], 64),
        (["a", "-i", "/a b", "--", "true"], 64),
        (["../a", "--", "true"], 64),
        (["-a", "--", "true"], 64),
        (["", "--", "true"], 64),
        (["a" * 201, "--", "true"], 64),
        (["a", "-s", "../x", "-k", "cpu", "--", "true"], 64),
        (["a", "-k", "cpu", "--", "true"], 64),
        (["a", "-k", "tpu", "--", "true"], 64),
        (["a", "-t", "1;id", "--", "true"], 64),
        (["a", "-x", "1", "--", "true"], 64),
        (["a", "--"], 64),
    ],
)
def test_what_cannot_be_run_is_refused_and_claims_nothing(root: Path, words: list[str], code: int) -> None:
    root.mkdir()
    local("submit", root, *[word.format(root=root) for word in words], code=code)
    assert local("list", root) == ""


def test_a_workspace_that_would_break_an_input_file_is_refused(tmp_path: Path) -> None:
    for root in (tmp_path / "a b", tmp_path / "a$b", f"{tmp_path}/../x", "relative"):
        local("submit", root, "a", "--", "true", code=64)


def test_removing_spares_what_is_in_use(root: Path) -> None:
    (root / "input/u").mkdir(parents=True)
    local("submit", root, "u.a1", "--", "sleep", "60", code=0)
    local("remove", root, "jobs", "u.a1", code=1)
    local("remove", root, "input", "u", code=1)
    local("cancel", root, "u.a1", 1)
    assert local("remove", root, "input", "u", code=0) == "REMOVED"
    assert local("remove", root, "jobs", "u.a1", code=0) == "REMOVED"
    assert local("remove", root, "jobs", "u.a1", code=0) == "ABSENT"
    assert not any((root / "jobs").iterdir())


def test_an_ended_job_is_acknowledged_and_keeps_it(root: Path) -> None:
    local("submit", root, "a", "--", "false", code=0)
    ended(root, "a")
    assert local("ack", root, "a", code=0).endswith("acked=1")
    assert local("list", root, "a").startswith("a EXITED rc=1")
    assert local("ack", root, "nobody", code=1) == "ABSENT"


def test_the_self_test_says_what_a_host_lacks(root: Path, tmp_path: Path) -> None:
    assert local("selftest", root, code=0) == "OK"
    assert local("list", root) == ""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sh", "awk", "cat", "date", "env"):
        found = subprocess.run(["sh", "-c", f"command -v {name}"], capture_output=True, text=True, check=True)
        (tools / name).symlink_to(found.stdout.strip())
    argv = [str(tools / "sh"), JOB_SH, "selftest", str(root)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env={"PATH": str(tools)})
    assert (done.returncode, done.stderr) == (69, "job.sh: the command flock is missing\n")


def test_the_script_is_plain_posix_sh() -> None:
    for shell in ("sh", "bash"):
        subprocess.run([shell, "-n", JOB_SH], check=True)
