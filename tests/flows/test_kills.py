"""Kill -9 of everything, in every step: the case completes, nothing runs twice, nothing stays behind.

What is killed, and when, is told by orders (`tests/flows/fate/sitecustomize.py`). All cases share one
installation; a thread does what systemd does there and starts again what has died.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import psutil
import pydicom
import pytest
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.filesystems import LocalFileSystem
from prefect.results import ResultStore
from prefect.serializers import JSONSerializer
from prefect.states import AwaitingRetry

from deployments import processes
from deployments.apply import ZOMBIES
from deployments.environment import Home, environment
from deployments.service import SERVER, worker_command
from mqi.case import CaseStatus
from mqi.record import CaseRecord
from mqi.synthesize import Recipe, SyntheticCase
from tasks.caching import WhileFilesStand
from tasks.convert import convert_beam
from tasks.recovery import MAX_RUNS, RUN_AGAIN
from tests.flows.installation import Installation

pytestmark = pytest.mark.timeout(1200)  # the first test waits for all of it

FATE = Path(__file__).parent / "fate"
PATIENCE_S = 900.0

# The moment of each step at which it is hardest to be killed: half written, half submitted, half removed.
MOMENTS = {
    "inspect_case": "begin",
    "interpret_beam": "os.rename spots.npz",
    "upload_beam": "os.rename .part",
    "calculate_beam": "subprocess.Popen follow",
    "download_beam": "os.rename .part",
    "convert_beam": "os.rename .dcm",
    "assess_case": "os.rename gamma.npz",
    "report_case": "os.rename",
    "end_case": "os.rename case.json",
    "clean_up_host": "shutil.rmtree",
}

# Case -> its kills in order: (step, moment, victims).
FATES: dict[str, list[tuple[str, str, list[str]]]] = {
    "undisturbed": [],
    # Found by nothing on this machine: only the missing heartbeat tells.
    "forgotten": [("calculate_beam", MOMENTS["calculate_beam"], ["worker", "flow"])],
    "flow-early": [(step, MOMENTS[step], ["flow"]) for step in list(MOMENTS)[:5]],
    "flow-late": [(step, MOMENTS[step], ["flow"]) for step in list(MOMENTS)[5:9]],
    "flow-edges": [
        ("calculate_beam", "subprocess.Popen submit", ["flow"]),
        ("calculate_beam", "end", ["flow"]),
        ("end_case", "end", ["flow"]),
        ("clean_up_host", MOMENTS["clean_up_host"], ["flow"]),
    ],
    "engine": [
        ("calculate_beam", MOMENTS["calculate_beam"], ["engine"]),
        ("calculate_beam", MOMENTS["calculate_beam"], ["supervisor"]),
        ("calculate_beam", MOMENTS["calculate_beam"], ["supervisor", "engine", "flow"]),
    ],
    "worker": [(step, MOMENTS[step], ["worker"]) for step in MOMENTS],
    "server": [(step, MOMENTS[step], ["server"]) for step in MOMENTS],
    "power": [("convert_beam", "begin", ["worker", "server", "flow"])],
}
FIRST = ("flow-early", "flow-late", "flow-edges", "engine")
THEN = ("worker", "server")


@dataclass
class Aftermath:
    """The installation after all was killed that had to be, and came to rest."""

    site: Installation
    cases: dict[str, SyntheticCase]
    bound: tuple[int, int] | None = None  # crashed runs, and all runs, of the case killed too often
    records: dict[str, CaseRecord] = field(default_factory=dict)
    runs: dict[str, list[FlowRun]] = field(default_factory=dict)

    def folder(self, name: str) -> Path:
        record = self.records[name]
        return self.site.results / record.key / record.fraction_id

    def engine_runs(self, name: str) -> Counter[str]:
        key = self.records[name].key
        return Counter({job: n for job, n in self.site.engine_runs().items() if job.startswith(f"{key}.")})


def order(
    site: Installation, case: SyntheticCase, fate: list[tuple[str, str, list[str]]], forget: bool
) -> None:
    for number, (step, moment, kill) in enumerate(fate):
        told = {"case": case.folder.name, "step": step, "moment": moment, "kill": kill, "forget": forget}
        (site.notes / f"{case.folder.name}-{number}.order").write_text(json.dumps(told))


@contextmanager
def systemd(site: Installation) -> Iterator[None]:
    """Start again what has died, until told to stop; note what is up in ``run/up.json``."""
    stop = threading.Event()
    home = Home(site.home)
    variables = environment(home, site.port) | site.environment
    commands = {"server": SERVER, "worker": worker_command(home)}

    def watch() -> None:
        while not stop.wait(0.1):
            for name, command in commands.items():
                if not processes.alive(processes.read(home, name)):
                    processes.start(home, name, command, variables, site.port)
            if processes.answers(site.port):
                records = {name: processes.read(home, name) for name in commands}
                pids = {name: record.pid for name, record in records.items() if record}
                (home.run / "up.json").write_text(json.dumps(pids))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()


@pytest.fixture(scope="module")
def aftermath(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aftermath]:
    site = Installation(tmp_path_factory.mktemp("kills"))
    site.environment = {"PYTHONPATH": str(FATE), "MQI_FATE": str(site.notes)}
    site.site["resources"] = {"gpu_count": 2, "min_disk_space_gb": 0.1, "max_concurrent_jobs": 5}
    site.write_site()
    site.up()
    try:
        with site.settings(), systemd(site):
            yield happened(site)
    finally:
        site.down()


def happened(site: Installation) -> Aftermath:
    after = Aftermath(site, {})

    def deliver(*names: str) -> None:
        for name in names:
            recipe = Recipe.small(patient_id=f"K-{name}", seed=7)
            staged = site.prepare(recipe)
            order(site, staged, FATES[name], name == "forgotten")
            site.publish(staged)
            after.cases[name] = staged

    def completed(*names: str) -> None:
        for name in names:
            record = site.finished(after.cases[name], PATIENCE_S)
            after.records[name] = record

    def runs_of(name: str) -> list[FlowRun]:
        folder = site.inbox / after.cases[name].folder.name
        found = [run for run in site.runs() if Path(run.parameters["case"]).is_relative_to(folder)]
        return sorted(found, key=lambda run: run.created)

    def killed_too_often() -> FlowRun | None:
        runs = runs_of("flow-early")
        return runs[-1] if len(crashed(runs)) >= MAX_RUNS else None

    deliver("forgotten")
    site.until(lambda: not list(site.notes.glob("*.order")), PATIENCE_S, "the worker to be killed")
    site.until(lambda: site_is_up(site), PATIENCE_S, "the worker to be there again")
    deliver("undisturbed", *FIRST)
    beaten = site.until(killed_too_often, PATIENCE_S, "the run that is killed too often")
    completed("undisturbed", "flow-late", "flow-edges", "engine")  # many looks of the scanner later
    with site.client() as client:
        after.bound = len(crashed(runs_of("flow-early"))), len(runs_of("flow-early"))
        client.set_flow_run_state(beaten.id, AwaitingRetry(), force=True)  # what Retry in the UI does
    completed("forgotten", *FIRST)
    for name in THEN:  # one by one: a run that is just being started goes down with its worker
        deliver(name)
        completed(name)
    deliver("power")
    completed("power")
    for name in after.cases:
        site.until(lambda name=name: all_over(runs_of(name)), PATIENCE_S, f"the runs of {name} to end")
        after.runs[name] = runs_of(name)
    return after


def crashed(runs: list[FlowRun]) -> list[FlowRun]:
    return [run for run in runs if run.state_type is StateType.CRASHED]


def site_is_up(site: Installation) -> bool:
    try:
        noted = json.loads((site.home / "run" / "up.json").read_text())
    except (OSError, ValueError):
        return False
    records = [processes.read(Home(site.home), name) for name in ("server", "worker")]
    return all(record and processes.alive(record) and noted[record.name] == record.pid for record in records)


def all_over(runs: list[FlowRun]) -> bool:
    return runs[-1].state_type is StateType.COMPLETED


@pytest.mark.parametrize("name", FATES)
def test_after_any_kill_the_case_completes_by_itself(aftermath: Aftermath, name: str) -> None:
    record = aftermath.records[name]
    assert record.status is CaseStatus.COMPLETED, record.message
    *before, last = aftermath.runs[name]
    assert last.state_type is StateType.COMPLETED
    assert all(run.state_type is StateType.CRASHED and RUN_AGAIN in run.tags for run in before)
    assert all((aftermath.folder(name) / report).stat().st_size > 10_000 for report in record.reports)


def test_every_kill_that_was_ordered_was_done(aftermath: Aftermath) -> None:
    assert not list(aftermath.site.notes.glob("*.order"))
    assert len(list(aftermath.site.notes.glob("*.done"))) == sum(map(len, FATES.values()))


@pytest.mark.parametrize("name", FATES)
def test_no_engine_ran_twice_for_the_same_inputs(aftermath: Aftermath, name: str) -> None:
    runs = aftermath.engine_runs(name)
    assert set(runs.values()) == {1}, runs
    last: dict[str, int] = {}
    for job in runs:  # an engine that is killed before its first line does not note itself
        unit, _, attempt = job.rpartition(".a")
        last[unit] = max(last.get(unit, 0), int(attempt))
    assert len(last) == 4  # two beams, from the log and from the plan
    killed = sum({"engine", "supervisor"} & set(victims) != set() for _, _, victims in FATES[name])
    # A killed engine has one successor; a second kill may hit a job whose supervisor is dead already.
    assert 4 + (killed > 0) <= sum(last.values()) <= 4 + killed, runs


def identity_free(path: Path) -> str:
    """SHA-256 of a dose file without what names the case: patient, UIDs."""
    dataset = pydicom.dcmread(path)
    for element in list(dataset.iterall()):
        if element.VR == "UI" or element.tag.group == 0x0010:
            element.value = ""
    return hashlib.sha256(dataset.to_json().encode()).hexdigest()


@pytest.mark.parametrize("name", FATES)
def test_no_result_differs_from_that_of_an_undisturbed_run(aftermath: Aftermath, name: str) -> None:
    def results(of: str) -> dict[str, str]:
        return {path.name: identity_free(path) for path in sorted((aftermath.folder(of) / "doses").iterdir())}

    assert len(results(name)) == 6  # two beams and their sum, from the log and from the plan
    assert results(name) == results("undisturbed")
    assert aftermath.records[name].verdict == aftermath.records["undisturbed"].verdict
    for beam in aftermath.records[name].beams:
        for dose in beam.doses.values():
            content = (aftermath.folder(name) / dose.output.path).read_bytes()
            assert hashlib.sha256(content).hexdigest() == dose.output.sha256


def test_a_run_dies_as_often_as_it_is_killed_and_outlives_each_worker_and_server(
    aftermath: Aftermath,
) -> None:
    for name in ("flow-early", "flow-late", "flow-edges", "engine"):
        killed = sum("flow" in kill for _, _, kill in FATES[name])
        retried = name == "flow-early"  # by a person: the same run completes
        begun = [run for run in aftermath.runs[name] if run.run_count]
        assert len(begun) == 1 + killed - retried, name
    for name in ("worker", "server"):
        assert len([run for run in aftermath.runs[name] if run.run_count]) == 1, name


def test_a_run_that_is_killed_again_and_again_is_left_to_a_person_who_presses_retry(
    aftermath: Aftermath,
) -> None:
    assert aftermath.bound == (MAX_RUNS, MAX_RUNS)


def test_the_watch_over_heartbeats_is_on_and_found_the_run_that_only_it_could_find(
    aftermath: Aftermath,
) -> None:
    with aftermath.site.client() as client:
        (automation,) = client.read_automations_by_name(ZOMBIES)
        states = client.read_flow_run_states(aftermath.runs["forgotten"][0].id)
    assert automation.enabled
    assert any(
        state.type is StateType.CRASHED and "No heartbeat" in (state.message or "") for state in states
    )


def test_no_slot_stays_taken(aftermath: Aftermath) -> None:
    def free() -> bool:
        with aftermath.site.client() as client:
            return client.read_global_concurrency_limit_by_name("gpu-local").active_slots == 0

    aftermath.site.until(
        free, 120, "the slots of killed runs to be given back"
    )  # lease 60 s, looked at every 15 s
    locks = list((aftermath.site.workspace / "slots").glob("*.lock"))
    assert locks
    for lock in locks:
        with lock.open("a") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_no_process_file_or_folder_stays_behind(aftermath: Aftermath) -> None:
    site = aftermath.site
    site.until(lambda: not strangers(site), 120, "the processes of killed runs to end")
    assert not [path for path in site.home.rglob("*.part") if "prefect" not in path.parts]
    left = list((site.workspace / "jobs").iterdir())
    assert all((job / "acked").exists() for job in left), left
    # A killed engine's failed job is kept for a person to look at.
    assert len(left) <= sum("engine" in victims for fate in FATES.values() for _, _, victims in fate)
    assert not list((site.workspace / "input").iterdir())
    for name in FATES:
        assert not (aftermath.folder(name) / "work").exists()
    ids = {str(run.id) for runs in aftermath.runs.values() for run in runs}
    assert not ids & {path.name for path in (site.home / "prefect" / "alive").iterdir()}


def strangers(site: Installation) -> list[psutil.Process]:
    """Processes of the installation that neither the server nor the worker owns."""
    owned = set()
    for name in ("server", "worker"):
        leader = psutil.Process(site.pid(name))
        owned |= {leader, *leader.children(recursive=True)}
    found = []
    for process in psutil.process_iter():
        try:
            mine = process.environ().get("MQI_HOME") == str(site.home)
            mine |= any(str(site.workspace) in word for word in process.cmdline())
            mine &= process.status() != psutil.STATUS_ZOMBIE
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if mine and process not in owned:
            found.append(process)
    return found


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_half_written_result_of_a_killed_step_counts_as_none(tmp_path: Path, share: float) -> None:
    storage = LocalFileSystem(basepath=str(tmp_path))

    def looked_up() -> tuple[str | None, bool]:
        store = ResultStore(result_storage=storage, serializer=JSONSerializer())
        run = SimpleNamespace(flow_run_id=None)
        context = SimpleNamespace(task=convert_beam, task_run=run, result_store=store)
        key = WhileFilesStand().compute_key(context, {"downloaded": 1}, {})
        return key, store.exists(key)

    key, _ = looked_up()
    ResultStore(result_storage=storage, serializer=JSONSerializer()).write({"a": "result"}, key=key)
    assert looked_up() == (key, True)
    content = (tmp_path / key).read_bytes()
    (tmp_path / key).write_bytes(content[: int(share * len(content))])
    assert looked_up() == (key, False)
