"""The content as rows of text with verdicts: what HTML, PDF and Markdown all show."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from mqi.case import Verdict, worst
from mqi.log.account import BeamAccount, LayerAccount
from mqi.qa import (
    PLANNING_SYSTEM,
    SAME_ENGINE,
    BeamVerdict,
    GammaFinding,
    MeasureKind,
    QaCriteria,
    gamma_reading,
    layer_verdicts,
    measure_beam,
)
from mqi.report.content import ReportContent
from mqi.words import WORDS

__all__ = [
    "SUMMARY_HEADINGS",
    "BeamRow",
    "Cell",
    "beam_label",
    "clean",
    "headline_reasons",
    "identity_rows",
    "number",
    "short",
    "signed",
    "summary_rows",
    "worst_layer",
]

SUMMARY_HEADINGS = tuple(
    WORDS[key]
    for key in (
        "beam",
        "verdict",
        "gamma_plan",
        "gamma_tps",
        "beam_mu",
        "layer_mu",
        "position",
    )
)

MOST_REASONS = 8

_UNPRINTABLE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ud800-\udfff\ufeff\ufffe\uffff]+"
)
"""Control characters, and those that turn the direction of text around: a name must not rewrite a report."""


@dataclass(frozen=True)
class Cell:
    """A text and, where it is a measure, its verdict."""

    text: str
    verdict: Verdict | None = None


@dataclass(frozen=True)
class BeamRow:
    """A beam in the summary: its cells follow SUMMARY_HEADINGS after the first two."""

    label: str
    verdict: Verdict
    cells: tuple[Cell, ...]


def clean(text: str) -> str:
    """Text without what cannot be printed, on one line."""
    return _UNPRINTABLE.sub(" ", text).strip()


def short(text: str, most: int = 120) -> str:
    """Clean text of at most ``most`` characters: what stands in a head or a table must not fill a page."""
    text = clean(text)
    return text if len(text) <= most else text[: most - 1] + "…"


def identity_rows(content: ReportContent) -> list[tuple[str, str]]:
    """Whose report this is."""
    return [
        (WORDS["patient_id"], short(content.patient_id)),
        (WORDS["plan"], short(content.plan_label)),
        (WORDS["fraction"], str(content.fraction_number)),
        (WORDS["machine"], short(content.machine)),
        (WORDS["irradiated_at"], f"{content.irradiated_at:%Y-%m-%d %H:%M} ({WORDS['machine_clock']})"),
        (WORDS["generated_at"], f"{content.generated_at:%Y-%m-%d %H:%M %Z}"),
        (WORDS["engine"], short(f"{content.engine.name} {content.engine.version}")),
        (
            WORDS["calibration"],
            short(
                f"{content.calibration.name}, {WORDS['version']} {content.calibration.version} "
                f"({content.calibration.sha256[:8]})"
            ),
        ),
        (WORDS["plan_uid"], short(content.plan_uid)),
    ]


def summary_rows(content: ReportContent) -> list[BeamRow]:
    """One row for each beam, judged or without a dose, and one for the sum of all beams if compared."""
    verdict = content.verdict
    nothing = Cell(WORDS["nothing"])
    numbered = [(beam.beam_number, _beam_row(beam, verdict.criteria)) for beam in verdict.beams]
    for failed in verdict.failed_beams:
        state = Verdict.NOT_EVALUABLE
        cells = (Cell(WORDS["not_computed"], state), *([nothing] * 4))
        numbered.append((failed.beam_number, BeamRow(f"{failed.beam_number}", state, cells)))
    rows = [row for _, row in sorted(numbered, key=lambda pair: pair[0])]
    if verdict.plan_gammas:
        measures = {
            against: _gamma_cell(verdict.plan_gammas, against, verdict.criteria)
            for against in (SAME_ENGINE, PLANNING_SYSTEM)
        }
        state = worst(cell.verdict for cell in measures.values() if cell.verdict is not None)
        cells = (measures[SAME_ENGINE], measures[PLANNING_SYSTEM], *([nothing] * 3))
        rows.append(BeamRow(WORDS["all_beams"], state, cells))
    return rows


def worst_layer(account: BeamAccount, criteria: QaCriteria) -> LayerAccount | None:
    """The layer whose spots are furthest from where they should be, by the criteria."""

    def score(layer: LayerAccount) -> float:
        return max(
            abs(layer.x_mean_mm) / criteria.position_mean_mm,
            abs(layer.y_mean_mm) / criteria.position_mean_mm,
            layer.x_sd_mm / criteria.position_sd_mm,
            layer.y_sd_mm / criteria.position_sd_mm,
            layer.position_max_mm / criteria.position_max_mm,
        )

    known = [layer for layer in account.layers if layer.spots and math.isfinite(score(layer))]
    return max(known, key=score, default=None)


def headline_reasons(reasons: Sequence[str]) -> list[str]:
    """The first reasons, and how many more there are: a page's head must fit a page."""
    shown = [short(reason, 400) for reason in reasons[:MOST_REASONS]]
    if len(reasons) > MOST_REASONS:
        shown.append(WORDS["more_reasons"].format(count=len(reasons) - MOST_REASONS))
    return shown


