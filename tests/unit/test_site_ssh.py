"""Section ssh of site.yaml: the specification's keys, all ways to log in, and never a secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from deployments.environment import Home, environment
from deployments.site import SiteSettings, describe, load_site_file
from deployments.site_ssh import OWN_NAMES, SshJump, SshSection
from mqi.errors import ConfigurationError
from mqi.hosts.ssh_settings import SshHop, SshSettings

SPECIFICATION = """\
paths:
  remote_workspace: "/path/to/remote/workspace"
ssh:
  host: "hpc.example.com"
  port: 22
  username: "user"
  key_file: "~/.ssh/id_rsa"
  connection_pool_size: 5
"""
FINGERPRINT = f"SHA256:{'A' * 43}"
WHOLE = f"""\
paths: {{remote_workspace: /scratch/mqi}}
resources: {{gpu_count: 4}}
ssh:
  name: gpu-server
  host: 10.0.0.7
  port: 2222
  username: qa
  key_file: keys/id
  agent: true
  credentials: night
  known_hosts: keys/known
  jump: {{host: gate, username: qa, agent: true, fingerprint: "{FINGERPRINT}="}}
  connection_pool_size: 3
  connect_timeout_seconds: 4
  banner_timeout_seconds: 5
  auth_timeout_seconds: 6
  keepalive_seconds: 7
"""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home").make()


def load(home: Home, text: str) -> SiteSettings:
    home.site.write_text(text)
    return load_site_file(home)


def refusal(home: Home, section: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(home, f"paths: {{remote_workspace: /scratch/mqi}}\nssh:\n{section}")
    return str(caught.value)


def test_the_specifications_section_makes_a_host_over_ssh(home: Home) -> None:
    host = load(home, SPECIFICATION).host_settings()
    assert (host.name, host.kind, host.workspace) == ("hpc", "ssh", "/path/to/remote/workspace")
    assert host.ssh == SshSettings(
        address="hpc.example.com",
        user="user",
        key_file=str(Path("~/.ssh/id_rsa").expanduser()),
        known_hosts=str(Path("~/.ssh/known_hosts").expanduser()),
    )


def test_every_setting_of_a_login_can_be_set_and_reaches_it(home: Home) -> None:
    host = load(home, WHOLE).host_settings()
    assert (host.name, host.slots) == ("gpu-server", 4)
    gate = SshHop(
        address="gate",
        user="qa",
        use_agent=True,
        known_hosts=str(Path("~/.ssh/known_hosts").expanduser()),
        fingerprint=FINGERPRINT,
    )
    assert host.ssh == SshSettings(
        address="10.0.0.7",
        port=2222,
        user="qa",
        key_file=str(home.folder / "keys/id"),
        use_agent=True,
        credentials="night",
        known_hosts=str(home.folder / "keys/known"),
        jump=gate,
        connect_timeout_s=4,
        banner_timeout_s=5,
        auth_timeout_s=6,
        keepalive_s=7,
        pool_size=3,
    )
    for section, settings in ((SshJump, SshHop), (SshSection, SshSettings)):
        names = {OWN_NAMES.get(name, name) for name in section.model_fields}
        assert names - {"name"} == set(settings.model_fields)


def test_the_settings_in_effect_can_be_kept_as_a_settings_file(home: Home) -> None:
    site = load(home, WHOLE)
    assert load(home, describe(site)).host_settings() == site.host_settings()


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("hpc.example.com", "hpc"),
        ("GPU_1", "gpu-1"),
        ("10.0.0.7", "10-0-0-7"),
        ("fe80::1", "fe80-1"),
        ("local.example.com", "host-local"),
    ],
)
def test_a_host_without_a_name_is_called_after_its_address(home: Home, host: str, name: str) -> None:
    site = load(home, SPECIFICATION.replace("hpc.example.com", host))
    assert site.host_settings().name == name


def test_the_workspace_is_a_folder_of_the_host_and_is_not_made_here(home: Home) -> None:
    site = load(home, SPECIFICATION)
    site.make_folders()
    assert not Path("/path/to/remote/workspace").exists()
    for folder in ("workspace", "~/mqi"):
        with pytest.raises(ConfigurationError, match="absolute folder on that host"):
            load(home, SPECIFICATION.replace("/path/to/remote/workspace", folder))


@pytest.mark.parametrize("key", ["password", "passphrase", "key_text", "private_key", "Password"])
@pytest.mark.parametrize("indent", ["", "  jump: {host: gate, username: qa, agent: true, "])
def test_a_secret_in_the_file_is_refused_and_not_repeated(home: Home, key: str, indent: str) -> None:
    own = "  host: hpc\n  username: qa\n  agent: true\n"
    said = refusal(home, f"{own}{indent}{key}: hunter2!}}\n" if indent else f"{own}  {key}: hunter2!\n")
    assert f"{key.lower()} is a secret" in said and "deployments credentials NAME" in said
    assert "hunter2!" not in said


def test_nothing_of_a_secret_stands_in_the_error_or_in_what_it_was_raised_from(home: Home) -> None:
    key = "  key_file: |\n    -----BEGIN OPENSSH PRIVATE KEY-----\n    hunter2!\n"
    with pytest.raises(ConfigurationError) as caught:
        load(home, f"ssh:\n  host: hpc\n  username: qa\n{key}  port: no\n")
    error: BaseException | None = caught.value
    while error is not None:
        assert "hunter2!" not in f"{error!s}{error!r}"
        error = error.__cause__
    assert "key_file is a secret" in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("  host: hpc\n  username: qa\n", "line 2: ssh: no way to log in to hpc is set"),
        (
            "  host: hpc\n  user: qa\n  agent: true\n",
            "line 4: ssh.user is no setting; did you mean username?",
        ),
        ("  host: a b\n  username: qa\n  agent: true\n", "line 3: ssh.host: this has a character"),
        ("  host: hpc\n  username: -oX\n  agent: true\n", "line 4: ssh.username: this has a character"),
        ("  host: hpc\n  username: qa\n  agent: true\n  port: 0\n", "line 6: ssh.port: "),
        ("  host: hpc\n  username: qa\n  agent: true\n  fingerprint: MD5:aa\n", "43 characters"),
        (
            "  host: hpc\n  username: qa\n  agent: true\n  keepalive_seconds: .inf\n",
            "ssh.keepalive_seconds: ",
        ),
        ("  host: hpc\n  username: qa\n  agent: true\n  connection_pool_size: 0\n", "connection_pool_size: "),
        (
            "  host: hpc\n  username: qa\n  agent: true\n  name: local\n",
            "ssh.name: local is the name of this",
        ),
        ("  host: hpc\n  username: qa\n  agent: true\n  name: GPU 1\n", "line 6: ssh.name: "),
        ("  host: hpc\n  username: qa\n  agent: true\n  jump: {host: b}\n", "line 6: ssh.jump.username is"),
        ("  host: hpc\n  username: qa\n  credentials: A B\n", "line 5: ssh.credentials: "),
    ],
)
def test_a_mistake_is_named_with_its_line(home: Home, lines: str, said: str) -> None:
    assert said in refusal(home, lines)


def test_a_secret_of_the_environment_reaches_no_process_of_the_installation(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MQI_SSH_PASSPHRASE", "hunter2!")
    assert "hunter2!" not in environment(home, 4200).values()
