"""Everything that goes wrong in a clinic, delivered at once: what the user is told, and what is computed."""

from __future__ import annotations

import html
import re
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import pytest
from prefect.client.schemas.objects import FlowRun, StateType

from mqi.case import CaseStatus, JobStatus, Verdict, case_key
from mqi.qa import QaVerdict
from mqi.record import CaseRecord
from mqi.synthesize import SPOILS, Recipe, SyntheticCase, synthesize_case
from tests.flows.installation import REPOSITORY, Installation

pytestmark = pytest.mark.timeout(900)  # the first test waits for all of them

NAME, BIRTH_DATE = "Quillfeather^Zenobia", "19510723"
"""Who stands in every DICOM file that is delivered here, and nowhere else afterwards."""

ONE_BEAM_WILL_DO = ("two-fractions", "re-plan", "interlock", "interrupted")


@dataclass(frozen=True)
class Delivered:
    """A spoilt case, and the keys under which it is known (two plans for a re-plan)."""

    case: SyntheticCase
    keys: tuple[str, ...]
    folder: Path


@dataclass(frozen=True)
class Clinic:
    """The installation after everything that was delivered came to rest."""

    site: Installation
    delivered: dict[str, Delivered]
    worklist: list[dict[str, str]]
    runs: list[FlowRun]
    records: dict[tuple[str, str], CaseRecord]
    engine_runs: dict[str, int]

    def rows(self, spoil: str) -> list[dict[str, str]]:
        one = self.delivered[spoil]
        return [
            row for row in self.worklist if row["case"] in one.keys or row["case"].startswith(str(one.folder))
        ]

    def runs_of(self, spoil: str) -> list[FlowRun]:
        one = self.delivered[spoil]
        return [run for run in self.runs if Path(str(run.parameters["case"])).is_relative_to(one.folder)]

    def records_of(self, spoil: str) -> list[CaseRecord]:
        return [
            record for (key, _), record in sorted(self.records.items()) if key in self.delivered[spoil].keys
        ]

    def engines_of(self, spoil: str) -> list[str]:
        return sorted(
            job
            for job in self.engine_runs
            if job.startswith(tuple(f"{k}." for k in self.delivered[spoil].keys))
        )


def recipe(index: int, spoil: str) -> Recipe:
    """A tiny case of its own; with CT and the planning system's doses where an error must come out."""
    own = {
        "seed": 100 + index,
        "patient_id": f"SPOIL{index:03d}",
        "patient_name": NAME,
        "birth_date": BIRTH_DATE,
    }
    if spoil.endswith("-off"):
        return Recipe.small(**own)
    beams = (0.0,) if spoil in ONE_BEAM_WILL_DO or spoil.startswith("hostile") else (0.0, 90.0)
    return Recipe.small(**own, medium="water", tps_dose=False, gantry_angles_deg=beams)


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clinic]:
    site = Installation(tmp_path_factory.mktemp("clinic"))
    with ThreadPoolExecutor() as pool:
        up = pool.submit(site.up)
        cases = {
            spoil: synthesize_case(site.staging, recipe(index, spoil), spoil)
            for index, spoil in enumerate(SPOILS)
        }
        up.result()
    try:
        delivered = {}
        for spoil, case in cases.items():
            shutil.move(case.folder, site.inbox / case.folder.name)
            plans = [case.plan.sop_uid]
            if SPOILS[spoil].beside_the_unspoilt:
                plans.append(
                    case.recipe.model_copy(update={"revision": case.recipe.revision - 1}).uid("plan")
                )
            keys = tuple(case_key(case.recipe.patient_id, uid) for uid in plans)
            delivered[spoil] = Delivered(case, keys, site.inbox / case.folder.name)
        with site.settings():
            yield at_rest(site, delivered)
    finally:
        site.down()


def at_rest(site: Installation, delivered: dict[str, Delivered]) -> Clinic:
    """Wait until every case stands in the worklist with its last word, and no run is under way."""

    def look() -> Clinic | None:
        time.sleep(3)  # a look asks for everything, and the server has work to do
        clinic = Clinic(
            site, delivered, site.worklist(), site.runs(), site.records(), dict(site.engine_runs())
        )
        ended = all(run.state is not None and run.state.is_final() for run in clinic.runs)
        moving = [row for row in clinic.worklist if row["status"] in ("new", "queued", "processing")]
        settling = [row for row in clinic.worklist if "still be arriving" in row["waiting for"]]
        told = all(clinic.rows(spoil) for spoil in delivered) and not moving and not settling
        refused = [spoil for spoil in delivered if SPOILS[spoil].expect == "refused"]
        return clinic if ended and told and all(clinic.runs_of(spoil) for spoil in refused) else None

    return site.until(look, 800, "every spoilt case to come to rest")


