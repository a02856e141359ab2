"""The search behind gamma, compiled: the smallest gamma on a lattice, without visiting the lattice.

For one reference point the lattice holds every offset (a, b, c) * step along the evaluated grid's axes,
step = distance criterion / interpolation. What makes it fast keeps it exact:

* Trilinear interpolation never leaves the range of a cell's eight corners, so a whole cell is passed
  over when its nearest point and its nearest dose cannot beat the best found so far; the most promising
  cell is searched first. The same holds for a lattice plane within a cell and for a row within a plane.
* Along a row within a cell the dose is linear and gamma squared a parabola: its lowest lattice point is
  one of the two beside the vertex.

Positions and steps are in voxels of the evaluated grid, in the order k, j, i. Distances are squared, in
units of the distance criterion; ``weight`` = 1 / interpolation^2 makes them from lattice steps.

The functions are plain Python until ``compile_search`` makes machine code of them, where no line can be
traced: hence "no cover". The tests compare them with a search that visits the whole lattice.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numba
import numpy as np
from numba.extending import register_jitable
from numpy.typing import NDArray

__all__ = ["BLOCK", "Search", "compile_search"]

# The arguments of _search, by position (machine code takes no others).
Search = Callable[..., NDArray[np.float64]]

BLOCK = 128  # reference points that a thread takes at a time
LATTICE_SLACK = 1e-6  # of a lattice step: a lattice point on a cell's border belongs to it


def compile_search(*, cache: bool) -> Search:
    """The search as machine code, parallel over blocks of reference points.

    Raises RuntimeError when ``cache`` is asked for and no folder can hold the cache.
    """
    compiled: Search = numba.njit(cache=cache, parallel=True, nogil=True)(_search)
    return compiled


def _search(  # pragma: no cover
    reference: NDArray[np.float64],
    voxel: NDArray[np.int64],
    shape: NDArray[np.int64],
    to_evaluated: NDArray[np.float64],
    close: NDArray[np.float64],
    tolerance: NDArray[np.float64],
    evaluated: NDArray[np.float64],
    step: NDArray[np.float64],
    reach: NDArray[np.int64],
    interpolation: int,
    maximum: float,
    order: NDArray[np.int64],
    most_cells: int,
) -> NDArray[np.float64]:
    """Gamma squared of each reference point, (n,), at most ``maximum`` squared.

    Parameters
    ----------
    reference, tolerance
        (n,) Gy: dose and dose criterion of each reference point.
    voxel, shape
        (n,) number of each point's voxel in the reference grid; (3,) voxels of that grid along k, j, i.
    to_evaluated
        (3, 4) from k, j, i, 1 in the reference grid to the position in the evaluated grid.
    close
        (3,) a position so near to a voxel centre is put on it, so that rounding never decides whether a
        point lies inside the grid.
    evaluated
        (nk, nj, ni) Gy.
    step, reach
        (3,) lattice step in voxels; how many steps the search may go along each axis.
    order
        The blocks of points in the order in which threads take them.
    most_cells
        The most cells that can lie within reach of a point.
    """
    count = reference.shape[0]
    weight = 1.0 / (interpolation * interpolation)
    out = np.empty(count, dtype=np.float64)
    for turn in numba.prange(order.shape[0]):
        here = np.empty(3, dtype=np.float64)
        bound = np.empty(most_cells, dtype=np.float64)
        cell = np.empty((most_cells, 3), dtype=np.int64)
        start = order[turn] * BLOCK
        for point in range(start, min(start + BLOCK, count)):
            _place(voxel[point], shape, to_evaluated, close, here)
            dose, scale = reference[point], 1.0 / tolerance[point]
            best = _without_moving(evaluated, here, dose, scale, maximum * maximum)
            found = _cells_in_reach(evaluated, here, dose, scale, step, reach, weight, best, bound, cell)
            while found > 0:
                found = _most_promising_last(bound, cell, found, best)
                if found > 0:
                    found -= 1
                    best = _best_in_cell(evaluated, cell[found], here, dose, scale, step, reach, weight, best)
            out[point] = best
    return out


def _place(  # pragma: no cover
    voxel: int,
    shape: NDArray[np.int64],
    to_evaluated: NDArray[np.float64],
    close: NDArray[np.float64],
    here: NDArray[np.float64],
) -> None:
    """Write into ``here`` where a voxel of the reference stands in the evaluated grid."""
    k, j, i = voxel // (shape[1] * shape[2]), voxel // shape[2] % shape[1], voxel % shape[2]
    for axis in range(3):
        row = to_evaluated[axis]
        at = row[0] * k + row[1] * j + row[2] * i + row[3]
        nearest = round(at)
        here[axis] = nearest if abs(at - nearest) <= close[axis] else at


def _without_moving(  # pragma: no cover
    evaluated: NDArray[np.float64], here: NDArray[np.float64], dose: float, scale: float, best: float
) -> float:
    """The point itself: mostly near enough to leave few cells to search."""
    nk, nj, ni = evaluated.shape
    if not (0 <= here[0] <= nk - 1 and 0 <= here[1] <= nj - 1 and 0 <= here[2] <= ni - 1):
        return best
    k0, j0, i0 = (
        min(int(here[0]), max(nk - 2, 0)),
        min(int(here[1]), max(nj - 2, 0)),
        min(int(here[2]), max(ni - 2, 0)),
    )
    k1, j1, i1 = min(k0 + 1, nk - 1), min(j0 + 1, nj - 1), min(i0 + 1, ni - 1)
    fk, fj, fi = here[0] - k0, here[1] - j0, here[2] - i0
    near = (1 - fj) * ((1 - fi) * evaluated[k0, j0, i0] + fi * evaluated[k0, j0, i1]) + fj * (
        (1 - fi) * evaluated[k0, j1, i0] + fi * evaluated[k0, j1, i1]
    )
    far = (1 - fj) * ((1 - fi) * evaluated[k1, j0, i0] + fi * evaluated[k1, j0, i1]) + fj * (
        (1 - fi) * evaluated[k1, j1, i0] + fi * evaluated[k1, j1, i1]
    )
    miss: float = ((1 - fk) * near + fk * far - dose) * scale
    return min(best, miss * miss)


def _cells_in_reach(  # pragma: no cover
    evaluated: NDArray[np.float64],
    here: NDArray[np.float64],
    dose: float,
    scale: float,
    step: NDArray[np.float64],
    reach: NDArray[np.int64],
    weight: float,
    best: float,
    bound: NDArray[np.float64],
    cell: NDArray[np.int64],
) -> int:
    """List the cells that may beat ``best``, each with the gamma squared that nothing in it can beat."""
    nk, nj, ni = evaluated.shape
    radius = math.sqrt(best / weight)
    rk, rj, ri = (
        min(radius, reach[0]) * step[0],
        min(radius, reach[1]) * step[1],
        min(radius, reach[2]) * step[2],
    )
    found = 0
    for k0 in range(max(0, math.floor(here[0] - rk)), min(max(nk - 2, 0), math.floor(here[0] + rk)) + 1):
        k1 = min(k0 + 1, nk - 1)
        away_k = max(0.0, k0 - here[0], here[0] - k0 - 1) / step[0]
        for j0 in range(max(0, math.floor(here[1] - rj)), min(max(nj - 2, 0), math.floor(here[1] + rj)) + 1):
            j1 = min(j0 + 1, nj - 1)
            away_j = max(0.0, j0 - here[1], here[1] - j0 - 1) / step[1]
            for i0 in range(
                max(0, math.floor(here[2] - ri)), min(max(ni - 2, 0), math.floor(here[2] + ri)) + 1
            ):
                i1 = min(i0 + 1, ni - 1)
                away_i = max(0.0, i0 - here[2], here[2] - i0 - 1) / step[2]
                least = (away_k * away_k + away_j * away_j + away_i * away_i) * weight
                if least >= best:
                    continue
                e0, e1 = evaluated[k0, j0, i0], evaluated[k0, j0, i1]
                e2, e3 = evaluated[k0, j1, i0], evaluated[k0, j1, i1]
                e4, e5 = evaluated[k1, j0, i0], evaluated[k1, j0, i1]
                e6, e7 = evaluated[k1, j1, i0], evaluated[k1, j1, i1]
                low = min(e0, e1, e2, e3, e4, e5, e6, e7)
                high = max(e0, e1, e2, e3, e4, e5, e6, e7)
                miss = max(0.0, low - dose, dose - high) * scale
                least += miss * miss
                if least < best:
                    bound[found] = least
                    cell[found, 0], cell[found, 1], cell[found, 2] = k0, j0, i0
                    found += 1
    return found


def _most_promising_last(  # pragma: no cover
    bound: NDArray[np.float64], cell: NDArray[np.int64], found: int, best: float
) -> int:
    """Drop the cells that cannot beat ``best`` any more and put the one of the lowest bound last."""
    kept = 0
    for n in range(found):
        if bound[n] < best:
            bound[kept] = bound[n]
            cell[kept, 0], cell[kept, 1], cell[kept, 2] = cell[n, 0], cell[n, 1], cell[n, 2]
            if kept > 0 and bound[kept] > bound[kept - 1]:
                bound[kept], bound[kept - 1] = bound[kept - 1], bound[kept]
                for axis in range(3):
                    cell[kept, axis], cell[kept - 1, axis] = cell[kept - 1, axis], cell[kept, axis]
            kept += 1
    return kept


def _best_in_cell(  # pragma: no cover
    evaluated: NDArray[np.float64],
    cell: NDArray[np.int64],
    here: NDArray[np.float64],
    dose: float,
    scale: float,
    step: NDArray[np.float64],
    reach: NDArray[np.int64],
    weight: float,
    best: float,
) -> float:
    """The lesser of ``best`` and the least gamma squared of the cell's lattice points."""
    k0, j0, i0 = cell[0], cell[1], cell[2]
    k1 = min(k0 + 1, evaluated.shape[0] - 1)
    j1 = min(j0 + 1, evaluated.shape[1] - 1)
    i1 = min(i0 + 1, evaluated.shape[2] - 1)
    a_first, a_last = _lattice_range(k0, k1, here[0], step[0], reach[0])
    b_first, b_last = _lattice_range(j0, j1, here[1], step[1], reach[1])
    c_first, c_last = _lattice_range(i0, i1, here[2], step[2], reach[2])
    if c_first > c_last:
        return best
    near_b, near_c = max(0, b_first, -b_last), max(0, c_first, -c_last)
    near_row = near_c * near_c * weight
    near_plane = near_b * near_b * weight + near_row
    for a in range(a_first, a_last + 1):
        plane = a * a * weight
        if plane + near_plane >= best:
            continue
        fk = here[0] + a * step[0] - k0
        e00 = evaluated[k0, j0, i0] + fk * (evaluated[k1, j0, i0] - evaluated[k0, j0, i0])
        e01 = evaluated[k0, j0, i1] + fk * (evaluated[k1, j0, i1] - evaluated[k0, j0, i1])
        e10 = evaluated[k0, j1, i0] + fk * (evaluated[k1, j1, i0] - evaluated[k0, j1, i0])
        e11 = evaluated[k0, j1, i1] + fk * (evaluated[k1, j1, i1] - evaluated[k0, j1, i1])
        miss = max(0.0, min(e00, e01, e10, e11) - dose, dose - max(e00, e01, e10, e11)) * scale
        if plane + near_plane + miss * miss >= best:
            continue
        for b in range(b_first, b_last + 1):
            row = plane + b * b * weight
            if row + near_row >= best:
                continue
            fj = here[1] + b * step[1] - j0
            left, right = e00 + fj * (e10 - e00), e01 + fj * (e11 - e01)
            # Gamma squared along the row: row + weight c^2 + (level + slope c)^2
            slope = (right - left) * step[2] * scale
            level = (left + (here[2] - i0) * (right - left) - dose) * scale
            curve = weight + slope * slope
            if row + level * level * weight / curve >= best:
                continue
            vertex = math.floor(-level * slope / curve)
            for c in range(vertex, vertex + 2):
                inside = min(max(c, c_first), c_last)
                miss = level + slope * inside
                best = min(best, row + weight * inside * inside + miss * miss)
    return best


def _lattice_range(  # pragma: no cover
    lower: int, upper: int, here: float, step: float, reach: int
) -> tuple[int, int]:
    """First and last lattice step that lies between two voxels; none when the last is before the first."""
    first = math.ceil((lower - here) / step - LATTICE_SLACK)
    last = math.floor((upper - here) / step + LATTICE_SLACK)
    return max(-reach, first), min(reach, last)


for _part in (_place, _without_moving, _cells_in_reach, _most_promising_last, _best_in_cell, _lattice_range):
    register_jitable(_part)
