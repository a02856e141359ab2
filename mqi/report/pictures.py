"""All pictures of one beam, as PNG. Nothing of what a user typed stands in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mqi.dose.grid import DoseGrid
from mqi.qa import BeamVerdict, QaCriteria
from mqi.report.canvas import render
from mqi.report.content import BeamPage, Picture
from mqi.report.dose_pictures import (
    draw_dose_plane,
    draw_gamma_plane,
    draw_planes,
    draw_profile,
    draw_profiles,
    worst_gamma,
)
from mqi.report.layer_pictures import (
    draw_layer_positions,
    draw_layers,
    draw_spots,
    draw_timeline,
)
from mqi.report.planes import interesting_point, plane_through
from mqi.report.view import worst_layer
from mqi.words import WORDS

__all__ = ["BeamScene", "LayerTime", "Spots", "beam_page"]

_WIDTH_IN = 10.0
_DPI = 110
_SMALL_DPI = 80


class Spots(Protocol):
    """A beam's spots, arrays of equal length (see mqi.log.interpret.SpotTable), mm at the isocentre plane."""

    @property
    def layer(self) -> NDArray[np.integer]: ...  # noqa: D102
    @property
    def x_plan_mm(self) -> NDArray[np.floating]: ...  # noqa: D102
    @property
    def y_plan_mm(self) -> NDArray[np.floating]: ...  # noqa: D102
    @property
    def x_log_mm(self) -> NDArray[np.floating]: ...  # noqa: D102
    @property
    def y_log_mm(self) -> NDArray[np.floating]: ...  # noqa: D102


@dataclass(frozen=True)
class LayerTime:
    """When a layer had beam on: seconds since the first beam on of the beam's first delivery."""

    layer: int
    start_s: float
    stop_s: float
    delivery: str


@dataclass(frozen=True)
class BeamScene:
    """What the pictures of one beam are drawn from.

    Attributes
    ----------
    log, plan, tps
        Doses in Gy: from the log, from the plan through the same engine, from the planning system.
    gamma
        The gamma map against ``plan``; NaN where it was not evaluated.
    isocentre_mm
        (3,) patient coordinates.
    bev_axes
        (3, 3) rows: patient directions of the beam's x, y, and downstream (mqi.geometry.bev_axes).
    """

    log: DoseGrid
    plan: DoseGrid
    gamma: DoseGrid
    isocentre_mm: NDArray[np.float64]
    bev_axes: NDArray[np.float64]
    tps: DoseGrid | None = None
    spots: Spots | None = None
    timeline: tuple[LayerTime, ...] = ()


def beam_page(verdict: BeamVerdict, scene: BeamScene, criteria: QaCriteria) -> BeamPage:
    """Draw all pictures of a beam. Takes about a second and a half for 80 x 80 x 60 voxels."""
    point_mm, at_isocentre = interesting_point(scene.log, scene.isocentre_mm)
    account = verdict.account
    place = WORDS["pic_at_isocentre" if at_isocentre else "pic_at_maximum"]
    pictures = [
        _render("planes", 6.4, partial(draw_planes, scene, point_mm), place=place, worst=_say_worst(scene)),
        _render("profiles", 2.6, partial(draw_profiles, scene, point_mm), place=place),
    ]
    if account.layers:
        pictures.append(_render("layers", 4.6, partial(draw_layers, account, criteria)))
    layer = worst_layer(account, criteria)
    if scene.spots is not None and layer is not None and layer.number in scene.spots.layer:
        pictures.append(_render("spots", 4.0, partial(draw_spots, scene.spots, layer, criteria)))
    if scene.timeline:
        pictures.append(_render("timeline", 1.9, partial(draw_timeline, scene.timeline)))
    return BeamPage(verdict, _overview(verdict, scene, criteria, point_mm), tuple(pictures))


def _overview(
    verdict: BeamVerdict, scene: BeamScene, criteria: QaCriteria, point_mm: NDArray[np.float64]
) -> Picture:
    def draw(figure: Figure) -> None:
        grid = figure.add_gridspec(
            1, 4, width_ratios=(1, 1, 1.35, 1.35), left=0.05, right=0.99, top=0.87, bottom=0.21, wspace=0.28
        )
        plane = plane_through(scene.log, point_mm, 2, scene.isocentre_mm)
        draw_dose_plane(figure.add_subplot(grid[0, 0]), scene, plane, size=7.0)
        draw_gamma_plane(figure.add_subplot(grid[0, 1]), scene, plane, size=7.0)
        draw_profile(figure.add_subplot(grid[0, 2]), scene, point_mm, 2, WORDS["pic_along_gy"], size=7.0)
        if verdict.account.layers:
            layer = worst_layer(verdict.account, criteria)
            axis = "y" if layer is not None and abs(layer.y_mean_mm) > abs(layer.x_mean_mm) else "x"
            last = figure.add_subplot(grid[0, 3])
            draw_layer_positions(last, verdict.account, criteria, axis, size=7.0)
            last.set_title(WORDS["pic_mean_mm"].format(axis=axis), fontsize=8, loc="left")

    return render(
        WORDS["pic_overview"], WORDS["pic_overview_how"], (_WIDTH_IN, 2.2, _SMALL_DPI), draw, small=True
    )


def _render(name: str, height_in: float, draw: Callable[[Figure], None], **facts: str) -> Picture:
    caption = WORDS[f"pic_{name}_how"].format(**facts)
    return render(WORDS[f"pic_{name}"], caption, (_WIDTH_IN, height_in, _DPI), draw)


def _say_worst(scene: BeamScene) -> str:
    found = worst_gamma(scene)
    if found is None:
        return WORDS["pic_no_gamma"]
    value, (x_mm, y_mm, z_mm) = found
    return WORDS["pic_worst_gamma"].format(value=value, x=x_mm, y=y_mm, z=z_mm)
