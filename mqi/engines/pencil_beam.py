"""The embedded dose model: proton pencil beams through a medium of relative stopping powers.

Each layer's rows are laid on a grid at the isocentre plane; the grid's lines diverge from the two virtual
sources. Along each line the water-equivalent depth gives the depth dose; across, the spots are Gaussians
whose variance grows with depth as Fermi and Eyges have it, with the mean water-equivalent depth of the layer
at each slice. Not in it: the nuclear halo, scattering at inhomogeneities within a spot, apertures, the
nozzle. It is no clinical engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mqi.dose.grid import DoseGrid
from mqi.engines.contract import EngineLayer, GridGeometry
from mqi.engines.medium import read_ct_rsp, read_ct_series
from mqi.engines.proton_physics import MEV_PER_G_GY, ProtonTable, proton_table, protons_per_mu
from mqi.engines.rays import Rays, corners_mm, geometry_of, onto, water_equivalent_depth
from mqi.engines.spread import lay_rows, scattered_mm2, spread
from mqi.errors import ValidationError
from mqi.geometry import bev_axes
from mqi.plan import PlanBeam

__all__ = ["MODEL_VERSION", "SPOT_SIGMA_MM", "compute_dose", "range_shifter_mm"]

MODEL_VERSION = "mqi-analytic-1"
"""Changes whenever a dose does: it is part of each job's identity."""

SPOT_SIGMA_MM = (4.65, 5.8)
"""In-air sigma x, y at the isocentre. Measured: size registers of the gantry 2 logs, 70 to 168 MeV."""

RANGE_SHIFTER_MM = {"G1": {"SNOUT_DEG_B": 41.0, "SNOUT_DEG_S": 41.0}, "G2": {"SNOUT_DEG_B": 39.37}}
"""Thickness by room and ID, as the site's engine has it (treatment_machines of the public fork)."""

RANGE_SHIFTER_RSP = 1.16
"""Relative stopping power of PMMA at 1.19 g/cm3 (electron density 1.156 relative to water, I = 74 eV)."""

_PITCH_MM = (1.0, 2.0)  # bounds of the calculation grid's step, which else is the finest step of the result
_LEAST_WEPL_CM = 1e-4  # below this a step's mean dose is taken at its middle
_MARGIN_SIGMAS = 4.5
_FARTHEST_SPOT_MM = 500.0
_LATERAL_AT_RANGE = 0.025  # sigma at the end of range over the range (Highland): only for the grid's margin


def range_shifter_mm(beam: PlanBeam, room: str) -> float:
    """Thickness of all range shifters in the beam, mm.

    Raises ValidationError for one that the room's table does not have.
    """
    known = RANGE_SHIFTER_MM.get(room)
    if known is None:
        raise ValidationError(f"no room {room}; there are {', '.join(RANGE_SHIFTER_MM)}", beam=beam.number)
    total_mm = 0.0
    for shifter in beam.range_shifters:
        if shifter.id not in known:
            raise ValidationError(
                f"the range shifter {shifter.id} is not one of room {room}'s ({', '.join(known)})",
                beam=beam.number,
                todo="Check the plan's range shifter and the room's table",
            )
        total_mm += known[shifter.id]
    return total_mm


