"""What became of every monitor count of a beam's logs, and how far its spots were from the plan."""

from __future__ import annotations

from mqi.case import DoseSource, Frozen

__all__ = ["BeamAccount", "LayerAccount"]


class LayerAccount(Frozen):
    """One energy layer, delivered against planned.

    Every count of the log stands in exactly one of ``delivered_mu`` (beam on), ``transition_mu`` (only
    one of the two beam flags set), ``tail_mu`` (after beam off) and ``idle_mu`` (before beam on); only
    ``delivered_mu`` is handed to the engine. ``parked_mu`` is the part of ``delivered_mu`` that was
    logged with the position registers still parked and was given to the nearest valid position.

    Position deviations are delivered minus planned at the isocentre plane, over the layer's spots, mm;
    ``position_max_mm`` is the largest distance. MU deviations are per spot.
    """

    number: int
    energy_mev: float
    samples: int
    planned_mu: float
    delivered_mu: float
    parked_mu: float
    transition_mu: float
    tail_mu: float
    idle_mu: float
    monitor2_mu: float
    spots: int
    x_mean_mm: float
    x_sd_mm: float
    y_mean_mm: float
    y_sd_mm: float
    position_max_mm: float
    spot_mu_mean: float
    spot_mu_sd: float
    spot_mu_max: float

    @property
    def mu_deviation_percent(self) -> float:
        """Delivered over planned layer meterset, minus one, in percent."""
        return 100.0 * (self.delivered_mu / self.planned_mu - 1.0) if self.planned_mu else 0.0


class BeamAccount(Frozen):
    """One beam: its layers, the calibration set that scaled them (name and hash), and its totals."""

    beam_number: int
    beam_name: str
    source: DoseSource
    calibration: str
    calibration_sha256: str
    layers: tuple[LayerAccount, ...]

    @property
    def planned_mu(self) -> float:
        """Planned meterset of the beam, MU."""
        return sum(layer.planned_mu for layer in self.layers)

    @property
    def delivered_mu(self) -> float:
        """Delivered meterset of the beam, MU."""
        return sum(layer.delivered_mu for layer in self.layers)

    @property
    def mu_deviation_percent(self) -> float:
        """Delivered over planned meterset, minus one, in percent."""
        return 100.0 * (self.delivered_mu / self.planned_mu - 1.0) if self.planned_mu else 0.0
