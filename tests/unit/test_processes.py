"""Server and worker as processes: found again, stopped, and never confused with a stranger."""

import http.server
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from deployments import processes
from deployments.environment import Home, environment, resolve_home
from deployments.processes import (
    Record,
    alive,
    alone,
    answers,
    end_runs,
    free_port,
    identity,
    listens,
    log_tail,
    read,
    start,
    stop,
    wait_until,
)

STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
engine = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
print(helper.pid, engine.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path / "home").make()
    yield made
    for name in ("server", "worker"):
        stop(made, name, 0.2)


def sleeper(home: Home, name: str = "server") -> Record:
    return start(home, name, [sys.executable, "-c", "import time; time.sleep(60)"], os.environ, 4321)


def test_a_started_process_is_found_again_by_another_command_and_stopped(home: Home) -> None:
    record = sleeper(home)
    assert read(home, "server") == record
    assert alive(record)
    assert os.getsid(record.pid) == record.pid  # it outlives the terminal
    assert stop(home, "server", 5.0)
    assert not alive(record)
    after = read(home, "server")
    assert after is not None and after.pid == 0 and after.port == 4321  # the port is remembered
    assert not stop(home, "server", 5.0)


def test_a_stranger_that_was_given_the_old_number_is_left_alone(home: Home) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as stranger:
        known = identity(stranger.pid)
        assert known is not None
        boot, tick = known.rsplit(":", 1)
        stale = Record("server", stranger.pid, f"{boot}:{int(tick) - 1}", 4321, time.time())
        (home.run / "server.json").write_text(json.dumps(vars(stale)))
        assert not alive(stale)
        assert not stop(home, "server", 0.2)
        assert stranger.poll() is None
        assert alive(replace(stale, identity=known))
        stranger.kill()


def test_a_killed_process_counts_as_ended_even_before_its_parent_looks(home: Home) -> None:
    record = sleeper(home)
    os.kill(record.pid, signal.SIGKILL)
    assert wait_until(lambda: not alive(record), 5.0)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": "server"}', '"x"', "null"])
def test_a_torn_record_is_no_record(home: Home, text: str) -> None:
    (home.run / "server.json").write_text(text)
    assert read(home, "server") is None
    assert not stop(home, "server", 0.2)


def test_what_ignores_the_request_is_killed_with_its_helpers_but_a_detached_engine_goes_on(
    home: Home,
) -> None:
    record = start(home, "worker", [sys.executable, "-c", STUBBORN], os.environ, 4321)
    assert wait_until(lambda: len(log_tail(home, "worker").split()) == 2, 10.0)
    helper, engine = (int(word) for word in log_tail(home, "worker").split())
    known = identity(engine)
    try:
        assert stop(home, "worker", 0.3)
        assert not alive(record)
        assert wait_until(lambda: identity(helper) is None, 5.0)
        assert identity(engine) == known
    finally:
        os.kill(engine, signal.SIGKILL)


DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"


def test_runs_that_outlived_their_worker_are_ended_and_nothing_else(home: Home, tmp_path: Path) -> None:
    here, run = {"MQI_HOME": str(home.folder)}, {"PREFECT__FLOW_RUN_ID": "1"}
    environments = (here | run, here, run | {"MQI_HOME": str(tmp_path / "another")})
    sleepers = [
        subprocess.Popen([sys.executable, "-c", DEAF], env=variables, stdout=subprocess.PIPE)
        for variables in environments
    ]
    try:
        for sleeping in sleepers:
            assert sleeping.stdout
            sleeping.stdout.readline()
        assert end_runs(home, 0.3) == 1
        assert sleepers[0].wait(5) == -signal.SIGKILL
        assert [sleeping.poll() for sleeping in sleepers[1:]] == [None, None]
        assert end_runs(home, 0.3) == 0
    finally:
        for sleeping in sleepers:
            sleeping.kill()
            sleeping.communicate()


def test_what_cannot_be_started_says_why(home: Home) -> None:
    with pytest.raises(ChildProcessError, match="server did not start"):
        start(home, "server", [sys.executable, "-c", "pass"], {"PATH": "", "PYTHONHOME": "/nowhere"}, 4321)


def test_two_commands_at_once_come_one_after_the_other(home: Home) -> None:
    order: list[str] = []
    inside = threading.Event()

    def first() -> None:
        with alone(home, order.append):
            inside.set()
            time.sleep(0.3)
            order.append("first is done")

    thread = threading.Thread(target=first)
    thread.start()
    inside.wait()
    with alone(home, order.append):
        order.append("second is at work")
    thread.join()
    assert order[0] == f"Another command (process {os.getpid()}) is at work here; waiting for it."
    assert order[1:] == ["first is done", "second is at work"]