def compute_dose(
    layers: Sequence[EngineLayer],
    *,
    beam: PlanBeam,
    patient_position: str,
    room: str,
    mu_per_count: float,
    medium: DoseGrid | None = None,
    ct_files: Sequence[Path] = (),
    score: GridGeometry | None = None,
    sigma_scale: float = 1.0,
    on_layer: Callable[[int, int], None] | None = None,
) -> DoseGrid:
    """Dose of a beam's rows.

    Parameters
    ----------
    layers
        Rows at the isocentre plane. MU of a row = counts * ``mu_per_count``.
    beam
        Angles, isocentre, source distances, snout and range shifters (its spots are not used).
    patient_position
        DICOM patient position, HFS.
    room
        G1 or G2: decides the range shifter's thickness.
    medium
        Stopping powers relative to water on a grid; or give ``ct_files``, the slices of a CT.
    score
        Where the dose is wanted; the medium's own grid when left out.
    sigma_scale
        Factor on the in-air spot size.
    on_layer
        Called as ``on_layer(done, all)`` before each layer with ``done`` counted from 1.

    Returns
    -------
    Dose to water in Gy, on ``score`` or the medium's grid.

    Raises
    ------
    ValidationError
        Rows or geometry that cannot be: no counts, positions beyond 500 mm, an energy outside 30 to 250 MeV,
        source distances that are not positive, an unknown range shifter, a beam that misses the grid.
    """
    medium = _medium(medium, ct_files)
    target = score or geometry_of(medium)
    layers = [layer for layer in layers if layer.counts.any()]
    _check(layers, beam, mu_per_count)
    shifter_mm = range_shifter_mm(beam, room)
    tables = [proton_table(layer.energy_mev) for layer in layers]
    rays, first = _lay_rays(
        layers,
        tables,
        beam=beam,
        patient_position=patient_position,
        medium=medium,
        target=target,
        sigma_scale=sigma_scale,
    )
    wepl_cm = water_equivalent_depth(
        rays, medium, shifter_mm * RANGE_SHIFTER_RSP / 10, max(table.end_cm for table in tables)
    )
    shifter = _shifter_steps(rays, beam, shifter_mm)
    dose = np.zeros((len(wepl_cm) - 1, len(rays.v_mm), len(rays.u_mm)))
    for index, (layer, table) in enumerate(zip(layers, tables, strict=True)):
        if on_layer:
            on_layer(index + 1, len(layers))
        protons = layer.counts.astype(np.float64) * (mu_per_count * protons_per_mu(layer.energy_mev))
        _add_layer(
            dose,
            layer,
            protons,
            table,
            rays=rays,
            wepl_cm=wepl_cm,
            shifter=shifter,
            first=first,
            sigma_scale=sigma_scale,
        )
    return onto(target, dose * MEV_PER_G_GY, rays)


def _medium(medium: DoseGrid | None, ct_files: Sequence[Path]) -> DoseGrid:
    if (medium is None) == (not ct_files):
        raise ValidationError("give either a medium or the files of a CT", todo="Correct the call")
    return medium if medium is not None else read_ct_rsp(read_ct_series(ct_files))


def _check(layers: Sequence[EngineLayer], beam: PlanBeam, mu_per_count: float) -> None:
    reason = ""
    if not layers:
        reason = "no row has any counts: there is nothing to compute"
    elif not (np.isfinite(mu_per_count) and mu_per_count > 0):
        reason = f"{mu_per_count!r} MU per count is not positive"
    elif not all(np.isfinite(sad) and sad > _FARTHEST_SPOT_MM for sad in beam.sad_mm):
        reason = f"the virtual source-axis distances {beam.sad_mm} mm cannot be"
    for layer in layers:
        reach = float(np.abs([layer.x_mm, layer.y_mm]).max())  # not a number if any is none
        if not reach <= _FARTHEST_SPOT_MM:
            reason = f"layer {layer.number}: a position of {reach:g} mm is beyond {_FARTHEST_SPOT_MM:g} mm"
        elif (layer.counts < 0).any():
            reason = f"layer {layer.number}: negative counts"
    if reason:
        raise ValidationError(reason, beam=beam.number, todo="Check the rows that the logs were turned into")


