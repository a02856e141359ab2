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
    dose where it came along. The sum of the beams is compared only when no beam is missing from it and all
    of them were computed in the same CT.
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
        findings += _against_planning_system(manifest, manifest.beam(number).tps_dose, delivered, criteria)
        account = log.finished.prepared.account
        assert account is not None  # source LOG
        beams.append(judge_beam(account, findings, criteria))
        get_run_logger().info("Beam %d: %s %s", number, beams[-1].verdict, "; ".join(beams[-1].reasons))
    plan_findings: list[GammaFinding] = []
    if not failed and len(of_beam) > 1 and on_one_grid(sums[DoseSource.LOG]):
        delivered, planned = total(sums[DoseSource.LOG]), total(sums[DoseSource.PLAN])
        result = gamma(planned, delivered, criteria.gamma)
        plan_findings = [gamma_finding(SAME_ENGINE, result, float(delivered.values.max()))]
        plan_findings += _against_planning_system(manifest, manifest.tps_plan_dose, delivered, criteria)
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


def tps_dose(manifest: CaseManifest, fact: FileFact | None, like: DoseGrid) -> DoseGrid | None:
    """The planning system's dose on another grid, or None when none came along."""
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
