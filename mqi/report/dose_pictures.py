"""Pictures of the dose: planes with isodose lines, the gamma map in the same planes, profiles."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from mqi.dose.grid import DoseGrid
from mqi.report.canvas import (
    DOSE_COLOURS,
    GAMMA_COLOURS,
    GAMMA_TOP,
    INK,
    LOG_COLOUR,
    PLAN_COLOUR,
    TPS_COLOUR,
    plain_axes,
)
from mqi.report.planes import Plane, plane_through, sample
from mqi.words import WORDS

if TYPE_CHECKING:
    from mqi.report.pictures import BeamScene

__all__ = [
    "draw_dose_plane",
    "draw_gamma_plane",
    "draw_planes",
    "draw_profile",
    "draw_profiles",
    "worst_gamma",
]

_ISODOSES = ((0.2, "#3b7dd8"), (0.5, "#1a8f4c"), (0.8, "#b8860b"), (0.95, "#b42318"))
"""Share of the reference maximum, and colour."""

_PROFILE_POINTS = 240


def draw_planes(scene: BeamScene, point_mm: NDArray[np.float64], figure: Figure) -> None:
    """Three planes: dose of the log above, gamma below."""
    grid = figure.add_gridspec(
        2,
        4,
        width_ratios=(1, 1, 1, 0.045),
        left=0.065,
        right=0.93,
        top=0.935,
        bottom=0.115,
        hspace=0.34,
        wspace=0.3,
    )
    top_gy = _reference_gy(scene)
    for column, normal in enumerate((2, 1, 0)):
        plane = plane_through(scene.log, point_mm, normal, scene.isocentre_mm)
        draw_dose_plane(figure.add_subplot(grid[0, column]), scene, plane)
        draw_gamma_plane(figure.add_subplot(grid[1, column]), scene, plane)
    dose_bar = figure.colorbar(
        ScalarMappable(Normalize(0.0, top_gy), DOSE_COLOURS), cax=figure.add_subplot(grid[0, 3])
    )
    gamma_bar = figure.colorbar(
        ScalarMappable(Normalize(0.0, GAMMA_TOP), GAMMA_COLOURS), cax=figure.add_subplot(grid[1, 3])
    )
    gamma_bar.set_ticks([0.0, 0.5, 1.0, 1.5, 2.0], labels=["0", "0.5", "1", "1.5", "≥2"])
    for bar, label in ((dose_bar, WORDS["pic_dose_log"]), (gamma_bar, "γ")):
        bar.set_label(label, fontsize=8, color=INK)
        bar.ax.tick_params(labelsize=7.5, colors=INK, length=2)
    lines = [Line2D([], [], color=colour, lw=1.2) for _, colour in _ISODOSES]
    names = [f"{share:.0%}".replace("%", " %") for share, _ in _ISODOSES]
    lines += [Line2D([], [], color=INK, lw=1.2), Line2D([], [], color=INK, lw=1.2, ls=(0, (3, 2)))]
    figure.legend(
        lines,
        [*names, WORDS["pic_log"], WORDS["pic_plan"]],
        loc="lower center",
        ncol=6,
        fontsize=8,
        frameon=False,
        bbox_to_anchor=(0.5, 0.0),
    )


def draw_dose_plane(axes: Axes, scene: BeamScene, plane: Plane, *, size: float = 8.0) -> None:
    """The dose of the log as colours, isodose lines of the log (solid) and of the plan (dashed)."""
    top_gy = _reference_gy(scene)
    log_gy = sample(scene.log, plane.points_mm)
    plan_gy = sample(scene.plan, plane.points_mm)
    axes.imshow(
        log_gy,
        origin="lower",
        extent=plane.extent_mm,
        cmap=DOSE_COLOURS,
        vmin=0.0,
        vmax=top_gy,
        interpolation="nearest",
    )
    levels = [share * top_gy for share, _ in _ISODOSES]
    colours = [colour for _, colour in _ISODOSES]
    for dose_gy, style, width in ((log_gy, "solid", 1.0), (plan_gy, "dashed", 0.9)):
        if min(dose_gy.shape) > 1 and top_gy > 0.0:
            axes.contour(
                plane.across_mm,
                plane.up_mm,
                dose_gy,
                levels,
                colors=colours,
                linestyles=style,
                linewidths=width,
            )
    _finish_plane(axes, plane, plane.name, size)


def draw_gamma_plane(axes: Axes, scene: BeamScene, plane: Plane, *, size: float = 8.0) -> None:
    """The gamma map: blue is within the criterion, red is beyond it, white was not evaluated."""
    axes.imshow(
        sample(scene.gamma, plane.points_mm, order=0),
        origin="lower",
        extent=plane.extent_mm,
        cmap=GAMMA_COLOURS,
        vmin=0.0,
        vmax=GAMMA_TOP,
        interpolation="nearest",
    )
    _finish_plane(axes, plane, f"γ, {plane.name.lower()}", size)


def draw_profiles(scene: BeamScene, point_mm: NDArray[np.float64], figure: Figure) -> None:
    """Depth profile along the beam, and two lateral ones, through the point."""
    grid = figure.add_gridspec(
        1, 3, width_ratios=(1.5, 1, 1), left=0.06, right=0.99, top=0.89, bottom=0.27, wspace=0.22
    )
    names = (WORDS["pic_along"], WORDS["pic_across_x"], WORDS["pic_across_y"])
    for column, (axis, name) in enumerate(zip((2, 0, 1), names, strict=True)):
        axes = figure.add_subplot(grid[0, column])
        draw_profile(axes, scene, point_mm, axis, name)
        if column == 0:
            axes.set_ylabel(WORDS["pic_dose"], fontsize=8, color=INK)
    handles = [line for line in figure.axes[0].lines if not str(line.get_label()).startswith("_")]
    figure.legend(
        handles=handles, loc="lower center", ncol=3, fontsize=8, frameon=False, bbox_to_anchor=(0.5, -0.01)
    )


def draw_profile(
    axes: Axes, scene: BeamScene, point_mm: NDArray[np.float64], axis: int, name: str, *, size: float = 8.0
) -> None:
    """One profile along a row of the beam's axes (0: x, 1: y, 2: downstream)."""
    direction = scene.bev_axes[axis]
    distance_mm, points_mm = _line(scene.log, point_mm, direction)
    from_isocentre_mm = distance_mm + float((point_mm - scene.isocentre_mm) @ direction)
    log_gy = sample(scene.log, points_mm)
    if scene.tps is not None:
        axes.plot(
            from_isocentre_mm,
            sample(scene.tps, points_mm),
            color=TPS_COLOUR,
            lw=1.2,
            ls=":",
            label=WORDS["pic_tps"],
        )
    axes.plot(
        from_isocentre_mm,
        sample(scene.plan, points_mm),
        color=PLAN_COLOUR,
        lw=1.2,
        ls="--",
        label=WORDS["pic_plan"],
    )
    axes.plot(from_isocentre_mm, log_gy, color=LOG_COLOUR, lw=1.4, label=WORDS["pic_log"])
    shown = from_isocentre_mm[np.nan_to_num(log_gy) >= 0.02 * max(_reference_gy(scene), 1e-12)]
    if shown.size > 1:
        axes.set_xlim(shown[0] - 10.0, shown[-1] + 10.0)
    axes.set_ylim(0.0, 1.12 * max(_reference_gy(scene), 1e-12))
    axes.grid(color="#e4e7eb", lw=0.6)
    plain_axes(axes, name, WORDS["pic_from_isocentre"], size=size)


