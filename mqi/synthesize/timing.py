"""When the magnets stand where: the planned time of each spot of a layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mqi.plan import PlanLayer

__all__ = ["Timeline", "plan_timeline"]

MAX_SPEED_CM_S = 2000.0
"""Speed of the scanning magnets."""

MIN_RATE_MU_S, MAX_RATE_MU_S = 1.4, 20.0
"""Limits of a layer's dose rate (the site's planning of times; 20 MU/s at every energy)."""

SPOT_RATE_MU_S = 1.5

NO_DOSE_MU = 1e-7


@dataclass(frozen=True)
class Timeline:
    """A layer's planned trajectory for one painting.

    Attributes
    ----------
    spot_ms
        (n,) time from beam on at which each spot is reached (LINE) or finished (MODULATED).
    node_ms, node_mm
        (m,) and (m, 2): the trajectory, straight between its nodes.
    mu_ms, mu
        (k,) times, and the meterset that is delivered until then: straight between.
    rate_mu_s
        Dose rate of the layer.
    """

    spot_ms: NDArray[np.float64]
    node_ms: NDArray[np.float64]
    node_mm: NDArray[np.float64]
    mu_ms: NDArray[np.float64]
    mu: NDArray[np.float64]
    rate_mu_s: float

    @property
    def end_ms(self) -> float:
        """Time from beam on to beam off."""
        return float(self.spot_ms[-1])

    def position_mm(self, time_ms: NDArray[np.float64]) -> NDArray[np.float64]:
        """(..., 2) planned position; before and after the layer its first and last one."""
        return np.stack([np.interp(time_ms, self.node_ms, axis) for axis in self.node_mm.T], axis=-1)

    def delivered_mu(self, time_ms: NDArray[np.float64]) -> NDArray[np.float64]:
        """Meterset delivered until then."""
        return np.interp(time_ms, self.mu_ms, self.mu)


def plan_timeline(layer: PlanLayer, scan_mode: str) -> Timeline:
    """Give one painting of a layer its times.

    The model is the one the site's own tools use: a step's way is rounded down to whole millimetres, the
    layer's rate is the smallest that some step could still be delivered with at full speed, and each step
    takes the time of its meterset or of its way, whichever is longer. It is made for lines; spots
    (MODULATED), of which no log was seen, get the usual rate of lines.
    """
    meterset = layer.meterset_mu / layer.paintings
    way_cm = np.linalg.norm(np.diff(layer.positions_mm, axis=0, prepend=layer.positions_mm[:1]), axis=1) / 10
    way_cm = np.floor(way_cm * 10) / 10
    rate = _line_rate_mu_s(way_cm, meterset) if scan_mode == "LINE" else SPOT_RATE_MU_S
    move_s = way_cm / MAX_SPEED_CM_S
    step_s = np.where(meterset < NO_DOSE_MU, move_s, np.maximum(meterset / rate, move_s))
    spot_ms = 1000 * np.cumsum(step_s)
    if scan_mode == "LINE":
        node_ms, node_mm = spot_ms, layer.positions_mm
    else:  # a quick move at the beginning of each step, then the beam stands
        node_ms = np.stack([spot_ms - 1000 * (step_s - move_s), spot_ms], axis=1).ravel()
        node_mm = np.repeat(layer.positions_mm, 2, axis=0)
    return Timeline(
        spot_ms=spot_ms,
        node_ms=node_ms,
        node_mm=node_mm,
        mu_ms=np.concatenate([[0.0], spot_ms]),
        mu=np.concatenate([[0.0], np.cumsum(meterset)]),
        rate_mu_s=rate,
    )


def _line_rate_mu_s(way_cm: NDArray[np.float64], meterset_mu: NDArray[np.float64]) -> float:
    """Dose rate of a line-scanned layer."""
    moving = way_cm > 0
    rates = MAX_SPEED_CM_S * meterset_mu[moving] / way_cm[moving]
    feasible = rates[rates >= MIN_RATE_MU_S]
    slowest = float(feasible.min()) if len(feasible) else MIN_RATE_MU_S
    return min(slowest, MAX_RATE_MU_S)
