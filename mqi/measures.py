"""The measures of a beam: figures against two limits each, and the words for what is not kept.

Limits are inclusive. A figure that is not known is NOT_EVALUABLE, never a pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from mqi.case import Frozen, Verdict, worst
from mqi.criteria import PLANNING_SYSTEM, SAME_ENGINE, GammaFinding, QaCriteria
from mqi.log.account import BeamAccount, LayerAccount

__all__ = ["Measure", "MeasureKind", "gamma_reading", "layer_verdicts", "measure_beam", "ranges"]

_ROUNDING = 1e-9
"""Relative: a value that equals its limit but for the last bits of a float is within it."""

_GAMMA_NUMBERS = ("dose_percent", "distance_mm", "threshold_percent", "local", "interpolation")
_NO_GAMMA = f"The dose from the log was not compared with that of the {SAME_ENGINE}"


class MeasureKind(StrEnum):
    """What is measured. Each kind stands at most once among a beam's measures."""

    GAMMA_PLAN = "gamma against the plan through the same engine"
    GAMMA_TPS = "gamma against the planning system"
    BEAM_MU = "beam meterset"
    LAYER_MU = "layer meterset"
    POSITION = "spot position"


class Measure(Frozen):
    """One measure of a beam: its verdict, and one reason for each limit that is not kept."""

    kind: MeasureKind
    verdict: Verdict
    reasons: tuple[tuple[Verdict, str], ...] = ()


def measure_beam(
    account: BeamAccount, gammas: Sequence[GammaFinding], criteria: QaCriteria
) -> tuple[Measure, ...]:
    """Take all measures of a beam, one of each kind; GAMMA_TPS only where such a comparison is there."""
    against_plan = [gamma for gamma in gammas if gamma.against == SAME_ENGINE]
    against_tps = [gamma for gamma in gammas if gamma.against == PLANNING_SYSTEM]
    plan_readings = [gamma_reading(gamma, criteria) for gamma in against_plan]
    measures = [_measure(MeasureKind.GAMMA_PLAN, plan_readings or [(Verdict.NOT_EVALUABLE, _NO_GAMMA)])]
    if against_tps:
        readings = [gamma_reading(gamma, criteria) for gamma in against_tps]
        measures.append(_measure(MeasureKind.GAMMA_TPS, readings))
    measures.append(_measure(MeasureKind.BEAM_MU, [_beam_mu_reading(account, criteria)]))
    if not account.layers:
        nothing = [(Verdict.NOT_EVALUABLE, "The log has no layer")]
        return (*measures, _measure(MeasureKind.LAYER_MU, nothing), _measure(MeasureKind.POSITION, []))
    return (
        *measures,
        _measure(MeasureKind.LAYER_MU, _over_layers(account.layers, _layer_mu_limit(criteria))),
        _measure(
            MeasureKind.POSITION,
            [
                reading
                for limit in _position_limits(criteria)
                for reading in _over_layers(account.layers, limit)
            ],
        ),
    )


def layer_verdicts(layer: LayerAccount, criteria: QaCriteria) -> dict[MeasureKind, Verdict]:
    """Judge one layer alone: its meterset and its spot positions."""
    return {
        MeasureKind.LAYER_MU: _layer_mu_limit(criteria).grade(layer),
        MeasureKind.POSITION: worst(limit.grade(layer) for limit in _position_limits(criteria)),
    }


@dataclass(frozen=True)
class _LayerLimit:
    """A figure that each layer has, its two limits, and how it is said.

    ``figure`` gives NaN where the layer has none.
    """

    figure: Callable[[LayerAccount], float]
    tolerance: float
    action: float
    unit: str
    form: str
    says: str  # with {value}; the worst layer's figure, with its sign

    def grade(self, layer: LayerAccount) -> Verdict:
        return _grade(abs(self.figure(layer)), self.tolerance, self.action)


def _layer_mu_limit(criteria: QaCriteria) -> _LayerLimit:
    def deviation_percent(layer: LayerAccount) -> float:
        deviation_mu = layer.delivered_mu - layer.planned_mu
        if abs(deviation_mu) <= criteria.layer_mu_floor_mu * (1 + _ROUNDING):
            return 0.0
        return 100.0 * deviation_mu / layer.planned_mu if layer.planned_mu else math.inf

    return _LayerLimit(
        deviation_percent,
        criteria.layer_mu_tolerance_percent,
        criteria.layer_mu_action_percent,
        "%",
        "+.1f",
        "meterset {value} from the plan",
    )


def _position_limits(criteria: QaCriteria) -> Iterator[_LayerLimit]:
    def limit(name: str, tolerance: float, says: str, form: str = ".2f") -> _LayerLimit:
        def figure(layer: LayerAccount) -> float:
            if layer.spots:
                return float(getattr(layer, name))
            is_empty = not layer.planned_mu and layer.delivered_mu <= criteria.layer_mu_floor_mu
            return 0.0 if is_empty else math.nan

        return _LayerLimit(figure, tolerance, tolerance * criteria.position_action_factor, "mm", form, says)

    for axis in ("x", "y"):
        yield limit(
            f"{axis}_mean_mm", criteria.position_mean_mm, f"spots {{value}} off in {axis} on average", "+.2f"
        )
    for axis in ("x", "y"):
        yield limit(
            f"{axis}_sd_mm",
            criteria.position_sd_mm,
            f"spots scatter in {axis} with a standard deviation of {{value}}",
        )
    yield limit("position_max_mm", criteria.position_max_mm, "a spot {value} away from its planned place")


