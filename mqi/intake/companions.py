"""What belongs to a plan beside its logs: the CT it was made on, and the planning system's doses."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Set

from mqi.case import Frozen
from mqi.intake.dicom import CT, DOSE, Header
from mqi.plan import IonPlan

__all__ = ["Companions", "companions_of"]


class Companions(Frozen):
    """CT slices from foot to head and TPS doses of one plan, as paths relative to the case folder."""

    ct: tuple[str, ...] = ()
    beam_doses: tuple[tuple[int, str], ...] = ()
    plan_dose: str | None = None
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def companions_of(plan: IonPlan, headers: Iterable[Header], other_plans: Set[str]) -> Companions:
    """Find by content what belongs to the plan; what contradicts it is a problem, what is left out a warning.

    ``other_plans`` are the UIDs of the folder's other plans, whose doses are nothing to warn of.
    """
    intact = [header for header in headers if not header.damage]
    images = [header for header in intact if header.sop_class == CT]
    doses = [header for header in intact if header.sop_class == DOSE and header.plan_uid not in other_plans]
    problems = [
        f"{header.path} is of another patient than the plan"
        for header in images + doses
        if header.patient_id != plan.patient_id
    ]
    ct, ct_problems, ct_warnings = _ct(plan, images)
    by_beam, whole_plan, dose_problems, dose_warnings = _doses(plan, doses)
    return Companions(
        ct=ct,
        beam_doses=tuple(sorted(by_beam.items())),
        plan_dose=whole_plan,
        problems=tuple(_shortened(problems) + ct_problems + dose_problems),
        warnings=tuple(ct_warnings + dose_warnings),
    )


def _shortened(problems: list[str]) -> list[str]:
    """A misfiled CT has hundreds of slices: name the first and count the others."""
    return problems if len(problems) < 4 else [f"{problems[0]} (and {len(problems) - 1} more files)"]


def _ct(plan: IonPlan, images: list[Header]) -> tuple[tuple[str, ...], list[str], list[str]]:
    """The one CT series in the plan's frame of reference, its slices by height."""
    series: dict[str, list[Header]] = defaultdict(list)
    for image in images:
        series[image.series_uid].append(image)
    frame = plan.frame_of_reference_uid
    fitting = [slices for slices in series.values() if not frame or slices[0].frame_uid == frame]
    if len(fitting) > 1:
        names = ", ".join(sorted(slices[0].path for slices in fitting))
        return (), [f"{len(fitting)} CT series fit the plan (beginning with {names}): leave one"], []
    if not fitting:
        return (
            (),
            [],
            ["the CT is in another frame of reference than the plan: not used"] if series else [],
        )
    slices = fitting[0]
    if len({image.sop_uid for image in slices}) < len(slices):
        return (), ["the CT has the same slice more than once: remove the copies"], []
    ordered = sorted(slices, key=lambda image: (image.height_mm, image.path))
    return tuple(image.path for image in ordered), [], []


def _doses(plan: IonPlan, doses: list[Header]) -> tuple[dict[int, str], str | None, list[str], list[str]]:
    treatment = {beam.number for beam in plan.treatment_beams}
    by_beam: dict[int, str] = {}
    whole_plan: str | None = None
    problems: list[str] = []
    warnings: list[str] = []
    for dose in sorted(doses):
        if dose.plan_uid != plan.sop_uid:
            warnings.append(f"{dose.path} is a dose of another plan and is not compared")
        elif dose.summation == "PLAN" and whole_plan is None:
            whole_plan = dose.path
        elif dose.summation == "PLAN":
            problems.append(f"two TPS doses of the whole plan ({whole_plan}, {dose.path}): remove one")
        elif dose.summation != "BEAM" or len(dose.beam_numbers) != 1:
            warnings.append(f"{dose.path} is the dose neither of one beam nor of the plan: not compared")
        elif dose.beam_numbers[0] not in treatment:
            warnings.append(f"{dose.path} is a dose of beam {dose.beam_numbers[0]}, no treatment beam")
        elif dose.beam_numbers[0] in by_beam:
            known = by_beam[dose.beam_numbers[0]]
            problems.append(
                f"two TPS doses of beam {dose.beam_numbers[0]} ({known}, {dose.path}): remove one"
            )
        else:
            by_beam[dose.beam_numbers[0]] = dose.path
    return by_beam, whole_plan, problems, warnings
