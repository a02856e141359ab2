"""One look at a case folder: what it is, which fractions are whole, what the others wait for.

Nothing is hashed and no log is opened: sizes and times, the plan, PlanInfo, PlanRange and DICOM headers
say it all. The scanner, a manual run and the tests ask the same function.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mqi.case import Delivery, Frozen, case_key
from mqi.errors import ValidationError
from mqi.intake.companions import Companions, companions_of
from mqi.intake.finding import resolved_root
from mqi.intake.fitting import contradictions, lacking_files, range_warnings
from mqi.intake.grouping import FractionLook, chosen_fraction, fractions_of
from mqi.intake.reading import CaseContent, leads_inside, read_content, signature_of_files
from mqi.intake.rules import IntakeRules, files_below, is_text, marker_has_arrived, room_of_path
from mqi.plan import IonPlan, machine_room

__all__ = ["CaseLook", "is_settled", "look", "looks", "signature_of"]


class CaseLook(Frozen):
    """A case as one look found it.

    Attributes
    ----------
    folder
        Absolute path of the case folder.
    key, patient_id, plan_uid, plan, machine
        None until a plan is there that can be read; ``plan`` is its path relative to ``folder``.
    problems
        Why the case can never be computed as it is. A person must look.
    waiting_for
        What the case as a whole waits for; each fraction's own list repeats it.
    fractions
        By time; empty while there is no plan or no delivery.
    signature
        Digest over the names, sizes and times of all files of the folder, and the ready marker.
    """

    folder: str
    key: str | None
    patient_id: str | None
    plan_uid: str | None
    plan: str | None
    machine: str | None
    problems: tuple[str, ...]
    waiting_for: tuple[str, ...]
    fractions: tuple[FractionLook, ...]
    companions: Companions
    signature: str

    def fraction(self, fraction_id: str) -> FractionLook:
        """Return the fraction with this id. Raises KeyError when the case has none."""
        for fraction in self.fractions:
            if fraction.fraction_id == fraction_id:
                return fraction
        raise KeyError(fraction_id)


def look(
    case_folder: Path,
    root: Path,
    rules: IntakeRules,
    *,
    plan_uid: str | None = None,
    choose: Sequence[str] = (),
) -> CaseLook:
    """Look at one case.

    Parameters
    ----------
    case_folder, root
        A folder that find_case_folders gave, and the inbox in which it lies.
    plan_uid
        Which plan, in a folder that holds several; without it such a folder is refused.
    choose
        Delivery ids that a person decided to be the fraction. The look then has this one fraction.

    Raises
    ------
    ValidationError
        The folder is not below the inbox, or holds no plan with ``plan_uid``.
    """
    found = looks(case_folder, root, rules, choose=choose)
    if plan_uid is not None:
        for one in found:
            if one.plan_uid == plan_uid:
                return one
        raise ValidationError(f"the folder holds no plan {plan_uid}", path=case_folder)
    if len(found) == 1:
        return found[0]
    names = ", ".join(f"{one.plan} ({one.plan_uid})" for one in found)
    return found[0].model_copy(
        update={
            "key": None,
            "patient_id": None,
            "plan_uid": None,
            "plan": None,
            "fractions": (),
            "problems": (f"the folder holds {len(found)} plans, say which is meant: {names}",),
        }
    )


def looks(
    case_folder: Path, root: Path, rules: IntakeRules, *, choose: Sequence[str] = ()
) -> tuple[CaseLook, ...]:
    """Look at all cases of a folder: one for each plan, or one without a key while there is no plan."""
    inbox, path = _checked(case_folder, root)
    folder = read_content(path, inbox, rules)
    if not folder.plans:
        waiting = (
            folder.waiting_for if folder.problems else ("no RT Ion Plan has arrived", *folder.waiting_for)
        )
        fractions = tuple(a.waiting_for for a in folder.arriving)
        return (_without_plan(folder, waiting + fractions),)
    return tuple(_look_at(plan_path, folder, inbox, rules, choose) for plan_path in sorted(folder.plans))


def is_settled(first: CaseLook, second: CaseLook) -> bool:
    """Whether two looks, taken at least ``settle_s`` apart, saw the very same files."""
    return (first.folder, first.plan_uid, first.signature) == (
        second.folder,
        second.plan_uid,
        second.signature,
    )


def signature_of(case_folder: Path, root: Path, rules: IntakeRules) -> str:
    """The signature that a look would have, without reading a single file."""
    inbox, path = _checked(case_folder, root)
    return signature_of_files(files_below(path, rules), marker_has_arrived(path, inbox, rules))


def _checked(case_folder: Path, root: Path) -> tuple[Path, Path]:
    inbox = resolved_root(root)
    path = case_folder.resolve()
    if not is_text(str(path)):
        raise ValidationError(f"the name {path.name!a} is not UTF-8", todo="Rename the folder")
    if path == inbox or not path.is_relative_to(inbox) or not path.is_dir():
        raise ValidationError(
            f"is no case folder below {root}", path=case_folder, todo="Name a folder that lies in the inbox"
        )
    return inbox, path


def _without_plan(folder: CaseContent, waiting: tuple[str, ...]) -> CaseLook:
    return CaseLook(
        folder=str(folder.path),
        key=None,
        patient_id=None,
        plan_uid=None,
        plan=None,
        machine=None,
        problems=folder.problems,
        waiting_for=waiting,
        fractions=(),
        companions=Companions(),
        signature=folder.signature,
    )


def _look_at(
    plan_path: str, folder: CaseContent, inbox: Path, rules: IntakeRules, choose: Sequence[str]
) -> CaseLook:
    plan = folder.plans[plan_path]
    problems = list(folder.problems)
    machine = machine_room(plan.machine)
    path_room = room_of_path(folder.path, inbox)
    if path_room not in (None, machine):
        problems.append(f"the folder lies in {path_room}, the plan is for {machine}")
    own, misfits = _assigned(plan, folder, rules)
    problems += misfits
    others = {other.sop_uid for other in folder.plans.values()} - {plan.sop_uid}
    companions = companions_of(plan, folder.headers, others)
    problems += companions.problems
    problems += [f"{path} is a link: copy the file itself" for path in _linked_logs(own, folder)]
    unknown = [name for name in choose if name not in {delivery.id for delivery in own}]
    if unknown:
        problems.append(f"the case has no readable delivery {', '.join(unknown)}")
    return CaseLook(
        folder=str(folder.path),
        key=case_key(plan.patient_id, plan.sop_uid),
        patient_id=plan.patient_id,
        plan_uid=plan.sop_uid,
        plan=plan_path,
        machine=machine,
        problems=tuple(problems),
        waiting_for=folder.waiting_for
        if own or folder.arriving
        else ("no delivery has arrived", *folder.waiting_for),
        fractions=() if unknown else _fractions(plan, own, folder, rules, choose, bool(problems)),
        companions=companions,
        signature=folder.signature,
    )


def _assigned(
    plan: IonPlan, folder: CaseContent, rules: IntakeRules
) -> tuple[tuple[Delivery, ...], list[str]]:
    """This plan's deliveries, and those that are nobody's or anybody's.

    With one plan in the folder every delivery must be its own. With several each delivery must fit
    exactly one.
    """
    own: list[Delivery] = []
    problems: list[str] = []
    for delivery in folder.deliveries:
        against = {path: contradictions(delivery, other, rules) for path, other in folder.plans.items()}
        fitting = [path for path, reasons in against.items() if not reasons]
        if len(against) == 1:
            (reasons,) = against.values()
            problems += reasons
            own.append(delivery)
        elif not fitting:
            problems.append(f"delivery {delivery.id} fits none of the {len(against)} plans of the folder")
        elif len(fitting) > 1:
            problems.append(
                f"delivery {delivery.id} fits several plans ({', '.join(fitting)}): keep them apart"
            )
        elif folder.plans[fitting[0]] is plan:
            own.append(delivery)
    return tuple(own), problems


def _linked_logs(deliveries: Sequence[Delivery], folder: CaseContent) -> list[str]:
    named = (
        f"{d.folder}/{name}" for d in deliveries for layer in d.layers for name in (layer.ptn, layer.mgn)
    )
    links = (path for path in named if path in folder.seen and folder.seen[path].is_link)
    return [path for path in links if leads_inside(folder.path, path)]


def _fractions(
    plan: IonPlan,
    deliveries: tuple[Delivery, ...],
    folder: CaseContent,
    rules: IntakeRules,
    choose: Sequence[str],
    refused: bool,
) -> tuple[FractionLook, ...]:
    counts = {beam.number: len(beam.layers) for beam in plan.treatment_beams}
    lacking = {delivery.id: lacking_files(delivery, folder.seen) for delivery in deliveries}
    if choose:
        found: tuple[FractionLook, ...] = (
            chosen_fraction(
                deliveries, choose, layer_counts=counts, gap_h=rules.session_gap_h, lacking=lacking
            ),
        )
    else:
        found = fractions_of(
            deliveries, folder.arriving, layer_counts=counts, gap_h=rules.session_gap_h, lacking=lacking
        )
    return tuple(
        fraction.model_copy(
            update={
                "whole": fraction.whole and not folder.waiting_for and not refused,
                "waiting_for": fraction.waiting_for + folder.waiting_for,
                "warnings": fraction.warnings
                + tuple(w for d in fraction.deliveries for w in range_warnings(d)),
            }
        )
        for fraction in found
    )
