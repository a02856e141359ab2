"""One case, from the folder that the machine writes to the report, through the scheduled scanner."""

from __future__ import annotations

import os
import time
from collections import Counter

import psutil
import pytest
from prefect.deployments import run_deployment
from prefect.states import AwaitingRetry

from blocks import ComputeHost
from mqi.case import CaseStatus, case_key
from mqi.synthesize import Recipe
from tests.flows.installation import Installation


@pytest.mark.timeout(600)
def test_a_case_goes_from_the_inbox_to_the_report_by_itself(site: Installation) -> None:
    case = site.deliver(Recipe.small())
    record = site.finished(case)
    assert record.status is CaseStatus.COMPLETED, record.message
    assert record.verdict is not None and record.verdict["verdict"] == "pass"
    folder = site.results / record.key / record.fraction_id
    assert all((folder / name).stat().st_size > 10_000 for name in record.reports)
    assert set(site.engine_runs().values()) == {1}
    assert len(site.engine_runs()) == 4  # two beams, from the log and from the plan
    site.until(lambda: not (folder / "work").exists(), 120, "the run to clean up")
    assert [
        path
        for place in ("jobs", "input")
        for path in (site.workspace / place).iterdir()
        if not path.name.startswith(".")
    ] == []


def run_clean_up() -> None:
    run = run_deployment("clean-up/mqi", timeout=300, as_subflow=False)
    assert run.state is not None and run.state.is_completed(), run.state


@pytest.mark.timeout(600)
def test_the_nightly_clean_up_removes_old_failures_and_nothing_else(site: Installation) -> None:
    (site.notes / "fail-.b03.log").touch()
    case = site.deliver(Recipe.small(patient_id="CLEANUP", seed=7))
    record = site.finished(case)
    (site.notes / "fail-.b03.log").unlink()
    assert record.status is CaseStatus.PARTIAL
    failed = [path for path in site.workspace.glob("jobs/*") if ".b03.log." in path.name]
    assert len(failed) == 1
    stored = site.home / "prefect" / "storage"
    old = sorted(stored.iterdir())[0]
    os.utime(old, (0, time.time() - 365 * 86_400))

    run_clean_up()
    assert failed[0].exists()  # it is kept for a week
    assert not old.exists()
    assert any(stored.iterdir())

    host = ComputeHost.load("local")
    ComputeHost(
        **{**{name: getattr(host, name) for name in ComputeHost.model_fields}, "keep_failed_days": 0}
    ).save("local", overwrite=True)
    run_clean_up()
    assert list(site.workspace.glob("jobs/*")) == []
    assert (site.results / record.key / record.fraction_id / "case.json").exists()


@pytest.mark.timeout(600)
def test_a_dose_of_zeros_is_no_dose_and_retry_runs_the_engine_again(site: Installation) -> None:
    (site.notes / "zeros").touch()
    case = site.deliver(Recipe.small(patient_id="ZEROS", seed=8))
    record = site.finished(case)
    assert record.status is CaseStatus.PARTIAL
    assert "zero" in record.message

    run = site.runs(record.key)[0]
    with site.client() as client:
        client.set_flow_run_state(run.id, AwaitingRetry(), force=True)
    site.until(
        lambda: site.record_of(case).status is CaseStatus.COMPLETED, 300, "the retry to complete the case"
    )
    attempts = Counter(job.rpartition(".a")[0] for job in site.engine_runs() if job.startswith(record.key))
    assert sorted(attempts.values()) == [1, 1, 1, 2]


@pytest.mark.timeout(600)
def test_kill_9_of_the_flow_and_of_the_worker_while_engines_compute_costs_no_result(
    site: Installation,
) -> None:
    hold = site.notes / "hold"
    hold.touch()
    case = site.deliver(Recipe.small(patient_id="KILLED", seed=9))
    key = case_key("KILLED", case.plan.sop_uid)

    def computing() -> bool:
        return sum(job.startswith(key) for job in site.engine_runs()) == 2

    site.until(computing, 300, "both slots to compute")
    site.kill("worker")
    for process in psutil.process_iter():
        if _is_flow_of(process, str(site.runs(key)[0].id)):
            process.kill()
    hold.unlink()
    site.up()
    record = site.finished(case)
    assert record.status is CaseStatus.COMPLETED, record.message
    mine = {job: count for job, count in site.engine_runs().items() if job.startswith(key)}
    assert len(mine) == 4
    assert set(mine.values()) == {1}


def _is_flow_of(process: psutil.Process, run_id: str) -> bool:
    """Not the jobs that the flow has started: they have its environment, too, and go on."""
    try:
        ours = process.environ().get("PREFECT__FLOW_RUN_ID") == run_id
        return ours and any("prefect" in word for word in process.cmdline()[:3])
    except psutil.Error:
        return False
