"""The host behind a real sshd and a proxy that goes wrong: jobs run once, copies are whole."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import paramiko
import pydantic
import pytest

from mqi.case import JobStatus
from mqi.errors import (
    ConfigurationError,
    HostConnectionError,
    MQIError,
    ProcessingError,
    ResourceError,
    TransferError,
)
from mqi.hosts import (
    Host,
    HostSettings,
    JobRequest,
    JobState,
    SshCredentials,
    SshSettings,
    connect,
    provide_credentials,
    ssh_settings,
    ssh_tree,
)
from mqi.hosts import session as session_module
from mqi.hosts.login import fingerprint_of, log_in
from mqi.hosts.pool import close_pools, pool_of
from mqi.hosts.smi import parse_facts
from mqi.hosts.ssh import SshHost
from mqi.hosts.ssh_shell import SshShell
from tests.processes import CLEAN
from tests.sshd import Sshd, running_sshd
from tests.tcpproxy import FaultProxy, running_proxy

# The claims about the local host, said again of this one: pytest finds them here with the fixtures of here.
from tests.unit.test_hosts import (  # noqa: F401
    folder,
    request,
    runs,
    test_a_beam_goes_to_the_host_is_computed_and_its_dose_comes_back,
    test_a_disk_without_the_wanted_room_takes_no_job_but_finds_its_old_ones,
    test_a_name_that_is_no_plain_name_is_refused_everywhere,
    test_a_probe_says_what_the_host_has,
    test_an_ugly_argument_is_only_an_argument,
    test_cancel_ends_the_whole_tree_of_an_engine_that_ignores_term,
    test_eight_processes_that_compute_the_same_beam_at_once_run_it_once,
    test_kill_9_of_the_supervisor_leads_over_orphan_and_lost_to_a_second_attempt,
    test_lines_arrive_whole_in_order_and_while_the_job_runs,
    test_waiting_can_be_stopped_and_the_job_goes_on,
    test_waiting_for_a_job_that_is_not_there_is_an_error_not_an_end,
    test_whoever_waits_may_be_killed_and_another_goes_on_waiting,
    until_running,
    wait,
)

T = TypeVar("T")

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk: needs root, as in CI")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    home = tmp_path_factory.mktemp("home")  # login files of the account must not slow or change the tests
    with running_sshd(tmp_path_factory.mktemp("sshd"), environment={"HOME": str(home)}) as sshd:
        yield sshd


@pytest.fixture(scope="module")
def proxy(server: Sshd) -> Iterator[FaultProxy]:
    with running_proxy(server.port) as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def _calm(proxy: FaultProxy) -> Iterator[None]:
    yield
    proxy.mode, proxy.delay_s, proxy.reset_fraction = "pass", 0.0, 0.0
    proxy._cut = {"up": None, "down": None}
    close_pools()
    proxy.reset()  # what a stalled connection left in the proxy is none of the next test's


def reached(server: Sshd, port: int, **more: Any) -> SshSettings:
    kind, key, *_ = (server.folder / "host_ed25519.pub").read_text().split()
    known = server.folder / f"known_hosts.{port}"
    known.write_text(f"[127.0.0.1]:{port} {kind} {key}\n")
    values = {"key_file": str(server.key), "known_hosts": str(known)}
    return SshSettings(address="127.0.0.1", port=port, user=server.user, **{**values, **more})


@pytest.fixture
def settings(tmp_path: Path, server: Sshd, proxy: FaultProxy) -> HostSettings:
    ssh = reached(server, proxy.port)
    workspace = str(tmp_path / "workspace")
    return HostSettings(name="here", kind="ssh", ssh=ssh, workspace=workspace, slots=2, min_disk_space_gb=0)


@pytest.fixture
def host(settings: HostSettings, proxy: FaultProxy) -> Iterator[Host]:
    host = connect(settings)
    yield host
    proxy.mode, proxy.reset_fraction, proxy.delay_s = "pass", 0.0, 0.0
    for state in host.list():
        if not state.ended:
            host.cancel(state.name, 0)


def tried(action: Callable[[], T], times: int = 20) -> T:
    """Do as a task does: what can be retried is."""
    for left in reversed(range(times)):
        try:
            return action()
        except MQIError as error:
            if not error.retryable or not left:
                raise
            time.sleep(0.05)
    raise AssertionError


def compute(host: Host, folder: Path, unit: str, target: Path) -> JobState:
    """A beam from its input to its dose, each step tried again: what `calculate_beam` and its kin do."""
    remote = tried(lambda: host.put(folder, unit))
    argv = ("sh", f"{remote}/engine.sh")
    while True:
        attempt = tried(lambda: host.attempt(unit))
        job = JobRequest(unit=unit, name=attempt.name, argv=argv, input_folder=remote, rendered="run.in")

        def go(job: JobRequest = job) -> JobState:
            if host.state(job.name).absent:
                host.submit(job)
            return wait(host, job.name)

        state = tried(go)
        if not state.interrupted:
            break
    tried(lambda: host.get(state.name, ["output/dose.raw", "out"], target))
    return state


def tree(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


# ---- the network goes wrong


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_connection_that_is_cut_at_any_byte_of_a_beam_leads_to_exactly_one_run(
    host: Host, folder: Path, settings: HostSettings, proxy: FaultProxy, tmp_path: Path, way: Any
) -> None:
    (folder / "spots.csv").write_bytes(os.urandom(100_000))
    chance = random.Random(7)
    for number in range(4):
        stop = threading.Event()

        def cut(stop: threading.Event = stop) -> None:
            while not stop.wait(chance.uniform(0.3, 1.0)):
                proxy.cut_after(chance.choice([1, 300, 2_000, 30_000, 120_000]), way)

        cutter = threading.Thread(target=cut)
        cutter.start()
        try:
            state = compute(host, folder, f"u{number}", tmp_path / f"back{number}")
        finally:
            stop.set()
            cutter.join()
            proxy._cut = {"up": None, "down": None}
        assert state.status is JobStatus.COMPLETED
        dose = (tmp_path / f"back{number}" / "output/dose.raw").read_bytes()
        assert dose == (folder / "spots.csv").read_bytes()
        assert not list((tmp_path / f"back{number}").rglob("*.part"))
        assert runs(settings) == number + 1


def test_a_reply_to_submit_that_is_lost_is_given_again_and_the_job_runs_once(
    host: Host,
    folder: Path,
    settings: HostSettings,
    proxy: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = request(host, folder, script="sleep 0.3")
    host.state("u.a1")
    really = session_module.Session.finish

    def lose(self: session_module.Session, timeout_s: float) -> Any:
        monkeypatch.undo()
        really(self, timeout_s)
        proxy.reset()
        raise self._cut()

    monkeypatch.setattr(session_module.Session, "finish", lose)
    assert host.submit(job).name == "u.a1"
    assert host.attempt("u").state is not None
    assert host.submit(job).name == "u.a1"
    assert wait(host, "u.a1").status is JobStatus.COMPLETED
    assert runs(settings) == 1


def test_twenty_per_cent_of_connections_reset_do_not_matter(
    host: Host, folder: Path, settings: HostSettings, proxy: FaultProxy, tmp_path: Path
) -> None:
    proxy.reset_fraction = 0.2
    before = proxy.accepted
    for number in range(6):
        close_pools()  # a new connection for each
        compute(host, folder, f"u{number}", tmp_path / f"back{number}")
    assert proxy.accepted - before >= 6
    assert runs(settings) == 6


def test_a_stalled_connection_is_noticed_and_replaced_and_says_nothing_about_the_job(
    host: Host, folder: Path, settings: HostSettings, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "_BEGIN_S", 0.5)
    host.submit(request(host, folder, script="sleep 2"))
    until_running(host, "u.a1")
    proxy.mode = "stall"
    began = time.monotonic()
    with pytest.raises(HostConnectionError, match="did not answer"):
        host.state("u.a1")
    assert time.monotonic() - began < 3
    proxy.mode = "pass"
    assert wait(host, "u.a1").status is JobStatus.COMPLETED
    assert runs(settings) == 1


def test_an_upload_that_stalls_gives_way_to_the_next_try(
    host: Host, folder: Path, proxy: FaultProxy, settings: HostSettings, server: Sshd
) -> None:
    (folder / "spots.csv").write_bytes(os.urandom(300_000))
    host.list()
    shell = SshShell(pool_of(settings.ssh))  # type: ignore[arg-type]
    script = ssh_tree._script("tree_put", settings.workspace, "u")
    with shell.talk(script) as talk:  # begins, holds the lock, and is never heard of again
        talk.until(b"\n\n")
        talk.send(b"FILE 100000 6\n./half")
        time.sleep(0.3)
        monkey = f"MQI_TREE_ROUNDS=0\n{script}"
        with shell.talk(monkey) as second:
            assert second.until(b"\n\n", 30).startswith(b"FREE ")
    tried(lambda: host.put(folder, "u"))
    assert tree(Path(settings.workspace, "input/u")) == tree(folder)


def test_a_server_that_restarts_costs_a_retry_and_no_job(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_sshd(tmp_path / "first") as first, running_proxy(first.port) as proxy:
        ssh = reached(first, proxy.port)
        settings = HostSettings(
            name="here", kind="ssh", ssh=ssh, workspace=str(tmp_path / "w"), slots=1, min_disk_space_gb=0
        )
        host = connect(settings)
        host.submit(request(host, folder, script="sleep 1.5"))
        until_running(host, "u.a1")
        caught: list[BaseException] = []

        def watch() -> None:
            try:
                wait(host, "u.a1")
            except HostConnectionError as error:
                caught.append(error)

        watching = threading.Thread(target=watch)
        watching.start()
        time.sleep(0.3)
        first.cut()
        proxy.mode = "refuse"
        watching.join(10)
        assert caught
        proxy.mode = "pass"
        assert tried(lambda: wait(host, "u.a1")).status is JobStatus.COMPLETED
        assert runs(settings) == 1


# ---- copies


def test_names_with_blanks_quotes_and_korean_letters_arrive_and_come_back(
    host: Host, tmp_path: Path, settings: HostSettings
) -> None:
    source = tmp_path / "source"
    for name in ("a b", 'it\'s "q"', "$(touch x)", "환자/선량 1.raw", "-rf", "back\\slash", "*", "x" * 150):
        place = source / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(os.urandom(1000))
    (source / "empty").touch()
    (source / "big").write_bytes(os.urandom(3_000_000))
    told: list[tuple[int, int]] = []
    assert isinstance(host, SshHost)
    where = host.put(source, "u", progress=lambda done, total: told.append((done, total)))
    assert tree(Path(where)) == tree(source)
    assert (
        told[-1][0] == told[-1][1] == sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
    )
    assert Path(where).stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o077 == 0 for path in Path(where).rglob("*"))
    job = Path(settings.workspace) / "jobs/u.a1"
    job.mkdir()
    Path(where).rename(job / "output")
    facts = host.get("u.a1", ["output"], tmp_path / "back")
    assert tree(tmp_path / "back/output") == tree(source)
    assert {fact.path: fact.sha256 for fact in facts} == {f"output/{k}": v for k, v in tree(source).items()}
    assert not Path("x").exists()


def test_without_tar_on_the_host_the_same_arrives(
    host: Host, folder: Path, settings: HostSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "deep/er").mkdir(parents=True)
    (folder / "deep/er/x").write_text("y")
    host.list()
    really = ssh_tree._script
    monkeypatch.setattr(
        ssh_tree, "_script", lambda *words: really(*words).replace("command -v tar", "command -v no-tar")
    )
    assert tree(Path(host.put(folder, "u"))) == tree(folder)


def test_what_is_verified_is_not_sent_again_and_what_is_damaged_is(
    host: Host, folder: Path, proxy: FaultProxy, tmp_path: Path
) -> None:
    (folder / "spots.csv").write_bytes(os.urandom(400_000))
    (folder / "other.csv").write_bytes(os.urandom(400_000))
    where = Path(host.put(folder, "u"))
    before = proxy.carried["up"]
    host.put(folder, "u")
    assert proxy.carried["up"] - before < 20_000
    damaged = bytearray((where / "spots.csv").read_bytes())
    damaged[1000] ^= 1
    (where / "spots.csv").write_bytes(damaged)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "keep").touch()
    (where / "link").symlink_to(outside)
    (where / "stranger").touch()
    before = proxy.carried["up"]
    host.put(folder, "u")
    assert 400_000 < proxy.carried["up"] - before < 500_000
    assert tree(where) == tree(folder)
    assert not (where / "link").is_symlink()
    assert (outside / "keep").exists()


def test_an_upload_that_was_cut_goes_on_where_it_stopped_and_is_never_seen_half(
    host: Host, folder: Path, settings: HostSettings, proxy: FaultProxy
) -> None:
    for number in range(8):
        (folder / f"{number}.csv").write_bytes(os.urandom(1_500_000))
    host.list()
    proxy.cut_after(9_000_000, "up")
    with pytest.raises(HostConnectionError):
        host.put(folder, "u")
    assert not Path(settings.workspace, "input/u").exists()
    time.sleep(0.3)
    before = proxy.carried["up"]
    assert tree(Path(host.put(folder, "u"))) == tree(folder)
    assert proxy.carried["up"] - before < 9_000_000
    assert not list(Path(settings.workspace, "input").glob(".*.part"))


def test_an_upload_that_the_hosts_disk_damages_does_not_get_its_name(
    host: Host, folder: Path, settings: HostSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.list()
    really = ssh_tree._script

    def script(*words: str) -> str:
        return really(*words).replace("    SUMS)\n", "    SUMS)\n      printf x >>./spots.csv\n")

    monkeypatch.setattr(ssh_tree, "_script", script)
    with pytest.raises(TransferError, match="not what was sent"):
        host.put(folder, "u")
    assert not Path(settings.workspace, "input/u").exists()
    monkeypatch.undo()
    assert tree(Path(host.put(folder, "u"))) == tree(folder)


def test_a_download_that_is_damaged_on_the_way_to_the_disk_is_not_given_its_name(
    host: Host, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.submit(request(host, folder))
    wait(host, "u.a1")
    really = os.fsync

    def garble(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.suffix == ".part":
            path.write_bytes(b"garbled")
        really(descriptor)

    monkeypatch.setattr(os, "fsync", garble)
    with pytest.raises(TransferError, match="not what the host has"):
        host.get("u.a1", ["output"], tmp_path / "back")
    assert tree(tmp_path / "back") == {}
    monkeypatch.undo()
    (fact,) = host.get("u.a1", ["output"], tmp_path / "back")
    inode = (tmp_path / "back" / fact.path).stat().st_ino
    assert host.get("u.a1", ["output"], tmp_path / "back") == (fact,)
    assert (tmp_path / "back" / fact.path).stat().st_ino == inode  # verified, not copied again
    (tmp_path / "back" / fact.path).write_text("3,2,1\n")
    host.get("u.a1", ["output"], tmp_path / "back")
    assert (tmp_path / "back" / fact.path).read_text() == "1,2,3\n"


def test_a_file_that_changes_while_it_is_sent_is_caught(
    host: Host, folder: Path, settings: HostSettings
) -> None:
    busy, stop = folder / "spots.csv", threading.Event()
    busy.write_bytes(bytes(5_000_000))
    host.list()

    def write() -> None:
        while not stop.wait(0.0005):
            with busy.open("r+b") as file:
                file.seek(random.randrange(5_000_000))
                file.write(os.urandom(8))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with pytest.raises(TransferError, match="changed while it was copied"):
            for _ in range(20):
                host.put(folder, "u")
    finally:
        stop.set()
        writer.join()
    assert not Path(settings.workspace, "input/u").exists()
    assert tree(Path(host.put(folder, "u"))) == tree(folder)


@pytest.mark.parametrize("path", ["../x", "/etc/hostname", "link", "linked/hostname", "pipe", "none"])
def test_nothing_is_fetched_from_outside_the_job(
    host: Host, settings: HostSettings, tmp_path: Path, path: str
) -> None:
    host.list()
    job = Path(settings.workspace) / "jobs/u.a1"
    job.mkdir()
    (job / "link").symlink_to("/etc/hostname")
    (job / "linked").symlink_to("/etc")
    os.mkfifo(job / "pipe")
    with pytest.raises((TransferError, ProcessingError)):
        host.get("u.a1", [path], tmp_path / "back")
    assert not list(tmp_path.glob("back/*"))


def test_a_link_in_the_place_of_an_input_is_refused(host: Host, folder: Path, settings: HostSettings) -> None:
    host.list()
    Path(settings.workspace, "input/u").symlink_to("/tmp")
    with pytest.raises(TransferError, match="is a link"):
        host.put(folder, "u")
    (folder / "link").symlink_to("/etc/hostname")
    with pytest.raises(TransferError, match="links are not copied"):
        host.put(folder, "v")


def _put(settings: HostSettings, folder: Path) -> None:
    connect(settings).put(folder, "u")


def test_four_processes_may_send_the_same_folder_at_once(
    host: Host, folder: Path, settings: HostSettings
) -> None:
    (folder / "spots.csv").write_bytes(os.urandom(2_000_000))
    host.list()
    processes = [CLEAN.Process(target=_put, args=(settings, folder)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert tree(Path(settings.workspace, "input/u")) == tree(folder)
    assert host.list() == ()  # the parent's connection is as it was


@needs_root
def test_a_disk_that_fills_up_leaves_nothing_half_and_is_told(
    settings: HostSettings, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", disk], check=True)
    try:
        host = connect(settings.model_copy(update={"workspace": str(disk / "w")}))
        host.put(folder, "small")
        (folder / "spots.csv").write_bytes(os.urandom(3_000_000))
        with pytest.raises(ResourceError, match="must stay free"):  # asked before
            host.put(folder, "u")
        really = ssh_tree._script  # another takes the room between the question and the copy
        monkeypatch.setattr(
            ssh_tree, "_script", lambda *words: really(*words).replace("tree_free .)", "echo 1000000000000)")
        )
        with pytest.raises(ResourceError, match=r"No space left on device|cannot write"):
            host.put(folder, "u")
        assert not (disk / "w/input/u").exists()
    finally:
        subprocess.run(["umount", disk], check=True)


# ---- whom we talk to


def login_error(settings: SshSettings, credentials: SshCredentials | None = None) -> MQIError:
    with pytest.raises(MQIError) as caught:
        log_in(settings, credentials)
    return caught.value


def test_an_unknown_host_key_is_refused_with_its_fingerprint_and_the_command_that_trusts_it(
    server: Sshd, tmp_path: Path
) -> None:
    known = tmp_path / "known"
    ssh = reached(server, server.port, known_hosts=str(known))
    error = login_error(ssh)
    assert isinstance(error, ConfigurationError)
    shown = subprocess.run(
        ["ssh-keygen", "-lf", server.folder / "host_ed25519.pub"], capture_output=True, text=True, check=True
    )
    fingerprint = shown.stdout.split()[1]
    assert fingerprint in str(error)
    command = str(error.todo).rpartition("then run: ")[2]
    subprocess.run(["sh", "-c", command], check=True, capture_output=True)
    log_in(ssh).close()
    log_in(ssh.model_copy(update={"known_hosts": "/nowhere", "fingerprint": fingerprint})).close()
    log_in(SshSettings(**{**ssh.model_dump(), "fingerprint": f"{fingerprint}="})).close()


def test_a_changed_or_revoked_host_key_is_refused(server: Sshd, tmp_path: Path) -> None:
    known = tmp_path / "known"
    other = paramiko.Ed25519Key.from_private_key_file(str(server.key))
    known.write_text(f"[127.0.0.1]:{server.port} ssh-ed25519 {other.get_base64()}\n")
    ssh = reached(server, server.port, known_hosts=str(known))
    error = login_error(ssh)
    assert isinstance(error, ConfigurationError)
    assert "HAS CHANGED" in str(error) and fingerprint_of(other) in str(error)
    assert f"ssh-keygen -f {known} -R '[127.0.0.1]:{server.port}'" in str(error)
    good = (server.folder / f"known_hosts.{server.port}").read_text()
    known.write_text(f"@revoked * {good.split(' ', 1)[1]}{good}")
    assert isinstance(login_error(ssh), ConfigurationError)
    pinned = ssh.model_copy(update={"fingerprint": fingerprint_of(other)})
    assert "is the one that is trusted" in str(login_error(pinned))
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", server.folder / f"known_hosts.{server.port}"], check=True)
    log_in(reached(server, server.port)).close()
    with pytest.raises(pydantic.ValidationError, match="43 characters"):
        SshSettings(address="x", user="y", fingerprint="MD5:aa:bb")


def test_keys_with_and_without_passphrase_as_file_or_text_open_the_door(server: Sshd, tmp_path: Path) -> None:
    key, phrase = tmp_path / "key", "corr3ct h0rse"
    keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", phrase, "-C", "test", "-f", str(key)]
    subprocess.run(keygen, check=True)
    with (server.folder / "authorized_keys").open("a") as file:
        file.write(key.with_suffix(".pub").read_text())
    secret = SshCredentials.model_validate({"passphrase": phrase})
    log_in(reached(server, server.port, key_file=str(key)), secret).close()
    text = "  " + key.read_text().replace("\n", "\r\n") + "\n\n"
    credentials = SshCredentials.model_validate({"key_text": text, "passphrase": phrase})
    by_text = reached(server, server.port, key_file=None)
    log_in(by_text, credentials).close()
    assert "needs a passphrase" in str(login_error(reached(server, server.port, key_file=str(key))))
    wrong = SshCredentials.model_validate({"passphrase": "wrong"})
    assert "wrong passphrase" in str(login_error(reached(server, server.port, key_file=str(key)), wrong))
    assert "cannot be read" in str(login_error(reached(server, server.port, key_file="/no/key")))
    assert "no way to log in" in str(login_error(by_text))
    named = by_text.model_copy(update={"credentials": "gpu"})
    ssh_settings._providers.clear()  # another test of this process may have named one
    assert "cannot be looked up" in str(login_error(named))
    try:
        provide_credentials({"gpu": credentials}.__getitem__)
        log_in(named).close()
    finally:
        ssh_settings._providers.clear()
    for value in (credentials, secret):
        assert phrase not in f"{value!r}{value.model_dump_json()}" and "OPENSSH" not in repr(value)


def test_a_key_that_is_not_authorized_is_named_with_what_to_do(server: Sshd, tmp_path: Path) -> None:
    key = tmp_path / "stranger"
    subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-N", "", "-f", str(key)], check=True)
    secret = SshCredentials.model_validate({"password": "hunter2!"})
    error = login_error(reached(server, server.port, key_file=str(key)), secret)
    assert isinstance(error, ConfigurationError)
    assert "refused the login of" in str(error) and "authorized_keys" in str(error)
    assert "password (not allowed there, only publickey)" in str(error)
    assert "hunter2!" not in str(error)


def test_a_host_that_cannot_be_reached_is_told_apart_by_why(server: Sshd, proxy: FaultProxy) -> None:
    here = reached(server, proxy.port, connect_timeout_s=0.5, banner_timeout_s=0.5)
    proxy.mode = "stall"
    assert "did not answer as an SSH server" in str(login_error(here)) or "closed" in str(login_error(here))
    proxy.mode = "refuse"
    error = login_error(here)
    assert isinstance(error, HostConnectionError) and "MaxStartups" in str(error)
    proxy.mode = "pass"
    unknown = here.model_copy(update={"address": "no-such-host.invalid"})
    assert "no host of the name" in str(login_error(unknown))
    assert "refuses connections" in str(login_error(here.model_copy(update={"port": 1})))
    filtered = here.model_copy(update={"address": "192.0.2.1"})  # RFC 5737: goes nowhere
    assert isinstance(login_error(filtered), HostConnectionError)


def test_a_bastion_is_gone_through_and_one_that_forbids_it_is_named(server: Sshd, tmp_path: Path) -> None:
    with running_sshd(tmp_path / "bastion", options={"AllowTcpForwarding": "yes"}) as bastion:
        known = bastion.known_hosts
        jump = {"address": "127.0.0.1", "user": bastion.user, "key_file": str(bastion.key)}
        good = {**jump, "port": bastion.port, "known_hosts": str(known)}
        ssh = SshSettings.model_validate({**reached(server, server.port).model_dump(), "jump": good})
        pool = pool_of(ssh)
        assert SshShell(pool).run(["echo", "here"]).stdout == b"here\n"
        pool.close()
        lost = ssh.model_copy(update={"port": 1})
        assert "cannot connect to" in str(login_error(lost))
        error = login_error(ssh.model_copy(update={"known_hosts": "/nowhere"}))
        assert f"ssh -p {bastion.port} {bastion.user}@127.0.0.1 ssh-keyscan" in str(error)
    with running_sshd(tmp_path / "strict") as strict:
        bad = {
            **jump,
            "port": strict.port,
            "known_hosts": str(strict.known_hosts),
            "key_file": str(strict.key),
        }
        ssh = SshSettings.model_validate({**reached(server, server.port).model_dump(), "jump": bad})
        assert "forbids connections" in str(login_error(ssh))


# ---- servers and accounts as they are


def test_a_server_that_allows_one_session_per_connection_is_used_with_several(
    tmp_path: Path, folder: Path
) -> None:
    with running_sshd(tmp_path / "sshd", max_sessions=1) as server:
        ssh = reached(server, server.port, pool_size=3)
        settings = HostSettings(
            name="here", kind="ssh", ssh=ssh, workspace=str(tmp_path / "w"), slots=4, min_disk_space_gb=0
        )
        host = connect(settings)
        for unit in ("a", "b"):
            host.submit(request(host, folder, unit=unit, script="sleep 1"))
        states: list[JobState] = []
        waits = [
            threading.Thread(target=lambda unit=unit: states.append(wait(host, f"{unit}.a1")))
            for unit in ("a", "b")
        ]
        for one in waits:
            one.start()
        time.sleep(0.3)
        assert host.state("a.a1").status is JobStatus.RUNNING
        for one in waits:
            one.join(20)
        assert [state.status for state in states] == [JobStatus.COMPLETED] * 2
        assert 2 <= pool_of(ssh).connections <= 3
        close_pools()


def test_one_connection_serves_many_waits(host: Host, folder: Path, settings: HostSettings) -> None:
    remote = host.put(folder, "u")
    assert settings.ssh
    for number in range(8):
        argv = ("sh", "-c", "sleep 1.2; echo ok")
        name = f"j{number}"
        job = JobRequest(unit=name, name=f"{name}.a1", argv=argv, input_folder=remote, needs_slot=False)
        host.submit(job)
    waits = [threading.Thread(target=wait, args=(host, f"j{number}.a1")) for number in range(8)]
    for one in waits:
        one.start()
    time.sleep(0.3)
    assert pool_of(settings.ssh).connections <= 2
    for one in waits:
        one.join(30)
    assert all(state.status is JobStatus.COMPLETED for state in host.list())


@pytest.mark.parametrize("shell", ["noisy", "foreign"])
def test_a_noisy_or_foreign_login_shell_does_not_confuse_it(tmp_path: Path, folder: Path, shell: str) -> None:
    """``ForceCommand`` stands for the login shell: one prints all the time, one is no POSIX shell."""
    banner = tmp_path / "banner"
    banner.write_text("Authorised users only!\nSTARTED RUNNING pid=1\n")
    script = tmp_path / "shell"
    if shell == "noisy":
        script.write_text(
            "#!/bin/bash\necho 'Welcome!'; echo 'EXITED rc=0'; echo warning >&2\n"
            'eval "$SSH_ORIGINAL_COMMAND"\n'
        )
    else:  # as csh does: no line feeds within a word, "!" is history; and single quotes are all it knows
        script.write_text(
            "#!/usr/bin/env python3\nimport os, re, sys\nline = os.environ['SSH_ORIGINAL_COMMAND']\n"
            "assert '\\n' not in line and '!' not in line and '\\\\' not in line\n"
            "match = re.fullmatch(r\"exec (sh) (-c) '([^']*)'\", line)\nos.execvp('sh', match.groups())\n"
        )
    script.chmod(0o755)
    options = {"ForceCommand": str(script), "Banner": str(banner)}
    with running_sshd(tmp_path / "sshd", options=options) as server:
        settings = HostSettings(
            name="here",
            kind="ssh",
            ssh=reached(server, server.port),
            workspace=str(tmp_path / "w"),
            slots=2,
            min_disk_space_gb=0,
        )
        host = connect(settings)
        assert compute(host, folder, "u", tmp_path / "back").status is JobStatus.COMPLETED
        assert (tmp_path / "back/output/dose.raw").read_text() == "1,2,3\n"
        assert host.run(["printf", "%s|", "a b", "it's", "!x", "\n", "\\"]).stdout == b"a b|it's|!x|\n|\\|"
        close_pools()


def test_an_account_that_may_run_nothing_is_told(tmp_path: Path) -> None:
    with running_sshd(tmp_path / "sshd", options={"ForceCommand": "/bin/false"}) as server:
        settings = HostSettings(
            name="here", kind="ssh", ssh=reached(server, server.port), workspace=str(tmp_path / "w")
        )
        probe = connect(settings).probe()
        assert not probe.reachable and probe.problem
        close_pools()


def test_settings_for_ssh_belong_to_kind_ssh(settings: HostSettings) -> None:
    for wrong in ({"kind": "ssh"}, {"kind": "local", "ssh": settings.ssh}):
        with pytest.raises(pydantic.ValidationError, match="kind ssh"):
            HostSettings.model_validate({"name": "x", "workspace": "/x/y", **wrong})


# ---- the probe


SMI = """\
#!/bin/sh
case $* in
*compute-apps*) echo 'GPU-b, 4711' ;;
*)
  printf '0, GPU-a, NVIDIA H100, 81559, 12, 41\\n1, GPU-b, NVIDIA H100, 81559, [N/A], 43\\n'
  printf '2, [Unknown Error], x, [GPU is lost], , \\n'
  ;;
