"""The report's other tables: layers, monitor counts, gamma figures, criteria, provenance."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from mqi.case import worst
from mqi.log.account import LayerAccount
from mqi.qa import BeamVerdict, GammaFinding, MeasureKind, QaCriteria, layer_verdicts
from mqi.report.content import ReportContent
from mqi.report.view import Cell, clean, number, short
from mqi.words import WORDS

__all__ = [
    "account_rows",
    "computing_rows",
    "criteria_rows",
    "gamma_rows",
    "gammas_of",
    "layer_rows",
    "provenance",
]


def gammas_of(content: ReportContent) -> Iterator[tuple[str, GammaFinding]]:
    """All gamma comparisons with the name of the beam that they are of."""
    for beam in content.verdict.beams:
        for gamma in beam.gammas:
            yield short(f"{beam.beam_number} {beam.beam_name}", 60), gamma
    for gamma in content.verdict.plan_gammas:
        yield WORDS["all_beams"], gamma


def gamma_rows(gammas: Iterable[tuple[str, GammaFinding]]) -> list[list[str]]:
    """A table of gamma comparisons, headings first."""
    headings = ("beam", "against", "criterion", "pass_rate", "points", "mean", "maximum", "reference_max")
    rows = [[*(WORDS[key] for key in headings), WORDS["evaluated_max"]]]
    for name, gamma in gammas:
        rows.append(
            [
                name,
                gamma.against,
                _say_gamma(gamma),
                number(gamma.pass_rate_percent, "{:.2f} %"),
                f"{gamma.evaluated_points:,}".replace(",", "\u00a0"),
                number(gamma.mean, "{:.3f}"),
                number(gamma.maximum, "{:.2f}"),
                f"{gamma.reference_max_gy:.4f}",
                f"{gamma.evaluated_max_gy:.4f}",
            ]
        )
    return rows


def layer_rows(beam: BeamVerdict, criteria: QaCriteria) -> tuple[list[str], list[list[Cell]]]:
    """Headings, and one row of cells for each layer."""
    headings = [
        WORDS[key]
        for key in (
            "layer",
            "energy",
            "planned_mu",
            "delivered_mu",
            "deviation",
            "monitor_ratio",
            "spots",
            "x_mean",
            "x_sd",
            "y_mean",
            "y_sd",
            "max_mm",
        )
    ]
    return headings, [_layer_row(layer, criteria) for layer in beam.account.layers]


def account_rows(beam: BeamVerdict) -> list[tuple[str, str]]:
    """What became of the monitor counts of the whole beam, in MU."""
    totals = ("delivered", "parked", "transition", "tail", "idle")
    return [
        (
            WORDS[f"account_{name}"],
            f"{sum(getattr(layer, f'{name}_mu') for layer in beam.account.layers):.4f}",
        )
        for name in totals
    ]


def criteria_rows(criteria: QaCriteria) -> list[tuple[str, str]]:
    """The limits, as a physicist says them."""
    scale = WORDS["local"] if criteria.gamma_local else WORDS["global"]
    factor = criteria.position_action_factor
    position = ", ".join(
        f"{name} {limit:g} / {limit * factor:g} mm"
        for name, limit in (
            (WORDS["limit_mean"], criteria.position_mean_mm),
            (WORDS["limit_sd"], criteria.position_sd_mm),
            (WORDS["limit_max"], criteria.position_max_mm),
        )
    )
    return [
        (
            WORDS["criteria_gamma"],
            f"{criteria.gamma_dose_percent:g} %/{criteria.gamma_distance_mm:g} mm, {scale}, "
            + WORDS["criteria_gamma_how"].format(
                threshold=criteria.gamma_threshold_percent, steps=criteria.gamma_interpolation
            ),
        ),
        (
            WORDS["criteria_gamma_limits"],
            f"≥ {criteria.tolerance_percent:g} % / ≥ {criteria.action_percent:g} %",
        ),
        (WORDS["criteria_position"], position),
        (
            WORDS["criteria_layer_mu"],
            f"{criteria.layer_mu_tolerance_percent:g} % / {criteria.layer_mu_action_percent:g} %, "
            + WORDS["criteria_floor"].format(mu=criteria.layer_mu_floor_mu),
        ),
        (
            WORDS["criteria_beam_mu"],
            f"{criteria.beam_mu_tolerance_percent:g} % / {criteria.beam_mu_action_percent:g} %",
        ),
    ]


def computing_rows(content: ReportContent) -> list[tuple[str, str]]:
    """Engine, its parameters and seed, calibration, software."""
    engine, calibration = content.engine, content.calibration
    return [
        (WORDS["engine"], clean(f"{engine.name} {engine.version}")),
        (WORDS["seed"], str(engine.seed) if engine.seed is not None else WORDS["no_seed"]),
        *((clean(name), clean(value)) for name, value in engine.parameters),
        (
            WORDS["calibration"],
            clean(f"{calibration.name}, {WORDS['version']} {calibration.version}, {calibration.sha256}"),
        ),
        (WORDS["software"], clean(content.software_version)),
    ]


def provenance(content: ReportContent) -> list[tuple[str, list[tuple[str, str]]]]:
    """Files in and out, with their SHA-256."""
    return [
        (title, [(clean(file.path), clean(file.sha256)) for file in files])
        for title, files in ((WORDS["inputs"], content.inputs), (WORDS["outputs"], content.outputs))
    ]


def _say_gamma(gamma: GammaFinding) -> str:
    scale = WORDS["local"] if gamma.local else WORDS["global"]
    return f"{gamma.dose_percent:g} %/{gamma.distance_mm:g} mm, {scale}, > {gamma.threshold_percent:g} %"


def _layer_row(layer: LayerAccount, criteria: QaCriteria) -> list[Cell]:
    verdicts = layer_verdicts(layer, criteria)
    position = verdicts[MeasureKind.POSITION]
    ratio = layer.monitor2_mu / layer.delivered_mu if layer.delivered_mu else math.nan
    return [
        Cell(str(layer.number), worst(verdicts.values())),
        Cell(f"{layer.energy_mev:.1f}"),
        Cell(f"{layer.planned_mu:.4f}"),
        Cell(f"{layer.delivered_mu:.4f}"),
        Cell(f"{layer.mu_deviation_percent:+.2f}", verdicts[MeasureKind.LAYER_MU]),
        Cell(number(ratio, "{:.3f}")),
        Cell(str(layer.spots)),
        Cell(number(layer.x_mean_mm, "{:+.2f}"), position),
        Cell(number(layer.x_sd_mm, "{:.2f}"), position),
        Cell(number(layer.y_mean_mm, "{:+.2f}"), position),
        Cell(number(layer.y_sd_mm, "{:.2f}"), position),
        Cell(number(layer.position_max_mm, "{:.2f}"), position),
    ]
