"""Plan optimisation: spread-out Bragg peaks over the target, ray by ray.

Each beam alone gives the target its share of the prescription (single-field uniform dose). On the ray of
each spot the layers' weights are the non-negative least squares solution for a flat depth dose between
the target's near and far side, in water-equivalent depth through the phantom.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq, nnls

from mqi.engines.proton_physics import (
    MEV_PER_G_GY,
    depth_dose,
    protons_per_mu,
    range_g_cm2,
)
from mqi.errors import ConfigurationError
from mqi.geometry import bev_axes
from mqi.plan import PlanBeam, PlanLayer
from mqi.synthesize.phantom import Phantom, water_depths_mm
from mqi.synthesize.recipe import SETUP_BEAM_NUMBER, Recipe

__all__ = ["layer_weights", "plan_beams", "setup_beam"]

SAD_MM = {"G1": (2696.0, 2180.0), "G2": (2597.0, 2223.0)}
"""Virtual source-axis distances x, y of the two nozzles (site's machine models)."""

LEAST_ENERGY_MEV, MOST_ENERGY_MEV = 70.0, 230.0
"""Energies of the machine."""

SNOUT_POSITION_MM = 465.0
"""As in the measured plan."""

TRANSIT_MU = 0.000452
"""Meterset of a spot that only moves the beam in a line-scanned layer (measured)."""

RUN_IN_MM = 6.0
"""A line-scanned layer begins with a transit of this length: at full speed it sets the layer's rate to
1.5 MU/s, which is what all measured layers had."""

LEAST_LAYER_MU = 0.03
"""Fainter layers are left out of the plan: the dose signal takes longer to rise than they last."""

LATERAL_MARGIN = 0.6
"""Spots stand this many spacings outside the target: its edge then is no penumbra."""

DISTAL_MARGIN_MM = 1.5
"""The dose begins to fall this much before the nominal range."""

SMOOTHNESS = 0.02
"""Weight of the second differences in the least squares: neighbours of a layer don't fall to zero."""


def setup_beam(machine: str, isocentre_mm: tuple[float, float, float]) -> PlanBeam:
    """The setup field of the site's plans: number 1, no layers, no dose."""
    return PlanBeam(
        number=SETUP_BEAM_NUMBER,
        name="SETUP",
        description="Site Setup",
        is_setup=True,
        machine=machine,
        scan_mode="NONE",
        gantry_angle_deg=0.0,
        couch_angle_deg=0.0,
        collimator_angle_deg=0.0,
        isocentre_mm=isocentre_mm,
        snout_position_mm=SNOUT_POSITION_MM,
        sad_mm=SAD_MM[machine],
        range_shifters=(),
        meterset_mu=1.0,
        layers=(),
    )


def plan_beams(recipe: Recipe, phantom: Phantom) -> tuple[PlanBeam, ...]:
    """Plan all treatment beams; each gives the target an equal share of the prescription."""
    share_gy = recipe.prescription_gy / len(recipe.gantry_angles_deg)
    beams = []
    for index, (number, gantry) in enumerate(zip(recipe.beam_numbers, recipe.gantry_angles_deg, strict=True)):
        layers = _plan_layers(recipe, phantom, gantry, share_gy)
        beams.append(
            PlanBeam(
                number=number,
                name=f"{index + 1}G{round(gantry):03d}:TX",
                description=f"{index + 1}G{round(gantry):03d}T0",
                is_setup=False,
                machine=recipe.room,
                scan_mode=recipe.scan_mode,
                gantry_angle_deg=gantry,
                couch_angle_deg=0.0,
                collimator_angle_deg=0.0,
                isocentre_mm=phantom.isocentre_mm,
                snout_position_mm=SNOUT_POSITION_MM,
                sad_mm=SAD_MM[recipe.room],
                range_shifters=(),
                meterset_mu=round(sum(layer.total_mu for layer in layers), 6),
                layers=layers,
            )
        )
    return tuple(beams)


def _plan_layers(
    recipe: Recipe, phantom: Phantom, gantry_deg: float, share_gy: float
) -> tuple[PlanLayer, ...]:
    """Choose energies and spots of one beam."""
    spacing = recipe.spot_spacing_mm
    cells, spots = _rays(phantom.target_radius_mm, spacing)
    off_axis = np.minimum(np.hypot(*spots.T), 0.9 * phantom.target_radius_mm)
    half_mm = np.sqrt(phantom.target_radius_mm**2 - off_axis**2)
    axes = bev_axes(gantry_deg, 0.0, 0.0, "HFS")
    depths = water_depths_mm(phantom, axes, SAD_MM[recipe.room], spots, np.stack([-half_mm, half_mm], axis=1))
    # Rounding an energy to 0.1 MeV moves its range by up to 0.1 mm: a little more than the margin.
    deepest = depths[:, 1].max() + DISTAL_MARGIN_MM + 0.3
    count = math.ceil((deepest - depths[:, 0].min()) / recipe.layer_spacing_mm) + 1
    energies = tuple(_energy_mev(deepest - n * recipe.layer_spacing_mm) for n in range(count))
    ranges = np.array([10 * range_g_cm2(energy) for energy in energies])
    mu = np.zeros((count, len(spots)))
    for ray, (near_mm, far_mm) in enumerate(depths):
        first = int(np.flatnonzero(ranges >= far_mm + DISTAL_MARGIN_MM)[-1])
        last = max(first, int(np.flatnonzero(ranges >= near_mm)[-1]))
        # As far as the deepest peak: beyond what is asked for flatness a layer's weight would be free.
        end_mm = max(far_mm, ranges[first] - DISTAL_MARGIN_MM)
        per_cm2 = layer_weights(energies[first : last + 1], near_mm=round(near_mm), far_mm=round(end_mm))
        mu[first : last + 1, ray] = per_cm2
    mu *= share_gy * (spacing / 10) ** 2
    mu /= np.array([protons_per_mu(energy) for energy in energies])[:, None]
    mu = np.where(mu < recipe.min_spot_mu / 2, 0.0, np.maximum(mu, recipe.min_spot_mu))
    layers: list[PlanLayer] = []
    for energy, weights in zip(energies, mu, strict=True):
        if weights.sum() < LEAST_LAYER_MU:
            continue
        if recipe.scan_mode == "LINE":
            positions, meterset = _line_path(cells, weights, spacing, recipe.paintings)
        else:
            positions, meterset = _spot_path(cells, weights, spacing)
        # float32 is what the plan's file can hold; six decimals keep its cumulative sums exact.
        layers.append(
            PlanLayer(
                number=len(layers) + 1,
                energy_mev=energy,
                positions_mm=positions.astype(np.float32).astype(np.float64),
                meterset_mu=np.round(meterset, 6).astype(np.float32).astype(np.float64),
                paintings=recipe.paintings,
            )
        )
    return tuple(layers)


def _energy_mev(range_mm: float) -> float:
    """Energy of a range in water, to the tenth of a MeV that the machine knows."""
    if not 10 * range_g_cm2(LEAST_ENERGY_MEV) <= range_mm <= 10 * range_g_cm2(MOST_ENERGY_MEV):
        raise ConfigurationError(
            f"the target needs a proton range of {range_mm:.0f} mm of water, beyond the machine's energies",
            todo=f"Move the target: {LEAST_ENERGY_MEV:g} to {MOST_ENERGY_MEV:g} MeV must reach all of it",
        )
    found = brentq(lambda energy: 10 * range_g_cm2(energy) - range_mm, LEAST_ENERGY_MEV, MOST_ENERGY_MEV)
    return round(float(found), 1)


def _rays(radius_mm: float, spacing_mm: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Cells (column, row) of the spot grid that cover the target's cross-section, and their centres."""
    reach = radius_mm + LATERAL_MARGIN * spacing_mm
    n = math.ceil(reach / spacing_mm)
    row, column = np.mgrid[-n : n + 1, -n : n + 1]
    inside = np.hypot(column, row) * spacing_mm <= reach
    cells = np.stack([column[inside], row[inside]], axis=1)
    return cells, cells * float(spacing_mm)


@lru_cache(maxsize=4096)
def layer_weights(energies_mev: tuple[float, ...], *, near_mm: int, far_mm: int) -> NDArray[np.float64]:
    """Fluence of each energy, protons per cm2, that gives 1 Gy from ``near_mm`` to ``far_mm`` in water."""
    z_mm = np.linspace(near_mm, max(far_mm, near_mm + 1), max(2 * len(energies_mev), far_mm - near_mm + 1))
    dose = MEV_PER_G_GY * np.stack([depth_dose(z_mm / 10, energy) for energy in energies_mev], axis=1)
    # Scaled by the peak so that the smoothness means the same at every energy.
    scale = float(dose.max())
    bend = np.diff(np.eye(len(energies_mev)), n=2, axis=0) * SMOOTHNESS * scale
    matrix = np.vstack([dose, bend]) / scale
    weights, _ = nnls(matrix, np.concatenate([np.ones(len(z_mm)), np.zeros(len(bend))]))
    return np.asarray(weights / scale, dtype=np.float64)


def _rows(
    cells: NDArray[np.int64], weights: NDArray[np.float64]
) -> list[tuple[int, list[tuple[int, int, float]]]]:
    """The layer's rows in the order of a meander: direction and (column, row, weight) of its cells."""
    rows: list[tuple[int, list[tuple[int, int, float]]]] = []
    for row in np.unique(cells[weights > 0, 1]):
        chosen = (cells[:, 1] == row) & (weights > 0)
        columns = zip(cells[chosen, 0].tolist(), weights[chosen].tolist(), strict=True)
        members = [(column, int(row), weight) for column, weight in sorted(columns)]
        direction = 1 if len(rows) % 2 == 0 else -1
        rows.append((direction, members[::direction]))
    return rows


def _line_path(
    cells: NDArray[np.int64], weights: NDArray[np.float64], spacing_mm: float, paintings: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Line scanning: the weight of point k is delivered from point k-1 to k, so points are cell edges."""
    points: list[tuple[float, float]] = []
    meterset: list[float] = []
    for direction, row in _rows(cells, weights):
        for column, line, weight in row:
            start = ((column - 0.5 * direction) * spacing_mm, line * spacing_mm)
            if not points:
                points.append((start[0] - direction * RUN_IN_MM, start[1]))
                meterset.append(0.0)
            if points[-1] != start:
                points.append(start)
                meterset.append(TRANSIT_MU * paintings)
            points.append(((column + 0.5 * direction) * spacing_mm, line * spacing_mm))
            meterset.append(weight)
    return np.array(points), np.array(meterset)


def _spot_path(
    cells: NDArray[np.int64], weights: NDArray[np.float64], spacing_mm: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Spot scanning: one point a cell."""
    spots = [spot for _, row in _rows(cells, weights) for spot in row]
    positions = np.array([(column * spacing_mm, line * spacing_mm) for column, line, _ in spots])
    return positions, np.array([weight for _, _, weight in spots])
