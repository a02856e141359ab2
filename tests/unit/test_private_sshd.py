"""The private SSH server of the demonstration: its own, found again, never left behind, never in the way."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deployments import private_sshd
from deployments.demo import SITE
from deployments.demo_host import host_over_ssh, needs_server
from deployments.environment import Home
from deployments.site import load_site_file
from mqi.errors import ConfigurationError
from mqi.hosts import connect
from mqi.hosts.pool import close_pools
from tests.sshd import running_sshd

LEAVE_ONE = """
import sys, time
from pathlib import Path
from deployments.private_sshd import running_sshd
with running_sshd(Path(sys.argv[1])) as server:
    print(server.pid, server.port, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    with running_sshd(tmp_path / "there"):  # skips the test where there is no sshd
        return Home(tmp_path / "home").make()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_the_demonstrations_host_is_reached_and_is_the_same_the_next_time(home: Home) -> None:
    with host_over_ssh(home) as sections:
        assert not needs_server(home)
        home.site.write_text(SITE + sections)
        assert needs_server(home)
        site = load_site_file(home)
        settings = site.host_settings()
        assert settings.name == "demo-host" and settings.ssh and settings.ssh.fingerprint
        site.make_folders()
        probe = connect(settings).probe()
        assert (probe.reachable, probe.problem) == (True, "")
        assert Path(settings.workspace).stat().st_mode & 0o777 == 0o700
        with pytest.raises(ConfigurationError, match="another command"), host_over_ssh(home):
            pass
    close_pools()
    with host_over_ssh(home):
        assert load_site_file(home).host_settings() == settings
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", settings.ssh.port))
        other.listen()
        with host_over_ssh(home):
            moved = load_site_file(home).host_settings()
            assert moved.ssh and moved.ssh.port != settings.ssh.port
            assert moved.ssh.fingerprint == settings.ssh.fingerprint
            assert connect(moved).probe().reachable
    close_pools()


def test_a_home_without_ssh_is_not_turned_into_one_with_it(home: Home) -> None:
    home.site.write_text(SITE)
    with pytest.raises(ConfigurationError, match="no section ssh"), host_over_ssh(home):
        pass
    assert home.site.read_text() == SITE and not needs_server(home)


def test_a_server_that_a_killed_command_has_left_is_ended_by_the_next_one(home: Home) -> None:
    command = [sys.executable, "-c", LEAVE_ONE, str(home.folder / "ssh")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as left:
        assert left.stdout
        pid = int(left.stdout.readline().split()[0])
        left.send_signal(signal.SIGKILL)
    assert alive(pid)
    with private_sshd.running_sshd(home.folder / "ssh") as server:
        assert not alive(pid)
        connection = socket.create_connection((server.host, server.port))
        end = time.monotonic() + 5
        while not private_sshd.children(server.pid) and time.monotonic() < end:
            time.sleep(0.02)
        sessions = private_sshd.children(server.pid)  # that of the first look may still be closing
        assert sessions
    assert not any(alive(pid) for pid in (server.pid, *sessions))
    connection.close()
    (home.folder / "ssh" / "sshd.pid").write_text(str(os.getpid()))  # a number that was given out again
    with private_sshd.running_sshd(home.folder / "ssh"):
        pass


def test_without_sshd_the_debian_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private_sshd, "SEARCH", str(tmp_path))
    with (
        pytest.raises(ConfigurationError, match="openssh-server"),
        private_sshd.running_sshd(tmp_path / "ssh"),
    ):
        pass
    assert not (tmp_path / "ssh").exists()
