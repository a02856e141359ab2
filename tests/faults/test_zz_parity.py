import pytest
from pathlib import Path
from collections.abc import Iterator
from mqi.hosts import *
from mqi.hosts.pool import close_pools
import tests.unit.test_hosts as parity
from tests.unit.test_hosts import folder
from tests.sshd import running_sshd, Sshd
for n in dir(parity):
    if n.startswith("test_"): globals()[n]=getattr(parity,n)

@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running_sshd(tmp_path_factory.mktemp("sshd")) as sshd:
        yield sshd

@pytest.fixture
def settings(tmp_path, server):
    ssh=SshSettings(address=server.host,port=server.port,user=server.user,key_file=str(server.key),known_hosts=str(server.known_hosts))
    return HostSettings(name="here", kind="ssh", ssh=ssh, workspace=str(tmp_path / "workspace"), slots=2, min_disk_space_gb=0)

@pytest.fixture
def host(settings):
    host = connect(settings)
    yield host
    for state in host.list():
        if not state.ended:
            host.cancel(state.name, 0)