def beam_label(number: int, name: str) -> str:
    """``Beam 2, 1G180:TX``."""
    return f"{WORDS['beam']} {number}" + (f", {short(name)}" if clean(name) else "")


def _beam_row(beam: BeamVerdict, criteria: QaCriteria) -> BeamRow:
    account = beam.account
    verdicts = {measure.kind: measure.verdict for measure in measure_beam(account, beam.gammas, criteria)}
    cells = (
        _gamma_cell(beam.gammas, SAME_ENGINE, criteria),
        _gamma_cell(beam.gammas, PLANNING_SYSTEM, criteria),
        Cell(f"{signed(account.mu_deviation_percent, 2)}\u00a0%", verdicts[MeasureKind.BEAM_MU]),
        Cell(_say_layer_mu(account, criteria), verdicts[MeasureKind.LAYER_MU]),
        Cell(_say_position(account, criteria), verdicts[MeasureKind.POSITION]),
    )
    return BeamRow(short(f"{beam.beam_number}\u00a0{beam.beam_name}", 60), beam.verdict, cells)


def _gamma_cell(gammas: Sequence[GammaFinding], against: str, criteria: QaCriteria) -> Cell:
    readings = [(gamma_reading(gamma, criteria)[0], gamma) for gamma in gammas if gamma.against == against]
    if not readings:
        return Cell(WORDS["nothing"], Verdict.NOT_EVALUABLE if against == SAME_ENGINE else None)
    verdict = worst(verdict for verdict, _ in readings)
    return Cell(
        number(next(gamma for kind, gamma in readings if kind is verdict).pass_rate_percent, "{:.1f}\u00a0%"),
        verdict,
    )


def _say_layer_mu(account: BeamAccount, criteria: QaCriteria) -> str:
    def rank(layer: LayerAccount) -> tuple[bool, float]:
        verdict = layer_verdicts(layer, criteria)[MeasureKind.LAYER_MU]
        return verdict is not Verdict.PASS, abs(layer.mu_deviation_percent)

    if not account.layers:
        return WORDS["nothing"]
    layer = max(account.layers, key=rank)
    return f"{signed(layer.mu_deviation_percent, 1)}\u00a0% ({WORDS['in_layer'].format(number=layer.number)})"


def _say_position(account: BeamAccount, criteria: QaCriteria) -> str:
    layer = worst_layer(account, criteria)
    if layer is None:
        return WORDS["nothing"]
    axis = "x" if abs(layer.x_mean_mm) >= abs(layer.y_mean_mm) else "y"
    return WORDS["position_cell"].format(
        axis=axis,
        mean=layer.x_mean_mm if axis == "x" else layer.y_mean_mm,
        maximum=layer.position_max_mm,
        layer=WORDS["in_layer"].format(number=layer.number),
    )


def signed(value: float, digits: int) -> str:
    """A figure with its sign; what rounds to nothing is +0, not -0."""
    return f"{round(value, digits) + 0.0:+.{digits}f}"


def number(value: float | None, form: str) -> str:
    """A figure, or a dash where there is none."""
    return WORDS["nothing"] if value is None or not math.isfinite(value) else form.format(value)