def _lay_rays(
    layers: Sequence[EngineLayer],
    tables: Sequence[ProtonTable],
    *,
    beam: PlanBeam,
    patient_position: str,
    medium: DoseGrid,
    target: GridGeometry,
    sigma_scale: float,
) -> tuple[Rays, int]:
    """The grid of lines around all rows, and the first slice in which a dose is wanted."""
    axes = bev_axes(beam.gantry_angle_deg, beam.couch_angle_deg, beam.collimator_angle_deg, patient_position)
    isocentre = np.array(beam.isocentre_mm)
    pitch = float(np.clip(min(target.spacing_mm), *_PITCH_MM))
    inside = corners_mm(geometry_of(medium)) - isocentre
    wanted = corners_mm(target) - isocentre
    start, stop = float((inside @ axes[2]).min()), float((inside @ axes[2]).max())
    stop = min(stop, float((wanted @ axes[2]).max()))
    if start <= -0.5 * min(beam.sad_mm) or stop <= start:
        raise ValidationError(
            "the beam does not pass through the grid in which its dose is wanted",
            beam=beam.number,
            todo="Check the isocentre and the CT or phantom position",
        )
    count = int(np.ceil((stop - start) / pitch - 1e-9))
    slices = start + pitch * (np.arange(count, dtype=np.float64) + 0.5)
    first = int(np.clip((float((wanted @ axes[2]).min()) - start) // pitch - 1, 0, len(slices) - 1))
    range_mm = 10 * max(table.range_cm for table in tables)
    gap_mm = max(0.0, beam.snout_position_mm) if beam.range_shifters else 0.0
    spread = np.hypot(_LATERAL_AT_RANGE * (range_mm + gap_mm), max(SPOT_SIGMA_MM) * sigma_scale)
    margin = _MARGIN_SIGMAS * float(spread)
    lines: list[NDArray[np.float64]] = []
    for name in ("x_mm", "y_mm"):
        low = min(float(getattr(layer, name).min()) for layer in layers) - margin
        high = max(float(getattr(layer, name).max()) for layer in layers) + margin
        lines.append(pitch * np.arange(int(low // pitch), int(high // pitch) + 2, dtype=np.float64))
    return Rays(lines[0], lines[1], slices, pitch, axes, isocentre, beam.sad_mm), first


def _shifter_steps(
    rays: Rays, beam: PlanBeam, thickness_mm: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centres (cm along the axis) of thin slices of the range shifter, and the depths at their faces (cm).

    Its downstream face stands at the snout position, or at the grid where that is nearer to the source.
    """
    if not thickness_mm:
        return np.empty(0), np.zeros(1)
    end_mm = min(-beam.snout_position_mm, float(rays.s_mm[0]) - rays.pitch_mm / 2)
    count = 20
    centres = end_mm - thickness_mm * (1 - (np.arange(count) + 0.5) / count)
    return centres / 10, np.linspace(0, thickness_mm * RANGE_SHIFTER_RSP / 10, count + 1)


def _add_layer(
    dose: NDArray[np.float64],
    layer: EngineLayer,
    protons: NDArray[np.float64],
    table: ProtonTable,
    *,
    rays: Rays,
    wepl_cm: NDArray[np.float64],
    shifter: tuple[NDArray[np.float64], NDArray[np.float64]],
    first: int,
    sigma_scale: float,
) -> None:
    """Add one layer's dose, MeV/g, to the slices of the calculation grid."""
    fluence, columns, rows, smear_mm2 = lay_rows(layer, protons, rays)
    last = int(np.searchsorted(wepl_cm.min(axis=(1, 2)), table.end_cm))  # first face that all lines pass
    last = min(max(last, 1), len(dose))
    if last <= first:
        return
    variance_mm2 = scattered_mm2(
        fluence, columns, rows, table=table, rays=rays, wepl_cm=wepl_cm[: last + 1], shifter=shifter
    )[first:]
    s_mm = rays.s_mm[first:last]
    stretch_x, stretch_y = rays.stretch(s_mm)
    across = []
    for lines, source, stretch, sigma, smear in (
        (rays.v_mm, rows, stretch_y, SPOT_SIGMA_MM[1], smear_mm2[1]),
        (rays.u_mm, columns, stretch_x, SPOT_SIGMA_MM[0], smear_mm2[0]),
    ):
        here = np.sqrt((sigma * sigma_scale) ** 2 + variance_mm2) / stretch
        across.append(spread(len(lines), source, np.sqrt(np.maximum(here**2 - smear, 0.01)), rays.pitch_mm))
    per_cm2 = across[0] @ fluence @ across[1].transpose(0, 2, 1)
    per_cm2 *= (100.0 / (rays.pitch_mm**2 * stretch_x * stretch_y))[:, None, None]
    dose[first:last] += per_cm2 * _mean_dose(table, wepl_cm[first : last + 1])


def _mean_dose(table: ProtonTable, faces_cm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of the depth dose over each step of each line: energy is neither lost nor won by the step."""
    width = np.diff(faces_cm, axis=0)
    thin = width < _LEAST_WEPL_CM
    energy = table.at(table.energy, faces_cm)
    mean = np.diff(energy, axis=0) / np.where(thin, 1.0, width)
    if thin.any():
        mean[thin] = table.at(table.dose, faces_cm[:-1][thin])
    return np.asarray(mean)
