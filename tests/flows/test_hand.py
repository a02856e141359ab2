"""One case by itself, from the folder that the machine writes to the report, through the scheduled scanner.

And what a physicist does by hand: Retry, recalculate, Cancel, lending a GPU, deleting a record.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterType,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.deployments import run_deployment
from prefect.states import AwaitingRetry, Cancelling

from blocks import CaseFolders, ComputeHost, MachineCalibration, MoquiParameters, QaCriteria, load_site
from mqi.case import CaseStatus, JobStatus, case_key
from mqi.errors import ConfigurationError
from mqi.record import record_folder
from mqi.synthesize import Recipe, SyntheticCase
from tests.flows.installation import REPOSITORY, Installation

pytestmark = pytest.mark.timeout(420)

PATIENCE_S = 180.0
LIMIT = "gpu-local"


def recipe(seed: int, **changes: object) -> Recipe:
    """One beam in water: two engine runs, from the log and from the plan."""
    own = {"seed": seed, "patient_id": f"HAND{seed:03d}", "medium": "water", "tps_dose": False}
    return Recipe.small(**own, **{"gantry_angles_deg": (0.0,), **changes})


def key_of(case: SyntheticCase) -> str:
    return case_key(case.recipe.patient_id, case.plan.sop_uid)


def folder_of(site: Installation, case: SyntheticCase) -> Path:
    record = site.record_of(case)
    assert record is not None
    return record_folder(site.results, record.key, record.fraction_id)


def engine_runs(site: Installation, case: SyntheticCase) -> Counter[str]:
    """How often the engine was started for each unit of a case: ``b02.log``, ``b02.plan``."""
    prefix = f"{key_of(case)}."
    return Counter(
        ".".join(job.removeprefix(prefix).split(".")[:2])
        for job in site.engine_runs().elements()
        if job.startswith(prefix)
    )


def the_run(site: Installation, case: SyntheticCase) -> FlowRun:
    (run,) = site.runs(key_of(case))
    return run


def press_retry(site: Installation, run: FlowRun) -> None:
    """As the button of the UI does."""
    with site.client() as client:
        client.set_flow_run_state(run.id, AwaitingRetry())


def ended(site: Installation, run: FlowRun, *, starts: int) -> FlowRun:
    """The run once it has ended for the given time."""

    def look() -> FlowRun | None:
        with site.client() as client:
            now = client.read_flow_run(run.id)
        return now if now.state and now.state.is_final() and now.run_count >= starts else None

    return site.until(look, PATIENCE_S, f"{run.name} to end")


def start(site: Installation, case: SyntheticCase, **parameters: str) -> FlowRun:
    """`prefect deployment run` at a prompt, and the run that it started, when it has ended."""
    known = {run.id for run in site.runs()}
    flags = [f"--param={name}={value}" for name, value in {"case": case_folder(case), **parameters}.items()]
    prefect(site, "deployment", "run", "process-case/mqi", *flags)
    (run,) = [run for run in site.runs() if run.id not in known]
    return ended(site, run, starts=1)


def case_folder(case: SyntheticCase) -> str:
    """The case's name in the inbox."""
    return f"{case.folder.name}/{case.study.name}"


def prefect(site: Installation, *argv: str) -> str:
    called = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", *argv],
        cwd=REPOSITORY,
        env={**os.environ, "PREFECT_API_URL": f"http://127.0.0.1:{site.port}/api"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert called.returncode == 0, called.stdout + called.stderr
    return called.stdout


def task_states(site: Installation, run: FlowRun) -> dict[str, str]:
    """The name of the last state of each step of a run."""
    with site.client() as client:
        found = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])))
    latest = sorted(found, key=lambda one: one.state.timestamp if one.state else one.created)
    return {one.name: one.state.name if one.state else "" for one in latest}


def slots_taken(client: SyncPrefectClient) -> float:
    return client.read_global_concurrency_limit_by_name(LIMIT).active_slots


def engines(site: Installation) -> list[str]:
    """Command lines of all processes that work in the workspace's job folders."""
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(site.workspace / "jobs"):
                found.append(" ".join(process.cmdline()))
        except (psutil.Error, OSError):
            continue
    return found


