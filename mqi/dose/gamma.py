"""The gamma index of two doses.

Low et al., Med. Phys. 25 (1998) 656; AAPM TG-218: Miften et al., Med. Phys. 45 (2018) e53.
"""

from __future__ import annotations

import functools
import math
import pickle
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mqi.case import Frozen
from mqi.dose.grid import SAME_POINT_MM, DoseGrid, index_map
from mqi.errors import ValidationError

if TYPE_CHECKING:
    from mqi.dose.gamma_search import Search

__all__ = ["GammaCriteria", "GammaResult", "gamma", "warm_up"]

_AXIS_NAMES = ("slices", "rows", "columns")


class GammaCriteria(Frozen):
    """What two doses are compared by."""

    dose_percent: float = Field(
        3.0,
        gt=0,
        le=100,
        description="Dose criterion in % of the reference maximum (global) or of the point (local)",
    )
    distance_mm: float = Field(2.0, gt=0, le=50, description="Distance to agreement, mm")
    threshold_percent: float = Field(
        10.0,
        gt=0,
        lt=100,
        description="Points with less of the reference maximum than this, in %, are left out",
    )
    local: bool = Field(
        False, description="Dose criterion relative to the dose of the point, not to the maximum"
    )
    interpolation: int = Field(
        20,
        ge=1,
        le=100,
        description="Steps of the search per distance to agreement; fewer make gamma too large",
    )
    maximum: float = Field(
        default=2.0,
        ge=1,
        le=10,
        description="Largest gamma that is searched for; what is larger is shown as this",
    )


@dataclass(frozen=True)
class GammaResult:
    """Gamma of each reference voxel and what it comes to.

    Attributes
    ----------
    values
        (nk, nj, ni) float32, shaped like the reference; NaN below the threshold.
    pass_rate_percent
        Part of the evaluated points with gamma <= 1. None: there was nothing to evaluate, which is
        never a pass.
    mean, maximum
        Of the evaluated points; None where there are none.
    reference_max_gy
        Gy; what global criteria and the threshold are relative to.
    """

    values: NDArray[np.float32]
    evaluated_points: int
    passed_points: int
    pass_rate_percent: float | None
    mean: float | None
    maximum: float | None
    reference_max_gy: float
    criteria: GammaCriteria


def gamma(reference: DoseGrid, evaluated: DoseGrid, criteria: GammaCriteria) -> GammaResult:
    """Compare two doses by gamma.

    Gamma of a reference point is the least of sqrt((distance / distance_mm)^2 + (dose difference /
    dose criterion)^2) over a lattice of points around it, ``interpolation`` steps per ``distance_mm``
    along the evaluated grid's axes; there the evaluated dose is interpolated trilinearly. Points outside
    the evaluated grid match nothing. The grids may stand anyhow to each other. A reference with a single
    slice (or row, or column) is searched within its plane.

    Parameters
    ----------
    reference
        Gy; gives the points, the threshold and the normalisation (its maximum).
    evaluated
        Gy.

    Raises
    ------
    ValidationError
        A dose is not finite, or a single plane cannot be compared with the other grid.
    """
    for name, dose in (("reference", reference), ("evaluated", evaluated)):
        if not np.isfinite(dose.values.sum(dtype=np.float64)):  # half the time of asking each voxel
            raise ValidationError(
                f"the {name} dose has voxels that are not a number or infinite",
                todo="Look at where this dose comes from; do not use it",
            )
    reference_max = float(reference.values.max())
    values = np.full(reference.values.shape, np.nan, dtype=np.float32)
    chosen = reference.values >= criteria.threshold_percent / 100 * reference_max
    if reference_max <= 0 or not chosen.any():
        return GammaResult(values, 0, 0, None, None, None, reference_max, criteria)

    found = _search(reference, evaluated, chosen, reference_max, criteria).astype(np.float32)
    values[chosen] = found
    passed = int((found <= 1).sum())
    return GammaResult(
        values=values,
        evaluated_points=found.size,
        passed_points=passed,
        pass_rate_percent=100 * passed / found.size,
        mean=float(found.mean(dtype=np.float64)),
        maximum=float(found.max()),
        reference_max_gy=reference_max,
        criteria=criteria,
    )