def test_a_taken_port_is_passed_over_and_its_owner_known(home: Home) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert free_port(port) > port
        mine = Record("server", os.getpid(), "", port, 0.0)
        assert listens(mine)
        assert not listens(replace(mine, pid=os.getppid()))
    assert not listens(replace(mine, pid=2**22 - 1))


def test_the_server_is_asked_directly_even_where_a_web_proxy_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    class Healthy(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/api/health" else 404)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Healthy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
        assert answers(server.server_port)
        server.shutdown()
    assert not answers(server.server_port, timeout_s=0.5)


def test_secrets_are_for_the_owner_alone_and_the_key_stays_the_same(home: Home) -> None:
    key = home.encryption_key()
    assert home.encryption_key() == key
    assert stat.S_IMODE((home.secrets / "encryption.key").stat().st_mode) == 0o600
    for private in (home.secrets, home.prefect, home.run, home.logs):
        assert stat.S_IMODE(private.stat().st_mode) == 0o700


def test_the_callers_own_prefect_is_left_out_of_the_installation(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_KEY", "of a cloud account")
    monkeypatch.setenv("PREFECT_PROFILE", "another")
    monkeypatch.setenv("PREFECT_LOGGING_LEVEL", "DEBUG")
    monkeypatch.setenv("NO_PROXY", "pacs.example")
    variables = environment(home, 4299)
    assert "PREFECT_API_KEY" not in variables and "PREFECT_PROFILE" not in variables
    assert variables["PREFECT_LOGGING_LEVEL"] == "DEBUG"
    assert variables["PREFECT_API_URL"] == "http://127.0.0.1:4299/api"
    assert set(variables["NO_PROXY"].split(",")) == {"pacs.example", "127.0.0.1", "localhost"}


def test_every_prefect_setting_is_one_that_the_locked_prefect_knows(home: Home) -> None:
    code = (
        "import json, os\n"
        "from prefect.settings import Settings\n"
        "known = Settings().to_environment_variables(exclude_unset=True, include_secrets=True)\n"
        "ours = {name for name in os.environ if name.startswith('PREFECT_')}\n"
        "print(json.dumps(sorted(ours - set(known))))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(home, 4299),
        cwd=home.folder,
        capture_output=True,
        text=True,
        check=True,
    )
    # Read by the server itself, outside the settings (prefect/server/utilities/encryption.py).
    assert json.loads(ran.stdout) == ["PREFECT_SERVER_ENCRYPTION_KEY"]


def test_a_run_whose_worker_reads_its_output_no_more_goes_on(home: Home) -> None:
    code = (
        "from prefect.logging import get_logger\n"
        "from prefect.logging.configuration import setup_logging\n"
        "setup_logging()\n"
        "[get_logger('mqi').error('said') for _ in range(3)]\n"
    )
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        variables = environment(home, 4299)
        ran = subprocess.run([sys.executable, "-c", code], env=variables, stderr=write_end, check=False)
        assert ran.returncode == 0
        del variables["PREFECT_LOGGING_CONFIG_PATH"]  # Prefect's own console ends the program
        ran = subprocess.run([sys.executable, "-c", code], env=variables, stderr=write_end, check=False)
        assert ran.returncode == 1
    finally:
        os.close(write_end)


def test_what_pydicom_quotes_from_a_file_stays_out_of_the_logs(home: Home) -> None:
    code = (
        "from prefect.logging.configuration import setup_logging\n"
        "from pydicom.misc import warn_and_log\n"
        "setup_logging()\n"
        "warn_and_log(\"Invalid value for VR DA: 'Quillfeather'\")\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment(home, 4299), capture_output=True, text=True, check=True
    )
    assert ran.stdout + ran.stderr == ""


def test_the_home_is_the_option_else_the_variable_else_a_folder_of_the_repository(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("MQI_HOME", raising=False)
    assert resolve_home(None, "demo").folder == processes.Path(__file__).parents[2] / ".mqi" / "demo"
    monkeypatch.setenv("MQI_HOME", str(tmp_path / "by-variable"))
    assert resolve_home(None, "demo").folder == tmp_path / "by-variable"
    assert resolve_home(str(tmp_path / "by-option"), "demo").folder == tmp_path / "by-option"
