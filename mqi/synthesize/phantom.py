"""The synthetic patient: a water cylinder with a bone slab and a lung insert, and rays through it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from mqi.engines.contract import Medium
from mqi.engines.medium import relative_stopping_power
from mqi.synthesize.recipe import Recipe

__all__ = ["WATER_SURFACE_MM", "Phantom", "make_phantom", "water_depths_mm"]

AIR_HU, LUNG_HU, WATER_HU, BONE_HU = -1000, -700, 0, 700

CENTRE_MM = (7.5, -52.5, 30.0)
"""Where the cylinder's axis stands in patient coordinates: off the origin, so that a forgotten
isocentre or image position is seen."""

WATER_SURFACE_MM = 20
"""Without a CT the water begins this far before the isocentre: the box of the site's engine settings."""

STEP_MM = 1.0
"""Step of the rays."""


@dataclass(frozen=True)
class Phantom:
    """CT and target.

    Attributes
    ----------
    hu
        (nk, nj, ni) int16 CT numbers, or None for a case that is computed in water.
    origin_mm
        (3,) patient coordinates of the centre of voxel [0, 0, 0].
    isocentre_mm
        Centre of the target.
    """

    hu: NDArray[np.int16] | None
    origin_mm: NDArray[np.float64]
    voxel_mm: float
    isocentre_mm: tuple[float, float, float]
    target_radius_mm: float
    target_depth_mm: float


def make_phantom(recipe: Recipe) -> Phantom:
    """Build the phantom: a cylinder along z that fills 85 % of the slices' width, target below its top."""
    size, voxel = recipe.ct, recipe.ct.voxel_mm
    half = np.array([size.columns - 1, size.columns - 1, size.slices - 1]) * voxel / 2
    origin = np.array(CENTRE_MM) - half
    radius = 0.85 * size.columns * voxel / 2
    target = recipe.target
    isocentre = (CENTRE_MM[0] - 5.0, CENTRE_MM[1] - radius + target.depth_mm, CENTRE_MM[2] - 4.0)
    hu = None
    if recipe.medium is Medium.CT:
        hu = _hounsfield(origin, voxel, (size.slices, size.columns, size.columns), radius, isocentre)
    return Phantom(hu, origin, voxel, isocentre, target.diameter_mm / 2, target.depth_mm)


def _hounsfield(
    origin_mm: NDArray[np.float64],
    voxel_mm: float,
    shape: tuple[int, int, int],
    radius_mm: float,
    isocentre_mm: tuple[float, float, float],
) -> NDArray[np.int16]:
    """CT numbers of cylinder, bone slab (anterior) and lung insert (left), both outside the target."""
    k, j, i = np.indices(shape, dtype=np.float64)
    x, y, z = (origin + voxel_mm * index for origin, index in zip(origin_mm, (i, j, k), strict=True))
    hu = np.full(shape, AIR_HU, dtype=np.int16)
    hu[np.hypot(x - CENTRE_MM[0], y - CENTRE_MM[1]) <= radius_mm] = WATER_HU
    top = CENTRE_MM[1] - radius_mm
    behind_skin = np.abs(y - (top + 0.2 * radius_mm)) <= 0.05 * radius_mm
    hu[behind_skin & (np.abs(x - isocentre_mm[0]) <= 0.4 * radius_mm)] = BONE_HU
    lung_centre = (CENTRE_MM[0] + 0.8 * radius_mm, isocentre_mm[1], isocentre_mm[2])
    distance = np.sqrt(sum((u - c) ** 2 for u, c in zip((x, y, z), lung_centre, strict=True)))
    hu[distance <= 0.1 * radius_mm] = LUNG_HU
    return hu


def water_depths_mm(
    phantom: Phantom,
    axes: NDArray[np.float64],
    sad_mm: tuple[float, float],
    spots_mm: NDArray[np.float64],
    along_mm: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Water-equivalent depth on the ray of each spot, at distances along the beam.

    Parameters
    ----------
    axes
        (3, 3) rows: patient directions of the spots' x and y and of the beam (see mqi.geometry).
    spots_mm
        (n, 2) positions at the isocentre plane.
    along_mm
        (n, m) distances behind (+) or before (-) the isocentre plane.

    Returns
    -------
    (n, m) depths in mm of water.
    """
    if phantom.hu is None:
        return phantom.target_depth_mm + along_mm
    steps = np.arange(-400.0, along_mm.max() + 2 * STEP_MM, STEP_MM)
    spread = 1.0 + steps[:, None] / np.array(sad_mm)  # the rays diverge from the two virtual sources
    lateral = spots_mm[:, None, :] * spread[None]
    points = lateral @ axes[:2] + steps[None, :, None] * axes[2] + np.array(phantom.isocentre_mm)
    index = (points - phantom.origin_mm) / phantom.voxel_mm
    medium = relative_stopping_power(phantom.hu.astype(np.float64))
    rsp = map_coordinates(medium, np.moveaxis(index[..., ::-1], -1, 0), order=1, cval=0.0)
    depth = np.cumsum(rsp, axis=1) * STEP_MM
    return np.stack(
        [np.interp(where, steps + STEP_MM / 2, ray) for where, ray in zip(along_mm, depth, strict=True)]
    )
