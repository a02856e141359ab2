"""Pictures of the delivery: each layer against its limits, the spots of the worst layer, the time line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from numpy.typing import NDArray

from mqi.case import Verdict
from mqi.log.account import BeamAccount, LayerAccount
from mqi.qa import MeasureKind, QaCriteria, layer_verdicts
from mqi.report.canvas import DISTANCE_COLOURS, INK, LIMIT_LINES, LOG_COLOUR, VERDICT_COLOURS, plain_axes
from mqi.words import WORDS

if TYPE_CHECKING:
    from mqi.report.pictures import LayerTime, Spots

__all__ = ["draw_layer_positions", "draw_layers", "draw_spots", "draw_timeline"]

_CALM = LOG_COLOUR
_MOST_SPOTS = 6000
"""Spots drawn at most: more only take time."""


def draw_layers(account: BeamAccount, criteria: QaCriteria, figure: Figure) -> None:
    """Four panels over the layers: mean position in x and y, largest distance, meterset."""
    grid = figure.add_gridspec(2, 2, left=0.06, right=0.99, top=0.93, bottom=0.1, hspace=0.42, wspace=0.16)
    for column, axis in enumerate(("x", "y")):
        axes = figure.add_subplot(grid[0, column])
        draw_layer_positions(axes, account, criteria, axis)
        axes.set_ylabel("mm", fontsize=8, color=INK)
    numbers = _numbers(account)
    tolerance, factor = criteria.position_max_mm, criteria.position_action_factor
    largest = figure.add_subplot(grid[1, 0])
    values = np.array([layer.position_max_mm for layer in account.layers])
    _bars(largest, numbers, values, tolerance, tolerance * factor)
    largest.set_ylim(0.0, max(tolerance * factor, _top(values)) * 1.15)
    plain_axes(largest, WORDS["pic_largest"], WORDS["pic_layer"], "mm")
    mu = figure.add_subplot(grid[1, 1])
    values = np.array([layer.mu_deviation_percent for layer in account.layers])
    _mu_bars(mu, account, criteria, numbers, values)
    plain_axes(mu, WORDS["pic_layer_mu"], WORDS["pic_layer"], "%")


def draw_layer_positions(
    axes: Axes, account: BeamAccount, criteria: QaCriteria, axis: str, *, size: float = 8.0
) -> None:
    """Mean and standard deviation of each layer's spots along one axis, with the limits of the mean."""
    numbers = _numbers(account)
    mean_mm = np.array([getattr(layer, f"{axis}_mean_mm") for layer in account.layers])
    sd_mm = np.array([getattr(layer, f"{axis}_sd_mm") for layer in account.layers])
    tolerance = criteria.position_mean_mm
    action = tolerance * criteria.position_action_factor
    _limits(axes, tolerance, action)
    axes.errorbar(numbers, mean_mm, yerr=sd_mm, fmt="none", ecolor="#9fb3c8", elinewidth=1.4)
    colours = [_colour(abs(value), tolerance, action) for value in mean_mm]
    axes.scatter(numbers, mean_mm, c=colours, s=14, zorder=3)
    _name_beyond(axes, numbers, mean_mm, tolerance, size)
    reach = max(action, _top(np.abs(mean_mm) + sd_mm)) * 1.2
    axes.set_ylim(-reach, reach)
    axes.axhline(0.0, color="#9aa5b1", lw=0.6)
    plain_axes(axes, WORDS["pic_mean_sd"].format(axis=axis), WORDS["pic_layer"], size=size)


