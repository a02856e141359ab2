"""The planning system's doses: the embedded engine on the planned spots, a little different on purpose."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from mqi.dose.grid import DoseGrid
from mqi.dose.rtdose import write_rtdose
from mqi.engines.contract import EngineLayer, Medium
from mqi.engines.medium import read_ct_rsp, read_ct_series, water_box, water_phantom
from mqi.engines.pencil_beam import compute_dose
from mqi.log.calibration import CalibrationSet
from mqi.plan import IonPlan, PlanBeam, PlanLayer
from mqi.synthesize.phantom import WATER_SURFACE_MM
from mqi.synthesize.recipe import Recipe

__all__ = ["write_tps_doses"]

TPS_SIGMA_SCALE = 1.02
"""The planning system's spots are this much wider than the engine's: no two models agree to the bit."""

STEPS_A_SPOT = 3
"""Points along each way of a line-scanned layer."""

WATER_VOXEL_MM, WATER_VOXELS, WATER_BEYOND_MM = 2, 70, 50
"""Dose grid in water: voxel size, voxels across, and how far it goes on behind the target's centre."""


def write_tps_doses(
    folder: Path, recipe: Recipe, plan: IonPlan, calibration: CalibrationSet, ct_files: tuple[Path, ...]
) -> dict[int | None, Path]:
    """Write an RT Dose per treatment beam, and their sum (key None) where they share the CT's grid."""
    doses: dict[int | None, DoseGrid] = {
        beam.number: _dose(recipe, plan, beam, calibration, ct_files) for beam in plan.treatment_beams
    }
    if recipe.medium is Medium.CT:
        grids = list(doses.values())
        doses[None] = grids[0].with_values(np.sum([grid.values for grid in grids], axis=0))
    paths: dict[int | None, Path] = {}
    for number, grid in doses.items():
        sop_uid = recipe.uid("dose", number)
        paths[number] = folder / f"RD.{sop_uid}.dcm"
        write_rtdose(
            paths[number],
            grid,
            plan=plan,
            beam_number=number,
            series_uid=recipe.uid("dose", "series"),
            sop_uid=sop_uid,
            comment="Synthetic planning system dose",
        )
    return paths


def _dose(
    recipe: Recipe,
    plan: IonPlan,
    beam: PlanBeam,
    calibration: CalibrationSet,
    ct_files: tuple[Path, ...],
) -> DoseGrid:
    """Compute one beam on the CT's grid or in its own box of water."""
    if recipe.medium is Medium.CT:
        medium, score = read_ct_rsp(read_ct_series(ct_files)), None
    else:
        deep = math.ceil((recipe.target.depth_mm + WATER_BEYOND_MM) / WATER_VOXEL_MM)
        phantom = water_phantom(
            beam,
            plan.patient_position,
            count=(WATER_VOXELS, WATER_VOXELS, deep),
            unit_mm=(WATER_VOXEL_MM,) * 3,
            position_mm=(
                -WATER_VOXELS * WATER_VOXEL_MM // 2,
                -WATER_VOXELS * WATER_VOXEL_MM // 2,
                WATER_SURFACE_MM - deep * WATER_VOXEL_MM,
            ),
        )
        medium, score = water_box(phantom.box), phantom.score
    return compute_dose(
        [_rows(layer, beam.scan_mode, calibration.mu_per_count) for layer in beam.layers],
        beam=beam,
        patient_position=plan.patient_position,
        room=recipe.room,
        mu_per_count=calibration.mu_per_count,
        medium=medium,
        score=score,
        sigma_scale=TPS_SIGMA_SCALE,
    )


def _rows(layer: PlanLayer, scan_mode: str, mu_per_count: float) -> EngineLayer:
    """A planned layer as an engine's rows: points along the ways of a line, or the spots themselves."""
    positions, meterset = layer.positions_mm, layer.meterset_mu
    if scan_mode == "LINE":
        part = (np.arange(STEPS_A_SPOT) + 0.5) / STEPS_A_SPOT
        ways = np.diff(positions, axis=0)
        positions = (positions[:-1, None] + part[None, :, None] * ways[:, None]).reshape(-1, 2)
        meterset = np.repeat(meterset[1:] / STEPS_A_SPOT, STEPS_A_SPOT)
    return EngineLayer(
        number=layer.number,
        energy_mev=layer.energy_mev,
        time_ms=np.arange(len(positions), dtype=np.float64),
        x_mm=positions[:, 0],
        y_mm=positions[:, 1],
        counts=np.rint(meterset / mu_per_count).astype(np.int64),
    )