FRACTIONS = {"two-fractions": 2, "re-plan": 2}
IN_THE_LOG_ITSELF = "wrong-layer-number"
"""Intake opens no log: this one is refused when the beam is interpreted, and the other beam is computed."""


def expected(kind: str) -> list[str]:
    return [name for name, spoil in SPOILS.items() if spoil.expect == kind and name != IN_THE_LOG_ITSELF]


@pytest.mark.parametrize("spoil", expected("waiting"))
def test_what_is_not_whole_waits_and_says_for_what(clinic: Clinic, spoil: str) -> None:
    (row,) = clinic.rows(spoil)
    assert (row["case"], row["status"]) == (clinic.delivered[spoil].keys[0], "waiting")
    assert SPOILS[spoil].message in row["waiting for"]
    assert not clinic.runs_of(spoil)
    assert not clinic.records_of(spoil)
    assert not clinic.engines_of(spoil)


@pytest.mark.parametrize("spoil", expected("refused"))
def test_what_contradicts_itself_is_refused_once_with_what_where_and_what_to_do(
    clinic: Clinic, spoil: str
) -> None:
    (row,) = clinic.rows(spoil)
    assert row["status"] == "refused"
    assert SPOILS[spoil].message in row["waiting for"]
    assert "Correct the files" in row["message"]
    (run,) = clinic.runs_of(spoil)
    assert run.state is not None and run.state.type is StateType.FAILED
    message = run.state.message or ""
    assert SPOILS[spoil].message in message
    assert str(clinic.delivered[spoil].folder) in message
    assert "Correct the files; the scanner looks again by itself" in message
    assert run.run_count == 1
    assert not clinic.records_of(spoil)
    assert not clinic.engines_of(spoil)


def test_a_log_of_another_layer_fails_its_beam_and_leaves_the_other_finished(clinic: Clinic) -> None:
    spoil = IN_THE_LOG_ITSELF
    (row,), (run,), (record,) = clinic.rows(spoil), clinic.runs_of(spoil), clinic.records_of(spoil)
    assert (row["status"], record.status) == ("partial", CaseStatus.PARTIAL)
    assert run.state is not None and (run.state.type, run.state.name.lower()) == (StateType.FAILED, "partial")
    for said in (run.state.message or "", record.message):
        assert "beam 3" in said and SPOILS[spoil].message in said and ".ptn" in said and "Check" in said
    good, bad = record.beams
    assert (good.status, len(good.doses)) == (JobStatus.COMPLETED, 2)
    assert (bad.status, bad.doses) == (JobStatus.FAILED, {})
    units = {".".join(job.split(".")[1:3]) for job in clinic.engines_of(spoil)}
    assert units <= {"b02.log", "b02.plan", "b03.plan"}, "nothing is computed from the log that is refused"


@pytest.mark.parametrize("spoil", expected("computed"))
def test_what_can_be_computed_is_computed_and_judged(clinic: Clinic, spoil: str) -> None:
    verdict = "fail" if spoil.endswith("-off") else "pass"
    rows, runs, records = clinic.rows(spoil), clinic.runs_of(spoil), clinic.records_of(spoil)
    assert len(rows) == len(runs) == len(records) == FRACTIONS.get(spoil, 1)
    for row in rows:
        assert row["status"] == "completed"
        assert verdict.upper() in row["verdict"]
        assert row["report"].endswith("report.html")
    for run in runs:
        assert run.state is not None and (run.state.type, run.state.name.lower()) == (
            StateType.FAILED if verdict == "fail" else StateType.COMPLETED,
            f"qa {verdict}",
        )
        assert run.run_count == 1
    for record in records:
        assert record.status is CaseStatus.COMPLETED
        assert record.verdict is not None and record.verdict["verdict"] == verdict
        assert record.manifest is not None
        assert SPOILS[spoil].message in " ".join(record.manifest.warnings)
    jobs = {dose.job for record in records for beam in record.beams for dose in beam.doses.values()}
    beams = sum(len(record.beams) for record in records)
    assert len(jobs) == 2 * beams, "each fraction has jobs of its own"
    assert sorted(jobs) == clinic.engines_of(spoil)


def test_two_fractions_and_a_re_plan_are_kept_apart(clinic: Clinic) -> None:
    first, second = clinic.records_of("two-fractions")
    assert first.key == second.key
    assert {first.fraction_number, second.fraction_number} == {1, 2}
    one, other = clinic.records_of("re-plan")
    assert one.key != other.key
    assert one.manifest is not None and other.manifest is not None
    assert one.manifest.patient_id == other.manifest.patient_id


