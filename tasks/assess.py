"""assess_case: compare what was delivered with what was planned, and judge."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from prefect import task
from prefect.logging import get_run_logger

from mqi.case import CaseManifest, DoseSource, FileFact
from mqi.dose.gamma import GammaResult, gamma
from mqi.dose.grid import DoseGrid, on_one_grid, resample, total
from mqi.dose.rtdose import read_rtdose
from mqi.engines.contract import Medium
from mqi.files import atomic_path, inside
from mqi.qa import (
    PLANNING_SYSTEM,
    SAME_ENGINE,
    BeamVerdict,
    GammaFinding,
    QaCriteria,
    QaVerdict,
    gamma_finding,
    judge_beam,
    judge_case,
)
from tasks.caching import WhileFilesStand
from tasks.values import BeamDose

__all__ = ["assess_case", "doses_by_beam", "gamma_map_path", "tps_dose"]


@task(
    name="assess-case",
    task_run_name="assess",
    persist_result=True,
    cache_policy=WhileFilesStand(),
    result_serializer="json",
)
def assess_case(
    manifest: CaseManifest,
    folder: str,
    doses: tuple[BeamDose, ...],
    failed: dict[int, str],
    criteria: QaCriteria,
) -> QaVerdict:
    """Judge every beam that has its doses, and the case.

    Reference is the plan, evaluated is the log: through the same engine, and against the planning system's
    dose where it came along and was computed in the same medium. The sum of the beams is compared only when
    no beam is missing from it and all of them were computed in the same CT.
    """
    beams: list[BeamVerdict] = []
    of_beam = doses_by_beam(doses)
    sums: dict[DoseSource, list[DoseGrid]] = {source: [] for source in DoseSource}
    for number, (log, plan) in of_beam.items():
        delivered, planned = (read_rtdose(Path(folder, dose.dose.path)).dose for dose in (log, plan))
        sums[DoseSource.LOG].append(delivered)
        sums[DoseSource.PLAN].append(planned)
        result = gamma(planned, delivered, criteria.gamma)
        _save_gamma(gamma_map_path(folder, number), result)
        findings = [gamma_finding(SAME_ENGINE, result, float(delivered.values.max()))]
        findings += _against_planning_system(manifest, tps_fact(manifest, log), delivered, criteria)
        account = log.finished.prepared.account
        assert account is not None  # source LOG
        beams.append(judge_beam(account, findings, criteria))
        get_run_logger().info("Beam %d: %s %s", number, beams[-1].verdict, "; ".join(beams[-1].reasons))
    plan_findings: list[GammaFinding] = []
    if not failed and len(of_beam) > 1 and on_one_grid(sums[DoseSource.LOG]):
        delivered, planned = total(sums[DoseSource.LOG]), total(sums[DoseSource.PLAN])
        result = gamma(planned, delivered, criteria.gamma)
        plan_findings = [gamma_finding(SAME_ENGINE, result, float(delivered.values.max()))]
        in_patient = all(same_medium(manifest, log) for log, _ in of_beam.values())
        fact = manifest.tps_plan_dose if in_patient else None
        plan_findings += _against_planning_system(manifest, fact, delivered, criteria)
    return judge_case(beams, plan_findings, criteria, failed)


def doses_by_beam(doses: tuple[BeamDose, ...]) -> Mapping[int, tuple[BeamDose, BeamDose]]:
    """Beam number -> its dose from the log and its dose from the plan, for the beams that have both."""
    found = {(dose.unit.beam_number, dose.unit.source): dose for dose in doses}
    numbers = sorted({number for number, _ in found})
    return {
        number: (found[number, DoseSource.LOG], found[number, DoseSource.PLAN])
        for number in numbers
        if all((number, source) in found for source in DoseSource)
    }


def gamma_map_path(folder: str, beam_number: int) -> Path:
    """Where a beam's gamma map is kept: float32 on the dose's grid, NaN where not evaluated."""
    return Path(folder, "beams", f"{beam_number:02d}", "gamma.npz")


def same_medium(manifest: CaseManifest, dose: BeamDose) -> bool:
    """Whether a dose was computed in what the planning system computed in: the CT, if one came along."""
    return not manifest.ct or dose.finished.prepared.input.medium is Medium.CT


def tps_fact(manifest: CaseManifest, log: BeamDose) -> FileFact | None:
    """The planning system's dose of a beam, where it can be compared with the dose from the log."""
    return manifest.beam(log.unit.beam_number).tps_dose if same_medium(manifest, log) else None


def tps_dose(manifest: CaseManifest, log: BeamDose, like: DoseGrid) -> DoseGrid | None:
    """The planning system's dose of a beam on another grid; None where it cannot be compared."""
    fact = tps_fact(manifest, log)
    if fact is None:
        return None
    return resample(read_rtdose(inside(Path(manifest.folder), fact.path)).dose, like)


def _against_planning_system(
    manifest: CaseManifest, fact: FileFact | None, delivered: DoseGrid, criteria: QaCriteria
) -> list[GammaFinding]:
    if fact is None:
        return []
    reference = read_rtdose(inside(Path(manifest.folder), fact.path)).dose
    result = gamma(reference, delivered, criteria.gamma)
    return [gamma_finding(PLANNING_SYSTEM, result, float(delivered.values.max()))]


def _save_gamma(path: Path, result: GammaResult) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as part, part.open("wb") as stream:
        np.savez_compressed(stream, gamma=result.values)
