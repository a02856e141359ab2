"""By what a beam is judged, and a gamma comparison in numbers."""

from __future__ import annotations

import math
from typing import Final, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from mqi.case import Frozen
from mqi.dose.gamma import GammaCriteria, GammaResult

__all__ = ["PLANNING_SYSTEM", "SAME_ENGINE", "Against", "GammaFinding", "QaCriteria", "gamma_finding"]

Against = Literal["plan through the same engine", "planning system"]
SAME_ENGINE: Final = "plan through the same engine"
PLANNING_SYSTEM: Final = "planning system"


class QaCriteria(Frozen):
    """By what a beam is judged. Tolerance: within it, nobody needs to look. Action: beyond it, it failed."""

    model_config = ConfigDict(allow_inf_nan=False)

    gamma_dose_percent: float = Field(
        3.0, gt=0, le=20, description="Gamma: dose difference, % (of the maximum, or of the local dose)"
    )
    gamma_distance_mm: float = Field(2.0, gt=0, le=20, description="Gamma: distance to agreement, mm")
    gamma_threshold_percent: float = Field(
        10.0, gt=0, lt=100, description="Gamma: points below this % of the reference maximum are left out"
    )
    gamma_local: bool = Field(False, description="Gamma: dose difference relative to the local dose")
    gamma_interpolation: int = Field(
        20,
        ge=1,
        le=100,
        description="Gamma: search steps per distance to agreement. Fewer are faster and too strict "
        "(10 steps: up to 3 points of pass rate too low on a bad plan)",
    )
    tolerance_percent: float = Field(
        95.0, ge=0, le=100, description="Gamma pass rate from which a beam passes, % (AAPM TG-218: 95)"
    )
    action_percent: float = Field(
        90.0, ge=0, le=100, description="Gamma pass rate below which a beam fails, % (AAPM TG-218: 90)"
    )
    position_mean_mm: float = Field(
        1.0,
        gt=0,
        description="Tolerance for the mean deviation of a layer's spots in x or y, mm (good: 0.04)",
    )
    position_sd_mm: float = Field(
        1.5,
        gt=0,
        description="Tolerance for the standard deviation of a layer's spots in x or y, mm (good: 0.12)",
    )
    position_max_mm: float = Field(
        3.0, gt=0, description="Tolerance for the largest distance of one spot from its planned place, mm"
    )
    position_action_factor: float = Field(
        1.5,
        ge=1,
        description="A position measure fails beyond its tolerance times this factor "
        "(1: whatever is beyond tolerance fails)",
    )
    layer_mu_tolerance_percent: float = Field(
        2.0,
        gt=0,
        description="Tolerance for a layer's meterset, % (good layers scatter by 0.3 %, beam-off noise adds "
        "up to 0.5 %)",
    )
    layer_mu_action_percent: float = Field(
        5.0, gt=0, description="Deviation of a layer's meterset beyond which the beam fails, %"
    )
    layer_mu_floor_mu: float = Field(
        0.01,
        ge=0,
        description="A layer's deviation of at most this many MU is tolerated whatever its share: small "
        "layers scatter more (0.01 MU is 7 ms of beam, or 0.7 mGy)",
    )
    beam_mu_tolerance_percent: float = Field(1.0, gt=0, description="Tolerance for a beam's meterset, %")
    beam_mu_action_percent: float = Field(
        2.0, gt=0, description="Deviation of a beam's meterset beyond which it fails, %"
    )

    @model_validator(mode="after")
    def _tolerance_lies_within_action(self) -> Self:
        if self.action_percent > self.tolerance_percent:
            raise ValueError("action_percent must not be above tolerance_percent: a lower pass rate is worse")
        for name in ("layer_mu", "beam_mu"):
            if getattr(self, f"{name}_tolerance_percent") > getattr(self, f"{name}_action_percent"):
                raise ValueError(f"{name}_tolerance_percent must not be above {name}_action_percent")
        return self

    @property
    def gamma(self) -> GammaCriteria:
        """The part of the criteria that the gamma calculation needs."""
        return GammaCriteria(
            dose_percent=self.gamma_dose_percent,
            distance_mm=self.gamma_distance_mm,
            threshold_percent=self.gamma_threshold_percent,
            local=self.gamma_local,
            interpolation=self.gamma_interpolation,
        )


class GammaFinding(Frozen):
    """A gamma comparison in numbers. No point above the threshold: no pass rate, no mean, no maximum."""

    against: Against
    pass_rate_percent: float | None
    evaluated_points: int
    mean: float | None
    maximum: float | None
    reference_max_gy: float
    evaluated_max_gy: float
    dose_percent: float
    distance_mm: float
    threshold_percent: float
    local: bool
    interpolation: int


def gamma_finding(against: Against, result: GammaResult, evaluated_max_gy: float) -> GammaFinding:
    """Put a gamma result into numbers that JSON can hold: what could not be evaluated is None, not NaN."""
    criteria = result.criteria
    return GammaFinding(
        against=against,
        pass_rate_percent=_finite(result.pass_rate_percent),
        evaluated_points=result.evaluated_points,
        mean=_finite(result.mean),
        maximum=_finite(result.maximum),
        reference_max_gy=result.reference_max_gy,
        evaluated_max_gy=evaluated_max_gy,
        dose_percent=criteria.dose_percent,
        distance_mm=criteria.distance_mm,
        threshold_percent=criteria.threshold_percent,
        local=criteria.local,
        interpolation=criteria.interpolation,
    )


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None