def row(site: Installation, case: SyntheticCase) -> dict[str, str]:
    return next((line for line in site.worklist() if line["case"] == key_of(case)), {})


def progress(site: Installation, case: SyntheticCase) -> str:
    """What stands under the progress bars of a case's run."""
    with site.client() as client:
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(type=ArtifactFilterType(any_=["progress"])),
            flow_run_filter=FlowRunFilter(tags=FlowRunFilterTags(all_=[key_of(case)])),
        )
    return "\n".join(str(one.description) for one in found)


def test_a_case_goes_from_the_inbox_to_the_report_by_itself(site: Installation) -> None:
    case = site.deliver(Recipe.small())
    record = site.finished(case)
    assert record.status is CaseStatus.COMPLETED, record.message
    assert record.verdict is not None and record.verdict["verdict"] == "pass"
    folder = folder_of(site, case)
    assert all((folder / name).stat().st_size > 10_000 for name in record.reports)
    assert set(site.engine_runs().values()) == {1}
    assert len(site.engine_runs()) == 4  # two beams, from the log and from the plan
    site.until(lambda: not (folder / "work").exists(), 120, "the run to clean up")
    left = [path for place in ("jobs", "input") for path in (site.workspace / place).glob("[!.]*")]
    assert left == []


def test_a_dose_of_zeros_is_no_dose_and_retry_runs_the_engine_again(site: Installation) -> None:
    (site.notes / "zeros").touch()
    case = site.deliver(recipe(11))
    record = site.finished(case)
    assert record.status is CaseStatus.FAILED
    assert "zero" in record.message
    press_retry(site, ended(site, the_run(site, case), starts=1))
    ended(site, the_run(site, case), starts=2)
    record = site.record_of(case)
    assert record is not None and record.status is CaseStatus.COMPLETED
    assert sorted(engine_runs(site, case).values()) == [1, 2]


def test_retry_runs_the_failed_beam_and_nothing_else(site: Installation) -> None:
    case = site.prepare(recipe(1, gantry_angles_deg=(0.0, 90.0)))
    order = site.notes / f"fail-{key_of(case)}.b03.log"
    order.touch()
    site.publish(case)
    failed = site.finished(case, PATIENCE_S)
    run = ended(site, the_run(site, case), starts=1)
    assert failed.status is CaseStatus.PARTIAL
    assert run.state is not None and run.state.type is StateType.FAILED
    for said in (run.state.message or "", failed.message):
        assert "beam 3" in said and "exit status 3" in said and "told to fail" in said
    good, bad = failed.beams
    assert (good.status, bad.status) == (JobStatus.COMPLETED, JobStatus.FAILED)
    folder = folder_of(site, case)
    kept = {dose.output.path: (folder / dose.output.path).stat().st_mtime_ns for dose in good.doses.values()}
    assert len(kept) == 2
    assert "Beam 3" in (folder / "report.html").read_text()
    assert engine_runs(site, case) == {"b02.log": 1, "b02.plan": 1, "b03.log": 1, "b03.plan": 1}

    order.unlink()
    press_retry(site, run)
    again = ended(site, run, starts=2)
    assert again.state is not None and again.state.type is StateType.COMPLETED, again.state
    record = site.record_of(case)
    assert record is not None and record.status is CaseStatus.COMPLETED and record.attempt == 1
    assert record.verdict is not None and record.verdict["verdict"] == "pass"
    assert engine_runs(site, case) == {"b02.log": 1, "b02.plan": 1, "b03.log": 2, "b03.plan": 1}
    assert {path: (folder / path).stat().st_mtime_ns for path in kept} == kept

    steps = ("interpret", "upload", "calculate", "download", "convert")
    units = ("beam 2 (log)", "beam 2 (plan)", "beam 3 (log)", "beam 3 (plan)")
    expected = {f"{step} {unit}": "Cached" for step in steps for unit in units}
    expected |= {f"{step} beam 3 (log)": "Completed" for step in ("calculate", "download", "convert")}

    def told() -> bool:  # the server hears of steps with a delay
        return {name: state for name, state in task_states(site, run).items() if name in expected} == expected

    site.until(told, PATIENCE_S, "the server to know that all other steps were cached")


