"""A real installation for tests: server, worker, blocks and limits as `deployments up` makes them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName, FlowRunFilter, FlowRunFilterTags
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, temporary_settings

from mqi.case import CaseStatus
from mqi.record import CaseRecord, read_record
from mqi.synthesize import Recipe, SyntheticCase, synthesize_case

REPOSITORY = Path(__file__).resolve().parents[2]
COUNTING = REPOSITORY / "tests" / "engines" / "counting.sh"
SCAN_EVERY_S = 5

_T = TypeVar("_T")


class Installation:
    """One home folder with everything in it, driven by the commands that a user has."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.notes = folder / "notes"
        self.staging = folder / "staging"
        for made in (self.home, self.notes, self.staging):
            made.mkdir(parents=True)
        (self.notes / "runs").touch()
        self.environment: dict[str, str] = {}  # what the installation's processes get besides
        self.port = _free_port()
        self.site = {
            "paths": {"local_logdata": "inbox", "results": "results", "remote_workspace": "workspace"},
            "resources": {"gpu_count": 2, "min_disk_space_gb": 0.1, "max_concurrent_jobs": 2},
            "processing": {"scan_interval_seconds": SCAN_EVERY_S, "settle_seconds": 1},
            "engine": {
                "engine": "analytic",
                "command": [str(COUNTING), str(self.notes), sys.executable, "-m", "mqi.engines.analytic"],
            },
        }
        self.write_site()

    def write_site(self) -> None:
        (self.home / "site.yaml").write_text(yaml.safe_dump(self.site))

    @property
    def inbox(self) -> Path:
        return self.home / "inbox"

    @property
    def results(self) -> Path:
        return self.home / "results"

    @property
    def workspace(self) -> Path:
        return self.home / "workspace"

    # ---- commands

    def command(self, *argv: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        """Run ``python -m deployments ...`` for this home."""
        return subprocess.run(
            [sys.executable, "-m", "deployments", *argv, "--home", str(self.home)],
            cwd=REPOSITORY,
            env={**os.environ, "MQI_VENV": sys.prefix, **self.environment},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def up(self) -> None:
        ended = self.command("up", "--port", str(self.port), timeout_s=400)  # on a busy machine
        assert ended.returncode == 0, ended.stdout + ended.stderr

    def down(self) -> None:
        ended = self.command("down")
        assert ended.returncode == 0, ended.stdout + ended.stderr

    def pid(self, name: str) -> int:
        """Process id of ``server`` or ``worker``."""
        return int(json.loads((self.home / "run" / f"{name}.json").read_text())["pid"])

    def kill(self, name: str) -> None:
        """Kill -9 the server or the worker, and nothing that it started."""
        os.kill(self.pid(name), signal.SIGKILL)

    # ---- the server

    def client(self) -> SyncPrefectClient:
        return get_client(sync_client=True)

    def settings(self) -> object:
        return temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{self.port}/api"})

    def runs(self, key: str | None = None, flow: str = "process-case") -> list[FlowRun]:
        """Runs of a flow, of one case if a key is given."""
        with self.client() as client:
            return client.read_flow_runs(
                flow_filter=FlowFilter(name=FlowFilterName(any_=[flow])),
                flow_run_filter=FlowRunFilter(tags=FlowRunFilterTags(all_=[key])) if key else None,
            )

    # ---- cases

    def deliver(self, recipe: Recipe, spoil: str | None = None) -> SyntheticCase:
        """Write a case and publish it into the inbox in one step, as a transfer program does."""
        case = self.prepare(recipe, spoil)
        self.publish(case)
        return case

    def prepare(self, recipe: Recipe, spoil: str | None = None) -> SyntheticCase:
        """Write a case where no scanner looks."""
        return synthesize_case(self.staging, recipe, spoil)

    def publish(self, case: SyntheticCase) -> None:
        """Move a prepared case into the inbox in one step."""
        shutil.move(case.folder, self.inbox / case.folder.name)

    def records(self) -> dict[tuple[str, str], CaseRecord]:
        """All records, by case key and fraction."""
        found = {}
        for path in self.results.glob("*/*/case.json"):
            record = read_record(path.parent)
            if record:
                found[record.key, record.fraction_id] = record
        return found

    def record_of(self, case: SyntheticCase) -> CaseRecord | None:
        """The record of a case's only fraction so far."""
        uid = case.plan.sop_uid
        mine = [one for one in self.records().values() if one.manifest and one.manifest.plan_uid == uid]
        return mine[0] if mine else None

    def finished(self, case: SyntheticCase, timeout_s: float = 300) -> CaseRecord:
        """Wait until a case has ended, however it did."""

        def ended() -> CaseRecord | None:
            record = self.record_of(case)
            over = (CaseStatus.COMPLETED, CaseStatus.PARTIAL, CaseStatus.FAILED)
            return record if record and record.status in over else None

        return self.until(ended, timeout_s, f"case {case.folder.name} to end")

    def until(self, look: Callable[[], _T | None], timeout_s: float, what: str) -> _T:
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            found = look()
            if found:
                return found
            time.sleep(0.2)
        raise AssertionError(f"waited {timeout_s:g} s for {what}\n{self.logs()}")

    def engine_runs(self) -> Counter[str]:
        """How often each job's engine was started."""
        return Counter((self.notes / "runs").read_text().split())

    def worklist(self) -> list[dict[str, str]]:
        """The rows of the newest worklist artifact."""
        from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
        from prefect.client.schemas.sorting import ArtifactSort

        with self.client() as client:
            found = client.read_artifacts(
                artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["worklist"])),
                sort=ArtifactSort.CREATED_DESC,
                limit=1,
            )
        return json.loads(str(found[0].data)) if found else []

    def logs(self, lines: int = 60) -> str:
        texts = []
        for name in ("server", "worker"):
            path = self.home / "logs" / f"{name}.log"
            if path.exists():
                end = path.read_text(errors="replace").splitlines()[-lines:]
                texts.append("\n".join([f"--- {name}", *end]))
        return "\n".join(texts)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