def draw_spots(spots: Spots, layer: LayerAccount, criteria: QaCriteria, figure: Figure) -> None:
    """The spots of one layer: where they should be, coloured by distance; and their deviations."""
    grid = figure.add_gridspec(
        1, 2, width_ratios=(1.25, 1), left=0.06, right=0.98, top=0.92, bottom=0.14, wspace=0.2
    )
    here = np.flatnonzero(np.asarray(spots.layer) == layer.number)
    dx_mm, dy_mm = spots.x_log_mm - spots.x_plan_mm, spots.y_log_mm - spots.y_plan_mm
    top = criteria.position_max_mm
    place = figure.add_subplot(grid[0, 0])
    distance_mm = np.hypot(dx_mm[here], dy_mm[here])
    dots = place.scatter(
        spots.x_plan_mm[here],
        spots.y_plan_mm[here],
        c=distance_mm,
        s=16,
        cmap=DISTANCE_COLOURS,
        vmin=0.0,
        vmax=top,
        edgecolors="#7b8794",
        linewidths=0.3,
    )
    place.set_aspect("equal", adjustable="datalim")
    plain_axes(
        place, WORDS["pic_places"].format(number=layer.number, energy=layer.energy_mev), "x / mm", "y / mm"
    )
    bar = figure.colorbar(dots, ax=place, pad=0.02, extend="max")
    bar.set_label(WORDS["pic_distance"], fontsize=8, color=INK)
    bar.ax.tick_params(labelsize=7.5, colors=INK, length=2)
    cloud = figure.add_subplot(grid[0, 1])
    others = np.flatnonzero(np.asarray(spots.layer) != layer.number)
    others = others[:: max(1, others.size // _MOST_SPOTS)]
    cloud.scatter(dx_mm[others], dy_mm[others], s=3, c="#cbd2d9", linewidths=0, label=WORDS["pic_others"])
    cloud.scatter(
        dx_mm[here],
        dy_mm[here],
        s=9,
        c=LOG_COLOUR,
        linewidths=0,
        label=WORDS["in_layer"].format(number=layer.number),
    )
    factor = criteria.position_action_factor
    for radius, (colour, style) in zip((top, top * factor), LIMIT_LINES, strict=True):
        cloud.add_patch(Circle((0.0, 0.0), radius, fill=False, edgecolor=colour, linestyle=style))
    reach = max(top * factor, _top(np.abs(dx_mm)), _top(np.abs(dy_mm))) * 1.08
    cloud.set_xlim(-reach, reach)
    cloud.set_ylim(-reach, reach)
    cloud.set_aspect("equal")
    cloud.axhline(0.0, color="#9aa5b1", lw=0.6, zorder=0)
    cloud.axvline(0.0, color="#9aa5b1", lw=0.6, zorder=0)
    cloud.legend(loc="upper right", fontsize=7.5, framealpha=0.9, edgecolor="none")
    plain_axes(cloud, WORDS["pic_cloud"], WORDS["pic_cloud_x"], "y / mm")


def draw_timeline(times: Sequence[LayerTime], figure: Figure) -> None:
    """When each layer was delivered: an interruption is a gap, a resumption another colour."""
    axes = figure.add_subplot(111, position=(0.06, 0.3, 0.93, 0.52))
    deliveries = list(dict.fromkeys(time.delivery for time in times))
    colours = (LOG_COLOUR, "#7a5195", "#1a8f4c", "#b8860b")
    for time in times:
        colour = colours[deliveries.index(time.delivery) % len(colours)]
        axes.barh(
            time.layer, max(time.stop_s - time.start_s, 0.0), left=time.start_s, height=0.9, color=colour
        )
    axes.invert_yaxis()
    title = WORDS["pic_times"]
    if len(deliveries) > 1:
        title += WORDS["pic_deliveries"].format(count=len(deliveries))
    plain_axes(axes, title, WORDS["pic_seconds"], WORDS["pic_layer"])


def _numbers(account: BeamAccount) -> NDArray[np.int64]:
    return np.array([layer.number for layer in account.layers], dtype=np.int64)


def _top(values: NDArray[np.float64]) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.max()) if finite.size else 0.0


def _colour(size: float, tolerance: float, action: float) -> str:
    if size > action:
        return VERDICT_COLOURS[Verdict.FAIL]
    return VERDICT_COLOURS[Verdict.ACTION] if size > tolerance else _CALM


def _limits(axes: Axes, tolerance: float, action: float, *, both_sides: bool = True) -> None:
    for limit, (colour, style) in zip((tolerance, action), LIMIT_LINES, strict=True):
        for side in (1.0, -1.0) if both_sides else (1.0,):
            axes.axhline(side * limit, color=colour, linestyle=style, linewidth=1.0)


def _bars(
    axes: Axes, numbers: NDArray[np.int64], values: NDArray[np.float64], tolerance: float, action: float
) -> None:
    axes.vlines(
        numbers, 0.0, values, colors=[_colour(value, tolerance, action) for value in values], linewidth=4.0
    )
    _limits(axes, tolerance, action, both_sides=False)
    _name_beyond(axes, numbers, values, tolerance, 8.0)


def _mu_bars(
    axes: Axes,
    account: BeamAccount,
    criteria: QaCriteria,
    numbers: NDArray[np.int64],
    values: NDArray[np.float64],
) -> None:
    tolerance, action = criteria.layer_mu_tolerance_percent, criteria.layer_mu_action_percent
    verdicts = [layer_verdicts(layer, criteria)[MeasureKind.LAYER_MU] for layer in account.layers]
    colours = [_CALM if verdict is Verdict.PASS else VERDICT_COLOURS[verdict] for verdict in verdicts]
    axes.vlines(numbers, 0.0, values, colors=colours, linewidth=4.0)
    _limits(axes, tolerance, action)
    beyond = np.array([verdict is not Verdict.PASS for verdict in verdicts])
    _name_beyond(axes, numbers, np.where(beyond, values, 0.0), tolerance, 8.0)
    reach = max(action, _top(np.abs(values))) * 1.25
    axes.set_ylim(-reach, reach)
    axes.axhline(0.0, color="#9aa5b1", lw=0.6)


def _name_beyond(
    axes: Axes, numbers: NDArray[np.int64], values: NDArray[np.float64], tolerance: float, size: float
) -> None:
    """Write the layer's number beside the (at most five) furthest points beyond the tolerance."""
    order = np.argsort(-np.abs(np.nan_to_num(values)), kind="stable")[:5]
    for index in order:
        if abs(values[index]) > tolerance:
            below = values[index] < 0
            axes.annotate(
                str(numbers[index]),
                (numbers[index], values[index]),
                xytext=(0, -4 if below else 4),
                textcoords="offset points",
                ha="center",
                va="top" if below else "bottom",
                fontsize=size,
                fontweight="bold",
                color=INK,
            )
