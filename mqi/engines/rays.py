"""The grid of the pencil beams: lines that diverge from the sources, slices across the axis."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from mqi.dose.grid import DoseGrid
from mqi.engines.contract import GridGeometry

__all__ = ["Rays", "corners_mm", "geometry_of", "onto", "water_equivalent_depth"]

_SUBSTEPS = 2  # samples of the medium in each step along a line
_SLAB = 16  # steps sampled at once, to stop soon after the range


@dataclass(frozen=True)
class Rays:
    """The diverging calculation grid: lines u, v (mm at the isocentre plane), slices of centre s (mm)."""

    u_mm: NDArray[np.float64]
    v_mm: NDArray[np.float64]
    s_mm: NDArray[np.float64]
    pitch_mm: float
    axes: NDArray[np.float64]
    isocentre_mm: NDArray[np.float64]
    sad_mm: tuple[float, float]

    def stretch(self, s_mm: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """How far the lines stand apart at s, relative to the isocentre plane, in x and in y."""
        return 1 + s_mm / self.sad_mm[0], 1 + s_mm / self.sad_mm[1]

    def points_mm(self, s_mm: NDArray[np.float64]) -> NDArray[np.float64]:
        """Patient coordinates (len(s), len(v), len(u), 3) of the lines at the depths s."""
        x_b, y_b, downstream = self.axes
        stretch_x, stretch_y = self.stretch(s_mm)
        x = (stretch_x[:, None] * self.u_mm)[:, None, :, None]
        y = (stretch_y[:, None] * self.v_mm)[:, :, None, None]
        return np.asarray(self.isocentre_mm + s_mm[:, None, None, None] * downstream + x * x_b + y * y_b)

    def obliquity(self) -> NDArray[np.float64]:
        """(v, u) length of a line per length along the axis."""
        return np.sqrt(
            1 + (self.u_mm / self.sad_mm[0])[None, :] ** 2 + (self.v_mm / self.sad_mm[1])[:, None] ** 2
        )


def geometry_of(grid: DoseGrid) -> GridGeometry:
    """Where a grid stands, without its values."""
    return GridGeometry.model_validate(
        {
            "shape": grid.values.shape,
            "origin_mm": tuple(map(float, grid.origin_mm)),
            "spacing_mm": tuple(map(float, grid.spacing_mm)),
            "axes": tuple(tuple(map(float, row)) for row in grid.axes),
        }
    )


def corners_mm(geometry: GridGeometry) -> NDArray[np.float64]:
    """The eight outer corners of a grid's voxels, (8, 3)."""
    ends = [np.array([-0.5, n - 0.5]) for n in reversed(geometry.shape)]
    index = np.stack(np.meshgrid(*ends, indexing="ij"), axis=-1).reshape(8, 3)
    return np.asarray(
        np.array(geometry.origin_mm) + index * np.array(geometry.spacing_mm) @ np.array(geometry.axes)
    )


def water_equivalent_depth(
    rays: Rays, medium: DoseGrid, before_cm: float, deepest_cm: float
) -> NDArray[np.float64]:
    """(n + 1, v, u) water-equivalent depth at the slices' faces, cm, until all lines are past the range."""
    values = medium.values.astype(np.float32)
    step_cm = rays.obliquity() * (rays.pitch_mm / 10)
    faces = [np.full((1, len(rays.v_mm), len(rays.u_mm)), before_cm)]
    offsets = rays.pitch_mm * ((np.arange(_SUBSTEPS) + 0.5) / _SUBSTEPS - 0.5)
    for begin in range(0, len(rays.s_mm), _SLAB):
        s_mm = rays.s_mm[begin : begin + _SLAB]
        points = rays.points_mm((s_mm[:, None] + offsets).ravel())
        index = np.moveaxis(((points - medium.origin_mm) @ medium.axes.T) / medium.spacing_mm, -1, 0)[::-1]
        rsp = map_coordinates(values, index, order=1, mode="nearest", output=np.float64)
        rsp[~_within(index, medium.values.shape)] = 0.0
        mean = rsp.reshape(len(s_mm), _SUBSTEPS, *rsp.shape[1:]).mean(axis=1)
        faces.append(faces[-1][-1:] + np.cumsum(mean * step_cm, axis=0))
        if faces[-1][-1].min() > deepest_cm:
            break
    return np.concatenate(faces)


def _within(index: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Which points lie in the grid's voxels, whose faces are half a step beyond the outer centres."""
    inside = np.ones(index.shape[1:], dtype=bool)
    for axis, count in zip(index, shape, strict=True):
        inside &= (axis >= -0.5 - 1e-6) & (axis <= count - 0.5 + 1e-6)
    return inside


def onto(target: GridGeometry, dose: NDArray[np.float64], rays: Rays) -> DoseGrid:
    """Bring the dose from the calculation grid onto the wanted one, slice by slice."""
    origin, spacing, axes = np.array(target.origin_mm), np.array(target.spacing_mm), np.array(target.axes)
    values = np.zeros(target.shape)
    edge = _corner_points(rays, len(dose))
    index = ((edge - origin) @ axes.T) / spacing
    counts = np.array(target.shape[::-1])
    low = np.clip(np.floor(index.min(axis=0)).astype(int), 0, counts)
    high = np.clip(np.ceil(index.max(axis=0)).astype(int) + 1, 0, counts)
    j, i = np.meshgrid(np.arange(low[1], high[1]), np.arange(low[0], high[0]), indexing="ij")
    if not i.size:
        return DoseGrid(values, origin, spacing, axes)
    for k in range(int(low[2]), int(high[2])):
        points = origin + (np.stack([i, j, np.full_like(i, k)], axis=-1) * spacing) @ axes - rays.isocentre_mm
        x, y, s = np.moveaxis(points @ rays.axes.T, -1, 0)
        stretch_x, stretch_y = rays.stretch(s)
        place = np.stack(
            [
                (s - rays.s_mm[0]) / rays.pitch_mm,
                (y / stretch_y - rays.v_mm[0]) / rays.pitch_mm,
                (x / stretch_x - rays.u_mm[0]) / rays.pitch_mm,
            ]
        )
        found = map_coordinates(dose, place, order=1, mode="nearest")
        found[~_within(place, dose.shape)] = 0.0
        values[k, low[1] : high[1], low[0] : high[0]] = found
    return DoseGrid(values, origin, spacing, axes)


def _corner_points(rays: Rays, slices: int) -> NDArray[np.float64]:
    """Outer corners of the calculation grid in patient coordinates, (8, 3)."""
    half = rays.pitch_mm / 2
    ends = np.array([rays.s_mm[0] - half, rays.s_mm[slices - 1] + half])
    outer = replace(
        rays,
        u_mm=rays.u_mm[[0, -1]] + np.array([-half, half]),
        v_mm=rays.v_mm[[0, -1]] + np.array([-half, half]),
    )
    return outer.points_mm(ends).reshape(8, 3)
