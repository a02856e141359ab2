"""The verdict: measures against limits, beam by beam, in words that a physicist reads.

Every measure gives PASS (within tolerance), ACTION (beyond tolerance, within the action limit: a
physicist looks) or FAIL, as AAPM TG-218 (Miften et al., Med. Phys. 45, 2018) divides them. A measure
that could not be taken gives NOT_EVALUABLE, never a pass. The worst measure is the beam's verdict, the
worst beam (or sum of beams) is the case's.

What decides: the gamma of the dose from the log against the dose from the plan, both through the same
engine; the gamma against the planning system's dose, where there is one; each layer's spot positions
and meterset; the beam's meterset.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from mqi.case import DoseSource, Frozen, Verdict, worst
from mqi.criteria import PLANNING_SYSTEM, SAME_ENGINE, GammaFinding, QaCriteria, gamma_finding
from mqi.errors import ValidationError
from mqi.log.account import BeamAccount
from mqi.measures import Measure, MeasureKind, gamma_reading, layer_verdicts, measure_beam, ranges

__all__ = [
    "PLANNING_SYSTEM",
    "SAME_ENGINE",
    "BeamVerdict",
    "FailedBeam",
    "GammaFinding",
    "Measure",
    "MeasureKind",
    "QaCriteria",
    "QaVerdict",
    "gamma_finding",
    "gamma_reading",
    "judge_beam",
    "judge_case",
    "layer_verdicts",
    "measure_beam",
]

_WORST_FIRST = (Verdict.FAIL, Verdict.NOT_EVALUABLE, Verdict.ACTION)
_ASSUMPTIONS = (
    "Dose from the log and dose from the plan come from the same engine: an error that the engine makes "
    "alike in both (beam model, stopping powers) cannot show in this comparison.",
    "Delivered MU and positions are what the machine's own monitors logged: an error of the monitors or of "
    "their calibration cannot show.",
    "The dose is computed in the planning CT or in water: the patient's position and anatomy on the day of "
    "treatment are not considered.",
)


class BeamVerdict(Frozen):
    """What is said of one beam. ``reasons`` holds what is not within tolerance, the worst first."""

    beam_number: int
    beam_name: str
    verdict: Verdict
    reasons: tuple[str, ...]
    account: BeamAccount
    gammas: tuple[GammaFinding, ...]


class FailedBeam(Frozen):
    """A beam without a dose, and why."""

    beam_number: int
    reason: str


class QaVerdict(Frozen):
    """What is said of a fraction of a case, by which criteria, and what nobody looked at.

    ``reasons`` names the beams without a dose first, then what is not within tolerance, the worst first.
    """

    verdict: Verdict
    reasons: tuple[str, ...]
    beams: tuple[BeamVerdict, ...]
    plan_gammas: tuple[GammaFinding, ...]
    criteria: QaCriteria
    failed_beams: tuple[FailedBeam, ...] = ()
    assumptions: tuple[str, ...] = ()
    not_evaluated: tuple[str, ...] = ()


def judge_beam(account: BeamAccount, gammas: Sequence[GammaFinding], criteria: QaCriteria) -> BeamVerdict:
    """Judge one beam by all its measures. The worst one decides.

    Raises ValidationError when the account is not that of a log: a plan always agrees with itself.
    """
    if account.source is not DoseSource.LOG:
        raise ValidationError(
            "the account to be judged is that of the plan, not of the log",
            beam=account.beam_number,
            todo="Interpret the beam's log and judge that account.",
        )
    measures = measure_beam(account, gammas, criteria)
    said = [reason for measure in measures for reason in measure.reasons]
    return BeamVerdict(
        beam_number=account.beam_number,
        beam_name=account.beam_name,
        verdict=worst(measure.verdict for measure in measures),
        reasons=tuple(text for verdict in _WORST_FIRST for kind, text in said if kind is verdict),
        account=account,
        gammas=tuple(gammas),
    )


def judge_case(
    beams: Sequence[BeamVerdict],
    plan_gammas: Sequence[GammaFinding],
    criteria: QaCriteria,
    failed_beams: Mapping[int, str] | None = None,
) -> QaVerdict:
    """Judge a fraction: the worst beam, or the sum of the beams, decides.

    Parameters
    ----------
    plan_gammas
        Comparisons of the sum of all beams. May be empty: then the beams alone decide.
    failed_beams
        Beam number -> why it has no dose. Such a case is at best NOT_EVALUABLE, never a pass.

    Raises
    ------
    ValidationError
        A beam stands twice, or both judged and failed.
    """
    failed = dict(failed_beams or {})
    numbers = [beam.beam_number for beam in beams] + list(failed)
    for number in sorted({number for number in numbers if numbers.count(number) > 1}):
        raise ValidationError("the beam is to be judged twice", beam=number, todo="Judge each beam once.")
    missing = [f"Beam {number}: no dose was computed: {why}" for number, why in sorted(failed.items())]
    said: list[tuple[Verdict, str]] = []
    for beam in beams:
        said += [(beam.verdict, f"Beam {beam.beam_number} ({beam.beam_name}): {why}") for why in beam.reasons]
    total = [gamma_reading(gamma, criteria) for gamma in plan_gammas]
    said += [(verdict, f"All beams together: {why}") for verdict, why in total if verdict is not Verdict.PASS]
    if not beams and not failed:
        said.append((Verdict.NOT_EVALUABLE, "No beam was judged"))
    verdicts = [beam.verdict for beam in beams] + [verdict for verdict, _ in total]
    if failed or not beams:
        verdicts.append(Verdict.NOT_EVALUABLE)
    return QaVerdict(
        verdict=worst(verdicts),
        reasons=(*missing, *(text for verdict in _WORST_FIRST for kind, text in said if kind is verdict)),
        beams=tuple(beams),
        plan_gammas=tuple(plan_gammas),
        criteria=criteria,
        failed_beams=tuple(FailedBeam(beam_number=n, reason=why) for n, why in sorted(failed.items())),
        assumptions=_ASSUMPTIONS,
        not_evaluated=tuple(_not_evaluated(beams, plan_gammas, failed)),
    )


def _not_evaluated(
    beams: Sequence[BeamVerdict], plan_gammas: Sequence[GammaFinding], failed: Mapping[int, str]
) -> Iterator[str]:
    for number in sorted(failed):
        yield f"Beam {number}: nothing, it has no dose"
    alone = [
        beam.beam_number for beam in beams if all(gamma.against != PLANNING_SYSTEM for gamma in beam.gammas)
    ]
    if alone:
        which = f"Beam {alone[0]}" if len(alone) == 1 else f"Beams {ranges(alone)}"
        yield f"{which}: the comparison with the planning system, which sent no dose in the same medium"
    if len(beams) > 1 and not plan_gammas:
        yield "The sum of all beams was not compared"