def worst_gamma(scene: BeamScene) -> tuple[float, NDArray[np.float64]] | None:
    """The largest gamma and where it is, relative to the isocentre in patient coordinates, mm."""
    values = scene.gamma.values
    if not np.isfinite(values).any():
        return None
    k, j, i = np.unravel_index(int(np.nanargmax(values)), values.shape)
    place = scene.gamma.origin_mm + (np.array([i, j, k]) * scene.gamma.spacing_mm) @ scene.gamma.axes
    return float(values[k, j, i]), place - scene.isocentre_mm


def _reference_gy(scene: BeamScene) -> float:
    return float(scene.plan.values.max())


def _line(
    dose: DoseGrid, point_mm: NDArray[np.float64], direction: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points on a straight line through the grid: distances from ``point_mm``, and (n, 3) coordinates."""
    reach_mm = float(np.linalg.norm(np.array(dose.values.shape[::-1]) * dose.spacing_mm))
    distance_mm = np.linspace(-reach_mm, reach_mm, _PROFILE_POINTS * 4)
    points_mm = point_mm + distance_mm[:, None] * direction
    inside = np.isfinite(sample(dose, points_mm))
    first, last = np.flatnonzero(inside)[[0, -1]] if inside.any() else (0, distance_mm.size - 1)
    distance_mm = np.linspace(distance_mm[first], distance_mm[last], _PROFILE_POINTS)
    return distance_mm, point_mm + distance_mm[:, None] * direction


def _finish_plane(axes: Axes, plane: Plane, title: str, size: float) -> None:
    left, right, bottom, top = plane.extent_mm
    if plane.down_is_positive:
        bottom, top = top, bottom
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
    axes.plot(0.0, 0.0, marker="+", color=INK, ms=6, mew=0.8)
    plain_axes(axes, title, plane.across, plane.up, size=size)
