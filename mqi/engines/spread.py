"""How a layer's protons stand across the beam: where its rows put them, how far they scatter."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from mqi.engines.contract import EngineLayer
from mqi.engines.proton_physics import ProtonTable
from mqi.engines.rays import Rays

__all__ = ["lay_rows", "scattered_mm2", "spread"]


def lay_rows(
    layer: EngineLayer, protons: NDArray[np.float64], rays: Rays
) -> tuple[NDArray[np.float64], slice, slice, tuple[float, float]]:
    """Share each row between its four nearest lines.

    Returns the protons (rows, columns), the parts of u and v that they stand on, and the variance (mm2, in x
    and y) by which the sharing widened the layer's spots, to be taken off again.
    """
    pitch = rays.pitch_mm
    place = [(layer.x_mm - rays.u_mm[0]) / pitch, (layer.y_mm - rays.v_mm[0]) / pitch]
    low = [np.floor(axis).astype(np.int64) for axis in place]
    part = [axis - floor for axis, floor in zip(place, low, strict=True)]
    x0, y0 = int(low[0].min()), int(low[1].min())
    width, height = int(low[0].max()) - x0 + 2, int(low[1].max()) - y0 + 2
    fluence = np.zeros(width * height)
    for dx in (0, 1):
        for dy in (0, 1):
            weight = (part[0] if dx else 1 - part[0]) * (part[1] if dy else 1 - part[1])
            cell = (low[1] - y0 + dy) * width + low[0] - x0 + dx
            fluence += np.bincount(cell, weights=protons * weight, minlength=width * height)
    total = protons.sum()
    smear = tuple(float(pitch**2 * (protons * (p * (1 - p))).sum() / total) for p in part)
    return (
        fluence.reshape(height, width),
        slice(x0, x0 + width),
        slice(y0, y0 + height),
        (smear[0], smear[1]),
    )


def scattered_mm2(
    fluence: NDArray[np.float64],
    columns: slice,
    rows: slice,
    *,
    table: ProtonTable,
    rays: Rays,
    wepl_cm: NDArray[np.float64],
    shifter: tuple[NDArray[np.float64], NDArray[np.float64]],
) -> NDArray[np.float64]:
    """Variance by multiple scattering at the middle of each slice, mm2 (Fermi-Eyges moments).

    Each slice, and each thin slice of the range shifter, scatters by what the layer's mean water-equivalent
    depth says; from there to any later slice the protons fly their geometric distance.
    """
    mean_cm = np.tensordot(wepl_cm[:, rows, columns], fluence / fluence.sum(), axes=2)
    angles = np.concatenate(
        [np.diff(table.at(table.scattering, depths)) for depths in (shifter[1], mean_cm) if len(depths) > 1]
    )
    step_cm = rays.pitch_mm / 10
    centres = np.concatenate([shifter[0], rays.s_mm[: len(wepl_cm) - 1] / 10])
    zeroth, first, second = (
        np.concatenate([[0.0], np.cumsum(angles * centres**power)[:-1]]) for power in range(3)
    )
    within = (np.concatenate([[0.0], np.cumsum(angles)[:-1]]) + angles / 2) * step_cm**2 / 12
    variance_cm2 = centres**2 * zeroth - 2 * centres * first + second + within
    return np.asarray(100 * np.maximum(variance_cm2, 0.0)[len(shifter[0]) :])


def spread(count: int, source: slice, sigma_mm: NDArray[np.float64], pitch_mm: float) -> NDArray[np.float64]:
    """(slices, count, len(source)): part of a line's protons that reach each line's cell, Gaussian."""
    reach = max(count, source.stop)
    edges = (np.arange(-reach, reach + 2) - 0.5) * pitch_mm
    part = np.diff(ndtr(edges / sigma_mm[:, None]), axis=1)
    offset = np.arange(count)[:, None] - np.arange(source.start, source.stop)[None, :] + reach
    return np.asarray(part[:, offset])