def test_what_is_finished_is_computed_again_only_on_request_and_then_judged_by_the_criteria_of_the_day(
    site: Installation,
) -> None:
    case = site.deliver(recipe(2))
    first = site.finished(case, PATIENCE_S)
    run = ended(site, the_run(site, case), starts=1)
    stricter = QaCriteria.load("site").model_copy(update={"gamma_dose_percent": 2.0})
    stricter.save("site", overwrite=True)

    press_retry(site, run)
    retried = ended(site, run, starts=2)
    assert retried.state is not None and retried.state.type is StateType.COMPLETED
    assert "Done before" in (retried.state.message or "")
    assert "nothing was computed" in (retried.state.message or "")
    assert site.record_of(case) == first, "the verdict stays the one of the day, with its criteria"
    assert set(engine_runs(site, case).values()) == {1}

    anew = start(site, case, recalculate="true")
    assert anew.state is not None and anew.state.type is StateType.COMPLETED, anew.state
    record = site.record_of(case)
    assert record is not None and record.verdict is not None and first.verdict is not None
    assert (first.attempt, record.attempt) == (1, 2)
    assert set(engine_runs(site, case).values()) == {2}
    assert first.verdict["criteria"]["gamma_dose_percent"] == 3.0
    assert record.verdict["criteria"]["gamma_dose_percent"] == 2.0
    doses = [{one.output.sha256 for beam in r.beams for one in beam.doses.values()} for r in (first, record)]
    assert all(len(one) == 2 for one in doses)


def test_cancel_ends_the_engines_and_a_retry_completes_the_case(site: Installation) -> None:
    hold = site.notes / "hold"
    hold.touch()
    case = site.deliver(recipe(3, gantry_angles_deg=(0.0, 90.0)))
    site.until(lambda: sum(engine_runs(site, case).values()) == 2, PATIENCE_S, "both slots to be taken")
    assert len(engines(site)) >= 2
    run = the_run(site, case)
    with site.client() as client:
        client.set_flow_run_state(run.id, Cancelling())
        site.until(lambda: not engines(site), 60, "the engines to be gone")
        cancelled = ended(site, run, starts=1)
        assert cancelled.state is not None and cancelled.state.type is StateType.CANCELLED
        site.until(lambda: slots_taken(client) == 0, 120, "the slots to be free")
    assert not engines(site)
    assert sum(engine_runs(site, case).values()) == 2, "no other beam took over the freed slots"
    record = site.record_of(case)
    assert record is not None and record.status is CaseStatus.FAILED
    assert "Cancelled by a person" in record.message and "Retry" in record.message
    site.until(
        lambda: "Cancelled by a person" in row(site, case)["message"], PATIENCE_S, "the worklist to say so"
    )

    hold.unlink()
    press_retry(site, run)
    again = ended(site, run, starts=2)
    assert again.state is not None and again.state.type is StateType.COMPLETED, again.state
    done = site.record_of(case)
    assert done is not None and done.status is CaseStatus.COMPLETED
    assert sum(engine_runs(site, case).values()) == 4 + 2


def test_a_limit_of_zero_makes_beams_wait_visibly_and_a_higher_one_lets_them_go_on(
    site: Installation,
) -> None:
    with site.client() as client:
        before = client.read_global_concurrency_limit_by_name(LIMIT).limit
        client.update_global_concurrency_limit(LIMIT, GlobalConcurrencyLimitUpdate(limit=0))
        try:
            case = site.deliver(recipe(4))
            site.until(
                lambda: "waiting for a free GPU" in progress(site, case),
                PATIENCE_S,
                "the beam to say that it waits",
            )
            why = "set the limit gpu-local to 0"
            site.until(lambda: why in progress(site, case), PATIENCE_S, "one of them to say why")
            assert not engine_runs(site, case)
        finally:
            client.update_global_concurrency_limit(LIMIT, GlobalConcurrencyLimitUpdate(limit=before))
    assert site.finished(case, PATIENCE_S).status is CaseStatus.COMPLETED
    assert set(engine_runs(site, case).values()) == {1}