esac
"""


def test_gpus_are_found_over_ssh_and_a_lost_one_is_named(tmp_path: Path, folder: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "nvidia-smi").write_text(SMI)
    (tools / "nvidia-smi").chmod(0o755)
    path = f"{tools}:{os.environ['PATH']}"
    with running_sshd(tmp_path / "sshd", environment={"PATH": path, "HOME": str(tmp_path)}) as server:
        settings = HostSettings(
            name="here",
            kind="ssh",
            ssh=reached(server, server.port),
            workspace=str(tmp_path / "w"),
            min_disk_space_gb=0,
        )
        host = connect(settings)
        probe = host.probe()
        assert probe.reachable and probe.slot_kind == "gpu"
        assert [slot.name for slot in probe.slots] == ["GPU-a", "GPU-b"]
        first, second = probe.slots
        assert (first.index, first.memory_gb, first.load_percent, first.temperature_c) == (
            0,
            85.5,
            12.0,
            41.0,
        )
        assert (second.load_percent, second.pids) == (None, (4711,))
        assert "GPU is lost" in probe.problem
        assert probe.clock_offset_s is not None and abs(probe.clock_offset_s) < 1
        host.submit(JobRequest(unit="u", name="u.a1", argv=("sh", "-c", 'echo "$CUDA_VISIBLE_DEVICES"')))
        wait(host, "u.a1")
        assert host.tail("u.a1", "out") == "GPU-a\n"
        close_pools()


def test_what_a_host_says_about_itself_is_read() -> None:
    nothing = parse_facts("TIME 1.5\nFREE 1000\nCORES 8\n")
    assert (nothing.time_s, nothing.free_bytes, nothing.cores, nothing.gpus, nothing.trouble) == (
        1.5,
        1000,
        8,
        (),
        "",
    )
    assert "no nvidia-smi" in parse_facts("CARD\n").trouble
    assert (
        "status 9: NVIDIA-SMI has failed" in parse_facts("CARD\nSMI 9\nGPU NVIDIA-SMI has failed\n").trouble
    )
    assert parse_facts("SMI 9\nGPU No devices were found\n").trouble == ""
    assert parse_facts("SMI 124\nGPU \n").trouble == "nvidia-smi hangs"
    assert parse_facts("FREE x\nCORES ²\nTIME nan\n").time_s is None


def test_a_clock_that_is_far_off_and_a_workspace_that_cannot_be_written_are_told(
    settings: HostSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = time.time
    monkeypatch.setattr("mqi.hosts.ssh.time.time", lambda: really() + 100)
    probe = connect(settings).probe()
    assert "100 s behind" in probe.warning and not probe.problem
    monkeypatch.undo()
    for workspace in ("/proc/mqi", "/dev/null/mqi"):
        bad = connect(settings.model_copy(update={"workspace": workspace}))
        assert bad.probe().reachable and bad.probe().problem
    bad = connect(settings.model_copy(update={"workspace": "/dev/null/mqi"}))
    with pytest.raises(ConfigurationError, match="cannot be written"):
        bad.list()


def test_a_host_that_is_not_there_is_probed_without_an_error(
    settings: HostSettings, proxy: FaultProxy
) -> None:
    proxy.mode = "refuse"
    probe = connect(settings).probe()
    assert not probe.reachable and "MaxStartups" in probe.problem


# ---- nothing is left, nothing is told


def test_no_secret_is_seen_in_processes_environments_logs_or_settings(
    server: Sshd, proxy: FaultProxy, tmp_path: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    key, phrase = tmp_path / "key", "s3cret-phrase-4711"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", phrase, "-f", str(key)], check=True)
    with (server.folder / "authorized_keys").open("a") as file:
        file.write(key.with_suffix(".pub").read_text())
    credentials = SshCredentials.model_validate({"key_text": key.read_text(), "passphrase": phrase})
    settings = HostSettings(
        name="here",
        kind="ssh",
        ssh=reached(server, proxy.port, key_file=None),
        workspace=str(tmp_path / "w"),
        slots=1,
        min_disk_space_gb=0,
    )
    host = connect(settings, credentials)
    host.submit(request(host, folder, script="env; sleep 0.5"))
    seen = []
    for process in Path("/proc").glob("[0-9]*"):
        if int(process.name) == os.getpid():
            continue
        for name in ("cmdline", "environ"):
            with contextlib.suppress(OSError):
                seen.append((process / name).read_bytes().decode("utf-8", "replace"))
    wait(host, "u.a1")
    seen += [host.tail("u.a1", "out", 100_000), caplog.text, (server.folder / "sshd.log").read_text()]
    seen += [repr(settings), settings.model_dump_json(), repr(credentials), repr(vars(host))]
    body = key.read_text().splitlines()[2]
    assert not [text for text in seen if phrase in text or body in text]


def test_after_two_hundred_uses_no_thread_connection_channel_or_process_is_left(
    host: Host, folder: Path, settings: HostSettings, server: Sshd, proxy: FaultProxy
) -> None:
    assert settings.ssh
    before = proxy.live  # what an earlier test's server has not let go of yet
    host.list()
    threads, files = threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))
    accepted = proxy.accepted
    for number in range(200):
        if number % 20 == 0:
            host.put(folder, "u")
        assert host.state("nobody").absent
        assert host.run(["true"]).exit_code == 0 if number % 10 == 0 else True
    assert proxy.accepted == accepted
    assert pool_of(settings.ssh).connections == 1
    assert threading.active_count() <= threads
    assert len(list(Path("/proc/self/fd").iterdir())) <= files
    (connection,) = pool_of(settings.ssh)._connections
    assert connection.busy == 0 and len(connection.link.transport._channels) <= 5
    close_pools()
    end = time.monotonic() + 5
    while left := (max(0, proxy.live - before), threading.active_count() - threads + 1):
        if left == (0, 0):
            break
        assert time.monotonic() < end, (left, threading.enumerate())
        time.sleep(0.02)