def _over_layers(layers: Iterable[LayerAccount], limit: _LayerLimit) -> list[tuple[Verdict, str]]:
    """One reading for each verdict that occurs among the layers, naming the layers."""
    graded: dict[Verdict, list[LayerAccount]] = {}
    for layer in layers:
        graded.setdefault(limit.grade(layer), []).append(layer)
    return [(verdict, _say_layers(verdict, group, limit)) for verdict, group in graded.items()]


def _say_layers(verdict: Verdict, layers: list[LayerAccount], limit: _LayerLimit) -> str:
    peak = max(layers, key=lambda layer: abs(limit.figure(layer)))
    value = limit.figure(peak)
    where = f"Layer {peak.number} ({peak.energy_mev:.1f} MeV)"
    if len(layers) > 1:
        where = f"{len(layers)} layers ({ranges(layer.number for layer in layers)})"
    if verdict is Verdict.NOT_EVALUABLE:
        return f"{where}: {limit.says.format(value='not known')}"
    if math.isinf(value):
        says = f"{peak.delivered_mu:.4f} MU delivered where none was planned"
    else:
        up_to = "up to " if len(layers) > 1 else ""
        says = limit.says.format(value=f"{up_to}{value:{limit.form}} {limit.unit}")
    worst_one = f", worst in layer {peak.number} ({peak.energy_mev:.1f} MeV)" if len(layers) > 1 else ""
    return f"{where}: {says}{worst_one}; {_say_limit(verdict, limit.tolerance, limit.action, limit.unit)}"


def _beam_mu_reading(account: BeamAccount, criteria: QaCriteria) -> tuple[Verdict, str]:
    if not account.planned_mu:
        return Verdict.NOT_EVALUABLE, "The plan has no meterset for this beam"
    tolerance, action = criteria.beam_mu_tolerance_percent, criteria.beam_mu_action_percent
    deviation = account.mu_deviation_percent
    verdict = _grade(abs(deviation), tolerance, action)
    return verdict, (
        f"Beam meterset {deviation:+.2f} % from the plan ({account.delivered_mu:.3f} of "
        f"{account.planned_mu:.3f} MU); {_say_limit(verdict, tolerance, action, '%')}"
    )


def gamma_reading(gamma: GammaFinding, criteria: QaCriteria) -> tuple[Verdict, str]:
    """Judge one gamma comparison and say it."""
    scale = "local" if gamma.local else "global"
    threshold = f"above {gamma.threshold_percent:g} %"
    what = (
        f"Gamma {gamma.dose_percent:g} %/{gamma.distance_mm:g} mm ({scale}, {threshold}) "
        f"against the {gamma.against}"
    )
    asked = criteria.gamma
    if any(getattr(gamma, name) != getattr(asked, name) for name in _GAMMA_NUMBERS):
        return Verdict.NOT_EVALUABLE, f"{what}: the criteria ask for another gamma calculation than was done"
    rate = gamma.pass_rate_percent
    if rate is None or not math.isfinite(rate) or not gamma.evaluated_points:
        return Verdict.NOT_EVALUABLE, f"{what}: no point lies above the threshold"
    verdict = _grade(100.0 - rate, 100.0 - criteria.tolerance_percent, 100.0 - criteria.action_percent)
    limit = _say_limit(verdict, criteria.tolerance_percent, criteria.action_percent, "%")
    points = f"{gamma.evaluated_points:,}".replace(",", "\u00a0")
    return verdict, f"{what}: {rate:.1f} % of {points} points pass; {limit}"


def _grade(size: float, tolerance: float, action: float) -> Verdict:
    """Grade a size (>= 0; NaN: not known) by two limits, both inclusive."""
    if math.isnan(size):
        return Verdict.NOT_EVALUABLE
    slack = _ROUNDING * max(1.0, tolerance)
    if size <= tolerance + slack:
        return Verdict.PASS
    return Verdict.ACTION if size <= action + slack else Verdict.FAIL


def _measure(kind: MeasureKind, readings: Sequence[tuple[Verdict, str]]) -> Measure:
    return Measure(
        kind=kind,
        verdict=worst(verdict for verdict, _ in readings),
        reasons=tuple(reading for reading in readings if reading[0] is not Verdict.PASS),
    )


def _say_limit(verdict: Verdict, tolerance: float, action: float, unit: str) -> str:
    if verdict is Verdict.FAIL:
        return f"action limit {action:g} {unit}"
    return f"tolerance {tolerance:g} {unit}"


def ranges(numbers: Iterable[int]) -> str:
    """Say numbers shortly.

    >>> ranges([3, 1, 2, 7])
    '1-3, 7'
    """
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