def test_no_engine_ran_twice_and_none_for_an_unknown_case(clinic: Clinic) -> None:
    assert set(clinic.engine_runs.values()) == {1}
    known = tuple(f"{key}." for one in clinic.delivered.values() for key in one.keys)
    assert all(job.startswith(known) for job in clinic.engine_runs)


def test_a_hostile_name_runs_nothing_and_creates_nothing(clinic: Clinic) -> None:
    root = clinic.site.home.parent
    assert not list(root.rglob("pwned"))
    assert not [path for path in (Path.cwd(), REPOSITORY, Path.home()) if (path / "pwned").exists()]
    plain = {key for one in clinic.delivered.values() for key in one.keys}
    assert {path.name for path in clinic.site.results.iterdir() if path.is_dir()} <= plain
    hostile = {SPOILS[name].folder_name for name in SPOILS if name.startswith("hostile")}
    assert {path.name for path in clinic.site.inbox.iterdir()} >= hostile, "what was delivered is left alone"


def test_nobodys_name_and_birth_date_leave_the_dicom_files(clinic: Clinic) -> None:
    home = clinic.site.home
    beside = [home / "inbox", clinic.site.workspace]
    searched = [
        path
        for path in home.rglob("*")
        if path.is_file() and path.suffix != ".dcm" and not any(path.is_relative_to(one) for one in beside)
    ]
    assert {"worker.log", "server.log", "prefect.db", "report.html", "case.json"} <= {
        path.name for path in searched
    }
    words = [*NAME.split("^"), BIRTH_DATE]
    found = [
        f"{path.relative_to(home)}: {word}"
        for path in searched
        for content in [path.read_bytes().lower()]
        for word in words
        if word.lower().encode() in content
    ]
    assert not found


# ------------------------------------------------------------------- a delivered error comes out


class MarkedLayers(HTMLParser):
    """The layers of which a report marks a cell, by the beam under whose heading their table stands."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.of_beam: dict[str, set[int]] = {}
        self._beam = self._reading = ""
        self._row: list[tuple[str, bool]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        kind = (dict(attrs).get("class") or "").split()
        if tag == "details" and "beam" in kind:
            self._beam, self._reading = "", "heading"
        elif tag == "table":
            self._reading = "layers" if "numbers" in kind and self._beam else ""
        elif tag == "tr":
            self._row = []
        elif tag == "td":
            self._row.append(("", "bad" in kind))

    def handle_data(self, data: str) -> None:
        if self._reading == "heading":
            self._beam += data
        elif self._reading == "layers" and self._row:
            self._row[-1] = (self._row[-1][0] + data.strip(), self._row[-1][1])

    def handle_endtag(self, tag: str) -> None:
        if tag == "summary" and self._reading == "heading":
            self._reading = ""
            self.of_beam[self._beam] = set()
        elif tag == "tr" and self._reading == "layers" and any(bad for _, bad in self._row):
            self.of_beam[self._beam].add(int(self._row[0][0]))


@pytest.mark.parametrize(
    ("spoil", "said", "layers"),
    [
        ("mu-off", "Beam meterset +3.00 % from the plan", {1, 2, 3, 4}),
        ("position-off", "spots +1.", {2}),
    ],
)
def test_an_error_of_one_beam_fails_this_beam_and_the_report_shows_where(
    clinic: Clinic, spoil: str, said: str, layers: set[int]
) -> None:
    (record,) = clinic.records_of(spoil)
    verdict = QaVerdict.model_validate(record.verdict)
    right, wrong = verdict.beams
    assert (right.beam_number, right.verdict, right.reasons) == (2, Verdict.PASS, ())
    assert (wrong.beam_number, wrong.verdict) == (3, Verdict.FAIL)
    assert said in " ".join(wrong.reasons)
    assert len(wrong.gammas) == 2, "against the plan and against the planning system"
    named = {int(found) for why in wrong.reasons for found in re.findall(r"Layer (\d+)", why)}
    assert named and named <= layers
    page = (clinic.site.results / record.key / record.fraction_id / "report.html").read_text()
    assert all(html.escape(why) in page for why in wrong.reasons)
    marked = MarkedLayers(page).of_beam
    (label,) = [label for label in marked if wrong.beam_name in label]
    assert marked == {label: named, **{other: set() for other in marked if other != label}}
    assert len(marked) == 2
    (row,) = clinic.rows(spoil)
    assert "FAIL" in row["verdict"]
    assert said in row["message"]
