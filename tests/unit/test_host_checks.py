"""What `doctor` says of a host over SSH: each thing that an administrator has to mend, by its name."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from deployments.host_checks import Finding, host_findings, probe_findings
from deployments.site import SiteSettings
from mqi.hosts import HostProbe, Slot
from mqi.hosts.pool import close_pools
from tests.sshd import Sshd, running_sshd


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    home = tmp_path_factory.mktemp("home")
    with running_sshd(tmp_path_factory.mktemp("sshd"), environment={"HOME": str(home)}) as sshd:
        yield sshd
    close_pools()


def examine(server: Sshd, workspace: Path | str, **more: Any) -> list[Finding]:
    ssh = {
        "name": "hpc",
        "host": "127.0.0.1",
        "port": server.port,
        "username": server.user,
        "key_file": str(server.key),
        "known_hosts": str(server.known_hosts),
        "connect_timeout_seconds": 1,
        "banner_timeout_seconds": 1,
    }
    sections = {name: value for name, value in more.items() if name in ("engine", "resources")}
    ssh |= {name: value for name, value in more.items() if name not in sections}
    settings = {
        "paths": {"remote_workspace": str(workspace)},
        "resources": {"min_disk_space_gb": 0},
        "ssh": ssh,
    }
    return list(host_findings(SiteSettings.model_validate(settings | sections)))


def problem(findings: list[Finding], what: str) -> str:
    """The one problem that was found, as it is shown."""
    (found,) = [one for one in findings if one.todo]
    assert found.what == what, found
    return f"{found.said} -> {found.todo}"


def test_all_is_well(server: Sshd, tmp_path: Path) -> None:
    findings = examine(server, tmp_path / "w")
    assert [one.what for one in findings] == ["host", "workspace", "host", "engine"]
    assert not [one for one in findings if one.todo], findings
    assert "logged in as" in findings[0].said and "GB free" in findings[2].said


def test_a_host_that_cannot_be_reached_is_told_apart_by_why(server: Sshd, tmp_path: Path) -> None:
    said = problem(examine(server, tmp_path / "w", host="no-such-host.invalid"), "host")
    assert "no host of the name no-such-host.invalid" in said and "name server" in said
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        said = problem(examine(server, tmp_path / "w", port=closed.getsockname()[1]), "host")
        assert "refuses connections" in said and "systemctl start ssh" in said
    with socket.socket() as full:  # nobody takes its connections: as behind a firewall, no answer comes
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        said = problem(examine(server, tmp_path / "w", port=port), "host")
        assert "did not answer within 1 s" in said and "firewall" in said
        for one in waiting:
            one.close()


def test_a_host_key_that_is_not_known_is_shown_with_the_command_that_trusts_it(
    server: Sshd, tmp_path: Path
) -> None:
    known = tmp_path / "known"
    said = problem(examine(server, tmp_path / "w", known_hosts=str(known)), "host")
    assert server.fingerprint in said and "is not known" in said
    subprocess.run(["sh", "-c", said.rpartition("then run: ")[2]], check=True, capture_output=True)
    assert not [one for one in examine(server, tmp_path / "w", known_hosts=str(known)) if one.todo]
    assert not [one for one in examine(server, tmp_path / "w", fingerprint=server.fingerprint) if one.todo]
    other = f"SHA256:{'A' * 43}"
    said = problem(examine(server, tmp_path / "w", fingerprint=other), "host")
    assert server.fingerprint in said and other in said
    public = (server.folder / "client_ed25519.pub").read_text().split()[1]
    known.write_text(f"[127.0.0.1]:{server.port} ssh-ed25519 {public}\n")
    close_pools()  # those who are logged in are not asked again
    said = problem(examine(server, tmp_path / "w", known_hosts=str(known)), "host")
    assert "HAS CHANGED" in said and "ssh-keygen -f" in said


def test_a_key_that_is_refused_or_that_others_may_read_is_named(server: Sshd, tmp_path: Path) -> None:
    key = tmp_path / "stranger"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    said = problem(examine(server, tmp_path / "w", key_file=str(key)), "host")
    assert "refused the login of" in said and "authorized_keys" in said
    own = tmp_path / "own"
    own.write_bytes(server.key.read_bytes())
    own.chmod(0o644)
    assert f"chmod 600 {own}" in problem(examine(server, tmp_path / "w", key_file=str(own)), "key")


def test_a_workspace_that_cannot_be_written_and_a_full_disk_are_named(server: Sshd, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    findings = examine(server, tmp_path / "file" / "w")
    workspace = [one for one in findings if one.what == "workspace"]
    assert "cannot be written" in workspace[0].said and "chown" in workspace[0].todo
    said = problem(examine(server, tmp_path / "w", resources={"min_disk_space_gb": 1e9}), "host")
    assert "GB free, 1e+09 GB are wanted" in said


def test_an_engine_that_is_not_there_or_may_not_be_started_is_named(server: Sshd, tmp_path: Path) -> None:
    plain = tmp_path / "tps_env"
    plain.touch(0o644)
    for command, said in (
        (str(tmp_path / "none"), "none is not found on hpc"),
        ("no-such-engine", "no-such-engine is not found on hpc"),
        (str(plain), f"{plain} may not be executed on hpc -> chmod +x {plain}"),
        (str(tmp_path), "may not be executed on hpc"),
    ):
        engine = {"engine": "moqui", "command": [command]}
        assert said in problem(examine(server, tmp_path / "w", engine=engine), "engine")
    fine = {"engine": "moqui", "command": ["sh"], "version_command": ["echo", "1.2"]}
    assert examine(server, tmp_path / "w", engine=fine)[-1] == Finding("engine", "moqui, version 1.2")
    broken = fine | {"version_command": ["sh", "-c", "echo wrong CUDA >&2; exit 3"]}
    said = problem(examine(server, tmp_path / "w", engine=broken), "engine")
    assert "status 3: wrong CUDA" in said


def test_the_embedded_engine_that_the_host_lacks_is_named(
    server: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for python in ("/opt/none/bin/python", "/bin/sh"):
        monkeypatch.setattr(sys, "executable", python)
        assert "engine.command" in problem(examine(server, tmp_path / "w"), "engine")


def test_a_clock_that_is_far_off_is_named_with_what_to_do(server: Sshd, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "date").write_text('#!/bin/sh\necho "$(($(/bin/date +%s) - 3600)).0"\n')
    (tools / "date").chmod(0o755)
    path = f"{tools}:{os.environ['PATH']}"
    with running_sshd(tmp_path / "sshd", environment={"PATH": path, "HOME": str(tmp_path)}) as behind:
        said = problem(examine(behind, tmp_path / "w"), "clock")
        assert re.search("360[01] s behind", said) and "chrony" in said
        close_pools()


def test_fewer_gpus_than_are_set_are_named() -> None:
    ssh = {"host": "hpc", "username": "qa", "agent": True}
    site = SiteSettings.model_validate(
        {"ssh": ssh, "paths": {"remote_workspace": "/w"}, "resources": {"gpu_count": 2}}
    )
    probe = HostProbe(
        host="hpc", when=datetime.now(UTC), reachable=True, slots=(Slot(name="GPU-a", kind="gpu"),)
    )
    (found,) = probe_findings(probe, site.host_settings())
    assert "resources.gpu_count is 2" in found.said and "to 1 or less" in found.todo
