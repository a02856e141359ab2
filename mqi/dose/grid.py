"""A dose, or any scalar field, on a regular grid that stands anyhow in the patient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from mqi.errors import ValidationError

__all__ = [
    "SAME_POINT_MM",
    "DoseGrid",
    "checked_grid",
    "index_map",
    "on_one_grid",
    "resample",
    "same_grid",
    "total",
]

# Two points nearer than this are the same point: far below any voxel, far above the rounding of
# positions that went through DICOM decimal strings (1e-9 mm) or MetaImage headers (1e-4 mm).
SAME_POINT_MM = 1e-3

# Axes are unit and perpendicular to this (direction cosines, no unit).
AXES_TOLERANCE = 1e-6


@dataclass(frozen=True)
class DoseGrid:
    """Values on a regular grid in DICOM patient coordinates (LPS, mm).

    Attributes
    ----------
    values
        (nk, nj, ni): slices, rows, columns; Gy for a dose.
    origin_mm
        (3,) patient coordinates of the centre of voxel [0, 0, 0].
    spacing_mm
        (3,) distance between voxel centres along i, j and k: columns, rows, slices.
    axes
        (3, 3) orthonormal rows: the patient directions in which i, j and k grow. Right-handed, as
        RT Dose demands (k = i x j).
    """

    values: NDArray[np.float64]
    origin_mm: NDArray[np.float64]
    spacing_mm: NDArray[np.float64]
    axes: NDArray[np.float64] = field(default_factory=lambda: np.eye(3))

    def points_mm(self) -> NDArray[np.float64]:
        """Patient coordinates of all voxel centres, (nk, nj, ni, 3)."""
        k, j, i = np.indices(self.values.shape, dtype=np.float64)
        index = np.stack([i, j, k], axis=-1) * self.spacing_mm
        return self.origin_mm + index @ self.axes

    def with_values(self, values: NDArray[np.float64]) -> DoseGrid:
        """The same grid with other values of the same shape."""
        if values.shape != self.values.shape:
            raise ValueError(f"values have shape {values.shape}, the grid has {self.values.shape}")
        return DoseGrid(values, self.origin_mm, self.spacing_mm, self.axes)


def checked_grid(
    values: ArrayLike, origin_mm: ArrayLike, spacing_mm: ArrayLike, axes: ArrayLike | None = None
) -> DoseGrid:
    """Make a DoseGrid from numbers that came from outside.

    Parameters are those of DoseGrid; ``axes`` default to the patient's own. The values themselves are
    not judged, only where they stand.

    Raises
    ------
    ValidationError
        The values are not three-dimensional or empty, a spacing is not positive, a number is not
        finite, or the axes are not orthonormal and right-handed.
    """
    grid = DoseGrid(
        np.asarray(values, dtype=np.float64),
        np.asarray(origin_mm, dtype=np.float64),
        np.asarray(spacing_mm, dtype=np.float64),
        np.eye(3) if axes is None else np.asarray(axes, dtype=np.float64),
    )
    defect = _defect(grid)
    if defect:
        raise ValidationError(
            f"a dose grid cannot stand like this: {defect}",
            todo="Check the geometry in the file that it came from",
        )
    return grid


def _defect(grid: DoseGrid) -> str:
    """Name what is wrong with a grid's geometry; empty when nothing is."""
    if grid.values.ndim != 3 or grid.values.size == 0:
        return f"values of shape {grid.values.shape}, expected slices x rows x columns"
    if grid.origin_mm.shape != (3,) or not np.isfinite(grid.origin_mm).all():
        return f"origin {grid.origin_mm.tolist()} is not a point"
    if grid.spacing_mm.shape != (3,) or not (np.isfinite(grid.spacing_mm) & (grid.spacing_mm > 0)).all():
        return f"spacing {grid.spacing_mm.tolist()} is not three positive lengths"
    if grid.axes.shape != (3, 3) or not np.isfinite(grid.axes).all():
        return f"axes {grid.axes.tolist()} are not three directions"
    if not np.allclose(grid.axes @ grid.axes.T, np.eye(3), rtol=0, atol=AXES_TOLERANCE):
        return f"axes {grid.axes.tolist()} are not perpendicular unit vectors"
    if np.linalg.det(grid.axes) < 0:
        return f"axes {grid.axes.tolist()} are left-handed"
    return ""