def _search(
    reference: DoseGrid,
    evaluated: DoseGrid,
    chosen: NDArray[np.bool_],
    reference_max: float,
    criteria: GammaCriteria,
) -> NDArray[np.float64]:
    """Gamma of the chosen reference voxels, (n,)."""
    voxel = np.flatnonzero(chosen)
    dose = reference.values.ravel()[voxel].astype(np.float64, copy=False)
    tolerance = criteria.dose_percent / 100 * (dose if criteria.local else np.full_like(dose, reference_max))
    spacing_kji = evaluated.spacing_mm[::-1]
    step = criteria.distance_mm / criteria.interpolation / spacing_kji
    reach = np.full(3, math.floor(criteria.maximum * criteria.interpolation + 1e-9), dtype=np.int64)
    reach[_flat_axes(reference, evaluated)] = 0
    voxels = np.ceil(reach * step).astype(np.int64)
    from mqi.dose.gamma_search import BLOCK

    blocks = -(-dose.size // BLOCK)
    arguments = (
        dose,
        voxel,
        np.array(chosen.shape, dtype=np.int64),
        _to_evaluated(reference, evaluated),
        SAME_POINT_MM / spacing_kji,
        tolerance,
        np.ascontiguousarray(evaluated.values, dtype=np.float64),
        step,
        reach,
        criteria.interpolation,
        criteria.maximum,
        np.random.default_rng(0).permutation(blocks),  # hard points lie together: share them out
        int(np.prod(2 * voxels + 2)),
    )
    with _ONE_AT_A_TIME:
        return np.sqrt(_compiled()(*arguments))


def _to_evaluated(reference: DoseGrid, evaluated: DoseGrid) -> NDArray[np.float64]:
    """(3, 4) from k, j, i, 1 of the reference's voxels to their position k, j, i in the evaluated grid."""
    matrix, shift = index_map(evaluated, reference)
    return np.ascontiguousarray(np.column_stack([matrix[::-1, ::-1], shift[::-1]]))


def _flat_axes(reference: DoseGrid, evaluated: DoseGrid) -> list[int]:
    """Axes (0, 1, 2 = k, j, i) of the evaluated grid along which a flat reference is not searched."""
    matrix, shift = index_map(evaluated, reference)
    matrix_mm = (matrix * evaluated.spacing_mm[:, None])[::-1, ::-1]
    direction = matrix_mm / reference.spacing_mm[::-1]
    flat = []
    for axis in range(3):
        if reference.values.shape[axis] > 1:
            continue
        along = int(np.abs(direction[:, axis]).argmax())
        others = np.delete(direction[along], axis) * np.delete(reference.spacing_mm[::-1], axis)
        tilt_mm = np.abs(others * np.delete(reference.values.shape, axis)).sum()
        if tilt_mm > SAME_POINT_MM:
            raise ValidationError(
                f"the reference has a single plane of {_AXIS_NAMES[axis]}, oblique to the evaluated grid",
                todo="Resample the evaluated dose to the reference's grid first",
            )
        flat.append(along)
    for axis in range(3):
        if evaluated.values.shape[axis] > 1:
            continue
        if axis not in flat:
            raise ValidationError(
                f"the evaluated dose has a single plane of {_AXIS_NAMES[axis]}, the reference has more",
                todo="Take the plane as the reference, or compute the evaluated dose in the whole volume",
            )
        off_mm = abs(float(shift[::-1][axis])) * float(evaluated.spacing_mm[::-1][axis])
        if off_mm > SAME_POINT_MM:
            raise ValidationError(
                f"the two planes are {off_mm:.3f} mm apart",
                todo="Export both doses in the same plane",
            )
    return flat


# numba's default threading layer ends the process when two threads enter it at once.
_ONE_AT_A_TIME = threading.Lock()

# A read-only installation; a full disk; a cache damaged by a power cut.
_NO_CACHE = (RuntimeError, OSError, EOFError, pickle.UnpicklingError)


@functools.cache
def _compiled() -> Search:
    """The search as machine code, kept on the disk where that is possible."""
    from mqi.dose.gamma_search import (
        compile_search,  # with numba: half a second, which only a comparison pays
    )

    try:
        return _first_run(compile_search(cache=True))
    except _NO_CACHE:
        return _first_run(compile_search(cache=False))


def _first_run(search: Search) -> Search:
    """Compile for the types that ``gamma`` uses, by a comparison of one point."""
    one, three, count, first = np.ones(1), np.ones(3), np.ones(3, dtype=np.int64), np.zeros(1, dtype=np.int64)
    search(one, first, count, np.eye(3, 4), three, one, np.ones((2, 2, 2)), three, count, 1, 2.0, first, 64)
    return search


def warm_up() -> None:
    """Compile the search now (some seconds, once per installation) rather than in the first comparison."""
    with _ONE_AT_A_TIME:
        _compiled()
