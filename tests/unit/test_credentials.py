"""Secrets of SSH logins: from a file, the environment or a prompt into their block, and nowhere else."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from blocks import SSHCredentials, look_up_credentials
from deployments import credentials
from deployments.credentials import Given
from deployments.environment import Home
from mqi.errors import ConfigurationError, HostConnectionError, MQIError, ResourceError
from mqi.hosts import SshSettings, ssh_settings
from mqi.hosts.login import fingerprint_of, open_key
from mqi.hosts.ssh_settings import find_credentials

PHRASE = "corr3ct h0rse"


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> dict[str, SSHCredentials]:
    """What is saved as a block, without a server."""
    saved: dict[str, SSHCredentials] = {}

    def save(block: SSHCredentials, name: str, overwrite: bool = False) -> None:
        assert overwrite
        saved[name] = block

    monkeypatch.setattr(SSHCredentials, "save", save)
    monkeypatch.setattr(credentials, "connect", lambda home: None)
    return saved


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home").make()


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", PHRASE, "-f", str(path)], check=True)
    return path


def secrets_of(block: SSHCredentials) -> list[str | None]:
    return [one and one.get_secret_value() for one in (block.key_text, block.passphrase, block.password)]


def test_secrets_come_from_files_and_are_not_repeated(
    home: Home, kept: dict[str, SSHCredentials], key: Path, tmp_path: Path
) -> None:
    (tmp_path / "phrase").write_text(f"{PHRASE}\n")
    (tmp_path / "word").write_text("hunter2!\r\n")
    said: list[str] = []
    given = Given(key=key, passphrase_file=tmp_path / "phrase", password_file=tmp_path / "word")
    assert credentials.run(home, "hpc", given, said.append) == 0
    assert secrets_of(kept["hpc"]) == [key.read_text().rstrip("\n"), PHRASE, "hunter2!"]
    shown = "\n".join(said)
    assert "mqi-ssh-credentials/hpc: key SHA256:" in shown
    assert not any(secret in shown for secret in (PHRASE, "hunter2!", "PRIVATE"))


def test_secrets_come_from_the_environment_or_from_the_person_at_the_terminal(
    home: Home, kept: dict[str, SSHCredentials], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MQI_SSH_PASSWORD", "hunter2!")
    credentials.run(home, "a", Given(password=True), print)
    assert secrets_of(kept["a"]) == [None, None, "hunter2!"]
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(credentials.getpass, "getpass", lambda prompt: f"typed after {prompt}")
    credentials.run(home, "b", Given(passphrase=True), print)
    assert secrets_of(kept["b"]) == [None, "typed after Passphrase: ", None]


def test_what_cannot_be_kept_is_refused_with_what_to_do(
    home: Home, kept: dict[str, SSHCredentials], key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wrong").write_text("wrong")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    for name, given, said in (
        ("hpc", Given(), "no secret is given"),
        ("H P C", Given(password=True), "lowercase letters"),
        (
            "hpc",
            Given(password=True),
            "--password-file FILE, or set the environment variable MQI_SSH_PASSWORD",
        ),
        ("hpc", Given(key=tmp_path / "none"), "cannot be read"),
        ("hpc", Given(key=key), "needs a passphrase"),
        ("hpc", Given(key=key, passphrase_file=tmp_path / "wrong"), "wrong passphrase"),
        ("hpc", Given(key=key.with_suffix(".pub")), "no private key"),
    ):
        with pytest.raises(ConfigurationError) as caught:
            credentials.run(home, name, given, print)
        assert said in str(caught.value)
    assert kept == {}


@pytest.mark.parametrize(
    "options", [["-t", "ed25519"], ["-t", "ecdsa"], ["-t", "rsa", "-b", "2048"], ["-t", "rsa", "-m", "PEM"]]
)
@pytest.mark.parametrize("between", ["", " ", "\r\n", "\n  "])
def test_a_key_that_a_form_has_put_into_one_line_still_opens(
    tmp_path: Path, options: list[str], between: str
) -> None:
    path = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", *options, "-N", "", "-f", str(path)], check=True)
    shown = subprocess.run(["ssh-keygen", "-lf", str(path)], capture_output=True, text=True, check=True)
    key = open_key(between.join(path.read_text().splitlines()), None, "the key")
    assert fingerprint_of(key) == shown.stdout.split()[1]


def test_without_a_server_there_is_no_place_for_them(home: Home, key: Path) -> None:
    with pytest.raises(ResourceError, match="deployments up"):
        credentials.connect(home)


@pytest.fixture
def nobody_provides() -> Iterator[None]:
    yield
    ssh_settings._providers.clear()


def test_a_login_finds_them_by_their_name(
    home: Home, monkeypatch: pytest.MonkeyPatch, nobody_provides: None
) -> None:
    ssh = SshSettings(address="hpc", user="qa", credentials="hpc")
    monkeypatch.setattr(SSHCredentials, "load", lambda name: SSHCredentials(passphrase=SecretStr(PHRASE)))
    monkeypatch.setattr(credentials, "connect", lambda home: None)
    credentials.provide(home)
    found = find_credentials(ssh, None)
    assert found.passphrase and found.passphrase.get_secret_value() == PHRASE
    assert PHRASE not in f"{ssh!r}{found!r}{ssh.model_dump_json()}{found.model_dump_json()}"


@pytest.mark.parametrize(
    ("trouble", "error"),
    [
        (ValueError(f"Unable to find block document, {PHRASE}"), ConfigurationError),
        (httpx.ConnectError("refused"), HostConnectionError),
    ],
)
def test_credentials_that_cannot_be_looked_up_are_named_by_their_block(
    trouble: Exception, error: type[MQIError], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str) -> None:
        raise trouble

    monkeypatch.setattr(SSHCredentials, "load", load)
    with pytest.raises(error, match="mqi-ssh-credentials/hpc") as caught:
        look_up_credentials("hpc")
    assert PHRASE not in f"{caught.value}{caught.value.__cause__}"
