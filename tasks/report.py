"""report_case: what a physicist reads, as HTML, as PDF and in the Prefect UI."""

from __future__ import annotations

import hashlib
from datetime import datetime
from pathlib import Path

import numpy as np
from prefect import runtime, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate
from pydicom.uid import generate_uid

import mqi
from mqi.case import CaseManifest, DoseSource
from mqi.dose.grid import on_one_grid, total
from mqi.dose.rtdose import read_rtdose
from mqi.dose.rtdose_write import write_rtdose
from mqi.engines.settings import EngineSettings
from mqi.files import inside
from mqi.geometry import bev_axes
from mqi.log.calibration import CalibrationSet
from mqi.log.interpret import load_spots
from mqi.plan import IonPlan, PlanBeam, read_plan
from mqi.qa import BeamVerdict, QaVerdict
from mqi.report import (
    BeamPage,
    CalibrationFacts,
    EngineFacts,
    FileHash,
    ReportContent,
    case_artifact_markdown,
)
from mqi.words import VERDICT_NOTES, VERDICT_SYMBOLS, VERDICT_WORDS
from tasks.assess import doses_by_beam, gamma_map_path, tps_dose
from tasks.caching import WhileFilesStand
from tasks.values import BeamDose, Report, artifact_key, report_of

__all__ = ["report_case"]


@task(
    name="report-case",
    task_run_name="report",
    persist_result=True,
    cache_policy=WhileFilesStand(),
    result_serializer="json",
)
def report_case(
    manifest: CaseManifest,
    folder: str,
    doses: tuple[BeamDose, ...],
    verdict: QaVerdict,
    engine: EngineSettings,
    calibration: CalibrationSet,
) -> Report:
    """Write the report, the sums of the beams' doses, and the artifact of the case's run."""
    plan = read_plan(inside(Path(manifest.folder), manifest.plan.path))
    pairs = doses_by_beam(doses)
    if len(pairs) == len(manifest.beams):
        for source in DoseSource:
            of_source = tuple(pair[source is DoseSource.PLAN] for pair in pairs.values())
            _write_sum(folder, plan, manifest, source, of_source)
    by_number = {beam.beam_number: beam for beam in verdict.beams}
    pages = tuple(
        _page(manifest, folder, plan.beam(number), plan, pair, by_number[number], verdict)
        for number, pair in pairs.items()
    )
    content = ReportContent(
        case_key=manifest.key,
        patient_id=manifest.patient_id,
        plan_label=plan.label,
        plan_uid=manifest.plan_uid,
        fraction_number=manifest.fraction_number,
        machine=manifest.machine,
        irradiated_at=min(delivery.irradiated_at for beam in manifest.beams for delivery in beam.deliveries),
        engine=_engine_facts(doses, engine),
        calibration=CalibrationFacts(calibration.name, calibration.version, calibration.sha256),
        verdict=verdict,
        pages=pages,
        software_version=mqi.__version__,
        generated_at=datetime.now().astimezone(),
        inputs=_inputs(manifest),
        outputs=tuple(FileHash(dose.dose.path, dose.dose.sha256) for dose in doses),
        warnings=manifest.warnings,
    )
    from mqi.report.write import write_report

    files = write_report(Path(folder), content)
    _publish(content, (files.html, files.pdf))
    return report_of(Path(folder), files.html, files.pdf)


def _publish(content: ReportContent, files: tuple[Path, ...]) -> None:
    """Put the verdict on the page of the case's run, as an artifact of the run: those stand first there."""
    verdict = content.verdict.verdict
    why = content.verdict.reasons[:1] or (VERDICT_NOTES[verdict],)
    with get_client(sync_client=True) as client:
        client.create_artifact(
            ArtifactCreate(
                key=artifact_key(content.case_key, content.fraction_number, "verdict"),
                type="markdown",
                description=f"{VERDICT_SYMBOLS[verdict]} {VERDICT_WORDS[verdict]}: {why[0]}",
                data=case_artifact_markdown(content, files),
                flow_run_id=runtime.flow_run.id,
            )
        )


def _page(
    manifest: CaseManifest,
    folder: str,
    beam: PlanBeam,
    plan: IonPlan,
    pair: tuple[BeamDose, BeamDose],
    judged: BeamVerdict,
    verdict: QaVerdict,
) -> BeamPage:
    log, planned = (read_rtdose(Path(folder, dose.dose.path)).dose for dose in pair)
    with np.load(gamma_map_path(folder, beam.number)) as stored:
        gamma = planned.with_values(stored["gamma"].astype(np.float64))
    spots = pair[0].finished.prepared.spots
    from mqi.report.pictures import BeamScene, beam_page

    scene = BeamScene(
        log=log,
        plan=planned,
        gamma=gamma,
        isocentre_mm=np.array(beam.isocentre_mm),
        bev_axes=bev_axes(
            beam.gantry_angle_deg, beam.couch_angle_deg, beam.collimator_angle_deg, plan.patient_position
        ),
        tps=tps_dose(manifest, pair[0], log),
        spots=load_spots(Path(folder, spots.path)) if spots else None,
    )
    return beam_page(judged, scene, verdict.criteria)


def _write_sum(
    folder: str, plan: IonPlan, manifest: CaseManifest, source: DoseSource, doses: tuple[BeamDose, ...]
) -> None:
    """Write the sum of the beams; none in water, where each beam has a phantom of its own."""
    grids = [read_rtdose(Path(folder, dose.dose.path)).dose for dose in doses]
    if not on_one_grid(grids):
        return
    summed = total(grids)
    identity = hashlib.sha256("".join(dose.dose.sha256 for dose in doses).encode()).hexdigest()
    write_rtdose(
        Path(folder, "doses", f"plan-{source}.dcm"),
        summed,
        plan=plan,
        beam_number=None,
        sop_uid=generate_uid(entropy_srcs=[identity, "sop"]),
        series_uid=generate_uid(entropy_srcs=[manifest.key, manifest.fraction_id, source, "series"]),
        comment=f"sum of the beams ({source}), fraction {manifest.fraction_number}",
    )


def _engine_facts(doses: tuple[BeamDose, ...], engine: EngineSettings) -> EngineFacts:
    versions = sorted({dose.finished.prepared.engine_version for dose in doses})
    return EngineFacts(
        name=engine.engine,
        version=", ".join(versions),
        analytic=engine.engine == "analytic",
        seed=engine.random_seed,
        parameters=tuple((name, str(value)) for name, value in sorted(engine.parameters.items())),
    )


def _inputs(manifest: CaseManifest) -> tuple[FileHash, ...]:
    files = [manifest.plan, *(file for beam in manifest.beams for file in beam.files), *manifest.ct]
    return tuple(FileHash(file.path, file.sha256) for file in files)
