"""What `apply` does with the site's compute host, seen from a server that only remembers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prefect.blocks.core import Block
from prefect.exceptions import ObjectNotFound

from blocks import ComputeHost, SSHCredentials
from blocks.site import plain
from deployments import apply, inspect_server
from deployments.site import SiteSettings
from mqi.errors import ResourceError
from mqi.hosts import HostSettings, SshSettings, ssh_settings
from mqi.hosts.pool import close_pools
from tests.sshd import running_sshd

SITE = SiteSettings.model_validate(
    {
        "paths": {"remote_workspace": "/scratch/mqi"},
        "ssh": {"name": "hpc", "host": "no-such-host.invalid", "username": "qa", "agent": True},
    }
)


SMI = """#!/bin/sh
case $1 in
--query-gpu=*)
  for gpu in 0 1 2; do echo "$gpu, GPU-$gpu, Imitated, 81559, 0, 30"; done
  echo '3, [Unknown Error], x, [GPU is lost], , '
  ;;
esac
"""


@pytest.fixture(autouse=True)
def nobody_provides() -> Iterator[None]:
    yield
    ssh_settings._providers.clear()


class Server:
    """What `apply` asks of a server."""

    def __init__(self, limits: dict[str, int], parameters: dict[str, Any]) -> None:
        self.limits, self.blocks = limits, set[str]()
        self.deployments = {
            name: SimpleNamespace(id=name, parameters=parameters, paused=False, schedules=[])
            for name in apply.DEPLOYMENTS
        }

    def read_global_concurrency_limit_by_name(self, name: str) -> Any:
        if name not in self.limits:
            raise ObjectNotFound(Exception())
        return SimpleNamespace(limit=self.limits[name])

    def read_deployment_by_name(self, name: str) -> Any:
        return self.deployments[name]

    def update_deployment(self, name: str, update: Any) -> None:
        self.deployments[name].parameters = update.parameters

    def read_block_document_by_name(self, name: str, slug: str) -> None:
        if name not in self.blocks:
            raise ObjectNotFound(Exception())


def test_a_host_that_does_not_answer_keeps_its_limit_and_the_rest_comes_up() -> None:
    host, said = SITE.host_settings(), list[str]()
    assert apply._slots(Server({"gpu-hpc": 4}, {}), host, said.append) == 4  # type: ignore[arg-type]
    assert apply._slots(Server({}, {}), host, said.append) == 1  # type: ignore[arg-type]
    assert all("PROBLEM: host hpc" in one and "deployments apply" in one for one in said)
    assert "no host of the name no-such-host.invalid" in said[0]
    asked = host.model_copy(update={"slots": 8})
    assert apply._slots(Server({}, {}), asked, said.append) == 8  # type: ignore[arg-type]


def test_the_limit_is_the_number_of_healthy_gpus_and_no_more_than_is_set(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "nvidia-smi").write_text(SMI)
    (tools / "nvidia-smi").chmod(0o755)
    path = f"{tools}:{os.environ['PATH']}"
    with running_sshd(tmp_path / "sshd", environment={"PATH": path, "HOME": str(tmp_path)}) as server:
        ssh = SshSettings(
            address=server.host,
            port=server.port,
            user=server.user,
            key_file=str(server.key),
            fingerprint=server.fingerprint,
        )
        for asked, slots in ((None, 3), (2, 2), (8, 3)):
            host = HostSettings(name="hpc", kind="ssh", ssh=ssh, workspace=str(tmp_path / "w"), slots=asked)
            assert apply.host_slots(host) == slots
        close_pools()


def test_this_machine_without_anything_to_compute_on_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(host: HostSettings) -> int:
        raise ResourceError("no GPU, no CPU")

    monkeypatch.setattr(apply, "host_slots", nothing)
    with pytest.raises(ResourceError):
        apply._slots(Server({}, {}), HostSettings(name="local", workspace="/w"), print)  # type: ignore[arg-type]


def test_all_flows_compute_on_the_sites_host_and_doctor_says_where_they_do_not() -> None:
    server: Any = Server({}, {"look_every_s": 5.0})
    name = apply.SCANNER
    assert inspect_server._deployment(server, name, "local")[2] == ""
    what, said, todo = inspect_server._deployment(server, name, "hpc")
    assert (what, said) == ("deployment", f"{name} computes on local, not on hpc") and "apply" in todo
    for _ in range(2):
        apply._host_of_runs(server, "hpc")
        assert {tuple(one.parameters.items()) for one in server.deployments.values()} == {
            (("look_every_s", 5.0), ("host", "hpc"))
        }
    assert inspect_server._deployment(server, name, "hpc")[2] == ""


@pytest.mark.parametrize("before", [set(), {"local"}])
def test_a_run_that_was_asked_for_before_the_site_had_its_host_computes_there_too(
    before: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: dict[tuple[str, str], Block] = {}

    def save(block: Block, name: str, overwrite: bool = False) -> None:
        saved[block.get_block_type_slug(), name] = block

    monkeypatch.setattr(Block, "save", save)
    monkeypatch.setattr(SSHCredentials, "register_type_and_schema", lambda: None)
    server: Any = Server({}, {})
    server.blocks = before
    apply._blocks(server, SITE)
    hosts = {
        name: plain(block, HostSettings)
        for (_, name), block in saved.items()
        if isinstance(block, ComputeHost)
    }
    assert set(hosts) == {"hpc", *before}
    assert set(hosts.values()) == {SITE.host_settings()}