def test_a_damaged_record_is_rebuilt_and_a_deleted_one_means_compute_again(site: Installation) -> None:
    case = site.deliver(recipe(5))
    first = site.finished(case, PATIENCE_S)
    ended(site, the_run(site, case), starts=1)
    path = folder_of(site, case) / "case.json"
    path.write_text(path.read_text()[:300])
    site.until(
        lambda: list(path.parent.glob("case.json.damaged-*")), PATIENCE_S, "the scanner to set it aside"
    )
    rebuilt = site.until(lambda: site.record_of(case), PATIENCE_S, "the record to be rebuilt")
    assert rebuilt.model_copy(update={"updated_at": first.updated_at}) == first
    site.until(lambda: row(site, case).get("status") == "completed", PATIENCE_S, "the worklist to say so")
    assert set(engine_runs(site, case).values()) == {1}

    shutil.rmtree(path.parent)
    second = site.finished(case, PATIENCE_S)
    assert second.status is CaseStatus.COMPLETED
    assert set(engine_runs(site, case).values()) == {2}
    assert len(site.runs(key_of(case))) == 2


def test_a_case_whose_files_were_changed_afterwards_keeps_its_result_until_a_person_runs_it_again(
    site: Installation,
) -> None:
    case = site.deliver(recipe(6))
    first = site.finished(case, PATIENCE_S)
    ended(site, the_run(site, case), starts=1)
    log = next((site.inbox / case_folder(case)).rglob("*.ptn"))
    content = bytearray(log.read_bytes())
    content[-16:] = content[-32:-16]  # the last row, without beam, is another one now
    content[-2:] = b"\x00\x01"
    log.write_bytes(content)
    assert site.record_of(case) == first
    run = start(site, case)
    assert run.state is not None and run.state.type is StateType.COMPLETED, run.state
    record = site.record_of(case)
    assert record is not None and record.manifest is not None and first.manifest is not None
    assert record.manifest != first.manifest
    assert record.status is CaseStatus.COMPLETED


def test_every_block_of_the_site_comes_back_as_it_was_saved(site: Installation) -> None:
    names = {
        CaseFolders: "site",
        ComputeHost: "local",
        MoquiParameters: "site",
        QaCriteria: "site",
        MachineCalibration: "g2",
    }
    for kind, name in names.items():
        loaded = kind.load(name)
        loaded.save("copy", overwrite=True)
        copy = kind.load("copy")
        assert {field: getattr(copy, field) for field in kind.model_fields} == {
            field: getattr(loaded, field) for field in kind.model_fields
        }
        kind.delete("copy")
    assert load_site("local").results == str(site.results)
    with pytest.raises(ConfigurationError, match="mqi-compute-host/nowhere is missing"):
        load_site("nowhere")


def test_prefect_deploy_works_from_the_repository(site: Installation) -> None:
    prefect(site, "deploy", "--all")
    listed = prefect(site, "deployment", "ls")
    assert all(f"{flow}/mqi" in listed for flow in ("scan-cases", "process-case", "clean-up"))


def run_clean_up() -> None:
    run = run_deployment("clean-up/mqi", timeout=300, as_subflow=False)
    assert run.state is not None and run.state.is_completed(), run.state


def test_the_nightly_clean_up_removes_old_failures_and_nothing_else(site: Installation) -> None:
    case = site.prepare(recipe(12))
    fails = site.notes / f"fail-{key_of(case)}.b02.log"
    fails.touch()
    site.publish(case)
    assert site.finished(case).status is CaseStatus.FAILED
    ended(site, the_run(site, case), starts=1)
    (failed,) = site.workspace.glob(f"jobs/{key_of(case)}.b02.log.*")
    stored = site.home / "prefect" / "storage"
    old = sorted(stored.iterdir())[0]
    os.utime(old, (0, time.time() - 365 * 86_400))

    run_clean_up()
    assert failed.exists()  # it is kept for a week
    assert not old.exists()
    assert any(stored.iterdir())

    host = ComputeHost.load("local")
    kept = {name: getattr(host, name) for name in ComputeHost.model_fields}
    ComputeHost(**{**kept, "keep_failed_days": 0}).save("local", overwrite=True)
    run_clean_up()
    assert list(site.workspace.glob("jobs/*")) == []
    assert (folder_of(site, case) / "case.json").exists()
