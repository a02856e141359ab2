"""What a physicist sees: Prefect's pages and the report, in a real browser that asks this machine only.

With MQI_PICTURES=<folder> the cases are of full size and the pictures are kept there: those in docs/pictures
are made so.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from mqi.case import CaseStatus, case_key
from mqi.record import CaseRecord
from mqi.synthesize import Recipe, SyntheticCase
from tests.flows.installation import Installation
from tests.requirement import program

pytestmark = pytest.mark.timeout(600)

PICTURES = os.environ.get("MQI_PICTURES")
MOST_PICTURE_BYTES = 400_000
PATIENCE_S = 400.0 if PICTURES else 200.0
LOOK_MS = 60_000
"""How long a page may take to show what it must: the machine may be busy."""

FLAGS = (
    "--no-sandbox",  # the tests may run as root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--force-prefers-reduced-motion",
)
FAILED_BEAM = 3
WIDE = {"width": 1400, "height": 900}


def key_of(case: SyntheticCase) -> str:
    return case_key(case.plan.patient_id, case.plan.sop_uid)


@dataclass(frozen=True)
class Clinic:
    """An installation with one case of each kind."""

    site: Installation
    good: SyntheticCase
    bad: SyntheticCase  # beam 3 delivered 3 % too much
    waiting: SyntheticCase  # its last beam was not delivered
    broken: SyntheticCase  # the engine failed on beam 2

    def name(self, case: SyntheticCase) -> str:
        return f"{key_of(case)} · fraction 1"

    def run_url(self, case: SyntheticCase) -> str:
        (run,) = self.site.runs(key_of(case))
        return f"/runs/flow-run/{run.id}"

    def folder(self, case: SyntheticCase) -> Path:
        record = self.site.record_of(case)
        assert record is not None
        return self.site.results / record.key / record.fraction_id


@pytest.fixture(scope="module")
def clinic(site: Installation) -> Clinic:
    (site.notes / "hold").touch()  # no engine goes on before it is said which one fails
    shape = Recipe if PICTURES else Recipe.small
    good = site.deliver(shape(seed=21, patient_id="QA0021"))
    bad = site.deliver(shape(seed=22, patient_id="QA0022", mu_scale={FAILED_BEAM: 1.03}))
    waiting = site.deliver(Recipe.small(seed=23, patient_id="QA0023"), "missing-beam")
    broken = site.deliver(Recipe.small(seed=24, patient_id="QA0024"))
    (site.notes / f"fail-{key_of(broken)}.b02.log").touch()
    (site.notes / "hold").unlink()
    for case, ends in ((good, "completed"), (bad, "completed"), (broken, "partial")):
        record = site.finished(case, PATIENCE_S)
        assert record.status == ends, record.message
    clinic = Clinic(site, good, bad, waiting, broken)
    site.until(lambda: settled(clinic), PATIENCE_S, "the worklist and the runs to say so")
    return clinic


def settled(clinic: Clinic) -> bool:
    listed = {row["case"]: row["status"] for row in clinic.site.worklist()}
    said = {"good": "completed", "bad": "completed", "waiting": "waiting", "broken": "partial"}
    ended = all(run.state is not None and run.state.is_final() for run in clinic.site.runs())
    return ended and all(listed.get(key_of(getattr(clinic, name))) == word for name, word in said.items())


@dataclass
class Viewer:
    """A page of the browser, and every host that it asked for anything."""

    page: Page
    base: str
    pictures: Path
    hosts: set[str] = field(default_factory=set)

    def open(self, path: str) -> None:
        self.page.goto(f"{self.base}{path}")

    def sees(self, text: str | re.Pattern[str]) -> Locator:
        found = self.page.get_by_text(text).filter(visible=True).first
        expect(found).to_be_visible(timeout=LOOK_MS)
        return found

    def picture(self, name: str) -> None:
        self.page.wait_for_timeout(1500)  # drawings and counters are drawn after the texts
        path = self.pictures / f"{name}.png"
        self.page.screenshot(path=path)
        assert path.stat().st_size < MOST_PICTURE_BYTES


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=program("chromium", package="chromium"), args=list(FLAGS)
        )
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(PICTURES) if PICTURES else tmp_path_factory.mktemp("pictures")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def viewer(browser: Browser, clinic: Clinic, pictures: Path) -> Iterator[Viewer]:
    context = browser.new_context(viewport=WIDE)
    viewer = Viewer(context.new_page(), f"http://127.0.0.1:{clinic.site.port}", pictures)
    viewer.page.on("request", lambda request: viewer.hosts.add(urlsplit(request.url).hostname or ""))
    viewer.page.on("websocket", lambda socket: viewer.hosts.add(urlsplit(socket.url).hostname or ""))
    yield viewer
    context.close()
    assert viewer.hosts - {""} == {"127.0.0.1"}, "a page asked another machine"  # "": data: and blob:


def test_a_case_is_found_among_the_runs_by_name_and_verdict(viewer: Viewer, clinic: Clinic) -> None:
    viewer.open("/flows")
    viewer.sees("process-case").click()
    for case, outcome in ((clinic.good, "QA PASS"), (clinic.bad, "QA FAIL"), (clinic.broken, "Partial")):
        viewer.sees(clinic.name(case))
        viewer.sees(outcome)
    viewer.picture("ui-runs")
    viewer.open("/runs")
    viewer.page.get_by_role("searchbox", name="Search by flow run name").fill(key_of(clinic.bad))
    viewer.sees("1 run")
    viewer.sees(clinic.name(clinic.bad)).click()
    viewer.sees("Artifacts")


def test_a_cases_run_shows_the_verdict_first_and_each_beams_progress(viewer: Viewer, clinic: Clinic) -> None:
    viewer.open(clinic.run_url(clinic.bad))
    viewer.page.get_by_role("button", name="Artifacts").or_(
        viewer.page.get_by_text("Artifacts", exact=True)
    ).last.click(timeout=LOOK_MS)
    viewer.sees(re.compile(r"✗ FAIL: Beam 3 .*Beam meterset \+3\.00 %"))
    viewer.picture("ui-run")
    viewer.page.get_by_role("heading", name="Task runs").scroll_into_view_if_needed()  # loaded when seen
    viewer.page.mouse.wheel(0, 10_000)
    viewer.sees(f"{key_of(clinic.bad).lower()}-fraction-1-beam-2-log")
    viewer.page.get_by_role("link", name=f"{key_of(clinic.bad).lower()}-fraction-1-verdict").first.click()
    viewer.sees(f"✗ FAIL · {key_of(clinic.bad)} · fraction 1")
    viewer.sees(re.compile("Not for clinical use"))
    table = viewer.page.locator("table")
    expect(table).to_contain_text("✗ FAIL", timeout=LOOK_MS)
    expect(table).to_contain_text("+3.00 % ✗".replace(" %", "\u00a0%"))
    viewer.sees(str(clinic.folder(clinic.bad) / "report.html"))
    drawn = viewer.page.locator("article img, .markdown-renderer img")
    assert drawn.count() == len(clinic.bad.plan.treatment_beams)
    assert all(drawn.nth(n).evaluate("image => image.naturalWidth") > 100 for n in range(drawn.count()))
    viewer.picture("ui-verdict")


def test_the_progress_of_a_beam_says_where_it_was_calculated(viewer: Viewer, clinic: Clinic) -> None:
    viewer.open(f"/artifacts/key/{key_of(clinic.good).lower()}-fraction-1-beam-2-log")
    viewer.sees(re.compile(rf"{key_of(clinic.good)} · beam 2 \(log\): calculated on local, cpu\d+ \(at "))


def test_the_worklist_says_where_each_case_stands_and_leads_to_its_run(
    viewer: Viewer, clinic: Clinic
) -> None:
    viewer.open("/artifacts/key/worklist")
    viewer.page.locator("a[href*='/artifacts/artifact/']").first.click(timeout=LOOK_MS)
    rows = viewer.page.locator("tbody tr")
    expect(rows).to_have_count(4, timeout=LOOK_MS)
    first = [rows.nth(n).locator("td").first.inner_text().strip() for n in range(4)]
    order = {
        key_of(case): n for n, case in enumerate((clinic.bad, clinic.broken, clinic.waiting, clinic.good))
    }
    assert sorted(first[:2]) == sorted(list(order)[:2])  # what a person has to look at stands above
    assert first[2:] == list(order)[2:]
    waits = rows.filter(has_text=key_of(clinic.waiting))
    expect(waits).to_contain_text("waiting")
    expect(waits).to_contain_text("beam 3 not delivered")
    failed = rows.filter(has_text=key_of(clinic.bad))
    expect(failed).to_contain_text("✗ FAIL")
    expect(rows.filter(has_text=key_of(clinic.good))).to_contain_text("✓ PASS")
    viewer.picture("ui-worklist")
    with viewer.page.context.expect_page() as opened:
        failed.get_by_role("link", name="open").click()
    expect(opened.value.get_by_text(clinic.name(clinic.bad)).first).to_be_visible(timeout=LOOK_MS)


def test_blocks_limits_and_deployments_are_there_under_plain_names(viewer: Viewer, clinic: Clinic) -> None:
    viewer.open("/blocks")
    for name in (
        "MQI case folders",
        "MQI compute host",
        "MQI dose engine",
        "MQI machine calibration",
        "MQI QA criteria",
    ):
        viewer.sees(name)
    viewer.picture("ui-blocks")
    viewer.open("/concurrency-limits")
    viewer.sees("gpu-local")
    viewer.open("/deployments")
    for name in ("scan-cases", "process-case", "clean-up"):
        viewer.sees(name)
    viewer.sees("Every minute")


def test_retry_in_the_ui_computes_only_what_failed(viewer: Viewer, clinic: Clinic) -> None:
    site, key = clinic.site, key_of(clinic.broken)
    (site.notes / f"fail-{key}.b02.log").unlink()
    before = {job: n for job, n in site.engine_runs().items() if job.startswith(f"{key}.")}
    viewer.open(clinic.run_url(clinic.broken))
    viewer.page.get_by_role("button", name="Retry").first.click(timeout=LOOK_MS)
    viewer.sees(f"Retry {clinic.name(clinic.broken)}?")
    viewer.page.get_by_role("dialog").get_by_role("button", name="Retry").click()

    def completed() -> CaseRecord | None:
        record = site.record_of(clinic.broken)
        return record if record and record.status is CaseStatus.COMPLETED else None

    record = site.until(completed, PATIENCE_S, "the retried case to complete")
    assert [sorted(beam.doses) for beam in record.beams] == [["log", "plan"]] * 2
    after = {job: n for job, n in site.engine_runs().items() if job.startswith(f"{key}.")}
    assert {job: n for job, n in after.items() if job in before} == before
    (new,) = after.keys() - before.keys()
    assert ".b02.log." in new
    viewer.open(clinic.run_url(clinic.broken))
    viewer.sees("QA PASS")


def test_cancel_in_the_ui_ends_the_engines(viewer: Viewer, clinic: Clinic) -> None:
    site = clinic.site
    hold = site.notes / "hold"
    hold.touch()
    try:
        case = site.deliver(Recipe.small(seed=25, patient_id="QA0025"))
        key = key_of(case)
        site.until(
            lambda: [job for job in site.engine_runs() if job.startswith(f"{key}.")],
            PATIENCE_S,
            "an engine to start",
        )
        viewer.open(clinic.run_url(case))
        viewer.sees("Running")
        viewer.page.get_by_role("button", name="Cancel").first.click(timeout=LOOK_MS)
        viewer.page.get_by_role("dialog").get_by_role("button", name="Confirm").click()

        def cancelled() -> bool:
            (run,) = site.runs(key)
            return run.state is not None and run.state.is_cancelled()

        site.until(cancelled, PATIENCE_S, "the run to be cancelled")
        site.until(lambda: not engines_of(key), PATIENCE_S, "the engines to end")
    finally:
        hold.unlink()
    record = site.record_of(case)
    assert record is not None
    assert record.status is CaseStatus.FAILED
    assert "ancel" in record.message


def engines_of(key: str) -> list[int]:
    """Processes that work in a job folder of this case."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            folder = (process / "cwd").readlink()
        except OSError:
            continue
        if folder.name.startswith(f"{key}."):
            found.append(int(process.name))
    return found


def test_the_report_opens_from_the_folder_without_network_and_scripts(
    browser: Browser, clinic: Clinic, pictures: Path
) -> None:
    context = browser.new_context(viewport=WIDE, java_script_enabled=False, offline=True)
    page = context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    report = clinic.folder(clinic.bad) / "report.html"
    page.goto(report.as_uri())
    expect(page.get_by_text("FAIL").first).to_be_visible(timeout=LOOK_MS)
    expect(page.get_by_text(re.compile(r"Beam meterset \+3\.00 %")).first).to_be_visible()
    assert "SYNTHETIC" not in page.content()  # the patient's name
    path = pictures / "report.png"
    page.screenshot(path=path)
    context.close()
    assert path.stat().st_size < MOST_PICTURE_BYTES
    assert [url for url in asked if not url.startswith("data:")] == [report.as_uri()]
