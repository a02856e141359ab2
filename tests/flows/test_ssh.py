"""One case on a host over SSH, logged in to with a key that only its block holds; and who sees secrets."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.client.orchestration import SyncPrefectClient

from blocks import SSHCredentials
from mqi.case import CaseStatus
from mqi.synthesize import Recipe
from tests.flows.installation import Installation
from tests.sshd import Sshd, running_sshd

PHRASE = "corr3ct-h0rse-battery"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    home = tmp_path_factory.mktemp("home")
    with running_sshd(tmp_path_factory.mktemp("sshd"), environment={"HOME": str(home)}) as sshd:
        yield sshd


@pytest.fixture(scope="module")
def secrets(server: Sshd, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """A key with a passphrase, let in by the server, and only it; what of it must be seen nowhere."""
    key = tmp_path_factory.mktemp("key") / "id"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", PHRASE, "-C", "", "-f", str(key)], check=True)
    (server.folder / "authorized_keys").write_text(key.with_suffix(".pub").read_text())
    text = key.read_text()
    return [PHRASE, *(line for line in text.splitlines()[1:-1] if len(line) > 40)], key


@pytest.fixture(scope="module")
def site(
    server: Sshd, secrets: tuple[list[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    """An installation whose compute host is the private server: up before the credentials are kept."""
    installation = Installation(tmp_path_factory.mktemp("site"))
    installation.site["paths"]["remote_workspace"] = str(installation.workspace)
    installation.site["ssh"] = {
        "name": "hpc",
        "host": server.host,
        "port": server.port,
        "username": server.user,
        "credentials": "night",
        "fingerprint": server.fingerprint,
    }
    del installation.site["resources"]["gpu_count"]
    installation.write_site()
    try:
        first = installation.command("up", "--port", str(installation.port), timeout_s=400)
        assert first.returncode == 0, first.stdout + first.stderr
        assert "PROBLEM: host hpc" in first.stdout and "mqi-ssh-credentials/night is missing" in first.stdout
        installation.environment["MQI_SSH_PASSPHRASE"] = PHRASE
        kept = installation.command("credentials", "night", "--key", str(secrets[1]), "--passphrase")
        assert kept.returncode == 0, kept.stdout + kept.stderr
        assert not seen_in(kept.stdout + kept.stderr, secrets[0])
        secrets[1].unlink()
        applied = installation.command("apply")
        assert applied.returncode == 0 and "PROBLEM" not in applied.stdout, applied.stdout + applied.stderr
        assert f"{os.cpu_count()} jobs at a time on hpc" in applied.stdout
        del installation.environment["MQI_SSH_PASSPHRASE"]
        with installation.settings():
            yield installation
    finally:
        installation.down()


def seen_in(text: str | bytes, secrets: list[str]) -> list[str]:
    content = text.encode() if isinstance(text, str) else text
    return [secret for secret in secrets if secret.encode() in content]


def processes() -> Iterator[tuple[str, bytes]]:
    """Command line and environment of every other process on this machine that can be looked into."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes()
                yield command.replace(b"\0", b" ").decode(errors="replace"), (entry / "environ").read_bytes()
            except OSError:
                continue


def test_the_block_shows_its_secrets_to_nobody_who_does_not_ask_for_them(
    site: Installation, secrets: tuple[list[str], Path]
) -> None:
    with site.client() as client:
        assert isinstance(client, SyncPrefectClient)
        document = client.read_block_document_by_name(
            "night", SSHCredentials.get_block_type_slug(), include_secrets=False
        )
    assert not seen_in(document.model_dump_json(), secrets[0])
    assert "********" in str(document.data["passphrase"])


@pytest.mark.timeout(600)
def test_a_case_is_computed_once_on_a_host_over_ssh_and_no_secret_is_seen(
    site: Installation, secrets: tuple[list[str], Path]
) -> None:
    hold = site.notes / "hold"
    hold.touch()
    case = site.deliver(Recipe.small(patient_id="OVERSSH", seed=11))
    site.until(lambda: sum(site.engine_runs().values()) >= 2, 300, "engines to compute")
    engines = [
        (command, environment)
        for command, environment in processes()
        if "counting.sh" in command and str(site.notes) in command
    ]
    assert engines
    assert not [command for command, environment in engines if b"PREFECT" in environment]
    assert not [
        command
        for command, environment in processes()
        if seen_in(command, secrets[0]) or seen_in(environment, secrets[0])
    ]
    open_to_others = [path for path in site.workspace.glob("*") if path.stat().st_mode & 0o077]
    assert site.workspace.stat().st_mode & 0o777 == 0o700 and not open_to_others
    hold.unlink()

    record = site.finished(case)
    assert record.status is CaseStatus.COMPLETED, record.message
    assert {dose.host for beam in record.beams for dose in beam.doses.values()} == {"hpc"}
    assert len(site.engine_runs()) == 4 and set(site.engine_runs().values()) == {1}
    site.until(lambda: not list(site.workspace.glob("jobs/*")), 120, "the run to clean up")

    doctor = site.command("doctor")
    for line in ("host         hpc: logged in", "workspace    ", "limit        gpu-hpc admits"):
        assert f"ok       {line}" in doctor.stdout, doctor.stdout + doctor.stderr
    assert "process-case/mqi is there" in doctor.stdout
    site.down()  # all is written

    files = [path for path in (site.home, site.notes, site.workspace) for path in path.rglob("*")]
    contents = [(path, path.read_bytes()) for path in files if path.is_file()]
    assert {"case.json", "report.html", "worker.log", "server.log", "prefect.db"} <= {
        path.name for path, _ in contents
    }  # in the database stand all logs, artifacts, parameters and states; the block there is encrypted
    assert any(b"OVERSSH" in content for path, content in contents if path.name.startswith("prefect.db"))
    assert not [path for path, content in contents if seen_in(content, secrets[0])]
