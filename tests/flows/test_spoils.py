"""Everything that goes wrong in a clinic, delivered at once: what the user is told, and what is computed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import pytest
from prefect.client.schemas.objects import FlowRun, StateType

from mqi.case import CaseStatus, case_key
from mqi.record import CaseRecord
from mqi.synthesize import SPOILS, Recipe, SyntheticCase, synthesize_case
from tests.flows.installation import REPOSITORY, Installation

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
    """A tiny case of its own; where a delivered error must come out, one with CT and planning system's doses."""
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
        clinic = Clinic(
            site, delivered, site.worklist(), site.runs(), site.records(), dict(site.engine_runs())
        )
        ended = all(run.state is not None and run.state.is_final() for run in clinic.runs)
        moving = [row for row in clinic.worklist if row["status"] in ("new", "queued", "processing")]
        settling = [row for row in clinic.worklist if "still be arriving" in row["waiting for"]]
        told = all(clinic.rows(spoil) for spoil in delivered) and not moving and not settling
        refused = [spoil for spoil in delivered if SPOILS[spoil].expect == "refused"]
        return clinic if ended and told and all(clinic.runs_of(spoil) for spoil in refused) else None

    return site.until(look, 420, "every spoilt case to come to rest")


def test_show(clinic: Clinic) -> None:
    for spoil in SPOILS:
        print("=====", spoil, SPOILS[spoil].expect)
        for row in clinic.rows(spoil):
            print("   ROW", row)
        for run in clinic.runs_of(spoil):
            print("   RUN", run.name, run.state.type, run.state.name, run.state.message, run.tags)
        for record in clinic.records_of(spoil):
            print(
                "   REC",
                record.status,
                record.message,
                record.manifest.warnings,
                record.verdict and record.verdict["verdict"],
            )
        print("   ENG", clinic.engines_of(spoil))
    print(clinic.engine_runs)
