"""Planes and lines through a dose, wherever its grid stands in the patient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from mqi.dose.grid import DoseGrid

__all__ = ["Plane", "axis_label", "interesting_point", "plane_through", "sample"]

_ENOUGH_DOSE = 0.5
"""Share of the maximum from which the isocentre is a telling place to cut through."""

_SHOWN_DOSE = 0.05
"""Share of the maximum that a picture shows at least; the rest of the grid is cut away."""

_MARGIN_MM = 10.0

_DIRECTIONS = (("to left", "to right"), ("to posterior", "to anterior"), ("to superior", "to inferior"))
_NAMES = ("Sagittal", "Coronal", "Transversal")


@dataclass(frozen=True)
class Plane:
    """A plane of a grid, cut down to where the dose is.

    ``extent_mm`` is (left, right, bottom, top) of the outer voxel edges as matplotlib's imshow with
    ``origin="lower"`` takes it, relative to the isocentre; ``points_mm`` (rows, columns, 3) are the voxel
    centres in patient coordinates; ``across_mm`` and ``up_mm`` are the centres' coordinates.
    """

    name: str
    across: str
    up: str
    down_is_positive: bool
    extent_mm: tuple[float, float, float, float]
    across_mm: NDArray[np.float64]
    up_mm: NDArray[np.float64]
    points_mm: NDArray[np.float64]


def sample(
    dose: DoseGrid, points_mm: NDArray[np.float64], *, order: Literal[0, 1] = 1
) -> NDArray[np.float64]:
    """Values of ``dose`` at points (..., 3) in patient coordinates; NaN outside of its grid."""
    index = ((points_mm - dose.origin_mm) @ dose.axes.T) / dose.spacing_mm
    kji = np.moveaxis(np.round(index, 6)[..., ::-1], -1, 0)  # rounding must not push an edge voxel out
    return map_coordinates(dose.values, kji, output=np.float64, order=order, mode="constant", cval=np.nan)


def interesting_point(dose: DoseGrid, isocentre_mm: NDArray[np.float64]) -> tuple[NDArray[np.float64], bool]:
    """Where to cut: the isocentre if it gets at least half of the maximum, else the maximum.

    Returns the point, on a voxel centre, and whether it is the isocentre's voxel.
    """
    index = np.rint(((isocentre_mm - dose.origin_mm) @ dose.axes.T) / dose.spacing_mm).astype(int)
    shape = np.array(dose.values.shape[::-1])
    at_isocentre = bool(np.all((index >= 0) & (index < shape)))
    if at_isocentre:
        i, j, k = index
        at_isocentre = bool(dose.values[k, j, i] >= _ENOUGH_DOSE * dose.values.max())
    if not at_isocentre:
        k, j, i = np.unravel_index(int(np.argmax(dose.values)), dose.values.shape)
        index = np.array([i, j, k])
    return dose.origin_mm + (index * dose.spacing_mm) @ dose.axes, at_isocentre


def plane_through(
    dose: DoseGrid, point_mm: NDArray[np.float64], normal: int, isocentre_mm: NDArray[np.float64]
) -> Plane:
    """Cut the grid through a point, across its axis ``normal`` (0: i, 1: j, 2: k)."""
    across, up = {0: (1, 2), 1: (0, 2), 2: (0, 1)}[normal]
    start = (dose.origin_mm - isocentre_mm) @ dose.axes.T
    here = (point_mm - isocentre_mm) @ dose.axes.T
    shown = np.argwhere(dose.values >= _SHOWN_DOSE * dose.values.max())
    lowest, highest = shown.min(axis=0)[::-1], shown.max(axis=0)[::-1]
    lines = []
    for axis in (across, up):
        margin = int(np.ceil(_MARGIN_MM / dose.spacing_mm[axis]))
        first = max(0, int(lowest[axis]) - margin)
        last = min(dose.values.shape[2 - axis] - 1, int(highest[axis]) + margin)
        lines.append(start[axis] + np.arange(first, last + 1) * dose.spacing_mm[axis])
    across_mm, up_mm = lines
    local = np.empty((up_mm.size, across_mm.size, 3))
    local[..., across], local[..., up], local[..., normal] = across_mm[None, :], up_mm[:, None], here[normal]
    half = dose.spacing_mm / 2.0
    extent = (
        across_mm[0] - half[across],
        across_mm[-1] + half[across],
        up_mm[0] - half[up],
        up_mm[-1] + half[up],
    )
    return Plane(
        name=_plane_name(dose.axes[normal], normal),
        across=axis_label(dose.axes[across], "ijk"[across]),
        up=axis_label(dose.axes[up], "ijk"[up]),
        down_is_positive=bool(dose.axes[up][1] > 0.99),  # posterior is down, as a radiologist looks at it
        extent_mm=(float(extent[0]), float(extent[1]), float(extent[2]), float(extent[3])),
        across_mm=across_mm,
        up_mm=up_mm,
        points_mm=isocentre_mm + local @ dose.axes,
    )


def axis_label(direction: NDArray[np.float64], name: str) -> str:
    """Say where a direction of the patient (LPS) goes; the grid's own name where it goes askew."""
    dominant = int(np.argmax(np.abs(direction)))
    if abs(direction[dominant]) < 0.99:
        return f"along {name} / mm"
    return f"{_DIRECTIONS[dominant][0 if direction[dominant] > 0 else 1]} / mm"


def _plane_name(normal: NDArray[np.float64], axis: int) -> str:
    dominant = int(np.argmax(np.abs(normal)))
    return _NAMES[dominant] if abs(normal[dominant]) >= 0.99 else f"Across {'ijk'[axis]}"