def index_map(source: DoseGrid, target: DoseGrid) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Affine map from voxel indices of ``target`` to voxel indices of ``source``.

    Returns the (3, 3) matrix and the (3,) shift, both in the order i, j, k:
    ``source_ijk = matrix @ target_ijk + shift``.
    """
    matrix = (source.axes @ (target.axes.T * target.spacing_mm)) / source.spacing_mm[:, None]
    shift = source.axes @ (target.origin_mm - source.origin_mm) / source.spacing_mm
    return matrix, shift


def same_grid(a: DoseGrid, b: DoseGrid) -> bool:
    """Whether both grids have the same voxels: each corner of one is that of the other to a micrometre."""
    if a.values.shape != b.values.shape:
        return False
    distance = np.linalg.norm(_corners_mm(a) - _corners_mm(b), axis=1)
    return bool((distance <= SAME_POINT_MM).all())


def _corners_mm(grid: DoseGrid) -> NDArray[np.float64]:
    """(8, 3) patient coordinates of the centres of the corner voxels."""
    unit = np.stack([axis.ravel() for axis in np.indices((2, 2, 2))], axis=1)
    last = np.array(grid.values.shape[::-1]) - 1
    corners: NDArray[np.float64] = grid.origin_mm + (unit * last * grid.spacing_mm) @ grid.axes
    return corners


def resample(dose: DoseGrid, like: DoseGrid) -> DoseGrid:
    """Dose at the voxel centres of another grid.

    Trilinear between the dose's voxel centres; 0 outside the box that they span (a micrometre outside
    still counts as its edge). A dose of a single slice is a plane without thickness: it is 0 off it.

    Returns
    -------
    DoseGrid
        On the grid of ``like``.
    """
    if same_grid(dose, like):
        return like.with_values(dose.values)
    matrix, shift = index_map(dose, like)
    reach = np.array(like.values.shape[::-1], dtype=np.float64)
    drift_mm = np.abs(matrix) * reach * dose.spacing_mm[:, None]
    partner = np.abs(matrix).argmax(axis=1)
    others = drift_mm.copy()
    others[np.arange(3), partner] = 0.0
    if others.sum(axis=1).max() <= SAME_POINT_MM and len(set(partner.tolist())) == 3:
        return like.with_values(_resample_aligned(dose, like, matrix, shift, partner))
    return like.with_values(_resample_oblique(dose, like, matrix, shift))


def _resample_aligned(
    dose: DoseGrid,
    like: DoseGrid,
    matrix: NDArray[np.float64],
    shift: NDArray[np.float64],
    partner: NDArray[np.intp],
) -> NDArray[np.float64]:
    """Resample one axis after the other: source axis d runs along target axis ``partner[d]``."""
    values = dose.values
    for axis in range(3):  # 0, 1, 2 = i, j, k; numpy holds them as k, j, i
        count = like.values.shape[2 - int(partner[axis])]
        index = matrix[axis, partner[axis]] * np.arange(count) + shift[axis]
        size = dose.values.shape[2 - axis]
        inside = _inside(index, size, dose.spacing_mm[axis])
        index = index.clip(0, size - 1)
        lower = np.minimum(index.astype(np.intp), max(size - 2, 0))
        upper = np.minimum(lower + 1, size - 1)
        shape = [1, 1, 1]
        shape[2 - axis] = count
        weight = (index - lower).reshape(shape)
        below, above = np.take(values, lower, axis=2 - axis), np.take(values, upper, axis=2 - axis)
        values = np.where(inside.reshape(shape), below * (1 - weight) + above * weight, 0.0)
    source_axis_of = np.argsort(partner)  # target axis c is source axis source_axis_of[c]
    return np.ascontiguousarray(np.transpose(values, [2 - int(source_axis_of[2 - n]) for n in range(3)]))


def _resample_oblique(
    dose: DoseGrid, like: DoseGrid, matrix: NDArray[np.float64], shift: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Resample at any angle, slice by slice, so that the coordinates never fill the memory."""
    nk, nj, ni = like.values.shape
    j, i = np.indices((nj, ni), dtype=np.float64)
    plane = matrix[:, 0, None, None] * i + matrix[:, 1, None, None] * j + shift[:, None, None]
    out = np.zeros(like.values.shape)
    for k in range(nk):
        index = plane + matrix[:, 2, None, None] * k
        inside = np.ones((nj, ni), dtype=np.bool_)
        for axis in range(3):
            size = dose.values.shape[2 - axis]
            inside &= _inside(index[axis], size, dose.spacing_mm[axis])
            index[axis] = index[axis].clip(0, size - 1)
        sampled = ndimage.map_coordinates(dose.values, index[::-1], order=1, mode="nearest", prefilter=False)
        out[k] = np.where(inside, sampled, 0.0)
    return out


def _inside(index: NDArray[np.float64], size: int, spacing_mm: float) -> NDArray[np.bool_]:
    """Which fractional indices lie between the first and the last voxel centre."""
    slack = SAME_POINT_MM / spacing_mm
    return (index >= -slack) & (index <= size - 1 + slack)


def on_one_grid(doses: Sequence[DoseGrid]) -> bool:
    """Whether all doses have the same voxels. In water they have not: each beam has a phantom of its own."""
    return all(same_grid(doses[0], dose) for dose in doses[1:])


def total(doses: Sequence[DoseGrid], like: DoseGrid | None = None) -> DoseGrid:
    """Sum of doses, on the grid of ``like``; without it all must stand on one grid already.

    Raises
    ------
    ValidationError
        There is no dose, or the doses stand on different grids and ``like`` was not given.
    """
    if not doses:
        raise ValidationError("there is no dose to add up", todo="Compute at least one beam first")
    grid = doses[0] if like is None else like
    if like is None and not on_one_grid(doses):
        raise ValidationError(
            "doses on different grids cannot be added voxel by voxel",
            todo="Name the grid that they are to be resampled to",
        )
    values = np.zeros(grid.values.shape)
    for dose in doses:
        values += resample(dose, grid).values
    return grid.with_values(values)
