"""Two scanners, two workers, a person and the scanner at once: everything is computed once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import FlowRun, StateType

from deployments.environment import POOL, REPOSITORY, Home, environment
from mqi.case import CaseStatus
from mqi.record import CaseRecord, read_history
from mqi.synthesize import Recipe, SyntheticCase
from tests.flows.installation import Installation

pytestmark = pytest.mark.timeout(600)

PATIENCE_S = 240.0
SECOND_WORKER = "a-second-worker"
SECOND_SCANNER = "from flows.scan import scan_cases; scan_cases(look_every_s=0.2, period_s=3600)"
BY_HAND = 2


@dataclass(frozen=True)
class Aftermath:
    """The installation after each case was found by several at once."""

    site: Installation
    scanned: SyntheticCase  # found by two scanners
    by_hand: SyntheticCase  # and started by hand, twice
    scans_at_once: int
    workers: set[str]

    def record(self, case: SyntheticCase) -> CaseRecord:
        record = self.site.record_of(case)
        assert record is not None
        return record

    def runs(self, case: SyntheticCase) -> list[FlowRun]:
        return runs_of(self.site, case)

    def engine_runs(self, case: SyntheticCase) -> Counter[str]:
        key = self.record(case).key
        return Counter({job: n for job, n in self.site.engine_runs().items() if job.startswith(f"{key}.")})


def runs_of(site: Installation, case: SyntheticCase) -> list[FlowRun]:
    """Runs for a case, whether the scanner named its folder or a person its name."""
    found = [run for run in site.runs() if case.folder.name in Path(str(run.parameters["case"])).parts]
    return sorted(found, key=lambda run: run.created)


@contextmanager
def beside(site: Installation, *argv: str) -> Iterator[None]:
    """Run a program of the installation that `deployments up` did not start."""
    log = (site.notes / "beside.log").open("a")
    process = subprocess.Popen(
        [sys.executable, *argv],
        cwd=REPOSITORY,
        env=environment(Home(site.home), site.port),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield
        assert process.poll() is None, (site.notes / "beside.log").read_text()[-3000:]
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.close()


@pytest.fixture(scope="module")
def aftermath(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aftermath]:
    site = Installation(tmp_path_factory.mktemp("twice"))
    site.site["resources"] = {"gpu_count": 2, "min_disk_space_gb": 0.1, "max_concurrent_jobs": 4}
    site.write_site()
    site.up()
    worker = (
        "-m",
        "prefect",
        "worker",
        "start",
        "--pool",
        POOL,
        "--type",
        "process",
        "--name",
        SECOND_WORKER,
    )
    try:
        with site.settings(), beside(site, *worker), beside(site, "-c", SECOND_SCANNER):
            yield happened(site)
    finally:
        site.down()


def happened(site: Installation) -> Aftermath:
    def workers() -> set[str]:
        with site.client() as client:
            found = {worker.name for worker in client.read_workers_for_work_pool(POOL)}
        return found if len(found) > 1 else set()

    def scans() -> int:
        running = [run for run in site.runs(flow="scan-cases") if run.state_type is StateType.RUNNING]
        return len(running) if len(running) > 1 else 0

    online = site.until(workers, PATIENCE_S, "two workers")
    scans_at_once = site.until(scans, PATIENCE_S, "two scans at once")
    (site.notes / "hold").touch()
    scanned = site.deliver(Recipe.small(patient_id="TWICE-SCANNED", seed=11))
    by_hand = site.prepare(Recipe.small(patient_id="TWICE-BY-HAND", seed=12))
    site.publish(by_hand)
    for _ in range(BY_HAND):
        trigger(site, by_hand)
    site.until(lambda: waiting(site, by_hand), PATIENCE_S, "the runs of one fraction to wait for each other")
    (site.notes / "hold").unlink()
    after = Aftermath(site, scanned, by_hand, scans_at_once, online)
    for case in (scanned, by_hand):
        site.finished(case, PATIENCE_S)
        site.until(lambda case=case: ended(runs_of(site, case)), PATIENCE_S, "all runs to end")
    return after


def trigger(site: Installation, case: SyntheticCase) -> None:
    """What a person types."""
    subprocess.run(
        [
            sys.executable,
            "-m",
            "prefect",
            "deployment",
            "run",
            "process-case/mqi",
            "-p",
            f"case={case.folder.name}",
        ],
        cwd=REPOSITORY,
        env=environment(Home(site.home), site.port),
        check=True,
        capture_output=True,
        timeout=PATIENCE_S,
    )


def waiting(site: Installation, case: SyntheticCase) -> bool:
    """Whether all runs but one have said for whom they wait."""
    runs = runs_of(site, case)
    return sum(bool(waits_for(site, run)) for run in runs) == BY_HAND


def waits_for(site: Installation, run: FlowRun) -> list[str]:
    with site.client() as client:
        logs = client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id])))
    return [log.message for log in logs if "waiting for flow run" in log.message]


def ended(runs: list[FlowRun]) -> bool:
    return all(run.state is not None and run.state.is_final() for run in runs)


def test_a_case_that_two_scanners_find_is_started_once(aftermath: Aftermath) -> None:
    assert aftermath.scans_at_once == 2
    assert {run.state_type for run in aftermath.runs(aftermath.scanned)} == {StateType.COMPLETED}
    assert len(aftermath.runs(aftermath.scanned)) == 1


def test_two_workers_share_the_runs(aftermath: Aftermath) -> None:
    assert len(aftermath.workers) == 2
    runs = aftermath.runs(aftermath.scanned) + aftermath.runs(aftermath.by_hand)
    assert {run.run_count for run in runs} == {1}


def test_whoever_starts_a_case_and_how_often_each_engine_runs_once(aftermath: Aftermath) -> None:
    for case in (aftermath.scanned, aftermath.by_hand):
        runs = aftermath.engine_runs(case)
        assert set(runs.values()) == {1}
        assert len(runs) == 4  # two beams, from the log and from the plan


def test_there_is_one_record_and_it_was_finished_once(aftermath: Aftermath) -> None:
    assert len(aftermath.site.records()) == 2
    for case in (aftermath.scanned, aftermath.by_hand):
        record = aftermath.record(case)
        assert record.status is CaseStatus.COMPLETED
        told = [one for one in read_history(aftermath.site.results) if one.get("key") == record.key]
        assert [one["status"] for one in told] == ["processing", "completed"]


def test_the_runs_that_came_second_say_that_it_was_done_before(aftermath: Aftermath) -> None:
    runs = aftermath.runs(aftermath.by_hand)
    assert len(runs) == BY_HAND + 1
    assert {run.state_type for run in runs} == {StateType.COMPLETED}
    messages = [run.state.message or "" for run in runs if run.state]
    assert sum("Done before" in message for message in messages) == BY_HAND


def test_runs_of_the_same_fraction_wait_and_say_for_whom(aftermath: Aftermath) -> None:
    runs = aftermath.runs(aftermath.by_hand)
    record = aftermath.record(aftermath.by_hand)
    said = [waits_for(aftermath.site, run) for run in runs if str(run.id) != record.flow_run]
    assert len(said) == BY_HAND
    ids = {str(run.id) for run in runs}
    for (sentence,) in said:
        assert any(one in sentence for one in ids), sentence
